//! What a build without the feature `cuda` answers.

use super::{ColumnSums, Memory};
use crate::calibrate::Gather;
use crate::error::{Error, Result};
use crate::mask::{Criterion, Mask, Pattern, Ties};
use crate::model::CausalSoftmax;
use crate::sparsegpt::{Factor, SparseGpt};
use candle_core::{DType, Device, Tensor};

/// The GPU with this number.
///
/// # Errors
/// [`Error::Argument`] without the feature `cuda`, without a driver, and when there is no such GPU or it cannot be used.
pub fn open(ordinal: usize) -> Result<Device> {
    let problem = "this build has no CUDA; build it with `cargo build --features cuda`, or scripts/cuda-build.sh";
    Err(Error::argument("device", format!("cuda:{ordinal}"), problem))
}

pub(crate) fn to_device(tensor: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
    tensor.to_device(device)
}

pub(crate) fn to_host(tensor: &Tensor) -> candle_core::Result<Tensor> {
    tensor.to_device(&Device::Cpu)
}

pub(crate) struct Mark;

pub(crate) fn mark(_device: &Device) -> candle_core::Result<Mark> {
    Ok(Mark)
}

pub(crate) fn to_host_after(tensor: &Tensor, _mark: &Mark) -> candle_core::Result<Tensor> {
    to_host(tensor)
}

pub(crate) fn select_levels(
    _name: &str,
    _weight: &Tensor,
    _norms: Option<&[f32]>,
    _criterion: Criterion,
    _sparsities: &[f64],
) -> Result<Option<Vec<Mask>>> {
    Ok(None)
}

pub(crate) fn apply(_weight: &Tensor, _mask: &Mask) -> Result<Option<(Tensor, u64)>> {
    Ok(None)
}

pub(crate) fn column_sums(_x: &Tensor, _gather: Gather) -> Result<Option<ColumnSums>> {
    Ok(None)
}

pub(crate) fn mxfp4(_blocks: &Tensor, _scales: &Tensor, _dtype: DType) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn sparsegpt(
    _device: &Device,
    _name: &str,
    _weights: &mut [f32],
    _factor: &Factor,
    _selection: (Pattern, f64, Ties),
    _config: &SparseGpt,
) -> Result<Option<Mask>> {
    Ok(None)
}

pub(crate) fn causal_softmax(_: &Tensor, _: &CausalSoftmax, _sinks: Option<&Tensor>) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn rope(_x: &Tensor, _tables: &[Tensor; 2], _first: usize) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn swiglu(_gate: &Tensor, _up: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn memory(_device: &Device) -> Option<Memory> {
    None
}
