//! Operations of the forward pass on a GPU: the halves of the operators in `ops.rs`, and MXFP4.

pub(super) use crate::cuda::Seen;
use crate::cuda::{Kernels, Matrix};
use crate::device::{Element, by_dtype, wrap};
use crate::error::Result;
use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
use candle_core::cuda::{CudaDevice, CudaStorage};
use candle_core::{DType, Device, Layout, Result as CandleResult, Shape, Storage, Tensor, bail};
use half::bf16;

/// The values of a tensor without gaps.
fn values<'a, T: Element>(storage: &'a CudaStorage, layout: &Layout) -> CandleResult<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        None => bail!("a kernel takes tensors without gaps"),
    }
}

/// The result of a kernel as an operator gives it, with the shape of `layout`.
fn result<T: Element>(made: CudaSlice<T>, device: &CudaDevice, layout: &Layout) -> (CudaStorage, Shape) {
    (CudaStorage::wrap_cuda_slice(made, device.clone()), layout.shape().clone())
}

/// For a dtype without a kernel; callers of operators ask [`super::ops`] first.
fn served<T>(made: Option<T>, dtype: DType) -> CandleResult<T> {
    made.ok_or_else(|| candle_core::Error::Msg(format!("there is no kernel for {dtype:?}")))
}

/// The softmax of `scores` over the keys that each query sees, with `sinks (heads,)` in f32 where there are any.
pub(super) fn causal_softmax(
    seen: Seen,
    scores: &CudaStorage,
    layout: &Layout,
    sinks: Option<(&CudaStorage, &Layout)>,
) -> CandleResult<(CudaStorage, Shape)> {
    fn run<T: Element>(
        seen: Seen,
        scores: &CudaStorage,
        layout: &Layout,
        sinks: Option<CudaView<'_, f32>>,
    ) -> CandleResult<(CudaStorage, Shape)> {
        let values = values::<T>(scores, layout)?;
        let cols = layout.dims().last().copied().unwrap_or_default().max(1);
        let matrix = Matrix { values: &values, rows: values.len() / cols, cols };
        let made = Kernels::on(&scores.device)?.causal_softmax(matrix, seen, sinks.as_ref())?;
        Ok(result(made, &scores.device, layout))
    }
    let sinks = sinks.map(|(sinks, layout)| values::<f32>(sinks, layout)).transpose()?;
    served(by_dtype!(scores, run(seen, scores, layout, sinks))?, scores.dtype())
}

/// `x (.., seq, dim)` with the halves of its rows rotated by `tables`, cos and sin `(positions, dim / 2)` in f32, from position `first` on.
pub(super) fn rope(
    x: &CudaStorage,
    layout: &Layout,
    tables: &[Tensor; 2],
    first: usize,
) -> CandleResult<(CudaStorage, Shape)> {
    fn run<T: Element>(
        x: &CudaStorage,
        layout: &Layout,
        tables: [(&CudaStorage, &Layout); 2],
        first: usize,
    ) -> CandleResult<(CudaStorage, Shape)> {
        let dims = layout.dims();
        let (seq, cols) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        let x_values = values::<T>(x, layout)?;
        let [cos, sin] = tables.map(|(table, layout)| values::<f32>(table, layout));
        let (cos, sin) = (cos?, sin?);
        let matrix = Matrix { values: &x_values, rows: x_values.len() / cols.max(1), cols };
        let made = Kernels::on(&x.device)?.rope(matrix, [&cos, &sin], (seq, first))?;
        Ok(result(made, &x.device, layout))
    }
    let [(cos, cos_layout), (sin, sin_layout)] = [tables[0].storage_and_layout(), tables[1].storage_and_layout()];
    let (Storage::Cuda(cos), Storage::Cuda(sin)) = (&*cos, &*sin) else { bail!("rotary tables are not on the GPU") };
    let tables = [(cos, cos_layout), (sin, sin_layout)];
    served(by_dtype!(x, run(x, layout, tables, first))?, x.dtype())
}

/// `silu(gate) * up`, elementwise.
pub(super) fn swiglu(
    (gate, gate_layout): (&CudaStorage, &Layout),
    (up, up_layout): (&CudaStorage, &Layout),
) -> CandleResult<(CudaStorage, Shape)> {
    fn run<T: Element>(
        (gate, gate_layout): (&CudaStorage, &Layout),
        (up, up_layout): (&CudaStorage, &Layout),
    ) -> CandleResult<(CudaStorage, Shape)> {
        let (gates, ups) = (values::<T>(gate, gate_layout)?, values::<T>(up, up_layout)?);
        let made = Kernels::on(&gate.device)?.swiglu(&gates, &ups)?;
        Ok(result(made, &gate.device, gate_layout))
    }
    served(by_dtype!(gate, run((gate, gate_layout), (up, up_layout)))?, gate.dtype())
}

/// Weights `(groups * 32,)` as `dtype` from MXFP4 `blocks (.., 16)` and `scales (..)` in u8, as many groups.
pub(super) fn mxfp4(blocks: &Tensor, scales: &Tensor, dtype: DType) -> Result<Option<Tensor>> {
    fn unpack<T: Element>(blocks: &Tensor, scales: &Tensor) -> Result<Option<Tensor>> {
        let (Device::Cuda(device), groups) = (blocks.device(), scales.elem_count()) else { return Ok(None) };
        let ((blocks, blocks_at), (scales, scales_at)) = (blocks.storage_and_layout(), scales.storage_and_layout());
        let (Storage::Cuda(blocks), Storage::Cuda(scales)) = (&*blocks, &*scales) else { return Ok(None) };
        let (blocks_at, scales_at) = (blocks_at.start_offset(), scales_at.start_offset());
        let blocks = blocks.as_cuda_slice::<u8>()?.slice(blocks_at..blocks_at + groups * 16);
        let scales = scales.as_cuda_slice::<u8>()?.slice(scales_at..scales_at + groups);
        let values = Kernels::on(device)?.mxfp4::<T>(&blocks, &scales)?;
        Ok(Some(Tensor::from((wrap(values, device), groups * 32))))
    }
    let bytes = blocks.dtype() == DType::U8 && scales.dtype() == DType::U8;
    if !bytes || blocks.elem_count() != scales.elem_count() * 16 || scales.elem_count() == 0 {
        return Ok(None);
    }
    let (blocks, scales) = (blocks.contiguous()?, scales.contiguous()?);
    match dtype {
        DType::BF16 => unpack::<bf16>(&blocks, &scales),
        DType::F32 => unpack::<f32>(&blocks, &scales),
        _ => Ok(None),
    }
}
