//! The parts that a model's bytes belong to, and the shards that hold the mixture of each layer: from headers alone.

use super::layout::{Role, place};
use crate::checkpoint::TensorInfo;
use crate::error::named;
use crate::model::MoeFamily;
use serde::Serialize;
use std::collections::BTreeMap;

/// The part of a model that a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Routed experts: what expert pruning makes smaller.
    Experts,
    /// Experts that every token passes through.
    SharedExperts,
    /// The weights that decide about the experts of a token.
    Router,
    /// Attention of any kind, with the norms inside it.
    Attention,
    /// Feed-forward layers that are no mixture.
    FeedForward,
    /// Norms around attention and feed-forward layers.
    Norms,
    /// Token embeddings, which are the output head, too, where there is none.
    Embeddings,
    /// From hidden states to logits.
    OutputHead,
    /// Everything else.
    Other,
}
named!(Part, "part",
    Experts => "experts",
    SharedExperts => "shared experts",
    Router => "router",
    Attention => "attention",
    FeedForward => "feed-forward",
    Norms => "norms",
    Embeddings => "embeddings",
    OutputHead => "output head",
    Other => "other",
);

impl Part {
    /// The part that the tensor called `name` belongs to; without a `family`, mixtures are not recognised.
    pub fn of(name: &str, family: Option<&MoeFamily>) -> Part {
        match family.and_then(|family| place(family, 0, name)) {
            Some((_, Role::Expert(_) | Role::Stacked)) => return Part::Experts,
            Some((_, Role::Router)) => return Part::Router,
            Some((_, Role::Shared)) => return Part::SharedExperts,
            None => {}
        }
        // Innermost module that tells; `weight` and `bias` tell nothing.
        let modules: Vec<&str> = name.split('.').collect();
        let known = |module: &&str| match *module {
            "self_attn" | "linear_attn" | "attn" | "attention" => Some(Part::Attention),
            "mlp" | "block_sparse_moe" | "feed_forward" => Some(Part::FeedForward),
            "embed_tokens" => Some(Part::Embeddings),
            // `shared_head` is the one of layers for multi-token prediction.
            "lm_head" | "head" => Some(Part::OutputHead),
            norm if norm.ends_with("norm") => Some(Part::Norms),
            _ => None,
        };
        // The outermost of them: a norm inside attention is attention's.
        modules.iter().find_map(known).unwrap_or(Part::Other)
    }
}

/// One part of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartSize {
    /// The part.
    pub part: Part,
    /// Number of its tensors.
    pub tensors: u64,
    /// Bytes of its tensors.
    pub bytes: u64,
}

/// The parts of a model, in the order of [`Part`]; those that it does not have are left out.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Parts(pub Vec<PartSize>);

crate::debug::one_line!(Parts, |parts| {
    let bytes: u64 = parts.0.iter().map(|size| size.bytes).sum();
    format!("Parts({} parts, {bytes} bytes)", parts.0.len())
});

impl Parts {
    /// Adds up `tensors`; without a `family`, mixtures are not recognised.
    pub fn of(tensors: &[TensorInfo], family: Option<&MoeFamily>) -> Parts {
        let mut sizes: BTreeMap<Part, (u64, u64)> = BTreeMap::new();
        for tensor in tensors {
            let (count, bytes) = sizes.entry(Part::of(&tensor.name, family)).or_default();
            *count += 1;
            *bytes = bytes.saturating_add(tensor.bytes());
        }
        Parts(sizes.into_iter().map(|(part, (tensors, bytes))| PartSize { part, tensors, bytes }).collect())
    }

    /// Bytes of one part; 0 when the model does not have it.
    pub fn bytes(&self, part: Part) -> u64 {
        self.0.iter().find(|size| size.part == part).map_or(0, |size| size.bytes)
    }
}

/// The shards that hold the mixture of each layer. Only the tensors that expert pruning reads count: routed experts and
/// routers.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Locality {
    /// File names of all shards of the checkpoint.
    pub files: Vec<String>,
    /// Layers that have a mixture, ascending.
    pub layers: Vec<LayerShards>,
}

crate::debug::one_line!(Locality, |locality| {
    format!("Locality({} layers in {} files)", locality.layers.len(), locality.files.len())
});

/// The shards of one layer's mixture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerShards {
    /// Number of the layer. Layers for multi-token prediction (`mtp.layers`) count on after the model's own.
    pub layer: usize,
    /// Bytes of its mixture in all shards.
    pub bytes: u64,
    /// The shards that hold some of it, ascending.
    pub shards: Vec<ShardBytes>,
}

/// The bytes of a layer in one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardBytes {
    /// Position in [`Locality::files`].
    pub shard: usize,
    /// Bytes of the layer's mixture in it.
    pub bytes: u64,
}

impl Locality {
    /// The table of `tensors`, which lie in shards with the names `files`, of a model with `layers` layers of its own
    /// (`num_hidden_layers`).
    pub fn of(tensors: &[TensorInfo], files: &[String], family: &MoeFamily, layers: usize) -> Locality {
        let mut mixtures: BTreeMap<usize, BTreeMap<usize, u64>> = BTreeMap::new();
        for tensor in tensors {
            if let Some((layer, Role::Expert(_) | Role::Stacked | Role::Router)) = place(family, layers, &tensor.name) {
                let bytes = mixtures.entry(layer).or_default().entry(tensor.shard).or_default();
                *bytes = bytes.saturating_add(tensor.bytes());
            }
        }
        let layer = |(layer, shards): (usize, BTreeMap<usize, u64>)| LayerShards {
            layer,
            bytes: shards.values().fold(0, |sum, &bytes| sum.saturating_add(bytes)),
            shards: shards.into_iter().map(|(shard, bytes)| ShardBytes { shard, bytes }).collect(),
        };
        Locality { files: files.to_vec(), layers: mixtures.into_iter().map(layer).collect() }
    }

    /// Short names of the shards: the number in the file's name, where that tells them apart.
    pub fn shard_names(&self) -> Vec<String> {
        let number = |file: &String| -> Option<u64> {
            let digits = file.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?;
            digits.parse().ok()
        };
        let numbers: Option<Vec<u64>> = self.files.iter().map(number).collect();
        let numbers = numbers.filter(|numbers| {
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            sorted.windows(2).all(|pair| pair[0] != pair[1])
        });
        numbers.map_or_else(|| self.files.clone(), |numbers| numbers.iter().map(u64::to_string).collect())
    }

    /// Bytes as a matrix (layers, shards): a row for each of [`Locality::layers`], a column for each of
    /// [`Locality::files`]; `None` where a shard holds nothing of the layer.
    pub fn matrix(&self) -> Vec<Vec<Option<u64>>> {
        let row = |layer: &LayerShards| {
            let mut row = vec![None; self.files.len()];
            for shard in &layer.shards {
                row[shard.shard] = Some(shard.bytes);
            }
            row
        };
        self.layers.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;

    #[test]
    fn every_kind_of_name_has_its_part() {
        for (model_type, name, part) in [
            ("llama", "model.embed_tokens.weight", Part::Embeddings),
            ("llama", "lm_head.weight", Part::OutputHead),
            ("llama", "model.norm.weight", Part::Norms),
            ("llama", "model.layers.3.post_attention_layernorm.weight", Part::Norms),
            ("llama", "model.layers.3.self_attn.q_proj.bias", Part::Attention),
            ("llama", "model.layers.3.mlp.gate_proj.weight", Part::FeedForward),
            ("llama", "model.layers.3.mlp.experts.1.up_proj.weight", Part::FeedForward),
            ("gpt_oss", "model.layers.3.self_attn.sinks", Part::Attention),
            ("gpt_oss", "model.layers.3.mlp.router.bias", Part::Router),
            ("gpt_oss", "model.layers.3.mlp.experts.down_proj_scales", Part::Experts),
            ("mixtral", "model.layers.3.block_sparse_moe.gate.weight", Part::Router),
            ("mixtral", "model.layers.3.block_sparse_moe.experts.1.w1.weight", Part::Experts),
            ("qwen3_moe", "model.layers.3.self_attn.k_norm.weight", Part::Attention),
            ("qwen3_next", "model.layers.3.linear_attn.A_log", Part::Attention),
            ("qwen3_next", "model.layers.3.mlp.shared_expert_gate.weight", Part::SharedExperts),
            ("qwen3_next", "mtp.layers.0.mlp.experts.3.up_proj.weight", Part::Experts),
            ("qwen3_next", "mtp.pre_fc_norm_hidden.weight", Part::Other),
            ("deepseek_v3", "model.layers.0.mlp.gate_proj.weight", Part::FeedForward),
            ("deepseek_v3", "model.layers.3.mlp.gate.e_score_correction_bias", Part::Router),
            ("deepseek_v3", "model.layers.3.mlp.experts.255.down_proj.weight_scale_inv", Part::Experts),
            ("deepseek_v3", "model.layers.3.self_attn.kv_a_layernorm.weight", Part::Attention),
            ("deepseek_v3", "model.layers.61.eh_proj.weight", Part::Other),
            ("deepseek_v3", "model.layers.61.shared_head.head.weight", Part::OutputHead),
            ("glm4_moe", "model.layers.46.mlp.shared_experts.up_proj.weight", Part::SharedExperts),
        ] {
            assert_eq!(Part::of(name, MoeFamily::find(model_type)), part, "{model_type} {name}");
        }
    }

    fn tensor(name: &str, shard: usize, range: std::ops::Range<u64>) -> TensorInfo {
        let shape = vec![(range.end - range.start) as usize];
        TensorInfo { name: name.into(), dtype: Dtype::U8, shape, shard, range }
    }

    #[test]
    fn locality_counts_what_pruning_reads_layer_by_layer() {
        let files: Vec<String> = (1..=3).map(|n| format!("model-{n:05}-of-00003.safetensors")).collect();
        let tensors = [
            tensor("model.layers.0.mlp.gate.weight", 0, 8..18),
            tensor("model.layers.0.mlp.experts.0.up_proj.weight", 0, 18..118),
            tensor("model.layers.0.mlp.shared_expert.up_proj.weight", 1, 8..1008),
            tensor("model.layers.1.self_attn.q_proj.weight", 1, 1008..1108),
            tensor("model.layers.0.mlp.experts.1.up_proj.weight", 2, 8..208),
            tensor("mtp.layers.0.mlp.experts.1.up_proj.weight", 2, 208..211),
        ];
        let family = MoeFamily::find("qwen3_next").unwrap();
        let locality = Locality::of(&tensors, &files, family, 3);
        assert_eq!(
            locality.layers.iter().map(|layer| (layer.layer, layer.bytes)).collect::<Vec<_>>(),
            [(0, 310), (3, 3)],
            "the model says how many layers it has, its last one need have no tensor"
        );
        assert_eq!(locality.matrix(), [[Some(110), None, Some(200)], [None, None, Some(3)]]);
        assert_eq!(locality.shard_names(), ["1", "2", "3"]);
        let parts = Parts::of(&tensors, Some(family));
        assert_eq!(parts.0.iter().map(|size| size.bytes).sum::<u64>(), 1413);
        assert_eq!([Part::Experts, Part::SharedExperts, Part::Norms].map(|part| parts.bytes(part)), [303, 1000, 0]);
    }

    #[test]
    fn absurd_sizes_and_numbers_are_no_trouble() {
        let last = format!("model.layers.{}.mlp.experts.0.up_proj.weight", usize::MAX);
        let huge = |name: &str| TensorInfo { shape: Vec::new(), ..tensor(name, 0, 0..0) };
        let tensors = [last.as_str(), &last].map(|name| TensorInfo { range: 0..1 << 63, ..huge(name) });
        let family = MoeFamily::find("qwen3_next").unwrap();
        let locality = Locality::of(&tensors, &["model.safetensors".into()], family, 3);
        assert_eq!((locality.layers[0].layer, locality.layers[0].bytes), (usize::MAX, u64::MAX));
        assert_eq!(locality.matrix(), [[Some(u64::MAX)]]);
        assert_eq!(Parts::of(&tensors, Some(family)).bytes(Part::Experts), u64::MAX);
    }

    #[test]
    fn shards_without_numbers_of_their_own_keep_their_names() {
        let files = ["model.safetensors".to_owned(), "other.safetensors".to_owned()];
        let locality = Locality { files: files.to_vec(), layers: Vec::new() };
        assert_eq!(locality.shard_names(), files);
    }
}
