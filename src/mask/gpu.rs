//! Selection and application of masks on a GPU.

use super::{Criterion, Mask, Pattern, Per, Ties, bad_score, check_sparsities, count_of};
use crate::cuda::{Kernels, Matrix};
use crate::device::{Element, by_dtype, download, upload};
use crate::error::{Error, Result};
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::cuda::{CudaStorage, WrapErr};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};
use std::sync::Arc;

/// Masks of `weight (out, in)` at each of `sparsities`, by `|W| * norms` or by `|W|`, as [`crate::mask::select_levels`] makes them.
///
/// # Errors
/// As [`crate::mask::select_levels`], and what the device fails with.
pub(super) fn select_levels(
    name: &str,
    weight: &Tensor,
    norms: Option<&[f32]>,
    criterion: Criterion,
    sparsities: &[f64],
) -> Result<Option<Vec<Mask>>> {
    let served = match (criterion.pattern, criterion.per) {
        (Pattern::Unstructured, Per::Row) | (Pattern::NofM { .. }, _) => true,
        (Pattern::Unstructured, Per::Layer) => criterion.ties == Ties::ByPosition,
        (Pattern::Unstructured, Per::Alpha) => false,
    };
    if !weight.device().is_cuda() || !served || weight.elem_count() == 0 || sparsities.is_empty() {
        return Ok(None);
    }
    let weight = weight.contiguous()?;
    by_dtype!(weight, select_on(name, &weight, norms, criterion, sparsities))
}

fn select_on<T: Element>(
    name: &str,
    weight: &Tensor,
    norms: Option<&[f32]>,
    criterion: Criterion,
    sparsities: &[f64],
) -> Result<Vec<Mask>> {
    let (rows, cols) = weight.dims2()?;
    check_sparsities(sparsities)?;
    let (storage, layout) = weight.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::internal("selecting weights", "a CUDA tensor without CUDA storage"));
    };
    let view = storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..layout.start_offset() + rows * cols);
    let weights = Matrix { values: &view, rows, cols };
    let kernels = Kernels::on(&storage.device)?;
    let stream = kernels.stream();
    let norms = norms.map(|norms| stream.clone_htod(norms)).transpose().w()?;
    let mut bad = stream.clone_htod(&[u64::MAX]).w()?;
    let size = rows * weights.words();
    let room = |levels: usize| -> Result<CudaSlice<u64>> {
        // SAFETY: kernels that make masks write every word.
        Ok(unsafe { stream.alloc::<u64>(levels * size) }.w()?)
    };
    // Kernels want ascending counts; `order` says whose they are.
    let mut order: Vec<usize> = (0..sparsities.len()).collect();
    order.sort_by(|&a, &b| sparsities[a].total_cmp(&sparsities[b]));
    let ks = |n: usize| order.iter().map(move |&level| count_of(n, sparsities[level]));
    let masks = match (criterion.pattern, criterion.per) {
        (Pattern::NofM { n, m }, _) => {
            criterion.pattern.check_width(name, cols)?;
            order.truncate(1);
            let mut mask = room(1)?;
            kernels.select_nofm(weights, norms.as_ref(), (n, m), &mut mask, &mut bad)?;
            mask
        }
        (Pattern::Unstructured, Per::Layer) => {
            let mut masks = room(order.len())?;
            for (k, at) in ks(rows * cols).zip((0..).step_by(size)) {
                let mut mask = masks.slice_mut(at..at + size);
                kernels.select_layer(weights, norms.as_ref(), k, &mut mask, &mut bad)?;
            }
            masks
        }
        (Pattern::Unstructured, _) => {
            // Widths have fewer than 2^32 columns, or `select_rows` refuses them.
            let ks: Vec<u32> = ks(cols).map(|k| k as u32).collect();
            let (ks, mut masks) = (stream.clone_htod(&ks).w()?, room(order.len())?);
            kernels.select_rows(weights, norms.as_ref(), &ks, &mut masks, &mut bad)?;
            masks
        }
    };
    let words = download(&masks.as_view(), kernels.device())?;
    let bad = download(&bad.as_view(), kernels.device())?[0] as usize;
    if bad < rows * cols {
        let (row, col) = (bad / cols, bad % cols);
        let element = weight.get(row)?.get(col)?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        let norm = match norms {
            Some(norms) => download(&norms.as_view(), kernels.device())?[col],
            None => 1.0,
        };
        return Err(bad_score(name, row, col, element.abs() * norm));
    }
    let mut masks = vec![Mask::none(rows, cols); sparsities.len()];
    for (&level, words) in order.iter().zip(words.chunks_exact(size)) {
        masks[level] = Mask::from_words(rows, cols, words.to_vec())?;
    }
    if let (Pattern::NofM { .. }, Some((first, others))) = (criterion.pattern, masks.split_first_mut()) {
        others.iter_mut().for_each(|other| other.clone_from(first));
    }
    Ok(masks)
}

/// `weight (out, in)` with zeros where the mask says so, and how many zeros that is, those included that it had before.
pub(super) fn apply(weight: &Tensor, mask: &Mask) -> Result<Option<(Tensor, u64)>> {
    let (Device::Cuda(device), DType::BF16 | DType::F16 | DType::F32) = (weight.device(), weight.dtype()) else {
        return Ok(None);
    };
    if weight.dims2()? != mask.shape() || weight.elem_count() == 0 {
        return Ok(None);
    }
    let kernels = Kernels::on(device)?;
    let mask = upload(mask.words(), device)?;
    // The model may share the weight.
    let pruned = weight.contiguous()?.copy()?;
    pruned.inplace_op1(&ApplyMask { kernels, mask })?;
    // Counts of a row are exact in f32 below 2^24.
    let stay = pruned.ne(0f64)?.to_dtype(DType::F32)?.sum(1)?.to_vec1::<f32>()?;
    let stay: u64 = stay.into_iter().map(|count| count as u64).sum();
    Ok(Some((pruned, weight.elem_count() as u64 - stay)))
}

struct ApplyMask {
    kernels: Arc<Kernels>,
    mask: CudaSlice<u64>,
}

impl InplaceOp1 for ApplyMask {
    fn name(&self) -> &'static str {
        "apply_mask"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Err(candle_core::Error::Msg("apply_mask is for tensors on a GPU".into()))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        fn run<T: Element>(op: &ApplyMask, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
            let (shape, start) = (layout.shape().dims2()?, layout.start_offset());
            let slice = storage.as_cuda_slice_mut::<T>()?;
            op.kernels.apply_mask(&mut slice.slice_mut(start..start + shape.0 * shape.1), shape, &op.mask)
        }
        use candle_core::backend::BackendStorage as _;
        by_dtype!(storage, run(self, storage, layout))?
            .ok_or_else(|| candle_core::Error::Msg(format!("apply_mask has no kernel for {:?}", storage.dtype())))
    }
}
