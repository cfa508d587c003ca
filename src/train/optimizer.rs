//! AdamW (Loshchilov & Hutter 2019) over candle variables. candle-nn's keeps its moments to itself, and a run that can be
//! resumed needs them.

use super::TrainConfig;
use crate::error::Result;
use candle_core::{Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.95;
const EPSILON: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.1;
const CLIP_NORM: f64 = 1.0;
const INITIAL_STD: f64 = 0.02;

/// First and second moments, flat, in the order of the variables.
pub(super) struct AdamW {
    pub(super) first: Vec<Vec<f32>>,
    pub(super) second: Vec<Vec<f32>>,
}

impl AdamW {
    pub(super) fn new(vars: &[Var]) -> Self {
        let zeros = || vars.iter().map(|var| vec![0.0; var.elem_count()]).collect();
        AdamW { first: zeros(), second: zeros() }
    }

    /// Clips the gradients together to norm 1 and moves the variables. `step` counts from 1.
    pub(super) fn step(&mut self, vars: &[Var], gradients: &mut [Vec<f32>], rate: f64, step: usize) -> Result<()> {
        let squares: Vec<f64> =
            gradients.par_iter().map(|gradient| gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum()).collect();
        let norm = squares.iter().sum::<f64>().sqrt();
        let clip = if norm > CLIP_NORM { (CLIP_NORM / norm) as f32 } else { 1.0 };
        let power = |beta: f64| 1.0 - beta.powi(step as i32);
        let (rate1, scale2) = ((rate / power(BETA1)) as f32, (1.0 / power(BETA2)) as f32);
        let (beta1, beta2, epsilon) = (BETA1 as f32, BETA2 as f32, EPSILON as f32);
        let moments = self.first.par_iter_mut().zip(&mut self.second);
        vars.par_iter().zip(&*gradients).zip(moments).try_for_each(|((var, gradient), (first, second))| {
            // Norm weights are vectors, and are not decayed.
            let keep = if var.rank() > 1 { (1.0 - rate * WEIGHT_DECAY) as f32 } else { 1.0 };
            let mut weights = var.flatten_all()?.to_vec1::<f32>()?;
            let moments = first.iter_mut().zip(second);
            for ((weight, &gradient), (first, second)) in weights.iter_mut().zip(gradient).zip(moments) {
                let gradient = gradient * clip;
                *first = beta1 * *first + (1.0 - beta1) * gradient;
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                *weight = *weight * keep - rate1 * *first / ((*second * scale2).sqrt() + epsilon);
            }
            Ok(var.set(&Tensor::from_vec(weights, var.shape(), &Device::Cpu)?)?)
        })
    }
}

/// Learning rate of the step after `done` steps: linear warm-up, then half a cosine from the peak to a tenth of it.
pub(super) fn learning_rate(config: &TrainConfig, done: usize) -> f64 {
    if done < config.warmup {
        return config.learning_rate * (done + 1) as f64 / config.warmup as f64;
    }
    let way = (done - config.warmup) as f64 / (config.steps - config.warmup).max(1) as f64;
    config.learning_rate * (0.55 + 0.45 * (std::f64::consts::PI * way).cos())
}

/// Weights to start from: norms are 1, everything else normal with standard deviation 0.02, and `1/sqrt(2 layers)` of that
/// where a layer writes to the residual stream (GPT-2's rule).
pub(super) fn initial(names: &[String], shapes: &[Vec<usize>], layers: usize, seed: u64) -> Result<Vec<Var>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let make = |(name, shape): (&String, &Vec<usize>)| {
        let count = shape.iter().product();
        let residual = ["o_proj.weight", "down_proj.weight", "w2.weight"].iter().any(|end| name.ends_with(end));
        let std = if residual { INITIAL_STD / (2.0 * layers as f64).sqrt() } else { INITIAL_STD };
        let values: Vec<f32> = if shape.len() == 1 {
            vec![1.0; count]
        } else {
            (0..count).map(|_| (normal(&mut rng) * std) as f32).collect()
        };
        Ok(Var::from_vec(values, shape.as_slice(), &Device::Cpu)?)
    };
    names.iter().zip(shapes).map(make).collect()
}

/// Box and Muller's transform, one value of the two.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    // (0, 1], so that the logarithm is finite.
    let mut unit = || ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let radius = (-2.0 * unit().ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * unit()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_nn::{Optimizer, ParamsAdamW};

    #[test]
    fn adamw_equals_candles_while_nothing_is_clipped() {
        let start = [0.3f32, -0.2, 0.5, 1.0];
        let ours = Var::from_slice(&start, (2, 2), &Device::Cpu).unwrap();
        let theirs = Var::from_slice(&start, (2, 2), &Device::Cpu).unwrap();
        let params = ParamsAdamW { lr: 0.01, beta1: BETA1, beta2: BETA2, eps: EPSILON, weight_decay: WEIGHT_DECAY };
        let mut reference = candle_nn::AdamW::new(vec![theirs.clone()], params).unwrap();
        let mut adamw = AdamW::new(std::slice::from_ref(&ours));
        let target = Tensor::new(&[[0.25f32, -0.1, 0.4, 0.9]], &Device::Cpu).unwrap().reshape((2, 2)).unwrap();
        for step in 1..=20 {
            let gradients =
                |var: &Var| (var.as_tensor() - &target).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let flat = gradients(&ours).get(&ours).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            adamw.step(std::slice::from_ref(&ours), &mut [flat], 0.01, step).unwrap();
            reference.step(&gradients(&theirs)).unwrap();
        }
        let (ours, theirs) = (ours.to_vec2::<f32>().unwrap().concat(), theirs.to_vec2::<f32>().unwrap().concat());
        assert_ne!(ours, start);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-6, "{ours} {theirs}");
        }
    }

    #[test]
    fn gradients_are_clipped_together() {
        let vars = [0.0f32, 0.0].map(|x| Var::from_slice(&[x], 1, &Device::Cpu).unwrap());
        let mut adamw = AdamW::new(&vars);
        adamw.step(&vars, &mut [vec![30.0], vec![40.0]], 0.1, 1).unwrap();
        let first: Vec<f32> = adamw.first.concat();
        assert!((first[0] - 0.06).abs() < 1e-6 && (first[1] - 0.08).abs() < 1e-6, "a tenth of (0.6, 0.8): {first:?}");
    }

    #[test]
    fn initial_weights_have_the_spread_they_should() {
        let names = ["model.layers.0.self_attn.o_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
            .map(String::from);
        let vars = initial(&names, &[vec![64, 64], vec![64, 64], vec![64]], 8, 3).unwrap();
        let std = |var: &Var| {
            let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt()
        };
        assert!((std(&vars[0]) / 0.005 - 1.0).abs() < 0.05 && (std(&vars[1]) / 0.02 - 1.0).abs() < 0.05);
        assert_eq!(vars[2].to_vec1::<f32>().unwrap(), [1.0; 64]);
    }
}
