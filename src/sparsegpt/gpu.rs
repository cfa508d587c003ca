//! SparseGPT on a GPU.

use super::{Factor, SparseGpt, check_inputs, check_update};
use crate::cuda::{Kernels, Matrix};
use crate::device::{download, to_host, upload, wrap};
use crate::error::{Error, Result};
use crate::mask::{Mask, Pattern, Ties, bad_score, count_of};
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::{Device, Storage, Tensor};

/// [`crate::sparsegpt::sparsegpt`] on a GPU: columns of a block by a kernel, what lies behind them by cuBLAS in f32. Sums are rounded
/// in another order than on the CPU.
///
/// # Errors
/// As [`crate::sparsegpt::sparsegpt`], and what the device fails with.
pub(super) fn sparsegpt(
    device: &Device,
    name: &str,
    weights: &mut [f32],
    factor: &Factor,
    (pattern, sparsity, ties): (Pattern, f64, Ties),
    config: &SparseGpt,
) -> Result<Option<Mask>> {
    let nofm = match pattern {
        Pattern::Unstructured if ties == Ties::ByPosition => None,
        Pattern::NofM { n, m } if m <= 32 => Some((n, m)),
        _ => return Ok(None),
    };
    let Device::Cuda(cuda) = device else { return Ok(None) };
    if config.block_size > 128 {
        return Ok(None);
    }
    check_inputs(name, weights, factor, pattern, sparsity, config)?;
    let (cols, rows) = (factor.width(), weights.len() / factor.width());
    let kernels = Kernels::on(cuda)?;
    let tensor = |values: &[f32], shape: (usize, usize)| -> candle_core::Result<Tensor> {
        Ok(Tensor::from((wrap(upload(values, cuda)?, cuda), shape)))
    };
    for row in weights.chunks_exact_mut(cols) {
        factor.dead().iter().for_each(|&col| row[col] = 0.0);
    }
    let upper = tensor(factor.upper(), (cols, cols))?;
    let (mut rest, mut done) = (tensor(weights, (rows, cols))?, Vec::new());
    let mut mask = Mask::none(rows, cols);
    for start in (0..cols).step_by(config.block_size) {
        let width = config.block_size.min(cols - start);
        let own = upper.narrow(0, start, width)?; // (width, cols)
        let (inner, behind) = (own.narrow(1, start, width)?.contiguous()?, cols - start - width);
        let block = rest.narrow(1, 0, width)?.contiguous()?;
        let mut selected = cuda.alloc_zeros::<u64>(rows * width.div_ceil(64))?;
        if nofm.is_none() {
            let diagonal: Vec<f32> = (start..start + width).map(|i| factor.upper()[i * cols + i].powi(2)).collect();
            let scores = block.sqr()?.broadcast_div(&Tensor::new(diagonal, device)?)?;
            let scores = slice_of(&scores)?;
            let matrix = Matrix { values: &scores.as_view(), rows, cols: width };
            let mut bad = cuda.clone_htod(&[u64::MAX])?;
            let k = count_of(rows * width, sparsity);
            kernels.select_layer(matrix, None, k, &mut selected.as_view_mut(), &mut bad)?;
            let at = download(&bad.as_view(), cuda)?[0] as usize;
            if at < rows * width {
                return Err(bad_score(name, at / width, start + at % width, f32::INFINITY));
            }
        }
        let (mut block, inner) = (slice_of(&block)?, slice_of(&inner)?);
        let shape = (rows, width);
        let errors = kernels.sparsegpt_block(&mut block.as_view_mut(), shape, &inner, nofm, &mut selected)?;
        let words = download(&selected.as_view(), cuda)?;
        let selected = Mask::from_words(rows, width, words)?;
        selected.for_each_pruned(|at| mask.prune(at / width, start + at % width));
        if behind > 0 {
            let errors = Tensor::from((wrap(errors, cuda), shape));
            let update = errors.matmul(&own.narrow(1, start + width, behind)?.contiguous()?)?;
            rest = (rest.narrow(1, width, behind)? - update)?;
        }
        done.push(Tensor::from((wrap(block, cuda), shape)));
    }
    let updated = to_host(&Tensor::cat(&done, 1)?)?.flatten_all()?.to_vec1::<f32>()?;
    weights.copy_from_slice(&updated);
    check_update(name, weights, cols)?;
    Ok(Some(mask))
}

/// A copy of a tensor's values, without gaps.
fn slice_of(tensor: &Tensor) -> Result<CudaSlice<f32>> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::internal("SparseGPT", "a CUDA tensor without CUDA storage"));
    };
    let at = layout.start_offset();
    let view = storage.as_cuda_slice::<f32>()?.slice(at..at + tensor.elem_count());
    Ok(storage.device.cuda_stream().clone_dtod(&view).w()?)
}
