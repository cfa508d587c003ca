//! Small checkpoints of every family with random weights, written through the library.

#![allow(dead_code, reason = "each test file uses some of these")]

use candle_core::{DType, Device, Tensor};
use lacuna::checkpoint::{Checkpoint, CheckpointWriter, dtype_of, plan_shards};
use lacuna::model::{Model, ModelConfig};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::path::Path;

/// A Llama of two layers with grouped queries; other families are this and some fields changed.
pub(crate) fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0, "tie_word_embeddings": false, "hidden_act": "silu",
    })
}

/// `base` with the fields of `changes` put in.
pub(crate) fn with(mut base: Value, changes: Value) -> Value {
    base.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    base
}

/// Writes a checkpoint for `config` to `dir`, in shards of at most `shard` bytes. Activations and logits are of order
/// one, norms and biases are not trivial, and no weight is zero.
pub(crate) fn write(dir: &Path, config: &Value, dtype: DType, shard: u64, seed: u64) -> Checkpoint {
    let parsed = ModelConfig::from_json(&dir.join("config.json"), config.as_object().unwrap()).unwrap();
    let plan = parsed.tensors().into_iter().map(|(name, shape)| (name, dtype_of(dtype).unwrap(), shape)).collect();
    let mut writer = CheckpointWriter::create(dir, plan_shards(plan, shard)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for (name, shape) in parsed.tensors() {
        let mut draw = || (0.02 + 0.98 * rng.random::<f32>()) * if rng.random() { 1.0 } else { -1.0 };
        let inputs = shape[shape.len() - 1] as f32;
        let value = |u: f32| match () {
            () if name.ends_with("norm.weight") => 1.0 + 0.3 * u,
            () if name.ends_with("bias") => 0.5 * u,
            () => u * (3.0 / inputs).sqrt(),
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value(draw())).collect();
        writer.write_tensor(&name, &Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap();
    }
    writer.add_file("config.json", config.to_string().as_bytes()).unwrap();
    writer.finish().unwrap();
    Checkpoint::open(dir).unwrap()
}

/// The checkpoint in `dir` as a model that computes in f32.
pub(crate) fn open(dir: &Path) -> Model {
    Model::open(&Checkpoint::open(dir).unwrap(), DType::F32, &Device::Cpu).unwrap()
}

/// `n` token ids below `vocab`.
pub(crate) fn tokens(n: usize, vocab: u32, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0..vocab)).collect()
}
