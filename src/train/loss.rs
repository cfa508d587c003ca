//! Cross entropy in one pass, and the load-balancing loss of a mixture.

use crate::Result;
use crate::model::{Linear, Tap};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result as CandleResult, Shape, Tensor, bail};
use rayon::prelude::*;

/// Mean of `-log softmax(logits)[target]` over the rows. candle's is composed of some twenty passes over
/// `(tokens, vocab)`; this makes one forward and one backward.
struct CrossEntropy {
    targets: Vec<u32>,
}

/// `ln(sum(exp(row)))`
fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let sum: f64 = row.iter().map(|&x| f64::from((x - max).exp())).sum();
    f64::from(max) + sum.ln()
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
pub(super) fn cross_entropy(logits: &Tensor, targets: Vec<u32>) -> Result<Tensor> {
    Ok(logits.contiguous()?.apply_op1(CrossEntropy { targets })?)
}

/// A tap that keeps the routers' probabilities and counts the choices, block by block.
#[derive(Default)]
pub(super) struct Routing {
    probabilities: Vec<Tensor>, // (tokens, experts)
    counts: Vec<Vec<u64>>,      // per block, per expert
}

impl Tap for Routing {
    fn input(&mut self, _: &[&Linear], _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn router(&mut self, probabilities: &Tensor, chosen: &[Vec<u32>]) -> Result<()> {
        let (_, experts) = probabilities.dims2()?;
        let mut counts = vec![0; experts];
        for &expert in chosen.iter().flatten() {
            counts[expert as usize] += 1;
        }
        self.probabilities.push(probabilities.clone());
        self.counts.push(counts);
        Ok(())
    }
}

impl Routing {
    /// Adds another pass's counts.
    pub(super) fn add(&mut self, other: &Routing) {
        self.counts.resize(self.counts.len().max(other.counts.len()), Vec::new());
        for (sum, counts) in self.counts.iter_mut().zip(&other.counts) {
            sum.resize(sum.len().max(counts.len()), 0);
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }

    /// Per block, the share of choices that each expert got.
    pub(super) fn shares(&self) -> Vec<Vec<f64>> {
        let share = |counts: &Vec<u64>| {
            let total = counts.iter().sum::<u64>().max(1) as f64;
            counts.iter().map(|&count| count as f64 / total).collect()
        };
        self.counts.iter().map(share).collect()
    }
}

/// The load-balancing loss of Switch Transformers (Fedus et al. 2021), as Mixtral uses it: `experts * sum(f_e * p_e)`,
/// where `f_e` is the number of times that expert `e` was chosen per token and `p_e` its mean probability; the mean over
/// blocks. It is `top_k` when the load is even. `None` without a mixture.
pub(super) fn balance(routing: &Routing) -> Result<Option<Tensor>> {
    let mut sum: Option<Tensor> = None;
    for (probabilities, counts) in routing.probabilities.iter().zip(&routing.counts) {
        let (tokens, experts) = probabilities.dims2()?;
        let scale = experts as f64 / tokens as f64 / routing.counts.len() as f64;
        let chosen: Vec<f32> = counts.iter().map(|&count| (count as f64 * scale) as f32).collect();
        let chosen = Tensor::from_vec(chosen, experts, probabilities.device())?;
        let loss = (probabilities.mean(0)? * chosen)?.sum_all()?.to_dtype(DType::F32)?;
        sum = Some(match sum {
            Some(sum) => (sum + loss)?,
            None => loss,
        });
    }
    Ok(sum)
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

    #[test]
    fn balance_is_top_k_when_even_and_more_when_not() {
        let mut even = Routing::default();
        let uniform = Tensor::full(0.25f32, (4, 4), &Device::Cpu).unwrap();
        even.router(&uniform, &[vec![0, 1], vec![2, 3], vec![1, 2], vec![3, 0]]).unwrap();
        assert_eq!(balance(&even).unwrap().unwrap().to_scalar::<f32>().unwrap(), 2.0);

        let mut skewed = Routing::default();
        let towards = Tensor::new(&[[0.4f32, 0.4, 0.1, 0.1]; 4], &Device::Cpu).unwrap();
        skewed.router(&towards, &vec![vec![0, 1]; 4]).unwrap();
        let loss = balance(&skewed).unwrap().unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 3.2).abs() < 1e-6, "4 * (1 * 0.4 + 1 * 0.4), but {loss}");
        assert!(balance(&Routing::default()).unwrap().is_none());
    }
}
