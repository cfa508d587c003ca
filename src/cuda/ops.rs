//! Operations on tensors that are on a GPU.

use super::launch::{Element, Kernels, Matrix, by_dtype};
use super::{ColumnSums, Memory, libraries, transfer};
use crate::calibrate::Gather;
use crate::error::{Error, Result};
use crate::mask::{Criterion, Mask, Pattern, Per, Ties, bad_score};
use crate::sparsegpt::{Factor, SparseGpt};
use candle_core::cuda::cudarc::driver::{CudaEvent, CudaSlice};
use candle_core::cuda::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};
use half::bf16;
use std::sync::Arc;

/// The GPU with this number.
///
/// # Errors
/// [`Error::Argument`] without the feature `cuda`, without a driver, and when there is no such GPU or it cannot be used.
pub fn open(ordinal: usize) -> Result<Device> {
    libraries::load()?;
    // One stream for all threads: with a stream for each, windows that change threads would not wait for each other.
    Device::new_cuda_with_stream(ordinal).map_err(|error| {
        // A backtrace may follow.
        let text = error.to_string();
        let cause = text.lines().next().unwrap_or_default();
        let problem = format!("cannot be used: {cause}; nvidia-smi lists GPUs, and CUDA_VISIBLE_DEVICES may hide them");
        Error::argument("device", format!("cuda:{ordinal}"), problem)
    })
}

/// A copy of `tensor` on `device`, from page-locked memory where that helps.
pub(crate) fn to_device(tensor: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
    let (Device::Cuda(cuda), true) = (device, tensor.device().is_cpu() && tensor.elem_count() > 0) else {
        return tensor.to_device(device);
    };
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return tensor.to_device(device) };
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    let storage = match storage {
        CpuStorage::U8(values) => wrap(transfer::upload(&values[range], cuda)?, cuda),
        CpuStorage::BF16(values) => wrap(transfer::upload(&values[range], cuda)?, cuda),
        CpuStorage::F16(values) => wrap(transfer::upload(&values[range], cuda)?, cuda),
        CpuStorage::F32(values) => wrap(transfer::upload(&values[range], cuda)?, cuda),
        _ => return tensor.to_device(device),
    };
    Ok(Tensor::from((storage, tensor.shape())))
}

/// What a device had been told to do when it was made.
pub(crate) struct Mark(Option<CudaEvent>);

/// All that `device` has been told to do so far.
pub(crate) fn mark(device: &Device) -> candle_core::Result<Mark> {
    let Device::Cuda(device) = device else { return Ok(Mark(None)) };
    Ok(Mark(Some(device.cuda_stream().record_event(None).w()?)))
}

/// A copy of `tensor` on the CPU.
pub(crate) fn to_host(tensor: &Tensor) -> candle_core::Result<Tensor> {
    let tensor = tensor.contiguous()?;
    to_host_after(&tensor, &mark(tensor.device())?)
}

/// The same of what was there at the mark, without waiting for what the device was told to do since.
pub(crate) fn to_host_after(tensor: &Tensor, mark: &Mark) -> candle_core::Result<Tensor> {
    fn download<T: Element + candle_core::WithDType + Default>(
        tensor: &Tensor,
        made: &CudaEvent,
    ) -> candle_core::Result<Tensor> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { return tensor.to_device(&Device::Cpu) };
        let start = layout.start_offset();
        let view = storage.as_cuda_slice::<T>()?.slice(start..start + tensor.elem_count());
        Tensor::from_vec(transfer::download_after(&view, &storage.device, made)?, tensor.shape(), &Device::Cpu)
    }
    let Mark(Some(made)) = mark else { return tensor.to_device(&Device::Cpu) };
    if tensor.elem_count() == 0 || !tensor.is_contiguous() {
        return tensor.to_device(&Device::Cpu);
    }
    by_dtype!(tensor, download(tensor, made))?.map_or_else(|| tensor.to_device(&Device::Cpu), Ok)
}

fn wrap<T: CudaDType>(slice: CudaSlice<T>, device: &CudaDevice) -> Storage {
    Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}

/// Masks of `weight (out, in)` at each of `sparsities`, by `|W| * norms` or by `|W|`, as [`crate::mask::select_levels`] makes them.
///
/// # Errors
/// As there.
pub(crate) fn select_levels(
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
    crate::mask::check_sparsities(sparsities)?;
    let (storage, layout) = weight.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(candle_core::Error::Msg("a CUDA tensor without CUDA storage".into()).into());
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
    let ks = |n: usize| order.iter().map(move |&level| crate::mask::count_of(n, sparsities[level]));
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
    let words = transfer::download(&masks.as_view(), kernels.device())?;
    let bad = transfer::download(&bad.as_view(), kernels.device())?[0] as usize;
    if bad < rows * cols {
        let (row, col) = (bad / cols, bad % cols);
        let element = weight.get(row)?.get(col)?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        let norm = match norms {
            Some(norms) => transfer::download(&norms.as_view(), kernels.device())?[col],
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
pub(crate) fn apply(weight: &Tensor, mask: &Mask) -> Result<Option<(Tensor, u64)>> {
    let (Device::Cuda(device), DType::BF16 | DType::F16 | DType::F32) = (weight.device(), weight.dtype()) else {
        return Ok(None);
    };
    if weight.dims2()? != mask.shape() || weight.elem_count() == 0 {
        return Ok(None);
    }
    let kernels = Kernels::on(device)?;
    let mask = transfer::upload(mask.words(), device)?;
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

/// Sums over the rows of `x (tokens, in)`, without gaps.
pub(crate) fn column_sums(x: &Tensor, gather: Gather) -> Result<Option<ColumnSums>> {
    if !x.device().is_cuda() || x.elem_count() == 0 {
        return Ok(None);
    }
    by_dtype!(x, sums_on(x, gather))
}

fn sums_on<T: Element>(x: &Tensor, gather: Gather) -> Result<ColumnSums> {
    let (rows, cols) = x.dims2()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(candle_core::Error::Msg("a CUDA tensor without CUDA storage".into()).into());
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

/// Weights `(groups * 32,)` as `dtype` from MXFP4 `blocks (.., 16)` and `scales (..)` in u8, as many groups.
pub(crate) fn mxfp4(blocks: &Tensor, scales: &Tensor, dtype: DType) -> Result<Option<Tensor>> {
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

/// [`crate::sparsegpt::sparsegpt`] on a GPU: columns of a block by a kernel, what lies behind them by cuBLAS in f32. Sums are rounded
/// in another order than on the CPU.
///
/// # Errors
/// As there.
pub(crate) fn sparsegpt(
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
    crate::sparsegpt::check_inputs(name, weights, factor, pattern, sparsity, config)?;
    let (cols, rows) = (factor.width(), weights.len() / factor.width());
    let kernels = Kernels::on(cuda)?;
    let tensor = |values: &[f32], shape: (usize, usize)| -> candle_core::Result<Tensor> {
        Ok(Tensor::from((wrap(transfer::upload(values, cuda)?, cuda), shape)))
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
            let k = crate::mask::count_of(rows * width, sparsity);
            kernels.select_layer(matrix, None, k, &mut selected.as_view_mut(), &mut bad)?;
            let at = transfer::download(&bad.as_view(), cuda)?[0] as usize;
            if at < rows * width {
                return Err(bad_score(name, at / width, start + at % width, f32::INFINITY));
            }
        }
        let (mut block, inner) = (slice_of(&block)?, slice_of(&inner)?);
        let shape = (rows, width);
        let errors = kernels.sparsegpt_block(&mut block.as_view_mut(), shape, &inner, nofm, &mut selected)?;
        let words = transfer::download(&selected.as_view(), cuda)?;
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
    crate::sparsegpt::check_update(name, weights, cols)?;
    Ok(Some(mask))
}

/// A copy of a tensor's values, without gaps.
fn slice_of(tensor: &Tensor) -> candle_core::Result<CudaSlice<f32>> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(candle_core::Error::Msg("a CUDA tensor without CUDA storage".into()));
    };
    let at = layout.start_offset();
    let view = storage.as_cuda_slice::<f32>()?.slice(at..at + tensor.elem_count());
    storage.device.cuda_stream().clone_dtod(&view).w()
}

/// The memory of the GPU that `device` is.
pub(crate) fn memory(device: &Device) -> Option<Memory> {
    let Device::Cuda(device) = device else { return None };
    let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
    Some(Memory { total_bytes: total as u64, free_bytes: free as u64 })
}
