//! Weights that are no plain floats: which tool made them, by `config.json`, files and names, and how to get floats back.

use super::TensorInfo;
use crate::error::{Problem, Remedy};
use safetensors::Dtype;
use serde_json::{Map, Value};

/// Quantisation tools: the value of `quantization_config.quant_method`, the name for people, and the way to plain
/// weights.
const METHODS: [(&str, &str, &str); 25] = [
    ("gptq", "GPTQ", ORIGINAL),
    ("gptqmodel", "GPTQ", ORIGINAL),
    ("auto-round", "AutoRound", ORIGINAL),
    ("auto_round", "AutoRound", ORIGINAL),
    ("awq", "AWQ", ORIGINAL),
    ("bitsandbytes", "bitsandbytes", DEQUANTIZE),
    ("bitsandbytes_4bit", "bitsandbytes", DEQUANTIZE),
    ("bitsandbytes_8bit", "bitsandbytes", DEQUANTIZE),
    ("fp8", "FP8 in blocks", FP8),
    ("fbgemm_fp8", "FP8 (FBGEMM)", ORIGINAL),
    ("compressed-tensors", "compressed-tensors (llm-compressor)", COMPRESSED),
    ("compressed_tensors", "compressed-tensors (llm-compressor)", COMPRESSED),
    ("mxfp4", "MXFP4", MXFP4),
    ("modelopt", "NVIDIA ModelOpt", ORIGINAL),
    ("quark", "AMD Quark", ORIGINAL),
    ("aqlm", "AQLM", ORIGINAL),
    ("quip", "QuIP#", ORIGINAL),
    ("higgs", "HIGGS", DEQUANTIZE),
    ("hqq", "HQQ", ORIGINAL),
    ("eetq", "EETQ", ORIGINAL),
    ("quanto", "Quanto", ORIGINAL),
    ("torchao", "torchao", ORIGINAL),
    ("bitnet", "BitNet", ORIGINAL),
    ("exl2", "ExLlamaV2", ORIGINAL),
    ("exl3", "ExLlamaV3", ORIGINAL),
];

const ORIGINAL: &str = "take the model that it was made from, in bf16, f16 or f32";
const DEQUANTIZE: &str = "take the model that it was made from, or write plain floats with transformers: \
                          `AutoModelForCausalLM.from_pretrained(DIR).dequantize().save_pretrained(OUT)`";
const FP8: &str = "take the model in bf16, or write plain floats with transformers: `from_pretrained(DIR, \
                   quantization_config=FineGrainedFP8Config(dequantize=True)).save_pretrained(OUT)`";
const COMPRESSED: &str = "take the model that it was made from, or write plain floats with transformers: \
                          `from_pretrained(DIR, quantization_config=CompressedTensorsConfig(run_compressed=False))` \
                          and `save_pretrained(OUT)`";
const MXFP4: &str = "take the model in bf16, or write plain floats with transformers: `from_pretrained(DIR, \
                     quantization_config=Mxfp4Config(dequantize=True)).save_pretrained(OUT)`";

/// Ends of names of tensors that stand in a weight's place or belong to it, and which tools write them.
const PARTS: [(&str, &str); 23] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".weight.absmax", "bitsandbytes"),
    (".weight.quant_map", "bitsandbytes"),
    (".weight.nested_absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_scale_inv", "FP8 in blocks"),
    (".weight_scale", "FP8 or compressed-tensors (llm-compressor)"),
    (".weight_packed", "compressed-tensors (llm-compressor)"),
    (".weight_zero_point", "compressed-tensors (llm-compressor)"),
    (".weight_scale_2", "NVIDIA ModelOpt"),
    (".weight_global_scale", "compressed-tensors (llm-compressor)"),
    (".codebooks", "AQLM"),
    (".Qidxs", "QuIP#"),
    (".W_q", "HQQ"),
    (".weight._data", "Quanto"),
    (".weight._scale", "Quanto"),
    (".q_weight", "ExLlamaV2"),
    (".q_scale", "ExLlamaV2"),
    (".trellis", "ExLlamaV3"),
    (".weight_blocks", "MXFP4"),
    ("_proj_blocks", "MXFP4"),
    (".weight:_data", "torchao"),
];

/// Parts of names that adapters have.
const ADAPTERS: [&str; 9] = [
    ".lora_A",
    ".lora_B",
    ".lora_embedding_A",
    ".lora_magnitude_vector",
    ".base_layer.",
    ".modules_to_save.",
    ".ia3_l",
    ".hada_w1_a",
    ".oft_R",
];

/// Files that tools leave beside quantised weights, and whose they are.
pub(super) const FILES: [(&str, &str); 3] =
    [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "NVIDIA ModelOpt")];

/// The settings of quantisation in `config.json`.
#[derive(Debug, PartialEq)]
struct Told {
    method: String,
    name: String,
    bits: Option<u64>,
    remedy: &'static str,
}

fn told(config: &Map<String, Value>) -> Option<Told> {
    let holder = |key: &str| config.get(key).and_then(Value::as_object).filter(|map| !map.is_empty());
    if let Some(map) = holder("quantization_config").or_else(|| holder("compression_config")) {
        let method = map.get("quant_method").and_then(Value::as_str).unwrap_or_default();
        let eight = map.get("load_in_8bit").and_then(Value::as_bool) == Some(true);
        let four = map.get("load_in_4bit").and_then(Value::as_bool) == Some(true);
        let method = match method {
            "" if eight || four || map.contains_key("bnb_4bit_quant_type") => "bitsandbytes",
            "" if map.contains_key("config_groups") => "compressed-tensors",
            "" if holder("quantization").is_some() => "mlx",
            method => method,
        };
        let bits = ["bits", "w_bit", "weight_bits", "nbits"].iter().find_map(|key| map.get(*key)?.as_u64());
        let bits = bits.or(four.then_some(4)).or(eight.then_some(8));
        if method != "mlx" {
            let lower = method.to_lowercase();
            let known = METHODS.iter().find(|(key, ..)| *key == lower);
            let name = known.map_or_else(
                || if method.is_empty() { "an unnamed method".into() } else { format!("`{method}`") },
                |known| known.1.to_owned(),
            );
            return Some(Told { method: lower, name, bits, remedy: known.map_or(ORIGINAL, |known| known.2) });
        }
    }
    let mlx = holder("quantization")?;
    let bits = mlx.get("bits").and_then(Value::as_u64);
    Some(Told {
        method: "mlx".into(),
        name: "MLX".into(),
        bits,
        remedy: "take the model that it was made from, or write plain floats with `mlx_lm.convert --dequantize`",
    })
}

/// The tensor that shows best that weights are quantised, and who writes such ones.
fn evidence(index: &[TensorInfo]) -> Option<(&TensorInfo, &'static str)> {
    let by_name = index.iter().find_map(|info| {
        let (_, tool) = PARTS.iter().find(|(end, _)| info.name.ends_with(end))?;
        Some((info, *tool))
    });
    let is_float = |dtype: Dtype| matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16);
    let by_type = || {
        let odd = index
            .iter()
            .find(|info| info.name.ends_with(".weight") && info.shape.len() >= 2 && !is_float(info.dtype))?;
        let tool = match odd.dtype {
            Dtype::F8_E4M3 | Dtype::F8_E5M2 => "a conversion to FP8",
            Dtype::U32 => "MLX",
            _ => "a tool that is not known here",
        };
        Some((odd, tool))
    };
    by_name.or_else(by_type)
}

/// Describes weights that are no plain floats, with the remedy; `None` for plain ones. `files` are names of files
/// beside the weights.
pub(super) fn problem(
    config: &Map<String, Value>,
    index: &[TensorInfo],
    has_file: &dyn Fn(&str) -> bool,
) -> Option<Problem> {
    let told = told(config);
    // Their experts stay packed until they run.
    let own = config.get("model_type").and_then(Value::as_str) == Some("gpt_oss");
    if own && told.as_ref().is_some_and(|told| told.method == "mxfp4") {
        return None;
    }
    let (tensor, tool) = evidence(index)?;
    let file = FILES.iter().find(|(file, _)| has_file(file));
    let (name, bits, remedy) = match (&told, file) {
        (Some(told), _) => (told.name.clone(), told.bits, told.remedy),
        (None, Some((_, name))) => ((*name).to_owned(), None, ORIGINAL),
        (None, None) => (format!("{tool} (config.json does not say)"), None, ORIGINAL),
    };
    let bits = bits.map(|bits| format!(", {bits} bits")).unwrap_or_default();
    Some(
        format!(
            "its weights are quantised by {name}{bits}: `{}` is {} x {:?}. Pruning and evaluation need weights of 16 \
             bits or more",
            tensor.name, tensor.dtype, tensor.shape
        )
        .remedy(remedy),
    )
}

/// A remark about quantisation that `config.json` claims and the tensors do not show, if there is such a claim.
pub(super) fn note(config: &Map<String, Value>, index: &[TensorInfo]) -> Option<String> {
    let told = told(config).filter(|_| evidence(index).is_none())?;
    let own = config.get("model_type").and_then(Value::as_str) == Some("gpt_oss") && told.method == "mxfp4";
    (!own).then(|| {
        let key = if told.method == "mlx" { "quantization" } else { "quantization_config" };
        format!(
            "`{key}` in config.json says that {} quantised the weights, but they are plain floats, and are read as \
             such",
            told.name
        )
    })
}

/// Describes a model that was saved with an adapter inside, with the remedy; `None` without an adapter.
pub(super) fn adapter(index: &[TensorInfo]) -> Option<Problem> {
    let tensor = index.iter().find(|info| ADAPTERS.iter().any(|part| info.name.contains(part)))?;
    Some(
        format!(
            "an adapter (PEFT) is inside it and not merged: `{}`. Without it the weights are another model's",
            tensor.name
        )
        .remedy("merge it with peft's `merge_and_unload()`, and save what that returns"),
    )
}
