//! Sums over activations on a GPU.

use super::{ColumnSums, Gather};
use crate::cuda::{Kernels, Matrix};
use crate::device::{Element, by_dtype, wrap};
use crate::error::{Error, Result};
use candle_core::{Storage, Tensor};

/// Sums over the rows of `x (tokens, in)`, without gaps.
pub(super) fn column_sums(x: &Tensor, gather: Gather) -> Result<Option<ColumnSums>> {
    if !x.device().is_cuda() || x.elem_count() == 0 {
        return Ok(None);
    }
    by_dtype!(x, sums_on(x, gather))
}

fn sums_on<T: Element>(x: &Tensor, gather: Gather) -> Result<ColumnSums> {
    let (rows, cols) = x.dims2()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::internal("calibrating", "a CUDA tensor without CUDA storage"));
    };
    let view = storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..layout.start_offset() + rows * cols);
    let (device, kernels) = (&storage.device, Kernels::on(&storage.device)?);
    let x = Matrix { values: &view, rows, cols };
    let (squares, sums) = kernels.column_sums(x, gather.sums)?;
    let column = |slice| Tensor::from((wrap(slice, device), cols));
    let gram = gather.gram.then(|| kernels.gram(x)).transpose()?;
    let gram = gram.map(|gram| Tensor::from((wrap(gram, device), (cols, cols))));
    Ok(ColumnSums { squares: column(squares), sums: sums.map(column), gram })
}
