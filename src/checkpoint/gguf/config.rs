//! A model's hyper-parameters, from GGUF metadata to `config.json`.

use super::metadata::Metadata;
use super::open::Gguf;
use crate::error::{Error, Remedy, Result};
use candle_core::{DType, Device};
use serde_json::{Map, Value, json};

/// The tensor in which llama.cpp stores the factors of Llama 3's RoPE scaling, as frequency divisors (head_dim / 2,).
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The architectures that are imported, by `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Llama, Mistral, SmolLM; llama.cpp has reordered the rows of Q and K.
    Llama,
    /// Qwen2 and Qwen2.5: biases on Q, K and V.
    Qwen2,
    /// Qwen3: a norm on each head of Q and K.
    Qwen3,
}

impl Architecture {
    pub(super) fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// Sizes and constants of a model.
pub(super) struct LlamaConfig {
    pub(super) architecture: Architecture,
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab_size: usize,
    pub(super) tied_embeddings: bool,
    pub(super) qkv_bias: bool,
    pub(super) o_bias: bool,
    /// True if the file has no biases, although Hugging Face's family always has them.
    pub(super) zero_bias: bool,
    context: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    rope_scaling: Option<Value>,
    bos: Option<usize>,
    eos: Option<usize>,
    pad: Option<usize>,
}

impl LlamaConfig {
    pub(super) fn read(gguf: &mut Gguf) -> Result<Self> {
        let metadata = gguf.metadata();
        let key = "general.architecture";
        let name = metadata.require(key, metadata.string(key)?)?;
        let known = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];
        let Some(architecture) = known.into_iter().find(|known| known.name() == name) else {
            let problem = format!(
                "its architecture is `{name}`; only `llama` (Llama, Mistral, SmolLM), `qwen2` (Qwen2, Qwen2.5) and \
                 `qwen3` can be imported"
            )
            .remedy("get the model as safetensors");
            return Err(metadata.error(problem));
        };
        let key = |key: &str| format!("{name}.{key}");
        if metadata.integer(&key("expert_count"))?.is_some_and(|experts| experts > 0) {
            let problem =
                "it is a mixture of experts, and only dense models can be imported".remedy("get it as safetensors");
            return Err(metadata.error(problem));
        }
        let size = |part: &str| metadata.require(&key(part), metadata.size(&key(part))?);
        let hidden = size("embedding_length")?;
        let heads = size("attention.head_count")?;
        let kv_heads = metadata.size(&key("attention.head_count_kv"))?.unwrap_or(heads);
        let head_dim = metadata.size(&key("attention.key_length"))?.unwrap_or(hidden / heads);
        if heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 {
            let problem = format!(
                "{heads} heads, {kv_heads} key-value heads of {head_dim} dimensions do not fit; the file is damaged"
            );
            return Err(metadata.error(problem));
        }
        for key in [key("rope.dimension_count"), key("attention.value_length")] {
            if metadata.size(&key)?.is_some_and(|dim| dim != head_dim) {
                return Err(metadata
                    .error(format!("`{key}` differs from the head's {head_dim} dimensions; this cannot be imported")));
            }
        }
        if architecture == Architecture::Qwen2 && head_dim * heads != hidden {
            let problem =
                format!("{heads} heads of {head_dim} dimensions are not the {hidden} of a Qwen2; the file is damaged");
            return Err(metadata.error(problem));
        }
        // The rows say how long the vocabulary is; `vocab_size` is not always there.
        let Some(&[vocab_size, _]) = gguf.dims("token_embd.weight") else {
            return Err(Error::tensor(
                metadata.file,
                "token_embd.weight",
                "missing or not a matrix".remedy("download the file again"),
            ));
        };
        let has = |name: &str| gguf.info(name).is_some();
        let biases: Vec<String> = ["q", "k", "v", "output"].map(|part| format!("blk.0.attn_{part}.bias")).into();
        let biases: Vec<String> = biases.into_iter().filter(|name| has(name)).collect();
        let qwen2 = architecture == Architecture::Qwen2;
        let (qkv_bias, o_bias) = (qwen2 || biases.len() == 4, !qwen2 && biases.len() == 4);
        if !qwen2 && let [first, _, _] | [first, _] | [first] = &biases[..] {
            let problem = "it has biases on some of the projections of attention, and Hugging Face's format knows all \
                           or none"
                .remedy("get the model as safetensors");
            return Err(Error::tensor(metadata.file, first, problem));
        }
        let layers = size("block_count")?;
        if layers > gguf.names().count() {
            let problem =
                format!("{layers} layers are more than it has tensors; the file is damaged, download it again");
            return Err(metadata.error(problem));
        }
        let rope_theta = metadata.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        let eps = key("attention.layer_norm_rms_epsilon");
        let mut config = Self {
            architecture,
            layers,
            hidden,
            intermediate: size("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            vocab_size,
            tied_embeddings: !has("output.weight"),
            qkv_bias,
            o_bias,
            zero_bias: qwen2 && biases.is_empty(),
            context: size("context_length")?,
            rms_norm_eps: metadata.require(&eps, metadata.float(&eps)?)?,
            rope_theta,
            rope_scaling: rope_scaling(&metadata, name)?,
            bos: metadata.integer("tokenizer.ggml.bos_token_id")?,
            eos: metadata.integer("tokenizer.ggml.eos_token_id")?,
            pad: metadata.integer("tokenizer.ggml.padding_token_id")?,
        };
        if has(ROPE_FACTORS) {
            let path = gguf.file_of(ROPE_FACTORS).to_path_buf();
            let factors = gguf.load(ROPE_FACTORS)?;
            let factors = factors
                .dequantize(&Device::Cpu)
                .and_then(|factors| factors.flatten_all()?.to_vec1::<f32>())
                .map_err(Error::compute(format!("dequantising tensor `{ROPE_FACTORS}`")))?;
            let scaling = llama3_scaling(&factors, rope_theta, head_dim);
            let problem = "these RoPE factors are not those of Llama 3"
                .remedy("this model cannot be imported, get it as safetensors");
            config.rope_scaling = Some(scaling.ok_or_else(|| Error::tensor(path, ROPE_FACTORS, problem))?);
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
        let mut json = Map::new();
        let mut set = |key: &str, value: Value| drop(json.insert(key.to_owned(), value));
        set("architectures", json!([self.architecture.class()]));
        set("model_type", self.architecture.name().into());
        set("hidden_size", self.hidden.into());
        set("intermediate_size", self.intermediate.into());
        set("num_hidden_layers", self.layers.into());
        set("num_attention_heads", self.heads.into());
        set("num_key_value_heads", self.kv_heads.into());
        if self.architecture != Architecture::Qwen2 {
            set("head_dim", self.head_dim.into());
        }
        set("hidden_act", "silu".into());
        match self.architecture {
            Architecture::Llama => {
                set("attention_bias", self.qkv_bias.into());
                set("mlp_bias", false.into());
            }
            Architecture::Qwen2 => set("use_sliding_window", false.into()),
            Architecture::Qwen3 => {
                set("attention_bias", self.qkv_bias.into());
                set("use_sliding_window", false.into());
            }
        }
        set("rms_norm_eps", self.rms_norm_eps.into());
        set("rope_theta", self.rope_theta.into());
        set("rope_scaling", self.rope_scaling.clone().into());
        set("vocab_size", self.vocab_size.into());
        set("max_position_embeddings", self.context.into());
        set("tie_word_embeddings", self.tied_embeddings.into());
        set("bos_token_id", self.bos.into());
        set("eos_token_id", self.eos.into());
        set("pad_token_id", self.pad.into());
        set("torch_dtype", torch_dtype.into());
        Value::Object(json)
    }
}

fn rope_scaling(metadata: &Metadata<'_>, architecture: &str) -> Result<Option<Value>> {
    let key = |part: &str| format!("{architecture}.rope.scaling.{part}");
    let Some(kind) = metadata.string(&key("type"))? else { return Ok(None) };
    let factor = |key: &str| metadata.require(key, metadata.float(key)?);
    match kind {
        "none" => Ok(None),
        "linear" => Ok(Some(json!({"rope_type": "linear", "factor": factor(&key("factor"))?}))),
        "yarn" => {
            let original = key("original_context_length");
            Ok(Some(json!({
                "rope_type": "yarn",
                "factor": factor(&key("factor"))?,
                "original_max_position_embeddings": metadata.require(&original, metadata.size(&original)?)?,
            })))
        }
        other => Err(metadata
            .error(format!("its RoPE scaling `{other}` cannot be imported").remedy("get the model as safetensors"))),
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
