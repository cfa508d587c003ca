//! Cross entropy in one pass.

use super::ops::log_sum_exp;
use crate::error::Result;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result as CandleResult, Shape, Tensor, bail};
use rayon::prelude::*;

/// Mean of `-log softmax(logits)[target]` over the rows. candle's is composed of some twenty passes over
/// `(tokens, vocab)`; this makes one forward and one backward.
struct CrossEntropy {
    targets: Vec<u32>,
}

fn row_nll(row: &[f32], target: u32) -> CandleResult<f64> {
    match row.get(target as usize) {
        Some(&logit) => Ok(log_sum_exp(row) - f64::from(logit)),
        None => bail!("token id {target} is not below the vocabulary's {}", row.len()),
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (rows, vocab) = layout.shape().dims2()?;
        let (Some((start, end)), CpuStorage::F32(logits)) = (layout.contiguous_offsets(), storage) else {
            bail!("cross entropy takes contiguous f32 logits")
        };
        if rows != self.targets.len() {
            bail!("{rows} rows of logits, {} targets", self.targets.len())
        }
        let rows = logits[start..end].par_chunks(vocab).zip(&self.targets);
        let nll = rows.map(|(row, &target)| row_nll(row, target)).collect::<CandleResult<Vec<f64>>>()?;
        // Summed in order, not as threads finish.
        let mean = nll.iter().sum::<f64>() / nll.len().max(1) as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let scale = grad.to_scalar::<f32>()? / self.targets.len().max(1) as f32;
        let (rows, vocab) = logits.dims2()?;
        let mut out = logits.flatten_all()?.to_vec1::<f32>()?;
        out.par_chunks_mut(vocab).zip(&self.targets).for_each(|(row, &target)| {
            let log_sum = log_sum_exp(row) as f32;
            row.iter_mut().for_each(|x| *x = (*x - log_sum).exp() * scale);
            row[target as usize] -= scale;
        });
        Ok(Some(Tensor::from_vec(out, (rows, vocab), &Device::Cpu)?))
    }
}

/// Mean cross entropy, a scalar, of `logits (tokens, vocab)`; differentiable.
pub(crate) fn cross_entropy(logits: &Tensor, targets: Vec<u32>) -> Result<Tensor> {
    Ok(logits.contiguous()?.apply_op1(CrossEntropy { targets })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn cross_entropy_and_its_gradient_equal_candles() {
        let values: Vec<f32> = (0..30).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        let logits = Var::from_vec(values, (5, 6), &Device::Cpu).unwrap();
        let targets = vec![0u32, 5, 2, 2, 3];
        let ours = cross_entropy(&logits, targets.clone()).unwrap();
        let theirs = candle_nn::loss::cross_entropy(&logits, &Tensor::new(targets.as_slice(), &Device::Cpu).unwrap());
        let theirs = theirs.unwrap();
        let scalar = |t: &Tensor| t.to_scalar::<f32>().unwrap();
        assert!((scalar(&ours) - scalar(&theirs)).abs() < 1e-5);

        let gradient = |loss: Tensor| (loss * 3.0).unwrap().backward().unwrap().get(&logits).unwrap().clone();
        let difference = (gradient(ours) - gradient(theirs)).unwrap().abs().unwrap().max_all().unwrap();
        assert!(scalar(&difference) < 1e-6);
        assert!(cross_entropy(&logits, vec![0, 1, 2, 3, 6]).is_err(), "an id outside the vocabulary");
    }
}
