//! NVIDIA GPUs. What candle's operators would do in several passes over memory is done by kernels of our own
//! (`src/cuda/kernels/*.cu`): score, select and pack in one pass over a row, masks applied in place, sums of columns, softmax and what else is between the
//! products of a forward pass.
//!
//! Each kernel has a twin on the CPU ([`twin`]) with the same result, bit for bit where values are selected or moved. The rest of the crate
//! asks the functions of `ops` about a tensor; where it is not on a GPU, or there is no kernel for what is asked, they answer
//! `None`, and the caller goes on as on the CPU. Without the feature `cuda` they always do (`absent`).

pub mod bench;
pub mod shape;
pub mod twin;

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod forward;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod libraries;
#[cfg(feature = "cuda")]
mod ops;
#[cfg(feature = "cuda")]
mod sparselt;
#[cfg(feature = "cuda")]
mod transfer;

#[cfg(not(feature = "cuda"))]
use {absent as ops, absent as forward};

pub(crate) use forward::{causal_softmax, rope, swiglu};
pub use ops::open;
pub(crate) use ops::{
    Mark, apply, column_sums, mark, memory, mxfp4, select_levels, sparsegpt, to_device, to_host, to_host_after,
};

use candle_core::Tensor;
use serde::Serialize;

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What no process holds.
    pub free_bytes: u64,
}

/// Sums over the rows of an activation `(tokens, in)`, on its device: nothing has waited for them.
#[derive(Clone, Debug)]
pub(crate) struct ColumnSums {
    /// Of the squares of each column, `(in,)` in f64.
    pub(crate) squares: Tensor,
    /// Of the values, `(in,)` in f64, if gathered.
    pub(crate) sums: Option<Tensor>,
    /// `X^T X`, `(in, in)` in f32, if gathered.
    pub(crate) gram: Option<Tensor>,
}
