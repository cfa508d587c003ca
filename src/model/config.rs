//! `config.json` of the supported families, with every field that changes the arithmetic.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// What a forward pass needs to know about a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which family's names and rules apply.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP (of one expert, in Mixtral).
    pub intermediate_size: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Each query sees at most this many keys.
    pub sliding_window: Option<SlidingWindow>,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the o projection.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norm on each head of q and k (Qwen3).
    pub qk_norm: bool,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Experts, in a mixture.
    pub moe: Option<MoeConfig>,
}

/// The supported families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama, SmolLM and everything else with `model_type` `llama`.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// Mixtral.
    Mixtral,
}

const FAMILIES: [(&str, Family); 5] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("mixtral", Family::Mixtral),
];

impl Family {
    /// The `model_type` of `config.json`.
    pub fn name(self) -> &'static str {
        FAMILIES.iter().find(|(_, family)| *family == self).map_or("", |(name, _)| name)
    }
}

/// Attention to a limited number of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Number of keys that a query sees, itself included.
    pub tokens: usize,
    /// First block with a window; those before see everything.
    pub from_block: usize,
}

/// Mixture-of-experts settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts per block.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
}

/// Rotary position embedding: base and scaling, as Hugging Face's `rope_type` names them.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies for longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
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
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

/// Typed access to a JSON object, with errors that name the file and the key.
struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn present(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> Error {
        Error::file(self.path, format!("`{key}` is {value}, which is not {wanted}"))
    }

    fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.present(key) else { return Ok(default) };
        match value.as_u64() {
            Some(number) if number > 0 && number < 1 << 40 => Ok(number as usize),
            _ => Err(self.wrong(key, value, "a positive whole number")),
        }
    }

    fn usize(&self, key: &str) -> Result<usize> {
        match self.usize_or(key, 0)? {
            0 => Err(Error::file(self.path, format!("`{key}` is missing; is this a language model's config.json?"))),
            number => Ok(number),
        }
    }

    fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.present(key) else { return Ok(default) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number >= 0.0 => Ok(number),
            _ => Err(self.wrong(key, value, "a number")),
        }
    }

    fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.present(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }
}

impl ModelConfig {
    /// Reads a parsed `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::File`] for an unknown family, a missing or ill-typed field, or fields that contradict each other.
    pub fn from_json(path: &Path, json: &Map<String, Value>) -> Result<Self> {
        let fields = Fields { path, map: json };
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let Some((_, family)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
            let known: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
            return Err(Error::file(
                path,
                format!("`model_type` is `{model_type}`, a family that is not supported; known: {}", known.join(", ")),
            ));
        };
        let family = *family;
        if let Some(act) = fields.present("hidden_act").filter(|act| act.as_str() != Some("silu")) {
            return Err(Error::file(path, format!("`hidden_act` is {act}; only `silu` is supported")));
        }
        let blocks = fields.usize("num_hidden_layers")?;
        let hidden_size = fields.usize("hidden_size")?;
        let heads = fields.usize("num_attention_heads")?;
        let kv_heads = fields.usize_or("num_key_value_heads", heads)?;
        if heads % kv_heads != 0 {
            return Err(Error::file(
                path,
                format!("`num_attention_heads` ({heads}) is no multiple of `num_key_value_heads` ({kv_heads})"),
            ));
        }
        let head_dim = fields.usize_or("head_dim", hidden_size / heads)?;
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(Error::file(path, format!("the head width {head_dim} is not even; rotary embedding needs it")));
        }
        let max_position_embeddings = fields.usize_or("max_position_embeddings", 2048)?;
        let sliding_window = match fields.present("sliding_window") {
            Some(_) if family == Family::Llama => None,
            Some(_)
                if matches!(family, Family::Qwen2 | Family::Qwen3)
                    && !fields.bool_or("use_sliding_window", false)? =>
            {
                None
            }
            Some(_) => Some(SlidingWindow {
                tokens: fields.usize("sliding_window")?,
                from_block: if matches!(family, Family::Qwen2 | Family::Qwen3) {
                    fields.usize_or("max_window_layers", blocks)?
                } else {
                    0
                },
            }),
            None => None,
        };
        let attention_bias = fields.bool_or("attention_bias", false)?;
        let moe = if family == Family::Mixtral {
            let moe = MoeConfig {
                experts: fields.usize("num_local_experts")?,
                top_k: fields.usize_or("num_experts_per_tok", 2)?,
            };
            if moe.top_k > moe.experts {
                return Err(Error::file(
                    path,
                    format!("`num_experts_per_tok` ({}) exceeds `num_local_experts` ({})", moe.top_k, moe.experts),
                ));
            }
            Some(moe)
        } else {
            None
        };
        Ok(ModelConfig {
            family,
            vocab_size: fields.usize("vocab_size")?,
            hidden_size,
            intermediate_size: fields.usize("intermediate_size")?,
            blocks,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: fields.f64_or("rms_norm_eps", 1e-6)?,
            rope: rope(&fields, max_position_embeddings, if family == Family::Mixtral { 1e6 } else { 1e4 })?,
            max_position_embeddings,
            sliding_window,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: fields.bool_or("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            tie_word_embeddings: fields.bool_or("tie_word_embeddings", false)?,
            moe,
        })
    }
}

/// `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters` that holds both.
fn rope(top: &Fields<'_>, max_positions: usize, default_theta: f64) -> Result<RopeConfig> {
    let empty = Map::new();
    let nested = match top.present("rope_parameters").or_else(|| top.present("rope_scaling")) {
        Some(Value::Object(map)) => map,
        Some(other) => return Err(top.wrong("rope_scaling", other, "an object")),
        None => &empty,
    };
    let fields = Fields { path: top.path, map: nested };
    let theta = fields.f64_or("rope_theta", top.f64_or("rope_theta", default_theta)?)?;
    if let Some(partial) = top.present("partial_rotary_factor").filter(|value| value.as_f64() != Some(1.0)) {
        return Err(top.wrong("partial_rotary_factor", partial, "1.0, the only supported value"));
    }
    let kind = fields.present("rope_type").or_else(|| fields.present("type")).and_then(Value::as_str);
    let original = fields.usize_or("original_max_position_embeddings", max_positions)?;
    let factor = fields.f64_or("factor", 1.0)?;
    if factor < 1.0 {
        return Err(Error::file(top.path, format!("the rope `factor` is {factor}; it must be at least 1")));
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
                format!("rope type `{other}` is not supported; known: default, linear, dynamic, llama3, yarn"),
            ));
        }
    };
    Ok(RopeConfig { theta, scaling })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelConfig> {
        let json: Map<String, Value> = serde_json::from_str(text).unwrap();
        ModelConfig::from_json(Path::new("config.json"), &json)
    }

    const QWEN3: &str = r#"{"model_type":"qwen3","vocab_size":10,"hidden_size":16,"intermediate_size":32,
        "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"rope_theta":1e6,
        "sliding_window":128,"use_sliding_window":false,"tie_word_embeddings":true}"#;

    #[test]
    fn families_differ_by_config() {
        let config = parse(QWEN3).unwrap();
        assert!(config.qk_norm && config.tie_word_embeddings && !config.qkv_bias);
        assert_eq!((config.head_dim, config.sliding_window, config.rope.theta), (8, None, 1e6));
        let qwen2 = parse(&QWEN3.replace("qwen3", "qwen2")).unwrap();
        assert!(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);
        let mistral = parse(&QWEN3.replace("qwen3", "mistral")).unwrap();
        assert_eq!(mistral.sliding_window, Some(SlidingWindow { tokens: 128, from_block: 0 }));
    }

    #[test]
    fn rope_parameters_of_both_layouts() {
        let old = parse(&QWEN3.replace("\"rope_theta\":1e6", "\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}")).unwrap();
        let new = parse(&QWEN3.replace("\"rope_theta\":1e6", "\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}")).unwrap();
        assert_eq!(old.rope, new.rope);
        assert_eq!(old.rope.scaling, RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 });
    }

    #[test]
    fn wrong_configs_name_file_and_key() {
        for (from, to, message) in [
            ("qwen3", "bert", "config.json: `model_type` is `bert`"),
            ("\"vocab_size\":10", "\"vocab_size\":-1", "`vocab_size` is -1"),
            ("\"hidden_size\":16,", "", "`hidden_size` is missing"),
            ("\"num_key_value_heads\":2", "\"num_key_value_heads\":3", "no multiple"),
            ("\"head_dim\":8", "\"head_dim\":7", "not even"),
        ] {
            let error = parse(&QWEN3.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
