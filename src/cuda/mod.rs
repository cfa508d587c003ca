//! Kernels for NVIDIA GPUs (`src/cuda/kernels/*.cu`, entry points in `ABI.md` there) and their launches, on slices and plain numbers.
//!
//! They do in one pass over memory what candle's operators would do in several: score, select and pack a row, apply a mask in place,
//! sum columns, softmax and what else is between the products of a forward pass. The algorithm that a kernel belongs to calls it: from
//! `mask/gpu.rs`, `calibrate/gpu.rs`, `sparsegpt/gpu.rs` and `model/gpu.rs`. Each kernel has a reference implementation on the CPU
//! (`src/bench/twin.rs`) with the same result, bit for bit where values are selected or moved.

#[cfg(feature = "cuda")]
mod forward;
#[cfg(feature = "cuda")]
mod launch;
pub mod shape;

#[cfg(feature = "cuda")]
pub(crate) use forward::Seen;
#[cfg(feature = "cuda")]
pub(crate) use launch::{Kernels, Matrix, check, u32_of};
