//! What a forward pass does between its products, where candle would make several passes over memory.

use super::launch::{Element, Kernels, Matrix, by_dtype, check, u32_of};
use crate::error::Result;
use crate::model::CausalSoftmax;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::cuda::{CudaDevice, CudaStorage, WrapErr};
use candle_core::{DType, Result as CandleResult, Storage, Tensor};

const FILE: &str = "forward";
const BLOCK: usize = 256;
/// Elements that a thread takes at once, if they are aligned.
const EIGHT: usize = 8;

/// Where the query in a row of scores stands, and what it sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) queries: usize,
    pub(super) past: usize,
    /// 0: all before it.
    pub(super) window: usize,
    pub(super) scale: f32,
}

impl Kernels {
    /// `softmax(scores * scale)` of each row over the keys that its query sees, zeros elsewhere; rows are `(batch, heads, queries)`, and
    /// `sinks (heads,)`.
    pub(super) fn causal_softmax<T: Element>(
        &self,
        scores: Matrix<'_, T>,
        Seen { queries, past, window, scale }: Seen,
        sinks: Option<&CudaView<'_, f32>>,
    ) -> CandleResult<CudaSlice<T>> {
        let Matrix { values, rows, cols: keys } = scores;
        check(values.len() == rows * keys && queries > 0 && past + queries <= keys)?;
        let heads = sinks.map_or(1, CudaView::len);
        check(rows.is_multiple_of(queries * heads.max(1)) && heads > 0)?;
        let function = self.function(FILE, &format!("causal_softmax_{}", T::NAME))?;
        // SAFETY: the kernel writes all of it; so below.
        let mut out = unsafe { self.stream().alloc::<T>(values.len()) }.w()?;
        let (null, heads, rows_, keys) = (0u64, u32_of(heads)?, u32_of(rows)?, u32_of(keys)?);
        let (queries, past, window) = (u32_of(queries)?, u32_of(past)?, u32_of(window)?);
        let mut args = self.stream().launch_builder(&function);
        args.arg(values).arg(&mut out);
        match sinks {
            Some(sinks) => args.arg(sinks),
            None => args.arg(&null),
        };
        args.arg(&heads).arg(&rows_).arg(&keys).arg(&queries).arg(&past).arg(&window).arg(&scale);
        self.launch(args, (rows.div_ceil(BLOCK / 32), 1), BLOCK, 0)?;
        Ok(out)
    }

    /// The halves of each row of `x` rotated by the angles whose `cos` and `sin (positions, cols / 2)` are given; row `r` stands at
    /// position `first + r % seq`.
    pub(super) fn rope<T: Element>(
        &self,
        x: Matrix<'_, T>,
        [cos, sin]: [&CudaView<'_, f32>; 2],
        (seq, first): (usize, usize),
    ) -> CandleResult<CudaSlice<T>> {
        let Matrix { values, rows, cols } = x;
        let half = cols / 2;
        check(values.len() == rows * cols && cols.is_multiple_of(2) && 0 < seq)?;
        check((first + seq) * half <= cos.len().min(sin.len()))?;
        let function = self.function(FILE, &format!("rope_{}", T::NAME))?;
        // SAFETY: as above.
        let mut out = unsafe { self.stream().alloc::<T>(values.len()) }.w()?;
        let (rows_, seq, half_, first) = (u32_of(rows)?, u32_of(seq)?, u32_of(half)?, u32_of(first)?);
        let mut args = self.stream().launch_builder(&function);
        args.arg(values).arg(&mut out).arg(cos).arg(sin).arg(&rows_).arg(&seq).arg(&half_).arg(&first);
        self.launch(args, ((rows * half).div_ceil(EIGHT * BLOCK), 1), BLOCK, 0)?;
        Ok(out)
    }

    /// `silu(gate) * up`, elementwise.
    pub(super) fn swiglu<T: Element>(
        &self,
        gate: &CudaView<'_, T>,
        up: &CudaView<'_, T>,
    ) -> CandleResult<CudaSlice<T>> {
        check(gate.len() == up.len())?;
        let function = self.function(FILE, &format!("swiglu_{}", T::NAME))?;
        // SAFETY: as above.
        let mut out = unsafe { self.stream().alloc::<T>(gate.len()) }.w()?;
        let count = gate.len() as u64;
        let mut args = self.stream().launch_builder(&function);
        args.arg(gate).arg(up).arg(&mut out).arg(&count);
        self.launch(args, (gate.len().div_ceil(EIGHT * BLOCK), 1), BLOCK, 0)?;
        Ok(out)
    }
}

/// Whether there are kernels for it: values on a GPU of which no gradient is wanted.
fn served(x: &Tensor) -> bool {
    x.device().is_cuda() && !x.track_op() && x.elem_count() > 0
}

/// Calls `f` with a tensor's values on its device, which have no gaps.
fn with_values<T: Element, R>(x: &Tensor, f: impl FnOnce(&CudaDevice, &CudaView<'_, T>) -> Result<R>) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(candle_core::Error::Msg("one tensor is on a GPU, and another is not".into()).into());
    };
    let at = layout.start_offset();
    f(&storage.device, &storage.as_cuda_slice::<T>()?.slice(at..at + x.elem_count()))
}

/// The tensor of the shape of `x` that `f` makes of its values.
fn made_of<T: Element>(
    x: &Tensor,
    f: impl FnOnce(&Kernels, &CudaView<'_, T>) -> CandleResult<CudaSlice<T>>,
) -> Result<Tensor> {
    with_values::<T, _>(x, |device, values| {
        let made = f(&*Kernels::on(device)?, values)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(made, device.clone()));
        Ok(Tensor::from((storage, x.shape())))
    })
}

/// [`crate::model`]'s causal softmax of `scores (.., rows, keys)`, with `sinks (heads,)` where there are any.
pub(crate) fn causal_softmax(scores: &Tensor, op: &CausalSoftmax, sinks: Option<&Tensor>) -> Result<Option<Tensor>> {
    fn run<T: Element>(scores: &Tensor, op: &CausalSoftmax, sinks: Option<&Tensor>) -> Result<Tensor> {
        let keys = scores.dims().last().copied().unwrap_or_default();
        let window = op.window.map_or(0, |window| window.max(1));
        let seen = Seen { queries: op.queries, past: op.past, window, scale: op.scale };
        let run = |sinks: Option<&CudaView<'_, f32>>| {
            made_of::<T>(scores, |kernels, values| {
                kernels.causal_softmax(Matrix { values, rows: values.len() / keys, cols: keys }, seen, sinks)
            })
        };
        match sinks {
            None => run(None),
            Some(sinks) => with_values(&sinks.to_dtype(DType::F32)?, |_, sinks| run(Some(sinks))),
        }
    }
    if !served(scores) || sinks.is_some_and(Tensor::track_op) {
        return Ok(None);
    }
    by_dtype!(scores, run(scores, op, sinks))
}

/// The halves of each head of `x (.., seq, head_dim)` rotated; `tables` are cos and sin, `(positions, head_dim / 2)` in f32 beside it.
pub(crate) fn rope(x: &Tensor, tables: &[Tensor; 2], first: usize) -> Result<Option<Tensor>> {
    fn run<T: Element>(x: &Tensor, [cos, sin]: &[Tensor; 2], first: usize) -> Result<Tensor> {
        let dims = x.dims();
        let (seq, cols) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        with_values(cos, |_, cos| {
            with_values(sin, |_, sin| {
                made_of::<T>(x, |kernels, values| {
                    kernels.rope(Matrix { values, rows: values.len() / cols, cols }, [cos, sin], (seq, first))
                })
            })
        })
    }
    if !served(x) { Ok(None) } else { by_dtype!(x, run(x, tables, first)) }
}

/// `silu(gate) * up`, elementwise; of one shape and dtype.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    fn run<T: Element>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        with_values(up, |_, up| made_of::<T>(gate, |kernels, gate| kernels.swiglu(gate, up)))
    }
    if !served(gate) || !served(up) || gate.shape() != up.shape() || gate.dtype() != up.dtype() {
        return Ok(None);
    }
    by_dtype!(gate, run(gate, up))
}
