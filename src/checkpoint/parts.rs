//! Parts of stored tensors under names of their own: one expert's linear inside a tensor that holds all experts, or a tensor
//! that another name stands for.

use super::{Checkpoint, TensorInfo};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// A part of a stored tensor that can be read and written as if it were a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The name that it goes by.
    pub(crate) name: String,
    /// The stored tensor.
    pub(crate) of: String,
    /// Elements of the stored tensor before it; its own follow each other.
    pub(crate) start: u64,
    /// As it is read: `(out, in)` for a linear's weight.
    pub(crate) shape: Vec<usize>,
    /// True if the matrix is stored the other way around, `(in, out)`.
    pub(crate) transposed: bool,
}

/// All parts of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Parts {
    by_name: HashMap<String, (Part, TensorInfo)>,
    /// The parts of each stored tensor, in the order of their bytes.
    of: HashMap<String, Vec<String>>,
}

impl Parts {
    pub(super) fn get(&self, name: &str) -> Option<&(Part, TensorInfo)> {
        self.by_name.get(name)
    }
}

impl Part {
    /// The shape of its bytes.
    pub(super) fn stored_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }
}

/// The bytes of a matrix of `rows` rows the other way around, elements being `width` bytes.
pub(super) fn transpose(bytes: &[u8], rows: usize, width: usize) -> Vec<u8> {
    let mut turned = Vec::with_capacity(bytes.len());
    let cols = bytes.len() / (rows * width).max(1);
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * width;
            turned.extend_from_slice(&bytes[at..at + width]);
        }
    }
    turned
}

impl Checkpoint {
    /// This checkpoint, in which parts of tensors can be read under names of their own. Names that an earlier call gave
    /// stay.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a part reaches beyond its tensor, or its name is that of a stored tensor.
    pub(crate) fn with_parts(&self, parts: impl IntoIterator<Item = Part>) -> Result<Checkpoint> {
        let mut all = Parts { by_name: self.1.by_name.clone(), of: self.1.of.clone() };
        for part in parts {
            let info = self.get(&part.of)?;
            let elements: u64 = part.shape.iter().map(|&dim| dim as u64).product();
            let width = (info.dtype.bitsize() / 8) as u64;
            if self.0.by_name.contains_key(&part.name) || part.start + elements > info.elements() || width == 0 {
                return Err(Error::tensor(self.dir(), &part.name, format!("is no part of `{}`", part.of)));
            }
            let start = info.range.start + part.start * width;
            let view = TensorInfo {
                name: part.name.clone(),
                dtype: info.dtype,
                shape: part.shape.clone(),
                shard: info.shard,
                range: start..start + elements * width,
            };
            all.of.entry(part.of.clone()).or_default().push(part.name.clone());
            all.by_name.insert(part.name.clone(), (part, view));
        }
        Ok(Checkpoint(self.0.clone(), Arc::new(all)))
    }

    /// The parts of the stored tensor called `name`, in the order of their bytes; none for a tensor that has none.
    pub(crate) fn parts_of(&self, name: &str) -> impl Iterator<Item = &TensorInfo> {
        let names = self.1.of.get(name).map_or(&[][..], Vec::as_slice);
        names.iter().filter_map(|name| Some(&self.1.by_name.get(name)?.1))
    }

    /// All tensors, of those that have parts the parts in their place; in the order of their bytes.
    pub(crate) fn divided(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors().flat_map(|info| {
            let whole = if self.1.of.contains_key(&info.name) { None } else { Some(info) };
            whole.into_iter().chain(self.parts_of(&info.name))
        })
    }

    /// The stored tensor that `name` is a part of, if it is one.
    pub(crate) fn part(&self, name: &str) -> Option<&Part> {
        self.1.get(name).map(|(part, _)| part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_turns_and_turns_back() {
        let bytes: Vec<u8> = (0..24).collect();
        let turned = transpose(&bytes, 3, 2); // (3, 4) of two bytes
        assert_eq!(turned[..6], [0, 1, 8, 9, 16, 17]);
        assert_eq!(transpose(&turned, 4, 2), bytes);
    }
}
