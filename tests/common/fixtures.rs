//! The tiny mixtures of `tests/data` and the numbers of PyTorch beside them.

use candle_core::npy::NpzTensors;
use candle_core::{DType, Device, Tensor};
use lacuna::checkpoint::Checkpoint;
use lacuna::model::Model;
use lacuna::text::{Consecutive, Windows};
use serde_json::Value;
use std::path::Path;

pub(crate) const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// Each fixture with its windows and their length.
pub(crate) const FIXTURES: [(&str, usize, usize); 6] = [
    ("tiny-mixtral", 4, 64),
    ("tiny-gpt-oss", 4, 64),
    ("tiny-qwen3-moe", 3, 40),
    ("tiny-qwen2-moe", 3, 40),
    ("tiny-olmoe", 3, 40),
    ("tiny-gpt-oss-f32", 3, 40),
];

pub(crate) fn open_dir(dir: impl AsRef<Path>) -> Model {
    Model::open(&Checkpoint::open(dir.as_ref()).unwrap(), DType::F32, &Device::Cpu).unwrap()
}

pub(crate) fn open(name: &str) -> Model {
    open_dir(format!("{DATA}/{name}"))
}

pub(crate) fn windows(name: &str, count: usize, seqlen: usize) -> Windows {
    Windows::evaluation(format!("{DATA}/{name}/tokens.json"), None, Consecutive::of(seqlen).first(count)).unwrap()
}

pub(crate) fn logits(name: &str, file: &str) -> Tensor {
    NpzTensors::new(format!("{DATA}/{name}/{file}")).unwrap().get("logits").unwrap().unwrap()
}

pub(crate) fn reference(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(format!("{DATA}/{name}/saliency.json")).unwrap()).unwrap()
}

/// Largest difference of the logits of all windows from `expected (windows, seqlen, vocab)`.
pub(crate) fn worst_logit(model: &Model, windows: &Windows, expected: &Tensor) -> f32 {
    let worst = |(i, ids): (usize, &Vec<u32>)| {
        let difference = (model.forward(ids).unwrap() - expected.get(i).unwrap()).unwrap();
        difference.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    windows.ids.iter().enumerate().map(worst).fold(0.0, f32::max)
}
