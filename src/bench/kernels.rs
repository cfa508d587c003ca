//! Launches of the kernels that are measured and serve nothing else yet.

use crate::cuda::{Kernels, Matrix, check, u32_of};
use candle_core::Result;
use candle_core::cuda::cudarc::driver::{CudaSlice, PushKernelArg};

impl Kernels {
    /// The two that are kept of each four, and their places, of `weights` in 16 bits. `bad` gets the first group that keeps more.
    pub(crate) fn compress24(
        &self,
        weights: Matrix<'_, u16>,
        values: &mut CudaSlice<u16>,
        index: &mut CudaSlice<u8>,
        bad: &mut CudaSlice<u64>,
    ) -> Result<()> {
        let Matrix { values: view, rows, cols } = weights;
        check(view.len() == rows * cols && values.len() == rows * cols / 2 && cols.is_multiple_of(4))?;
        check(index.len() == rows * cols.div_ceil(8) && bad.len() == 1)?;
        let function = self.function("compress24", "compress24_16")?;
        let (null, rows_, cols_) = (0u64, u32_of(rows)?, u32_of(cols)?);
        let mut args = self.stream().launch_builder(&function);
        args.arg(view).arg(&null).arg(values).arg(index).arg(bad).arg(&rows_).arg(&cols_);
        self.launch(args, ((rows * weights.words()).div_ceil(32), 1), 256, 0)
    }

    /// `y (batch, rows)` of bf16 weights, given as bits, and `x (batch, cols)`: dense, or of what [`Kernels::compress24`] leaves.
    pub(crate) fn matvec(
        &self,
        weights: (&CudaSlice<u16>, Option<&CudaSlice<u8>>),
        (rows, cols): (usize, usize),
        x: &CudaSlice<u16>,
        y: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let batch = x.len() / cols.max(1);
        check(
            (1..=16).contains(&batch) && x.len() == batch * cols && y.len() == batch * rows && cols.is_multiple_of(16),
        )?;
        let (values, index) = weights;
        let (name, sparse) = if index.is_some() { ("matvec_24_bf16", 2) } else { ("matvec_bf16", 1) };
        check(values.len() * sparse == rows * cols && index.is_none_or(|index| index.len() == rows * cols / 8))?;
        let function = self.function("compress24", name)?;
        let (rows_, cols_, batch) = (u32_of(rows)?, u32_of(cols)?, u32_of(batch)?);
        let mut args = self.stream().launch_builder(&function);
        args.arg(values);
        if let Some(index) = index {
            args.arg(index);
        }
        args.arg(x).arg(y).arg(&rows_).arg(&cols_).arg(&batch);
        self.launch(args, (rows.div_ceil(8), 1), 256, 0)
    }
}
