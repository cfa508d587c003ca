//! Rotary position settings and tables, for every scaling that Hugging Face's `modeling_rope_utils` computes.

use super::family::Family;
use super::fields::Fields;
use crate::error::{Error, Remedy, Result};
use candle_core::{Device, Tensor};
use serde::Serialize;
use serde_json::{Map, Value};
use std::f64::consts::PI;
use std::sync::{Arc, OnceLock};

/// Rotary position embedding: base and scaling, as Hugging Face's `rope_type` names them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies for longer contexts.
    pub scaling: RopeScaling,
}

/// The scaling of rotary frequencies for longer contexts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RopeScaling {
    /// As trained.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// NTK-aware: the base grows once a sequence is longer than the context.
    Dynamic {
        /// Stretch.
        factor: f64,
        /// `max_position_embeddings`, in tokens.
        original: usize,
    },
    /// Llama 3.1's: low frequencies stretched, high ones kept, a ramp between.
    Llama3 {
        /// Stretch.
        factor: f64,
        /// Wavelengths above `original / low` are stretched fully.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Context of the original model, in tokens.
        original: usize,
    },
    /// YaRN (Peng et al. 2023), with its attention factor.
    Yarn {
        /// Stretch.
        factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is stretched fully.
        beta_slow: f64,
        /// Context of the original model, in tokens.
        original: usize,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// True if the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

impl RopeConfig {
    /// `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters` that holds both. Where both are there,
    /// `rope_scaling` counts unless it is empty, as for transformers.
    pub(super) fn from_fields(top: &Fields<'_>, family: Family, max_positions: usize) -> Result<RopeConfig> {
        let default_theta = match family {
            Family::Mixtral => 1e6,
            Family::GptOss => 1.5e5,
            _ => 1e4,
        };
        let mut default = Map::new();
        if family == Family::GptOss {
            let yarn = [("factor", 32.0), ("beta_fast", 32.0), ("beta_slow", 1.0)];
            default.extend(yarn.map(|(key, value)| (key.to_owned(), value.into())));
            default.insert("rope_type".into(), "yarn".into());
            default.insert("original_max_position_embeddings".into(), 4096.into());
            default.insert("truncate".into(), false.into());
        }
        let holder = |key: &'static str| {
            let value = top.present(key).filter(|value| !matches!(value, Value::Object(map) if map.is_empty()));
            value.map(|value| (key, value))
        };
        let nested = match holder("rope_scaling").or_else(|| holder("rope_parameters")) {
            Some((_, Value::Object(map))) => map,
            Some((key, other)) => return Err(top.wrong(key, other, "an object")),
            None => &default,
        };
        let fields = Fields { path: top.path, map: nested };
        let theta = fields.f64_or("rope_theta", top.f64_or("rope_theta", default_theta)?)?;
        let partial = top.present("partial_rotary_factor").or_else(|| fields.present("partial_rotary_factor"));
        if let Some(partial) = partial.filter(|value| value.as_f64() != Some(1.0)) {
            return Err(top.wrong("partial_rotary_factor", partial, "1.0, the only supported value"));
        }
        let kind = fields.present("rope_type").or_else(|| fields.present("type")).and_then(Value::as_str);
        let original = fields.usize_or("original_max_position_embeddings", max_positions)?;
        let factor = fields.f64_or("factor", 1.0)?;
        if factor < 1.0 {
            return Err(Error::file(
                top.path,
                format!("the rope `factor` is {factor}").remedy("it must be at least 1"),
            ));
        }
        let scaling = match kind.unwrap_or("default") {
            "default" | "mrope" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor },
            // As Hugging Face: an `original_max_position_embeddings` plays no part here.
            "dynamic" => RopeScaling::Dynamic { factor, original: max_positions },
            "llama3" => RopeScaling::Llama3 {
                factor,
                low: fields.f64_or("low_freq_factor", 1.0)?,
                high: fields.f64_or("high_freq_factor", 4.0)?,
                original,
            },
            "yarn" => {
                let factor =
                    if fields.present("factor").is_some() { factor } else { max_positions as f64 / original as f64 };
                RopeScaling::Yarn {
                    factor,
                    beta_fast: fields.f64_or("beta_fast", 32.0)?,
                    beta_slow: fields.f64_or("beta_slow", 1.0)?,
                    original,
                    attention_factor: match fields.present("attention_factor") {
                        Some(_) => fields.f64_or("attention_factor", 1.0)?,
                        None => {
                            let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                            match (fields.present("mscale"), fields.present("mscale_all_dim")) {
                                (Some(_), Some(_)) => {
                                    scale(fields.f64_or("mscale", 1.0)?) / scale(fields.f64_or("mscale_all_dim", 1.0)?)
                                }
                                _ => scale(1.0),
                            }
                        }
                    },
                    truncate: fields.bool_or("truncate", true)?,
                }
            }
            other => {
                return Err(Error::file(
                    top.path,
                    format!("rope type `{other}` is not supported")
                        .remedy("known: default, linear, dynamic, llama3, yarn"),
                ));
            }
        };
        Ok(RopeConfig { theta, scaling })
    }
}

/// `cos` and `sin`, each `(positions, head_dim / 2)` row-major.
#[derive(Clone, Debug)]
pub(crate) struct Rope(Arc<Tables>);

#[derive(Debug)]
struct Tables {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// For what turns back.
    inverse_sin: OnceLock<Vec<f32>>,
    /// Cos and sin where they were first needed as tensors, and the same for what turns back.
    placed: [OnceLock<[Tensor; 2]>; 2],
}

impl Rope {
    /// The tables for heads of width `head_dim` and sequences of `positions` tokens.
    pub(crate) fn new(config: &RopeConfig, head_dim: usize, positions: usize) -> Rope {
        let (frequencies, attention) = frequencies(config, head_dim, positions);
        let table = |f: fn(f32) -> f32| {
            // Angles in f32, as the reference computes them: at large positions the rounding is part of the model.
            let values = (0..positions).flat_map(|position| {
                frequencies.iter().map(move |frequency| f(position as f32 * frequency) * attention as f32)
            });
            values.collect::<Vec<f32>>()
        };
        Rope::of(table(f32::cos), table(f32::sin))
    }

    pub(super) fn of(cos: Vec<f32>, sin: Vec<f32>) -> Rope {
        Rope(Arc::new(Tables { cos, sin, inverse_sin: OnceLock::new(), placed: Default::default() }))
    }

    pub(super) fn cos(&self) -> &[f32] {
        &self.0.cos
    }

    pub(super) fn sin(&self, inverse: bool) -> &[f32] {
        if !inverse {
            return &self.0.sin;
        }
        self.0.inverse_sin.get_or_init(|| self.0.sin.iter().map(|sin| -sin).collect())
    }

    /// Cos and sin in f32 on `device`, `(positions, half)` each, copied there once; `inverse` turns back.
    pub(super) fn on(&self, device: &Device, half: usize, inverse: bool) -> candle_core::Result<[Tensor; 2]> {
        let slot = &self.0.placed[usize::from(inverse)];
        if let Some(placed) = slot.get().filter(|placed| placed[0].device().same_device(device)) {
            return Ok(placed.clone());
        }
        let place = |table: &[f32]| Tensor::from_slice(table, (table.len() / half.max(1), half), device);
        let tables = [place(&self.0.cos)?, place(self.sin(inverse))?];
        // Those of another device stay.
        slot.set(tables.clone()).ok();
        Ok(tables)
    }
}

/// Inverse frequencies `(head_dim / 2,)` and the factor on cos and sin.
fn frequencies(config: &RopeConfig, dim: usize, positions: usize) -> (Vec<f32>, f64) {
    let base = |theta: f64| (0..dim / 2).map(move |i| theta.powf(-((2 * i) as f64) / dim as f64));
    let plain = base(config.theta);
    let mut attention = 1.0;
    let frequencies: Vec<f64> = match config.scaling {
        RopeScaling::Default => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Dynamic { factor, original } => {
            let length = positions.max(original) as f64;
            let stretch = factor * length / original as f64 - (factor - 1.0);
            base(config.theta * stretch.powf(dim as f64 / (dim as f64 - 2.0))).collect()
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
                dim as f64 * (original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * config.theta.ln())
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
