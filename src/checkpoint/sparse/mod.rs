//! Sparse checkpoints: weights stored as their kept values and the positions of these, so that zeros cost a bit each.
//! `docs/sparse-checkpoints.md` describes the files.
//!
//! [`Checkpoint::open`](super::Checkpoint::open) shows such a directory as the dense checkpoint that was compressed: same
//! names, shapes, types, bytes and [`Checkpoint::sha256`](super::Checkpoint::sha256). What is asked for is expanded, from
//! the rows that it lies in.

mod codec;
mod compress;
mod layout;
mod marker;
mod storage;

pub use compress::{compress, decompress};

pub(crate) use codec::pack_two_of_four_16;
pub(super) use layout::dense_view;
pub(super) use marker::{is_sparse, without_marker};
pub(super) use storage::Storage;

use super::{Source, TensorInfo};
use crate::error::named;
use serde::Serialize;

/// A format that leaves out the zeros of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SparseFormat {
    /// A bit for each element and the elements that are not zero: `sparse-bitmask` of compressed-tensors.
    Bitmask,
    /// Two elements of each four, and two bits for the place of each, as NVIDIA's sparse tensor cores take them.
    TwoOfFour,
}

named!(SparseFormat, "format", Bitmask => "bitmask", TwoOfFour => "2:4");

/// Format and size of a tensor in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// `None` if it is dense.
    pub format: Option<SparseFormat>,
    /// Bytes of everything that it is stored as.
    pub bytes: u64,
}

/// Sizes of the tensors that are stored in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Number of tensors.
    pub tensors: u64,
    /// Bytes if they were dense.
    pub dense_bytes: u64,
    /// Bytes that they take.
    pub stored_bytes: u64,
}

impl Share {
    /// Stored bytes of a dense byte; 1 when there are none.
    pub fn ratio(&self) -> f64 {
        if self.dense_bytes == 0 { 1.0 } else { self.stored_bytes as f64 / self.dense_bytes as f64 }
    }
}

/// Sizes of a checkpoint by how its tensors are stored, without headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SparseSummary {
    /// Tensors with a bitmask.
    pub bitmask: Share,
    /// Tensors with 2:4 indices.
    #[serde(rename = "2:4")]
    pub two_of_four: Share,
    /// Tensors as they are.
    pub dense: Share,
}

impl SparseSummary {
    /// The summary of a checkpoint.
    pub fn of(source: &dyn Source) -> Self {
        let mut summary = Self::default();
        source.index().iter().for_each(|info| summary.add(info, source.stored(info)));
        summary
    }

    fn add(&mut self, info: &TensorInfo, stored: Stored) {
        let share = match stored.format {
            Some(SparseFormat::Bitmask) => &mut self.bitmask,
            Some(SparseFormat::TwoOfFour) => &mut self.two_of_four,
            None => &mut self.dense,
        };
        share.tensors += 1;
        share.dense_bytes += info.bytes();
        share.stored_bytes += stored.bytes;
    }

    /// Sizes of all tensors.
    pub fn total(&self) -> Share {
        let all = [self.bitmask, self.two_of_four, self.dense];
        Share {
            tensors: all.iter().map(|share| share.tensors).sum(),
            dense_bytes: all.iter().map(|share| share.dense_bytes).sum(),
            stored_bytes: all.iter().map(|share| share.stored_bytes).sum(),
        }
    }

    /// Returns whether any tensor is stored sparse.
    pub fn is_sparse(&self) -> bool {
        self.bitmask.tensors + self.two_of_four.tensors > 0
    }
}
