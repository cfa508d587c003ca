//! The operations of a forward pass between its products, in one pass over memory each, where candle would make several.

use super::launch::{Kernels, Matrix, check, u32_of};
use crate::device::Element;
use candle_core::Result as CandleResult;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};

const FILE: &str = "forward";
const BLOCK: usize = 256;
/// Elements that a thread takes at once, if they are aligned.
const EIGHT: usize = 8;

/// The queries in the rows of a matrix of scores: row `r` is at position `past + r % queries`, and sees the keys up to itself, at
/// most `window` of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) queries: usize,
    pub(crate) past: usize,
    /// 0 for all keys up to the query.
    pub(crate) window: usize,
    pub(crate) scale: f32,
}

impl Kernels {
    /// `softmax(scores * scale)` of each row over the keys that its query sees, zeros elsewhere; rows are `(batch, heads, queries)`, and
    /// `sinks (heads,)`.
    pub(crate) fn causal_softmax<T: Element>(
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
    pub(crate) fn rope<T: Element>(
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
    pub(crate) fn swiglu<T: Element>(
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
