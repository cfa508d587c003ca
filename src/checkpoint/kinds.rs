//! Tensors by kind, for people.

use super::Source;
use serde::Serialize;
use std::collections::HashMap;

/// Tensors whose names differ in their numbers (layer, expert) only, of one type and shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorKind {
    /// The name with `*` for numbers: `model.layers.*.mlp.up_proj.weight`.
    pub name: String,
    /// Type of an element.
    pub dtype: String,
    /// Shape of each of the tensors.
    pub shape: Vec<usize>,
    /// Number of tensors.
    pub count: u64,
    /// Their elements together.
    pub parameters: u64,
    /// Their bytes together, dense.
    pub bytes: u64,
    /// Bytes that they take in a sparse checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
}

impl TensorKind {
    /// The kinds of a source's tensors, in the order of the first of each; with `stored_bytes` if `sparse`.
    pub fn of(source: &dyn Source, sparse: bool) -> Vec<TensorKind> {
        TensorKind::group(source.index().iter().map(|info| TensorKind {
            name: info.name.clone(),
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            count: 1,
            parameters: info.elements(),
            bytes: info.bytes(),
            stored_bytes: sparse.then(|| source.stored(info).bytes),
        }))
    }

    /// Adds up tensors of one kind, in the order of the first of each; names may still have their numbers.
    pub(crate) fn group(tensors: impl IntoIterator<Item = TensorKind>) -> Vec<TensorKind> {
        let mut places: HashMap<(String, String, Vec<usize>), usize> = HashMap::new();
        let mut kinds: Vec<TensorKind> = Vec::new();
        for tensor in tensors {
            let tensor = TensorKind { name: without_numbers(&tensor.name), ..tensor };
            let key = (tensor.name.clone(), tensor.dtype.clone(), tensor.shape.clone());
            match places.get(&key) {
                Some(&at) => kinds[at].add(&tensor),
                None => {
                    places.insert(key, kinds.len());
                    kinds.push(tensor);
                }
            }
        }
        kinds
    }

    fn add(&mut self, other: &TensorKind) {
        self.count += other.count;
        self.parameters += other.parameters;
        self.bytes += other.bytes;
        self.stored_bytes = self.stored_bytes.zip(other.stored_bytes).map(|(a, b)| a + b);
    }
}

fn without_numbers(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_that_differ_in_numbers_only_are_one_kind() {
        let tensor = |name: &str, shape: &[usize]| TensorKind {
            name: name.into(),
            dtype: "F32".into(),
            shape: shape.to_vec(),
            count: 1,
            parameters: 6,
            bytes: 24,
            stored_bytes: Some(10),
        };
        let kinds = TensorKind::group([
            tensor("a.0.w", &[2, 3]),
            tensor("a.0.v2", &[2, 3]),
            tensor("a.11.w", &[2, 3]),
            tensor("a.1.w", &[3, 2]),
        ]);
        let summed =
            TensorKind { count: 2, parameters: 12, bytes: 48, stored_bytes: Some(20), ..tensor("a.*.w", &[2, 3]) };
        assert_eq!(kinds, [summed, tensor("a.*.v2", &[2, 3]), tensor("a.*.w", &[3, 2])]);
    }
}
