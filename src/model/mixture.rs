//! The sparse mixture of experts: a router scores the experts, the top k of each token run, and their outputs are added,
//! weighted by the router's probabilities (Shazeer et al. 2017; Jiang et al. 2024).

use super::linear::{ExpertOutput, Linear, Mlp, Tap, Wanted};
use super::stacked::Stacked;
use crate::error::Result;
use candle_core::{D, DType, Tensor};

/// Router and experts of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Mixture {
    pub(crate) router: Linear, // (experts, hidden)
    pub(crate) experts: ExpertWeights,
    pub(crate) shared: Option<Shared>,
    pub(crate) top_k: usize,
    /// True if the weights of a token's experts sum to one.
    pub(crate) norm_topk_prob: bool,
}

/// The routed experts.
#[derive(Clone, Debug)]
pub(crate) enum ExpertWeights {
    Separate(Vec<Mlp>),
    Stacked(Stacked),
}

/// The expert that every token passes through, scaled by a gate of its own: `sigmoid(gate(x)) * mlp(x)`.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) mlp: Mlp,
    pub(crate) gate: Linear, // (1, hidden)
}

/// The indices of the `k` largest, largest first, ties by position.
fn top_k(values: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

impl ExpertWeights {
    fn len(&self) -> usize {
        match self {
            ExpertWeights::Separate(experts) => experts.len(),
            ExpertWeights::Stacked(experts) => experts.len(),
        }
    }

    /// `x (tokens, hidden)` through one expert.
    fn forward(&self, expert: usize, x: &Tensor, tap: &mut dyn Tap, wanted: Wanted) -> Result<Option<Tensor>> {
        match self {
            ExpertWeights::Separate(experts) => experts[expert].forward(x, tap, wanted),
            ExpertWeights::Stacked(experts) => experts.forward(expert, x, tap, wanted),
        }
    }
}

impl Mixture {
    /// The linears of experts and of the shared one that are not packed, in the order in which they run.
    pub(crate) fn linears(&self) -> Vec<&Linear> {
        let mut linears: Vec<&Linear> = match &self.experts {
            ExpertWeights::Separate(experts) => experts.iter().flat_map(Mlp::linears).collect(),
            ExpertWeights::Stacked(experts) => experts.linears().collect(),
        };
        linears.extend(self.shared.iter().flat_map(|shared| shared.mlp.linears()));
        linears
    }

    /// As [`Mixture::linears`], to be changed.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears: Vec<&mut Linear> = match &mut self.experts {
            ExpertWeights::Separate(experts) => experts.iter_mut().flat_map(Mlp::linears_mut).collect(),
            ExpertWeights::Stacked(experts) => experts.linears_mut().collect(),
        };
        linears.extend(self.shared.iter_mut().flat_map(|shared| shared.mlp.linears_mut()));
        linears
    }

    /// `x (batch, seq, hidden)`, normed. Each expert runs once, over the tokens routed to it.
    pub(crate) fn forward(&self, x: &Tensor, tap: &mut dyn Tap, wanted: Wanted) -> Result<Option<Tensor>> {
        let (batch, seq, hidden) = x.dims3()?;
        let tokens = batch * seq;
        let x = x.reshape((tokens, hidden))?;
        let logits = self.router.forward(&x)?.to_dtype(DType::F32)?; // (tokens, experts)
        // Composed of operators that can be differentiated; experts are few.
        let probs = candle_nn::ops::softmax(&logits, D::Minus1)?;
        let chosen: Vec<Vec<u32>> = logits.to_vec2::<f32>()?.iter().map(|row| top_k(row, self.top_k)).collect();
        tap.router(&probs, &chosen)?;

        let flat: Vec<u32> = chosen.concat();
        let index = Tensor::from_vec(flat, (tokens, self.top_k), x.device())?;
        let mut weights = probs.gather(&index, D::Minus1)?; // (tokens, top_k)
        if self.norm_topk_prob {
            weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        }
        let weights = weights.flatten_all()?.to_dtype(x.dtype())?;

        let mut out = Tensor::zeros((tokens, hidden), x.dtype(), x.device())?;
        for expert in 0..self.experts.len() {
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
            let index = Tensor::from_slice(&rows, count, x.device())?;
            let slots = Tensor::from_vec(slots, count, x.device())?;
            let y = self.experts.forward(expert, &x.index_select(&index, 0)?, tap, wanted)?; // (count, hidden)
            if let Some(y) = y {
                let weights = weights.index_select(&slots, 0)?;
                tap.expert(&ExpertOutput { expert, tokens: &rows, weights: &weights, output: &y })?;
                out = out.index_add(&index, &y.broadcast_mul(&weights.unsqueeze(1)?)?, 0)?;
            }
        }
        if let Some(shared) = &self.shared
            && let Some(y) = shared.mlp.forward(&x, tap, wanted)?
        {
            let gate = candle_nn::ops::sigmoid(&shared.gate.forward(&x)?)?; // (tokens, 1)
            out = (out + y.broadcast_mul(&gate)?)?;
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
