//! The load-balancing loss of a mixture.

use crate::error::Result;
use crate::model::{Linear, Tap};
use candle_core::{DType, Tensor};

/// A tap that keeps the routers' probabilities and counts the choices, layer by layer.
#[derive(Default)]
pub(super) struct Routing {
    probabilities: Vec<Tensor>, // (tokens, experts)
    counts: Vec<Vec<u64>>,      // per layer, per expert
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

    /// Per layer, the share of choices that each expert got.
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
/// layers. It is `top_k` when the load is even. `None` without a mixture.
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
    use candle_core::Device;

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
