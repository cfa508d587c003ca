//! The tensors that a model is made of: their names, shapes and kinds.

use super::config::{ExpertStorage, ModelConfig, MoeConfig, QkNorm};
use super::mxfp4;
use candle_core::DType;

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// Gate, up and down projection of a layer's own MLP, and of a shared expert.
pub(crate) const MLP: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// The type of the elements of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Floats.
    Float,
    /// Bytes with two 4-bit floats each.
    Fp4,
    /// Bytes, each the exponent that scales a group of 4-bit floats.
    Scales,
}

/// A tensor that the forward pass reads.
#[derive(Clone, Debug)]
pub(super) struct Needed {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: Encoding,
    /// True for the weight of a linear that [`DecoderLayer::linears`](super::DecoderLayer::linears) lists.
    pub(super) prunable: bool,
}

/// The size of a model's tensor in memory.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "report"), expect(dead_code, reason = "a cell shows all of it"))]
pub(crate) struct TensorSize {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    /// Weights: bytes of MXFP4 hold two, its scales none.
    pub(crate) parameters: u64,
    pub(crate) bytes: u64,
}

impl ModelConfig {
    /// Name and shape of every tensor that the forward pass reads, as they are stored: MXFP4 weights are blocks of bytes
    /// and their scales.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.list(false).into_iter().map(|needed| (needed.name, needed.shape)).collect()
    }

    /// Name and shape of every tensor that a model has by name: instead of a tensor that holds all experts, those of
    /// each expert.
    pub(crate) fn divided(&self) -> Vec<(String, Vec<usize>)> {
        self.needed().into_iter().map(|needed| (needed.name, needed.shape)).collect()
    }

    /// Name and `(out, in)` of the weight of every prunable linear, in the order of [`DecoderLayer::linears`](super::DecoderLayer::linears).
    pub fn linears(&self) -> Vec<(String, (usize, usize))> {
        let linear = |needed: Needed| match needed.shape[..] {
            [out, input] if needed.prunable => Some((needed.name, (out, input))),
            _ => None,
        };
        self.needed().into_iter().filter_map(linear).collect()
    }

    /// Every tensor that the forward pass reads and what it takes in memory, floats as `dtype`.
    pub(crate) fn sizes(&self, dtype: DType) -> Vec<TensorSize> {
        let size = |needed: Needed| {
            let elements: u64 = needed.shape.iter().map(|&dim| dim as u64).product();
            let (dtype, parameters) = match needed.kind {
                Encoding::Float => (dtype, elements),
                Encoding::Fp4 => (DType::U8, 2 * elements),
                Encoding::Scales => (DType::U8, 0),
            };
            let bytes = elements * dtype.size_in_bytes() as u64;
            TensorSize { name: needed.name, shape: needed.shape, dtype, parameters, bytes }
        };
        self.needed().into_iter().map(size).collect()
    }

    /// Number of weights.
    pub(super) fn parameters(&self) -> u64 {
        self.sizes(DType::F32).iter().map(|tensor| tensor.parameters).sum()
    }

    pub(super) fn needed(&self) -> Vec<Needed> {
        self.list(true)
    }

    /// The tensors that the forward pass needs; if `divided`, experts that are stored in one tensor are listed singly,
    /// unless they are packed.
    fn list(&self, divided: bool) -> Vec<Needed> {
        let hidden = self.hidden_size;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut list = List(vec![]);
        list.float(EMBEDDING.into(), &[self.vocab_size, hidden]);
        for i in 0..self.layers {
            let prefix = format!("model.layers.{i}");
            list.float(format!("{prefix}.input_layernorm.weight"), &[hidden]);
            for (name, out, input, bias) in [
                ("q", q, hidden, self.qkv_bias),
                ("k", kv, hidden, self.qkv_bias),
                ("v", kv, hidden, self.qkv_bias),
                ("o", hidden, q, self.o_bias),
            ] {
                list.prunable(&format!("{prefix}.self_attn.{name}_proj"), out, input, bias);
            }
            if let Some(norm) = self.qk_norm {
                let width = |projection| if norm == QkNorm::Head { self.head_dim } else { projection };
                list.float(format!("{prefix}.self_attn.q_norm.weight"), &[width(q)]);
                list.float(format!("{prefix}.self_attn.k_norm.weight"), &[width(kv)]);
            }
            if self.sinks {
                list.float(format!("{prefix}.self_attn.sinks"), &[self.heads]);
            }
            list.float(format!("{prefix}.post_attention_layernorm.weight"), &[hidden]);
            match self.mixture(i) {
                None => list.mlp(&format!("{prefix}.mlp"), MLP, self.intermediate_size, hidden, self.mlp_bias),
                Some(moe) => list.mixture(&format!("{prefix}.{}", moe.names.module), moe, hidden, divided),
            }
        }
        list.float(NORM.into(), &[hidden]);
        if !self.tie_word_embeddings {
            list.float(HEAD.into(), &[self.vocab_size, hidden]);
        }
        list.0
    }
}

struct List(Vec<Needed>);

impl List {
    fn add(&mut self, name: String, shape: &[usize], kind: Encoding) {
        self.0.push(Needed { name, shape: shape.to_vec(), kind, prunable: false });
    }

    fn float(&mut self, name: String, shape: &[usize]) {
        self.add(name, shape, Encoding::Float);
    }

    fn linear(&mut self, name: &str, out: usize, input: usize, bias: bool) {
        self.float(format!("{name}.weight"), &[out, input]);
        if bias {
            self.float(format!("{name}.bias"), &[out]);
        }
    }

    fn prunable(&mut self, name: &str, out: usize, input: usize, bias: bool) {
        let weight = self.0.len();
        self.linear(name, out, input, bias);
        self.0[weight].prunable = true;
    }

    fn mlp(&mut self, prefix: &str, [gate, up, down]: [&str; 3], width: usize, hidden: usize, bias: bool) {
        self.prunable(&format!("{prefix}.{gate}"), width, hidden, bias);
        self.prunable(&format!("{prefix}.{up}"), width, hidden, bias);
        self.prunable(&format!("{prefix}.{down}"), hidden, width, bias);
    }

    fn mixture(&mut self, prefix: &str, moe: &MoeConfig, hidden: usize, divided: bool) {
        let (experts, width) = (moe.experts, moe.intermediate_size);
        match moe.storage {
            ExpertStorage::Separate => {
                for expert in 0..experts {
                    self.mlp(&format!("{prefix}.experts.{expert}"), moe.names.linears, width, hidden, false);
                }
            }
            ExpertStorage::Stacked { mxfp4, .. } => {
                let linears = [("gate_up_proj", hidden, 2 * width), ("down_proj", width, hidden)];
                let divided = divided && !mxfp4;
                for expert in 0..if divided { experts } else { 0 } {
                    for (name, input, out) in linears {
                        self.prunable(&format!("{prefix}.experts.{expert}.{name}"), out, input, false);
                    }
                }
                for (name, input, out) in linears {
                    let name = format!("{prefix}.experts.{name}");
                    if mxfp4 {
                        let groups = input / mxfp4::GROUP;
                        self.add(format!("{name}_blocks"), &[experts, out, groups, mxfp4::GROUP / 2], Encoding::Fp4);
                        self.add(format!("{name}_scales"), &[experts, out, groups], Encoding::Scales);
                    } else if !divided {
                        self.float(name.clone(), &[experts, input, out]);
                    }
                    self.float(format!("{name}_bias"), &[experts, out]);
                }
            }
        }
        self.linear(&format!("{prefix}.{}", moe.names.router), experts, hidden, moe.router_bias());
        if let (Some(width), [shared, gate]) = (moe.shared_intermediate_size, moe.names.shared) {
            self.mlp(&format!("{prefix}.{shared}"), MLP, width, hidden, false);
            self.linear(&format!("{prefix}.{gate}"), 1, hidden, false);
        }
    }
}
