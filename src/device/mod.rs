//! The device that tensors are on: opening it, its memory, and copies between it and the host. Without the feature `cuda`
//! there is the CPU only.

#[cfg(feature = "cuda")]
mod dtypes;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
pub(crate) mod libraries;
#[cfg(feature = "cuda")]
mod transfer;

#[cfg(feature = "cuda")]
pub(crate) use dtypes::{Element, by_dtype};
#[cfg(feature = "cuda")]
pub(crate) use gpu::wrap;
#[cfg(feature = "cuda")]
pub(crate) use transfer::{download, upload};

use crate::error::Result;
#[cfg(not(feature = "cuda"))]
use crate::error::{Error, Remedy};
use candle_core::{Device, Result as CandleResult, Tensor};
use serde::Serialize;

/// The memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// The part that no process holds.
    pub free_bytes: u64,
}

/// The GPU with this number.
///
/// # Errors
/// [`crate::error::Error::Argument`] without the feature `cuda`, without a driver, and when there is no such GPU or it cannot be used.
pub fn open(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    return gpu::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    Err(Error::argument(
        "device",
        format!("cuda:{ordinal}"),
        "this build has no CUDA".remedy("build it with `cargo build --features cuda`, or scripts/cuda-build.sh"),
    ))
}

/// The memory of the GPU that `device` is; `None` for the CPU.
pub(crate) fn memory(device: &Device) -> Option<Memory> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => gpu::memory(device),
        _ => None,
    }
}

/// A copy of `tensor` on `device`, from page-locked memory where that helps.
pub(crate) fn to_device(tensor: &Tensor, device: &Device) -> CandleResult<Tensor> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => gpu::upload_tensor(tensor, device, cuda),
        _ => tensor.to_device(device),
    }
}

/// A point in the work of a device: all that it had been told to do when the mark was made.
#[derive(Default)]
pub(crate) struct Mark {
    #[cfg(feature = "cuda")]
    made: Option<gpu::Event>,
}

/// A mark behind all that `device` has been told to do so far.
pub(crate) fn mark(device: &Device) -> CandleResult<Mark> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Mark { made: Some(gpu::event(device)?) }),
        _ => Ok(Mark::default()),
    }
}

/// A copy of `tensor` on the CPU.
pub(crate) fn to_host(tensor: &Tensor) -> CandleResult<Tensor> {
    let tensor = tensor.contiguous()?;
    to_host_after(&tensor, &mark(tensor.device())?)
}

/// A copy on the CPU of a tensor that was there at the mark, without waiting for what the device was told to do since.
pub(crate) fn to_host_after(tensor: &Tensor, mark: &Mark) -> CandleResult<Tensor> {
    match mark {
        #[cfg(feature = "cuda")]
        Mark { made: Some(made) } => gpu::download_tensor(tensor, made),
        _ => tensor.to_device(&Device::Cpu),
    }
}
