//! The families of models that have a forward pass here.

use serde::Serialize;

/// The supported families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
    /// Qwen1.5-MoE and Qwen2-MoE.
    Qwen2Moe,
    /// Qwen3-MoE.
    Qwen3Moe,
    /// OLMoE.
    Olmoe,
    /// gpt-oss.
    GptOss,
}

/// `model_type` of `config.json`, and its family.
pub(super) const FAMILIES: [(&str, Family); 9] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("mixtral", Family::Mixtral),
    ("qwen2_moe", Family::Qwen2Moe),
    ("qwen3_moe", Family::Qwen3Moe),
    ("olmoe", Family::Olmoe),
    ("gpt_oss", Family::GptOss),
];

impl Family {
    /// The `model_type` of `config.json`.
    pub fn name(self) -> &'static str {
        FAMILIES.iter().find(|(_, family)| *family == self).map_or("", |(name, _)| name)
    }
}
