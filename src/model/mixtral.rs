//! The sparse mixture of experts of Mixtral (Jiang et al. 2024): softmax over all experts, the top k renormalised.

use super::block::{Linear, Mlp, Tap, Wanted};
use crate::Result;
use candle_core::{D, DType, Tensor};

/// Router and experts of one block.
#[derive(Clone, Debug)]
pub(crate) struct Mixture {
    pub(crate) router: Linear, // (experts, hidden)
    pub(crate) experts: Vec<Mlp>,
    pub(crate) top_k: usize,
}

/// The indices of the `k` largest, largest first, ties by position.
fn top_k(values: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

impl Mixture {
    /// `x (batch, seq, hidden)`, normed. Each expert runs once, over the tokens routed to it.
    pub(crate) fn forward(&self, x: &Tensor, tap: &mut dyn Tap, wanted: Wanted) -> Result<Option<Tensor>> {
        let (batch, seq, hidden) = x.dims3()?;
        let tokens = batch * seq;
        let x = x.reshape((tokens, hidden))?;
        let logits = self.router.forward(&x)?.to_dtype(DType::F32)?; // (tokens, experts)
        // Composed of operators that can be differentiated; experts are few.
        let probs = candle_nn::ops::softmax(&logits, D::Minus1)?;
        let chosen: Vec<Vec<u32>> = probs.to_vec2::<f32>()?.iter().map(|row| top_k(row, self.top_k)).collect();
        tap.router(&probs, &chosen)?;

        let flat: Vec<u32> = chosen.concat();
        let index = Tensor::from_vec(flat, (tokens, self.top_k), x.device())?;
        let weights = probs.gather(&index, D::Minus1)?; // (tokens, top_k)
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.flatten_all()?.to_dtype(x.dtype())?;

        let mut out = Tensor::zeros((tokens, hidden), x.dtype(), x.device())?;
        for (expert, mlp) in self.experts.iter().enumerate() {
            let mut rows = Vec::new(); // tokens of this expert
            let mut slots = Vec::new(); // and where their weights stand
            for (token, chosen) in chosen.iter().enumerate() {
                if let Some(slot) = chosen.iter().position(|&other| other as usize == expert) {
                    rows.push(token as u32);
                    slots.push((token * self.top_k + slot) as u32);
                }
            }
            if rows.is_empty() {
                continue;
            }
            let count = rows.len();
            let rows = Tensor::from_vec(rows, count, x.device())?;
            let slots = Tensor::from_vec(slots, count, x.device())?;
            let y = mlp.forward(&x.index_select(&rows, 0)?, tap, wanted)?; // (count, hidden)
            if let Some(y) = y {
                let weight = weights.index_select(&slots, 0)?.unsqueeze(1)?;
                out = out.index_add(&rows, &y.broadcast_mul(&weight)?, 0)?;
            }
        }
        match wanted {
            Wanted::Output => Ok(Some(out.reshape((batch, seq, hidden))?)),
            Wanted::Taps => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn top_k_breaks_ties_by_position() {
        assert_eq!(super::top_k(&[0.1, 0.4, 0.4, 0.1], 3), [1, 2, 0]);
    }
}
