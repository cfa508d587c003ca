//! Pruning on NVIDIA GPUs.

pub mod twin;
