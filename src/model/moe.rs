//! Tensor names and config keys of mixtures of experts: one row a family, read by the forward pass and by expert
//! pruning.

use serde::Serialize;

/// Names and config keys of a family's mixtures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MoeFamily {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The mixture's module inside a layer: `mlp` in `model.layers.0.mlp.experts`.
    pub module: &'static str,
    /// The same module where transformers 5 keeps all experts in one tensor (`experts.gate_up_proj`, gates before ups, and
    /// `experts.down_proj`), as it does in memory and with `save_pretrained(.., save_original_format=False)`.
    pub fused_module: &'static str,
    /// The router inside the mixture. Every tensor below it has one row per expert (weight, bias, correction bias).
    pub router: &'static str,
    /// Gate, up and down projection of one expert, where each expert has tensors of its own
    /// (`experts.{e}.{name}.weight`).
    pub linears: [&'static str; 3],
    /// In a tensor that holds all experts (`experts.gate_up_proj`), the dimension that counts them.
    pub expert_dim: usize,
    /// Modules of the mixture that every token passes through; expert pruning leaves them alone.
    pub shared: &'static [&'static str],
    /// Config key of the number of routed experts.
    pub experts_key: &'static str,
    /// Config keys of the number of experts per token; the first is the one that counts.
    pub top_k_keys: &'static [&'static str],
    /// Config keys of the number of groups that experts are dealt out to, in order, and of how many of them a token may
    /// reach.
    pub group_keys: Option<(&'static str, &'static str)>,
    /// The number of its experts by whose scores a group is judged.
    pub group_best: usize,
}

const GATED: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const PLAIN: MoeFamily = MoeFamily {
    model_type: "",
    module: "mlp",
    fused_module: "mlp",
    router: "gate",
    linears: GATED,
    expert_dim: 0,
    shared: &[],
    experts_key: "num_experts",
    top_k_keys: &["num_experts_per_tok"],
    group_keys: None,
    group_best: 1,
};
const DEEPSEEK: MoeFamily = MoeFamily {
    shared: &["shared_experts"],
    experts_key: "n_routed_experts",
    group_keys: Some(("n_group", "topk_group")),
    group_best: 2,
    ..PLAIN
};

/// Every family whose experts can be pruned. Adding one is adding a row here and a test.
pub const MOE_FAMILIES: &[MoeFamily] = &[
    MoeFamily {
        model_type: "gpt_oss",
        router: "router",
        experts_key: "num_local_experts",
        top_k_keys: &["num_experts_per_tok", "experts_per_token"],
        ..PLAIN
    },
    MoeFamily {
        model_type: "mixtral",
        module: "block_sparse_moe",
        linears: ["w1", "w3", "w2"],
        experts_key: "num_local_experts",
        ..PLAIN
    },
    MoeFamily { model_type: "qwen2_moe", shared: &["shared_expert", "shared_expert_gate"], ..PLAIN },
    MoeFamily { model_type: "qwen3_moe", ..PLAIN },
    MoeFamily { model_type: "qwen3_next", shared: &["shared_expert", "shared_expert_gate"], ..PLAIN },
    MoeFamily { model_type: "olmoe", ..PLAIN },
    MoeFamily { model_type: "deepseek_v2", group_best: 1, ..DEEPSEEK },
    MoeFamily { model_type: "deepseek_v3", ..DEEPSEEK },
    MoeFamily { model_type: "glm4_moe", ..DEEPSEEK },
];

impl MoeFamily {
    /// The names that a layer's mixture may have.
    pub fn modules(&self) -> [&'static str; 2] {
        [self.module, self.fused_module]
    }

    /// The row of a `model_type`.
    pub fn find(model_type: &str) -> Option<&'static MoeFamily> {
        MOE_FAMILIES.iter().find(|family| family.model_type == model_type)
    }

    /// Config keys that may hold the number of routed experts: the family's own, and the one that transformers 5 writes
    /// instead for some families (`num_local_experts` for Qwen3-MoE).
    pub fn experts_keys(&self) -> [&'static str; 2] {
        [self.experts_key, if self.experts_key == "num_local_experts" { "num_experts" } else { "num_local_experts" }]
    }
}
