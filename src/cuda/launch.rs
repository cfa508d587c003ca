//! The kernels of one device: compiled with the crate, loaded when first needed, launched as `kernels/ABI.md` says.

use super::shape::{self, WIDEST_ROW};
use crate::device::Element;
use crate::sync::locked;
use candle_core::Result;
use candle_core::cuda::cudarc::cublas::{result::gemm_ex, sys};
use candle_core::cuda::cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr,
    LaunchArgs, LaunchConfig, PushKernelArg,
};
use candle_core::cuda::cudarc::nvrtc::Ptx;
use candle_core::cuda::{CudaDevice, DeviceId, WrapErr};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

include!(concat!(env!("OUT_DIR"), "/cuda_kernels.rs"));

/// Words of the state of a selection over a layer.
const LAYER_STATE: usize = 8 + 2048;

/// A matrix on the device, row-major and without gaps.
pub(crate) struct Matrix<'a, T> {
    pub(crate) values: &'a CudaView<'a, T>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<T> Clone for Matrix<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Matrix<'_, T> {}

impl<T> Matrix<'_, T> {
    /// Words of a row of its mask.
    pub(crate) fn words(&self) -> usize {
        self.cols.div_ceil(64)
    }
}

/// Kernels of one device, and the stream that they run on, which is candle's.
pub(crate) struct Kernels {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    processors: usize,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, CudaFunction>>,
}

/// A size as kernels take it.
pub(crate) fn u32_of(size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| candle_core::Error::Msg(format!("{size} is more than a kernel can count")))
}

impl Kernels {
    /// The kernels of `device`.
    pub(crate) fn on(device: &CudaDevice) -> Result<Arc<Kernels>> {
        static KERNELS_OF: LazyLock<Mutex<HashMap<DeviceId, Arc<Kernels>>>> = LazyLock::new(Mutex::default);
        let mut all = locked(&KERNELS_OF);
        if let Some(kernels) = all.get(&device.id()) {
            return Ok(kernels.clone());
        }
        let stream = device.cuda_stream();
        let processors = stream.context().attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).w()? as usize;
        let (modules, functions) = (Mutex::default(), Mutex::default());
        let kernels = Arc::new(Kernels { device: device.clone(), stream, processors, modules, functions });
        all.insert(device.id(), kernels.clone());
        Ok(kernels)
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// A kernel of a file.
    pub(crate) fn function(&self, file: &'static str, name: &str) -> Result<CudaFunction> {
        let mut functions = locked(&self.functions);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let mut modules = locked(&self.modules);
        let module = match modules.get(file) {
            Some(module) => module.clone(),
            None => {
                let missing = || candle_core::Error::Msg(format!("this build has no kernels `{file}`"));
                let (_, image) = KERNELS.iter().find(|(stem, _)| *stem == file).ok_or_else(missing)?;
                let module = self.stream.context().load_module(Ptx::from_binary(image.to_vec())).w()?;
                modules.insert(file, module.clone());
                module
            }
        };
        let function = module.load_function(name).w()?;
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    /// Launches on a grid of at least one block.
    pub(crate) fn launch(
        &self,
        mut args: LaunchArgs<'_>,
        grid: (usize, usize),
        block: usize,
        shared: usize,
    ) -> Result<()> {
        let grid_dim = (u32_of(grid.0.max(1))?, u32_of(grid.1.max(1))?, 1);
        let config = LaunchConfig { grid_dim, block_dim: (u32_of(block)?, 1, 1), shared_mem_bytes: u32_of(shared)? };
        // SAFETY: each caller passes what `kernels/ABI.md` lists, in buffers whose sizes it has checked.
        unsafe { args.launch(config) }.w().map(drop)
    }

    /// Prunes, per row and level, the `ks[level]` smallest scores `|w| * norms[col]`; `ks` ascend. A level's masks begin at
    /// `level * rows * words`. `bad` gets the flat index of the first score that is not finite.
    pub(crate) fn select_rows<T: Element>(
        &self,
        weights: Matrix<'_, T>,
        norms: Option<&CudaSlice<f32>>,
        ks: &CudaSlice<u32>,
        masks: &mut CudaSlice<u64>,
        bad: &mut CudaSlice<u64>,
    ) -> Result<()> {
        let Matrix { values, rows, cols } = weights;
        check(values.len() == rows * cols && norms.is_none_or(|norms| norms.len() == cols))?;
        check(masks.len() == ks.len() * rows * weights.words() && bad.len() == 1)?;
        let aligned = cols.is_multiple_of(8) && values.device_ptr(&self.stream).0.is_multiple_of(16);
        let (file, (block, shared)) = if aligned && (8..=WIDEST_ROW).contains(&cols) {
            ("select_rows", shape::select_rows(cols))
        } else {
            ("select_rows_any", (256, 0))
        };
        let function = self.function(file, &format!("{file}_{}", T::NAME))?;
        let resident = function.occupancy_max_active_blocks_per_multiprocessor(u32_of(block)?, shared, None).w()?;
        let (null, rows_, cols_, levels) = (0u64, u32_of(rows)?, u32_of(cols)?, u32_of(ks.len())?);
        let mut args = self.stream.launch_builder(&function);
        args.arg(values);
        nullable(&mut args, norms, &null);
        args.arg(masks).arg(bad).arg(&rows_).arg(&cols_).arg(ks).arg(&levels);
        self.launch(args, (rows.min(self.processors * resident as usize), 1), block, shared)
    }

    /// Prunes the `k` smallest scores of all. `bad` as above.
    pub(crate) fn select_layer<T: Element>(
        &self,
        weights: Matrix<'_, T>,
        norms: Option<&CudaSlice<f32>>,
        k: usize,
        mask: &mut CudaViewMut<'_, u64>,
        bad: &mut CudaSlice<u64>,
    ) -> Result<()> {
        let Matrix { values, rows, cols } = weights;
        check(values.len() == rows * cols && norms.is_none_or(|norms| norms.len() == cols))?;
        check(mask.len() == rows * weights.words() && bad.len() == 1 && k <= rows * cols)?;
        let named = |name: &str| self.function("select_layer", &format!("{name}_{}", T::NAME));
        let (begin, count, digit) = (
            self.function("select_layer", "layer_begin")?,
            named("layer_count")?,
            self.function("select_layer", "layer_digit")?,
        );
        let (ties, offsets, pack) =
            (named("layer_ties")?, self.function("select_layer", "layer_offsets")?, named("layer_mask")?);
        let (null, k, all, rows_, cols_) = (0u64, k as u64, (rows * cols) as u64, u32_of(rows)?, u32_of(cols)?);
        // SAFETY: `layer_begin` and `layer_ties` write all that is read.
        let mut state = unsafe { self.stream.alloc::<u64>(LAYER_STATE) }.w()?;
        // SAFETY: likewise.
        let mut equal = unsafe { self.stream.alloc::<u64>(rows) }.w()?;

        let mut args = self.stream.launch_builder(&begin);
        args.arg(&mut state).arg(&k);
        self.launch(args, (1, 1), 256, 0)?;
        for _ in 0..3 {
            let mut args = self.stream.launch_builder(&count);
            args.arg(values);
            nullable(&mut args, norms, &null);
            args.arg(&mut state).arg(&mut *bad).arg(&all).arg(&cols_);
            self.launch(args, (self.processors * 4, 1), 512, 0)?;
            let mut args = self.stream.launch_builder(&digit);
            args.arg(&mut state);
            self.launch(args, (1, 1), 256, 0)?;
        }
        let mut args = self.stream.launch_builder(&ties);
        args.arg(values);
        nullable(&mut args, norms, &null);
        args.arg(&state).arg(&mut equal).arg(&rows_).arg(&cols_);
        self.launch(args, (rows.div_ceil(8), 1), 256, 0)?;
        let mut args = self.stream.launch_builder(&offsets);
        args.arg(&mut equal).arg(&rows_);
        self.launch(args, (1, 1), 256, 0)?;
        let mut args = self.stream.launch_builder(&pack);
        args.arg(values);
        nullable(&mut args, norms, &null);
        args.arg(&state).arg(&equal).arg(mask).arg(&rows_).arg(&cols_);
        self.launch(args, (rows.div_ceil(8), 1), 256, 0)
    }

    /// Keeps the `n` largest scores of each `m`. `bad` as above.
    pub(crate) fn select_nofm<T: Element>(
        &self,
        weights: Matrix<'_, T>,
        norms: Option<&CudaSlice<f32>>,
        (n, m): (usize, usize),
        mask: &mut CudaSlice<u64>,
        bad: &mut CudaSlice<u64>,
    ) -> Result<()> {
        let Matrix { values, rows, cols } = weights;
        check(values.len() == rows * cols && norms.is_none_or(|norms| norms.len() == cols))?;
        check(mask.len() == rows * weights.words() && bad.len() == 1 && 0 < n && n <= m && cols.is_multiple_of(m))?;
        let function = self.function("select_nofm", &format!("select_nofm_{}", T::NAME))?;
        let (null, rows_, cols_, n, m) = (0u64, u32_of(rows)?, u32_of(cols)?, u32_of(n)?, u32_of(m)?);
        let mut args = self.stream.launch_builder(&function);
        args.arg(values);
        nullable(&mut args, norms, &null);
        args.arg(mask).arg(bad).arg(&rows_).arg(&cols_).arg(&n).arg(&m);
        self.launch(args, (rows, 1), 256, 0)
    }

    /// Zeros where the mask says so, in place.
    pub(crate) fn apply_mask<T: DeviceRepr>(
        &self,
        weights: &mut CudaViewMut<'_, T>,
        (rows, cols): (usize, usize),
        mask: &CudaSlice<u64>,
    ) -> Result<()> {
        let words = rows * cols.div_ceil(64);
        check(weights.len() == rows * cols && mask.len() == words)?;
        let function = self.function("apply_mask", &format!("apply_mask_{}", size_of::<T>() * 8))?;
        let (rows, cols) = (u32_of(rows)?, u32_of(cols)?);
        let mut args = self.stream.launch_builder(&function);
        args.arg(weights).arg(mask).arg(&rows).arg(&cols);
        self.launch(args, (words.div_ceil(32), 1), 256, 0)
    }

    /// Sums of the squares of each column, and of the values if asked for, in f64: chunks of 64 rows in f32, and these in order.
    pub(crate) fn column_sums<T: Element>(
        &self,
        x: Matrix<'_, T>,
        values: bool,
    ) -> Result<(CudaSlice<f64>, Option<CudaSlice<f64>>)> {
        let Matrix { values: view, rows: tokens, cols } = x;
        check(view.len() == tokens * cols)?;
        let chunks = tokens.div_ceil(64);
        let function = self.function("column_sums", &format!("column_sums_{}", T::NAME))?;
        // SAFETY: the kernel writes all of it; so below.
        let mut squares = unsafe { self.stream.alloc::<f32>(chunks * cols) }.w()?;
        // SAFETY: likewise.
        let mut sums = values.then(|| unsafe { self.stream.alloc::<f32>(chunks * cols) }).transpose().w()?;
        let (null, tokens, cols_) = (0u64, u32_of(tokens)?, u32_of(cols)?);
        let mut args = self.stream.launch_builder(&function);
        args.arg(view).arg(&tokens).arg(&cols_).arg(&mut squares);
        match &mut sums {
            Some(sums) => args.arg(sums),
            None => args.arg(&null),
        };
        self.launch(args, (cols.div_ceil(512), chunks), 128, 0)?;
        let fold = |partial: &CudaSlice<f32>| -> Result<CudaSlice<f64>> {
            let function = self.function("column_sums", "fold_sums")?;
            let mut sums = self.stream.alloc_zeros::<f64>(cols).w()?;
            let chunks = u32_of(chunks)?;
            let mut args = self.stream.launch_builder(&function);
            args.arg(partial).arg(&chunks).arg(&cols_).arg(&mut sums);
            self.launch(args, (cols.div_ceil(64), 1), 64, 0)?;
            Ok(sums)
        };
        Ok((fold(&squares)?, sums.as_ref().map(fold).transpose()?))
    }

    /// `X^T X`, `(cols, cols)` in f32: cuBLAS multiplies in the type of `x` and adds in f32.
    pub(crate) fn gram<T: Element>(&self, x: Matrix<'_, T>) -> Result<CudaSlice<f32>> {
        let (stream, blas) = (&self.stream, self.device.cublas_handle());
        check(x.values.len() == x.rows * x.cols)?;
        // SAFETY: with beta = 0 the product writes all of it and reads none.
        let mut gram = unsafe { stream.alloc::<f32>(x.cols * x.cols) }.w()?;
        let kind = match T::NAME {
            "bf16" => sys::cudaDataType_t::CUDA_R_16BF,
            "f16" => sys::cudaDataType_t::CUDA_R_16F,
            _ => sys::cudaDataType_t::CUDA_R_32F,
        };
        let size =
            |size: usize| i32::try_from(size).map_err(|_| candle_core::Error::Msg(format!("{size} is too wide")));
        let (width, tokens, one, zero) = (size(x.cols)?, size(x.rows)?, 1f32, 0f32);
        {
            let ((from, _read), (to, _written)) = (x.values.device_ptr(stream), gram.device_ptr_mut(stream));
            // Row-major X is column-major X^T, so that this is X^T times X.
            // SAFETY: the pointers are of `(rows, cols)` and `(cols, cols)` values on the stream's device.
            unsafe {
                gemm_ex(
                    *blas.handle(),
                    sys::cublasOperation_t::CUBLAS_OP_N,
                    sys::cublasOperation_t::CUBLAS_OP_T,
                    width,
                    width,
                    tokens,
                    (&raw const one).cast(),
                    from as *const _,
                    kind,
                    width,
                    from as *const _,
                    kind,
                    width,
                    (&raw const zero).cast(),
                    to as *mut _,
                    sys::cudaDataType_t::CUDA_R_32F,
                    width,
                    sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            }
            .w()?;
        }
        Ok(gram)
    }

    /// Prunes the columns of a block of SparseGPT, `weights (rows, count)` in place by `upper (count, count)`, and gives the errors
    /// `(rows, count)`. Pruned are the weights that `mask` marks; for N:M they are chosen, and marked there.
    pub(crate) fn sparsegpt_block(
        &self,
        weights: &mut CudaViewMut<'_, f32>,
        (rows, count): (usize, usize),
        upper: &CudaSlice<f32>,
        nofm: Option<(usize, usize)>,
        mask: &mut CudaSlice<u64>,
    ) -> Result<CudaSlice<f32>> {
        check(weights.len() == rows * count && upper.len() == count * count && 0 < count && count <= 128)?;
        check(mask.len() == rows * count.div_ceil(64))?;
        check(nofm.is_none_or(|(n, m)| 0 < n && n <= m && m <= 32 && count.is_multiple_of(m)))?;
        let function = self.function("sparsegpt", "sparsegpt_block")?;
        // SAFETY: the kernel writes all of it.
        let mut errors = unsafe { self.stream.alloc::<f32>(rows * count) }.w()?;
        let (null, first, rows_, count_) = (0u64, 0u32, u32_of(rows)?, u32_of(count)?);
        let (n, m) = nofm.unwrap_or_default();
        let (n, m) = (u32_of(n)?, u32_of(m)?);
        let mut args = self.stream.launch_builder(&function);
        args.arg(weights).arg(&rows_).arg(&count_).arg(&first).arg(&count_).arg(upper);
        match nofm {
            None => args.arg(&*mask).arg(&null),
            Some(_) => args.arg(&null).arg(mask),
        };
        args.arg(&n).arg(&m).arg(&mut errors);
        let (block, shared) = shape::sparsegpt_block(count);
        self.launch(args, (rows.div_ceil(8), 1), block, shared)?;
        Ok(errors)
    }

    /// Weights in groups of 32 from MXFP4 `blocks (groups, 16)` and `scales (groups,)`.
    pub(crate) fn mxfp4<T: Element>(
        &self,
        blocks: &CudaView<'_, u8>,
        scales: &CudaView<'_, u8>,
    ) -> Result<CudaSlice<T>> {
        let groups = scales.len();
        check(blocks.len() == groups * 16 && blocks.device_ptr(&self.stream).0.is_multiple_of(16))?;
        let function = self.function("mxfp4", &format!("mxfp4_dequantise_{}", T::NAME))?;
        // SAFETY: the kernel writes all of it.
        let mut values = unsafe { self.stream.alloc::<T>(groups * 32) }.w()?;
        let groups_ = groups as u64;
        let mut args = self.stream.launch_builder(&function);
        args.arg(blocks).arg(scales).arg(&mut values).arg(&groups_);
        self.launch(args, (groups.div_ceil(256), 1), 256, 0)?;
        Ok(values)
    }
}

fn nullable<'a, 'b: 'a, T>(args: &mut LaunchArgs<'a>, slice: Option<&'b CudaSlice<T>>, null: &'b u64) {
    match slice {
        Some(slice) => args.arg(slice),
        None => args.arg(null),
    };
}

/// Buffers that do not fit would be read or written beyond their ends.
pub(crate) fn check(fits: bool) -> Result<()> {
    if fits { Ok(()) } else { Err(candle_core::Error::Msg("a buffer does not fit its kernel".into())) }
}
