//! `config.json` of the supported families, with every field that changes the arithmetic.

use super::family::Family;
use super::fields::Fields;
use super::moe::MoeFamily;
use super::rope::RopeConfig;
use crate::error::{Error, Remedy, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::Path;

/// The settings of a model that its forward pass reads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// The family, which decides about names and rules.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of a dense layer's MLP; that of an expert is in `moe`.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
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
    /// For each layer, how many keys a query sees, itself included; `None` is all.
    pub sliding_window: Vec<Option<usize>>,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the o projection.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norm on q and k.
    pub qk_norm: Option<QkNorm>,
    /// q, k and v are clamped to plus and minus this (OLMoE).
    pub clip_qkv: Option<f64>,
    /// A learned logit per query head that takes part in the softmax and carries no value (gpt-oss).
    pub sinks: bool,
    /// True if the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Experts, where some layer has a mixture of them.
    pub moe: Option<MoeConfig>,
}

/// The group of elements over which an RMS norm on q and k takes its mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum QkNorm {
    /// Each head, all with the same scale `(head_dim,)` (Qwen3).
    Head,
    /// The whole projection, before it is split into heads; the scale is as wide (OLMoE).
    Projection,
}

/// Mixture-of-experts settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MoeConfig {
    /// The family's names of tensors.
    pub names: &'static MoeFamily,
    /// Experts per mixture.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of one expert.
    pub intermediate_size: usize,
    /// Width of the expert that every token passes through, scaled by a gate of its own (Qwen2-MoE).
    pub shared_intermediate_size: Option<usize>,
    /// True if the probabilities of the chosen experts are made to sum to one. That is the same as a softmax over the
    /// chosen logits only, as gpt-oss writes it.
    pub norm_topk_prob: bool,
    /// The form in which the experts are stored, which also decides what they compute.
    pub storage: ExpertStorage,
    /// For each layer, whether it has a mixture; the others have an MLP.
    pub layers: Vec<bool>,
}

impl MoeConfig {
    /// Returns whether the router has a bias.
    pub(crate) fn router_bias(&self) -> bool {
        matches!(self.storage, ExpertStorage::Stacked { .. })
    }
}

/// The form in which the experts of a mixture are stored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum ExpertStorage {
    /// Three linears an expert, `down(silu(gate(x)) * up(x))`.
    Separate,
    /// gpt-oss: all experts in one tensor, gate and up interleaved, biases throughout, the router's included;
    /// `(up + 1) * gate * sigmoid(alpha * gate)`.
    Stacked {
        /// True if weights are packed in MXFP4: two 4-bit floats a byte, a scale for 32 of them.
        mxfp4: bool,
        /// Bound of the gate from above, and of `up` on both sides.
        limit: f64,
        /// Slope of the sigmoid.
        alpha: f64,
    },
}

impl ModelConfig {
    /// Reads a parsed `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::File`] for an unknown family, a missing or ill-typed field, or fields that contradict each other.
    pub fn from_json(path: &Path, json: &Map<String, Value>) -> Result<Self> {
        let fields = Fields { path, map: json };
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let Some(family) = Family::all().into_iter().find(|family| family.name() == model_type) else {
            let known = Family::all().map(Family::name).join(", ");
            return Err(Error::file(
                path,
                format!("`model_type` is `{model_type}`, a family that is not supported")
                    .remedy(format!("known: {known}")),
            ));
        };
        if let Some(act) = fields.present("hidden_act").filter(|act| act.as_str() != Some("silu")) {
            return Err(Error::file(path, format!("`hidden_act` is {act}; only `silu` is supported")));
        }
        let layers = fields.usize("num_hidden_layers")?;
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
        let attention_bias = fields.bool_or("attention_bias", family == Family::GptOss)?;
        let (qkv_bias, o_bias) = match family {
            Family::Qwen2 => (true, false),
            Family::Qwen2Moe => (fields.bool_or("qkv_bias", true)?, false),
            _ => (attention_bias, attention_bias),
        };
        let intermediate_size = fields.usize("intermediate_size")?;
        Ok(ModelConfig {
            family,
            vocab_size: fields.usize("vocab_size")?,
            hidden_size,
            intermediate_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: fields.f64_or(
                "rms_norm_eps",
                if matches!(family, Family::Mixtral | Family::Olmoe | Family::GptOss) { 1e-5 } else { 1e-6 },
            )?,
            rope: RopeConfig::from_fields(&fields, family, max_position_embeddings)?,
            max_position_embeddings,
            sliding_window: sliding_window(&fields, family, layers)?,
            qkv_bias,
            o_bias,
            mlp_bias: fields.bool_or("mlp_bias", false)?,
            qk_norm: match family {
                Family::Qwen3 | Family::Qwen3Moe => Some(QkNorm::Head),
                Family::Olmoe => Some(QkNorm::Projection),
                _ => None,
            },
            clip_qkv: match fields.present("clip_qkv") {
                Some(_) if family == Family::Olmoe => Some(fields.f64_or("clip_qkv", 0.0)?),
                _ => None,
            },
            sinks: family == Family::GptOss,
            tie_word_embeddings: fields.bool_or("tie_word_embeddings", false)?,
            moe: match MoeFamily::find(model_type) {
                Some(names) => Some(moe(&fields, names, family, hidden_size, intermediate_size, layers)?),
                None => None,
            },
        })
    }

    /// The settings of layer `i`'s mixture, `None` where it has an MLP.
    pub fn mixture(&self, i: usize) -> Option<&MoeConfig> {
        self.moe.as_ref().filter(|moe| moe.layers.get(i) == Some(&true))
    }
}

/// The number of keys that a query sees in each layer: by `layer_types` where the config has them, else by the family's
/// rule. Keys that are left out have the values that transformers 5's config classes give them.
fn sliding_window(fields: &Fields<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let used = match family {
        Family::Llama | Family::Olmoe => false,
        Family::Qwen2 | Family::Qwen3 | Family::Qwen2Moe | Family::Qwen3Moe => {
            fields.bool_or("use_sliding_window", false)?
        }
        Family::Mistral | Family::Mixtral | Family::GptOss => true,
    };
    let default = match family {
        // `null` is no window, which is not the same as no key.
        _ if fields.map.get("sliding_window").is_some_and(Value::is_null) => None,
        Family::Mixtral => None,
        Family::GptOss => Some(128),
        _ => Some(4096),
    };
    let tokens = match fields.usize_or("sliding_window", default.unwrap_or(0))? {
        tokens if used && tokens > 0 => tokens,
        _ => return Ok(vec![None; layers]),
    };
    let by_types = matches!(family, Family::Qwen2 | Family::Qwen3 | Family::Qwen2Moe | Family::GptOss);
    if let Some(value) = fields.present("layer_types").filter(|_| by_types) {
        let window = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Some(Some(tokens)),
            Some("full_attention") => Some(None),
            _ => None,
        };
        let windows = value.as_array().and_then(|kinds| kinds.iter().map(window).collect::<Option<Vec<_>>>());
        return windows.filter(|windows| windows.len() == layers).ok_or_else(|| {
            fields.wrong("layer_types", value, &format!("a list of {layers} times sliding_attention or full_attention"))
        });
    }
    let full = fields.count_or("max_window_layers", 28)?;
    let slides = |layer: usize| match family {
        Family::Qwen2 | Family::Qwen3 => layer >= full,
        Family::Qwen2Moe => layer < full && layer.is_multiple_of(2),
        Family::GptOss => layer.is_multiple_of(2),
        _ => true,
    };
    Ok((0..layers).map(|layer| slides(layer).then_some(tokens)).collect())
}

fn moe(
    fields: &Fields<'_>,
    names: &'static MoeFamily,
    family: Family,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
) -> Result<MoeConfig> {
    let experts_key = names.experts_keys().into_iter().find(|key| fields.present(key).is_some());
    let experts_key = experts_key.unwrap_or(names.experts_key);
    let experts = fields.usize(experts_key)?;
    let top_k_key = names.top_k_keys.iter().find(|key| fields.present(key).is_some()).unwrap_or(&names.top_k_keys[0]);
    let top_k = match family {
        Family::Mixtral => fields.usize_or(top_k_key, 2)?,
        _ => fields.usize(top_k_key)?,
    };
    if top_k > experts {
        let problem = format!("`{top_k_key}` ({top_k}) exceeds `{experts_key}` ({experts})");
        return Err(Error::file(fields.path, problem));
    }
    let qwen = matches!(family, Family::Qwen2Moe | Family::Qwen3Moe);
    let mixtures = if qwen {
        let step = fields.usize_or("decoder_sparse_step", 1)?;
        let dense: &[Value] = match fields.present("mlp_only_layers") {
            None => &[],
            Some(Value::Array(dense)) if dense.iter().all(Value::is_u64) => dense,
            Some(other) => return Err(fields.wrong("mlp_only_layers", other, "a list of layer numbers")),
        };
        let dense = |layer: usize| dense.iter().any(|value| value.as_u64() == Some(layer as u64));
        (0..layers).map(|layer| !dense(layer) && (layer + 1).is_multiple_of(step)).collect()
    } else {
        vec![true; layers]
    };
    let storage = match family {
        Family::GptOss => {
            let mxfp4 = match fields.present("quantization_config") {
                None => false,
                Some(settings) if settings["quant_method"] == "mxfp4" => true,
                Some(other) => return Err(fields.wrong("quantization_config", other, "of `quant_method` `mxfp4`")),
            };
            if mxfp4 && !(hidden_size.is_multiple_of(32) && intermediate_size.is_multiple_of(32)) {
                let problem = format!(
                    "`hidden_size` ({hidden_size}) and `intermediate_size` ({intermediate_size}) must be multiples of \
                     32 in MXFP4"
                );
                return Err(Error::file(fields.path, problem));
            }
            ExpertStorage::Stacked {
                mxfp4,
                limit: fields.f64_or("swiglu_limit", 7.0)?,
                alpha: fields.f64_or("swiglu_alpha", 1.702)?,
            }
        }
        _ => ExpertStorage::Separate,
    };
    Ok(MoeConfig {
        names,
        experts,
        top_k,
        intermediate_size: if qwen { fields.usize("moe_intermediate_size")? } else { intermediate_size },
        shared_intermediate_size: match family {
            Family::Qwen2Moe => Some(fields.usize("shared_expert_intermediate_size")?),
            _ => None,
        },
        norm_topk_prob: match family {
            Family::Mixtral | Family::GptOss => true,
            _ => fields.bool_or("norm_topk_prob", false)?,
        },
        storage,
        layers: mixtures,
    })
}

#[cfg(test)]
mod tests {
    use super::super::rope::RopeScaling;
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
        assert!(config.qk_norm == Some(QkNorm::Head) && config.tie_word_embeddings && !config.qkv_bias);
        assert_eq!((config.head_dim, config.sliding_window, config.rope.theta), (8, vec![None; 2], 1e6));
        let qwen2 = parse(&QWEN3.replace("qwen3", "qwen2")).unwrap();
        assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.qk_norm.is_none());
        let mistral = parse(&QWEN3.replace("qwen3", "mistral")).unwrap();
        assert_eq!(mistral.sliding_window, [Some(128); 2]);
    }

    #[test]
    fn windows_that_are_left_out_are_those_of_transformers() {
        let without = |family: &str, changes: &str| {
            let text = QWEN3.replace("qwen3", family).replace("\"sliding_window\":128,", changes);
            parse(&text.replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":30")).unwrap().sliding_window
        };
        let all = |window: Option<usize>| vec![window; 30];
        assert_eq!(without("mistral", ""), all(Some(4096)));
        assert_eq!(without("mistral", "\"sliding_window\":null,"), all(None));
        assert_eq!(without("llama", ""), all(None));
        let used = |family: &str, changes: &str| {
            let text = QWEN3.replace("qwen3", family).replace("\"sliding_window\":128,", changes);
            let text = text.replace("\"use_sliding_window\":false", "\"use_sliding_window\":true");
            parse(&text.replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":30")).unwrap().sliding_window
        };
        for family in ["qwen2", "qwen3"] {
            let mut last = all(None);
            last[28..].fill(Some(4096));
            assert_eq!(used(family, ""), last, "max_window_layers is 28, whatever the number of layers");
            assert_eq!(used(family, "\"max_window_layers\":0,"), all(Some(4096)));
            assert_eq!(used(family, "\"sliding_window\":null,\"max_window_layers\":0,"), all(None));
        }
    }

    const MOE: &str = r#"{"model_type":"qwen3_moe","vocab_size":10,"hidden_size":64,"intermediate_size":32,
        "num_hidden_layers":4,"num_attention_heads":4,"head_dim":8,"sliding_window":16,"rope_scaling":{},
        "moe_intermediate_size":24,"shared_expert_intermediate_size":40,"num_experts":8,"num_experts_per_tok":2}"#;

    fn moe(text: &str) -> (ModelConfig, MoeConfig) {
        let config = parse(text).unwrap();
        let moe = config.moe.clone().unwrap();
        (config, moe)
    }

    #[test]
    fn mixtures_differ_by_family() {
        let (config, qwen3) = moe(MOE);
        assert_eq!((qwen3.experts, qwen3.top_k, qwen3.intermediate_size), (8, 2, 24));
        assert_eq!((qwen3.layers, qwen3.norm_topk_prob, qwen3.shared_intermediate_size), (vec![true; 4], false, None));
        assert_eq!((config.qk_norm, config.sliding_window), (Some(QkNorm::Head), vec![None; 4]));
        // As transformers 5 writes it.
        assert_eq!(moe(&MOE.replace("num_experts\"", "num_local_experts\"")).1.experts, 8);
        let sparse = MOE.replace("\"rope_scaling\":{}", "\"mlp_only_layers\":[3],\"decoder_sparse_step\":2");
        let (config, moe2) = moe(&sparse.replace("qwen3", "qwen2"));
        assert_eq!(moe2.layers, [false, true, false, false]);
        assert!(config.mixture(1).is_some() && config.mixture(3).is_none() && config.mixture(4).is_none());
        assert_eq!((moe2.shared_intermediate_size, config.qkv_bias, config.o_bias), (Some(40), true, false));
        let (config, olmoe) = moe(&MOE.replace("qwen3_moe", "olmoe"));
        assert_eq!((olmoe.intermediate_size, config.qk_norm, config.clip_qkv), (32, Some(QkNorm::Projection), None));
        assert_eq!((config.rms_norm_eps, olmoe.storage), (1e-5, ExpertStorage::Separate));

        let gpt_oss = MOE.replace("qwen3_moe", "gpt_oss").replace("num_experts\"", "num_local_experts\"");
        let (config, stacked) = moe(&gpt_oss);
        assert_eq!(stacked.storage, ExpertStorage::Stacked { mxfp4: false, limit: 7.0, alpha: 1.702 });
        assert_eq!((config.sliding_window, config.sinks), (vec![Some(16), None, Some(16), None], true));
        assert!(config.qkv_bias && config.o_bias && stacked.norm_topk_prob);
        // Without `rope_scaling`, as transformers takes it.
        let yarn = moe(&gpt_oss.replace("\"rope_scaling\":{},", "")).0.rope;
        let RopeScaling::Yarn { factor, attention_factor, truncate, original, .. } = yarn.scaling else {
            panic!("{yarn:?}")
        };
        assert_eq!((yarn.theta, factor, truncate, original), (1.5e5, 32.0, false, 4096));
        assert!((attention_factor - 1.346_573_6).abs() < 1e-6);
        let types = r#""layer_types":["full_attention","full_attention","sliding_attention","full_attention"],"vocab"#;
        assert_eq!(moe(&gpt_oss.replace("\"vocab", types)).0.sliding_window, [None, None, Some(16), None]);
        // OpenAI's own name for the number of experts per token.
        assert_eq!(moe(&gpt_oss.replace("num_experts_per_tok", "experts_per_token")).1.top_k, 2);
        let packed = moe(&gpt_oss.replace("\"vocab", "\"quantization_config\":{\"quant_method\":\"mxfp4\"},\"vocab"));
        assert!(matches!(packed.1.storage, ExpertStorage::Stacked { mxfp4: true, .. }));
        let blocks = packed.0.tensors().into_iter().find(|(name, _)| name.ends_with("down_proj_blocks"));
        assert_eq!(blocks, Some(("model.layers.0.mlp.experts.down_proj_blocks".into(), vec![8, 64, 1, 16])));
    }

    #[test]
    fn wrong_mixtures_name_the_key() {
        for (from, to, message) in [
            ("\"num_experts\":8", "\"num_experts\":1", "`num_experts_per_tok` (2) exceeds `num_experts` (1)"),
            ("\"num_experts\":8,", "", "`num_experts` is missing"),
            (",\"num_experts_per_tok\":2", "", "`num_experts_per_tok` is missing"),
            ("\"moe_intermediate_size\":24,", "", "`moe_intermediate_size` is missing"),
            ("\"rope_scaling\":{}", "\"mlp_only_layers\":[-1]", "`mlp_only_layers` is [-1]"),
            (
                "qwen3_moe\"",
                "qwen2_moe\",\"use_sliding_window\":true,\"layer_types\":[\"x\"]",
                "`layer_types` is [\"x\"]",
            ),
            (
                "qwen3_moe\"",
                "gpt_oss\",\"num_local_experts\":8,\"quantization_config\":{\"quant_method\":\"fp8\"}",
                "mxfp4",
            ),
            ("\"qwen3_moe\"", "\"deepseek_v3\"", "`model_type` is `deepseek_v3`, a family that is not supported"),
        ] {
            let error = parse(&MOE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let gpt_oss = MOE.replace("qwen3_moe", "gpt_oss");
        let mxfp4 = "\"quantization_config\":{\"quant_method\":\"mxfp4\"},\"hidden_size\":48";
        let error = parse(&gpt_oss.replace("\"hidden_size\":64", mxfp4)).unwrap_err().to_string();
        assert!(error.contains("multiples of 32"), "{error}");
    }

    #[test]
    fn rope_parameters_of_both_layouts() {
        let old = parse(&QWEN3.replace("\"rope_theta\":1e6", "\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}")).unwrap();
        let new = parse(&QWEN3.replace("\"rope_theta\":1e6", "\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}")).unwrap();
        assert_eq!(old.rope, new.rope);
        assert_eq!(old.rope.scaling, RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 });
        // As transformers 5.24 takes them.
        let both = |scaling: &str| {
            let both = format!(
                "\"rope_parameters\":{{\"rope_theta\":5e5,\"rope_type\":\"linear\",\"factor\":2.0}},\"rope_scaling\":{scaling}"
            );
            parse(&QWEN3.replace("\"rope_theta\":1e6", &both)).unwrap().rope
        };
        assert_eq!(both("{}"), RopeConfig { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } });
        let linear = both("{\"rope_type\":\"linear\",\"factor\":4.0}");
        assert_eq!(linear, RopeConfig { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 } });
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
