//! Helpers of several test files: tiny checkpoints, written byte by byte so that they can also be wrong.

#![allow(dead_code, reason = "each test file uses some of these")]

pub(crate) mod skip;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

/// A safetensors file: `header` as JSON text, then `data`.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A valid file of f32 tensors, in the given order.
pub(crate) fn file_of(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header.insert((*name).to_owned(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    safetensors(&Value::Object(header).to_string(), &data)
}

/// An index over `weight_map` pairs (tensor, shard).
pub(crate) fn index_of(weight_map: &[(&str, &str)]) -> String {
    let map: serde_json::Map<String, Value> = weight_map.iter().map(|(t, s)| ((*t).to_owned(), json!(s))).collect();
    json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string()
}

/// Writes a checkpoint of two shards with tensors `a` (2, 3), `b` (4) and `c` (1), and a config.
pub(crate) fn two_shards(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let first = file_of(&[("a", &[2, 3], &[1., 2., 3., 4., 5., 6.]), ("b", &[4], &[0.5, -0.5, 0., 7.])]);
    let second = file_of(&[("c", &[1], &[9.])]);
    std::fs::write(dir.join("model-00001-of-00002.safetensors"), first).unwrap();
    std::fs::write(dir.join("model-00002-of-00002.safetensors"), second).unwrap();
    let index = index_of(&[
        ("a", "model-00001-of-00002.safetensors"),
        ("b", "model-00001-of-00002.safetensors"),
        ("c", "model-00002-of-00002.safetensors"),
    ]);
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    std::fs::write(dir.join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    std::fs::write(dir.join("tokenizer.json"), "{}").unwrap();
}

/// Every file below `dir` with its bytes and modification time, to show that nothing has touched them.
pub(crate) fn fingerprint(dir: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let modified = entry.metadata().unwrap().modified().unwrap();
            (entry.file_name().into_string().unwrap(), (std::fs::read(entry.path()).unwrap(), modified))
        })
        .collect()
}

/// Names in `dir`, hidden ones included.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that `error`'s message holds every one of `parts`.
#[track_caller]
pub(crate) fn assert_says(error: impl std::fmt::Display, parts: &[&str]) {
    let error = error.to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}
