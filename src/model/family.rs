//! The families of models that have a forward pass here.

use serde::Serialize;

/// Declares [`Family`]: for each the `model_type` of its `config.json`. A family differs from Llama's layer only where a match on it
/// says so (`config.rs`, `rope.rs`).
macro_rules! families {
    ($($(#[$doc:meta])+ $family:ident = $model_type:literal;)+) => {
        /// The supported families.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum Family {
            $($(#[$doc])+ $family),+
        }

        crate::error::named!(Family, "model_type", $($family => $model_type),+);
    };
}

families! {
    /// Llama, SmolLM and everything else with `model_type` `llama`.
    Llama = "llama";
    /// Mistral.
    Mistral = "mistral";
    /// Qwen2 and Qwen2.5.
    Qwen2 = "qwen2";
    /// Qwen3.
    Qwen3 = "qwen3";
    /// Mixtral.
    Mixtral = "mixtral";
    /// Qwen1.5-MoE and Qwen2-MoE.
    Qwen2Moe = "qwen2_moe";
    /// Qwen3-MoE.
    Qwen3Moe = "qwen3_moe";
    /// OLMoE.
    Olmoe = "olmoe";
    /// gpt-oss.
    GptOss = "gpt_oss";
}
