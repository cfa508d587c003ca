//! Checkpoints of every family of mixtures with random bytes, dealt out to shards: for what moves bytes and computes
//! nothing.

use lacuna::checkpoint::Checkpoint;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use std::path::Path;

/// A tensor: name, dtype, bytes of an element, shape.
pub(crate) type Spec = (String, &'static str, usize, Vec<usize>);

/// The description of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Moe {
    pub(crate) model_type: &'static str,
    pub(crate) layers: usize,
    pub(crate) experts: usize,
    pub(crate) hidden: usize,
    pub(crate) width: usize,
}

impl Moe {
    pub(crate) fn small(model_type: &'static str) -> Moe {
        Moe { model_type, layers: 3, experts: 8, hidden: 32, width: 32 }
    }

    /// The first layer of DeepSeek and GLM is dense.
    pub(crate) fn dense_layers(&self) -> usize {
        usize::from(["deepseek_v2", "deepseek_v3", "glm4_moe"].contains(&self.model_type))
    }

    pub(crate) fn config(&self) -> Value {
        let mut config = json!({
            "model_type": self.model_type, "num_hidden_layers": self.layers, "num_experts_per_tok": 2,
            "hidden_size": self.hidden, "vocab_size": 64,
        });
        let key = match self.model_type {
            "gpt_oss" | "mixtral" => "num_local_experts",
            "deepseek_v2" | "deepseek_v3" | "glm4_moe" => "n_routed_experts",
            _ => "num_experts",
        };
        config[key] = self.experts.into();
        if self.model_type == "deepseek_v3" {
            config["n_group"] = 2.into();
            config["topk_group"] = 1.into();
        }
        config
    }

    /// Every tensor, layer by layer. Sizes are odd where they can be.
    pub(crate) fn tensors(&self) -> Vec<Spec> {
        let (experts, hidden, width) = (self.experts, self.hidden, self.width);
        let bf16 = |name: String, shape: &[usize]| (name, "BF16", 2, shape.to_vec());
        let mut tensors = vec![bf16("model.embed_tokens.weight".into(), &[64, hidden])];
        for layer in 0..self.layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            tensors.push(bf16(at("input_layernorm.weight"), &[hidden]));
            tensors.push(bf16(at("self_attn.o_proj.weight"), &[hidden, hidden]));
            if layer < self.dense_layers() {
                tensors.push(bf16(at("mlp.down_proj.weight"), &[hidden, width]));
                continue;
            }
            self.mixture(&mut tensors, &at, experts, hidden, width);
        }
        if self.model_type == "qwen3_next" {
            let at = |name: &str| format!("mtp.layers.0.{name}");
            self.mixture(&mut tensors, &at, experts, hidden, width);
        }
        tensors.push(bf16("model.norm.weight".into(), &[hidden]));
        tensors
    }

    fn mixture(
        &self,
        tensors: &mut Vec<Spec>,
        at: &dyn Fn(&str) -> String,
        experts: usize,
        hidden: usize,
        width: usize,
    ) {
        let bf16 = |name: String, shape: &[usize]| (name, "BF16", 2, shape.to_vec());
        let (module, linears) = match self.model_type {
            "mixtral" => ("block_sparse_moe", ["w1", "w2", "w3"]),
            _ => ("mlp", ["gate_proj", "down_proj", "up_proj"]),
        };
        if self.model_type == "gpt_oss" {
            tensors.push(bf16(at("mlp.router.weight"), &[experts, hidden]));
            tensors.push(bf16(at("mlp.router.bias"), &[experts]));
            for (name, rows, cols) in [("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)] {
                tensors.push((at(&format!("mlp.experts.{name}_blocks")), "U8", 1, vec![experts, rows, cols / 32, 16]));
                // One scale less than there are, so that slices have an odd length.
                tensors.push((at(&format!("mlp.experts.{name}_scales")), "U8", 1, vec![experts, rows - 1, cols / 32]));
                tensors.push(bf16(at(&format!("mlp.experts.{name}_bias")), &[experts, rows]));
            }
            return;
        }
        tensors.push(bf16(at(&format!("{module}.gate.weight")), &[experts, hidden]));
        if ["deepseek_v3", "glm4_moe"].contains(&self.model_type) {
            tensors.push((at("mlp.gate.e_score_correction_bias"), "F32", 4, vec![experts]));
        }
        for expert in 0..experts {
            for name in linears {
                tensors.push(bf16(at(&format!("{module}.experts.{expert}.{name}.weight")), &[width, hidden]));
            }
        }
        let shared = match self.model_type {
            "qwen2_moe" | "qwen3_next" => "shared_expert",
            "deepseek_v2" | "deepseek_v3" | "glm4_moe" => "shared_experts",
            _ => return,
        };
        tensors.push(bf16(at(&format!("mlp.{shared}.up_proj.weight")), &[width, hidden]));
        if shared == "shared_expert" {
            tensors.push(bf16(at("mlp.shared_expert_gate.weight"), &[1, hidden]));
        }
    }

    /// Writes the checkpoint to `dir` with random bytes, its tensors shuffled over `shards` files.
    pub(crate) fn write(&self, dir: &Path, shards: usize, seed: u64) -> Checkpoint {
        write(dir, &self.config(), self.tensors(), shards, seed)
    }
}

/// Writes `tensors` with random bytes, shuffled over `shards` files, with index, config and a tokenizer.
pub(crate) fn write(dir: &Path, config: &Value, mut tensors: Vec<Spec>, shards: usize, seed: u64) -> Checkpoint {
    std::fs::create_dir_all(dir).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    tensors.shuffle(&mut rng);
    let mut files: Vec<(Map<String, Value>, Vec<u8>)> = vec![Default::default(); shards];
    let mut weight_map = Map::new();
    let name = |shard: usize| format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
    for (number, (tensor, dtype, width, shape)) in tensors.into_iter().enumerate() {
        // Every shard gets one.
        let shard = if number < shards { number } else { rng.random_range(0..shards) };
        let (header, data) = &mut files[shard];
        let mut bytes = vec![0; shape.iter().product::<usize>() * width];
        rng.fill_bytes(&mut bytes);
        let end = data.len() + bytes.len();
        header.insert(tensor.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]}));
        data.extend(bytes);
        weight_map.insert(tensor, name(shard).into());
    }
    for (shard, (header, data)) in files.into_iter().enumerate() {
        let file = super::common::safetensors(&Value::Object(header).to_string(), &data);
        std::fs::write(dir.join(name(shard)), file).unwrap();
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), "{\"a\": 1}").unwrap();
    Checkpoint::open(dir).unwrap()
}
