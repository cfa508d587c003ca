//! Explanations for a tensor that a model needs and its checkpoint lacks, from the names of the other tensors.

use super::TensorInfo;
use super::names::beginnings;
use crate::error::{Problem, Remedy};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Beginnings of names of tensors in other formats and families, and what has them.
const FORMATS: [(&str, &str); 10] = [
    ("tok_embeddings.", "Meta's and Mistral's own format"),
    ("layers.0.attention.w", "Meta's and Mistral's own format"),
    ("transformer.h.", "GPT-2, Falcon and others"),
    ("transformer.encoder.layers.", "ChatGLM"),
    ("gpt_neox.", "GPT-NeoX and Pythia"),
    ("model.decoder.", "OPT and encoder-decoders"),
    ("decoder.", "Megatron and encoder-decoders"),
    ("language_model.", "a model of images and text"),
    ("model.language_model.", "a model of images and text"),
    ("backbone.", "Mamba"),
];

/// Explains why `name` is missing among `tensors`; a clause for a message.
pub(super) fn problem(name: &str, config: &Map<String, Value>, tensors: &[TensorInfo]) -> Problem {
    let has = |name: &str| tensors.iter().any(|info| info.name == name);
    let family = config.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
    if let Some((beginning, whose)) =
        FORMATS.iter().find(|(beginning, _)| tensors.iter().any(|info| info.name.starts_with(beginning)))
    {
        return format!("its names (`{beginning}*`) are those of {whose}, and config.json is of `{family}`")
            .remedy("take the model in Hugging Face's format, or the config.json of these weights");
    }
    if !tensors.iter().any(|info| info.name.starts_with("model.")) && !tensors.is_empty() {
        let beginnings = beginnings(tensors.iter());
        return format!(
            "its names begin with {beginnings}, and none with `model.`, `_orig_mod.`, `module.` or `base_model.model.`"
        )
        .remedy("does config.json belong to these weights?");
    }
    if let Some(weight) = name.strip_suffix("weight") {
        if let Some(mask) = [format!("{name}_orig"), format!("{name}_mask")].into_iter().find(|part| has(part)) {
            return format!("its weight is pruned by `torch.nn.utils.prune` and not put together yet (`{mask}`)")
                .remedy("call `prune.remove(module, \"weight\")` on each pruned module, and save it again");
        }
        let parametrised = format!("{weight}parametrizations.weight.");
        if let Some(part) = tensors.iter().find(|info| info.name.starts_with(&parametrised)) {
            return format!("its weight is a parametrisation (`{}`)", part.name).remedy(
                "call `torch.nn.utils.parametrize.remove_parametrizations(module, \"weight\")` on each such module, \
                 and save it again",
            );
        }
    }
    if name == "lm_head.weight" {
        let class = config.get("architectures").and_then(|list| list.get(0)?.as_str());
        let class = class.filter(|class| !class.ends_with("ForCausalLM"));
        let class = class.map(|class| format!(" by `{class}`")).unwrap_or_default();
        let other = ["score.weight", "classifier.weight", "value_head.weight", "v_head.summary.weight"];
        if let Some(other) = other.into_iter().find(|name| has(name)) {
            return format!("it has another head, `{other}`: it was saved{class} and predicts no tokens")
                .remedy("take the language model");
        }
        return format!("it was saved without its output head{class}").remedy(
            "take the file that has it, or, if the head is the embedding, set `\"tie_word_embeddings\": true` in \
             config.json",
        );
    }
    let layer = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<usize>().ok();
    let layers: BTreeSet<usize> = tensors.iter().filter_map(|info| layer(&info.name)).collect();
    if let Some(wanted) = layer(name) {
        if !layers.contains(&wanted) {
            let depth = config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or_default();
            return format!(
                "config.json has {depth} layers (`num_hidden_layers`), and layer {wanted} has no tensor here, {} \
                 others do",
                layers.len()
            )
            .remedy("is a shard missing, or was config.json changed?");
        }
        let siblings = |part: &str| has(&format!("model.layers.{wanted}.{part}"));
        for fused in ["self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight", "self_attn.W_pack.weight"] {
            if siblings(fused) {
                return format!(
                    "its projections are joined (`model.layers.{wanted}.{fused}`), which `{family}` does not have"
                )
                .remedy("is `model_type` right?");
            }
        }
        if name.ends_with(".bias") && has(&format!("{}weight", name.trim_end_matches("bias"))) {
            return "its linear has no bias, and config.json calls for one"
                .remedy("does config.json belong to these weights?");
        }
    }
    "the model that config.json describes has it".remedy("does config.json belong to these weights?")
}
