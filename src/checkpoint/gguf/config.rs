//! A Llama's hyper-parameters, from GGUF metadata to `config.json`.

use super::metadata::Metadata;
use crate::{Error, Result};
use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device};
use serde_json::{Value, json};
use std::fs::File;
use std::io::BufReader;

/// Where llama.cpp puts the factors of Llama 3's RoPE scaling, as frequency divisors (head_dim / 2,).
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Sizes and constants of a Llama.
pub(super) struct LlamaConfig {
    pub(super) architecture: String,
    pub(super) blocks: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab_size: usize,
    pub(super) tied_embeddings: bool,
    context: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    rope_scaling: Option<Value>,
    bos: Option<usize>,
    eos: Option<usize>,
    pad: Option<usize>,
}

impl LlamaConfig {
    pub(super) fn read(metadata: &Metadata<'_>, content: &Content, reader: &mut BufReader<File>) -> Result<Self> {
        let key = "general.architecture";
        let architecture = metadata.require(key, metadata.string(key)?)?.to_owned();
        if architecture != "llama" {
            let problem =
                format!("its architecture is `{architecture}`; only `llama` (Llama, Mistral, SmolLM) can be imported");
            return Err(metadata.error(problem));
        }
        if metadata.integer("llama.expert_count")?.is_some_and(|experts| experts > 0) {
            let problem = "it is a mixture of experts, and only dense models can be imported; get it as safetensors";
            return Err(metadata.error(problem));
        }
        let size = |key: &str| metadata.require(key, metadata.size(key)?);
        let hidden = size("llama.embedding_length")?;
        let heads = size("llama.attention.head_count")?;
        let kv_heads = metadata.size("llama.attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = metadata.size("llama.attention.key_length")?.unwrap_or(hidden / heads);
        if heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 {
            let problem = format!(
                "{heads} heads, {kv_heads} key-value heads of {head_dim} dimensions do not fit; the file is damaged"
            );
            return Err(metadata.error(problem));
        }
        for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
            if metadata.size(key)?.is_some_and(|dim| dim != head_dim) {
                return Err(metadata
                    .error(format!("`{key}` differs from the head's {head_dim} dimensions; this cannot be imported")));
            }
        }
        // The rows say how long the vocabulary is; `llama.vocab_size` is not always there.
        let embedding = content.tensor_infos.get("token_embd.weight").map(|info| info.shape.dims());
        let Some(&[vocab_size, _]) = embedding else {
            return Err(Error::tensor(
                metadata.file,
                "token_embd.weight",
                "missing or not a matrix; download the file again",
            ));
        };
        let rope_theta = metadata.float("llama.rope.freq_base")?.unwrap_or(10_000.0);
        let eps = "llama.attention.layer_norm_rms_epsilon";
        let mut config = Self {
            architecture,
            blocks: size("llama.block_count")?,
            hidden,
            intermediate: size("llama.feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            vocab_size,
            tied_embeddings: !content.tensor_infos.contains_key("output.weight"),
            context: size("llama.context_length")?,
            rms_norm_eps: metadata.require(eps, metadata.float(eps)?)?,
            rope_theta,
            rope_scaling: rope_scaling(metadata)?,
            bos: metadata.integer("tokenizer.ggml.bos_token_id")?,
            eos: metadata.integer("tokenizer.ggml.eos_token_id")?,
            pad: metadata.integer("tokenizer.ggml.padding_token_id")?,
        };
        if content.tensor_infos.contains_key(ROPE_FACTORS) {
            let factors = content
                .tensor(reader, ROPE_FACTORS, &Device::Cpu)
                .and_then(|factors| factors.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>())
                .map_err(|e| Error::tensor(metadata.file, ROPE_FACTORS, e))?;
            let scaling = llama3_scaling(&factors, rope_theta, head_dim);
            let problem =
                "these RoPE factors are not those of Llama 3; this model cannot be imported, get it as safetensors";
            config.rope_scaling = Some(scaling.ok_or_else(|| Error::tensor(metadata.file, ROPE_FACTORS, problem))?);
        }
        Ok(config)
    }

    /// `config.json` for weights of type `dtype`.
    pub(super) fn to_json(&self, dtype: DType) -> Value {
        let torch_dtype = match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            DType::F64 => "float64",
            _ => "float32",
        };
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
            "pad_token_id": self.pad,
            "torch_dtype": torch_dtype,
        })
    }
}

fn rope_scaling(metadata: &Metadata<'_>) -> Result<Option<Value>> {
    let Some(kind) = metadata.string("llama.rope.scaling.type")? else { return Ok(None) };
    let factor = |key: &str| metadata.require(key, metadata.float(key)?);
    match kind {
        "none" => Ok(None),
        "linear" => Ok(Some(json!({"rope_type": "linear", "factor": factor("llama.rope.scaling.factor")?}))),
        "yarn" => {
            let original = "llama.rope.scaling.original_context_length";
            Ok(Some(json!({
                "rope_type": "yarn",
                "factor": factor("llama.rope.scaling.factor")?,
                "original_max_position_embeddings": metadata.require(original, metadata.size(original)?)?,
            })))
        }
        other => {
            Err(metadata.error(format!("its RoPE scaling `{other}` cannot be imported; get the model as safetensors")))
        }
    }
}

/// The `rope_scaling` that makes `factors`, if Llama 3's formula does with the constants that Meta has always used.
fn llama3_scaling(factors: &[f32], theta: f64, head_dim: usize) -> Option<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL: f64 = 8192.0;
    let factor = factors.iter().copied().fold(1f32, f32::max).round();
    let expected = (0..head_dim / 2).map(|i| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        let smooth = ((ORIGINAL / wavelength - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / f64::from(factor) + smooth)
    });
    let equal = factors.len() == head_dim / 2
        && expected.zip(factors).all(|(expected, &factor)| (f64::from(factor) - expected).abs() <= 1e-3 * expected);
    equal.then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as u64,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama 3.2's own numbers: theta 500000, head_dim 64, factor 32; pairs 0 to 14 keep their frequency, the last
    /// ones are divided by 32.
    #[test]
    fn llama3_factors_are_recognised_and_others_are_not() {
        let mut factors: Vec<f32> = (0..32)
            .map(|i| {
                let frequency = 500_000f64.powf(-(2.0 * f64::from(i)) / 64.0);
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                // As in transformers' `_compute_llama3_parameters`.
                if wavelength < 8192.0 / 4.0 {
                    1.0
                } else if wavelength > 8192.0 {
                    32.0
                } else {
                    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                    (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32
                }
            })
            .collect();
        let scaling = llama3_scaling(&factors, 500_000.0, 64).unwrap();
        assert_eq!(scaling["factor"], 32.0);
        assert_eq!(scaling["rope_type"], "llama3");
        factors[3] = 1.5;
        assert_eq!(llama3_scaling(&factors, 500_000.0, 64), None);
        assert_eq!(llama3_scaling(&factors[..16], 500_000.0, 64), None);
    }
}
