//! Rotary position tables for every scaling that Hugging Face's `modeling_rope_utils` computes.

use super::config::{ModelConfig, RopeScaling};
use std::f64::consts::PI;
use std::sync::Arc;

/// `cos` and `sin`, each `(positions, head_dim / 2)` row-major.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    pub(crate) cos: Arc<Vec<f32>>,
    pub(crate) sin: Arc<Vec<f32>>,
}

impl Rope {
    /// The tables for sequences of `positions` tokens.
    pub(crate) fn new(config: &ModelConfig, positions: usize) -> Rope {
        let (frequencies, attention) = frequencies(config, positions);
        let table = |f: fn(f32) -> f32| {
            // Angles in f32, as the reference computes them: at large positions the rounding is part of the model.
            let values = (0..positions).flat_map(|position| {
                frequencies.iter().map(move |frequency| f(position as f32 * frequency) * attention as f32)
            });
            Arc::new(values.collect::<Vec<f32>>())
        };
        Rope { cos: table(f32::cos), sin: table(f32::sin) }
    }
}

/// Inverse frequencies `(head_dim / 2,)` and the factor on cos and sin.
fn frequencies(config: &ModelConfig, positions: usize) -> (Vec<f32>, f64) {
    let dim = config.head_dim;
    let base = |theta: f64| (0..dim / 2).map(move |i| theta.powf(-((2 * i) as f64) / dim as f64));
    let plain = base(config.rope.theta);
    let mut attention = 1.0;
    let frequencies: Vec<f64> = match config.rope.scaling {
        RopeScaling::Default => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Dynamic { factor, original } => {
            let length = positions.max(original) as f64;
            let stretch = factor * length / original as f64 - (factor - 1.0);
            base(config.rope.theta * stretch.powf(dim as f64 / (dim as f64 - 2.0))).collect()
        }
        RopeScaling::Llama3 { factor, low, high, original } => plain
            .map(|f| {
                let wavelength = 2.0 * PI / f;
                let original = original as f64;
                if wavelength < original / high {
                    f
                } else if wavelength > original / low {
                    f / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            })
            .collect(),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original, attention_factor, truncate } => {
            attention = attention_factor;
            let correction = |rotations: f64| {
                dim as f64 * (original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * config.rope.theta.ln())
            };
            let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            plain
                .enumerate()
                .map(|(i, f)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                })
                .collect()
        }
    };
    (frequencies.into_iter().map(|f| f as f32).collect(), attention)
}
