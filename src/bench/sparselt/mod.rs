//! cuSPARSELt, NVIDIA's library for products with 2:4 matrices on tensor cores. It is loaded only when asked for, and may be missing.

mod library;

use crate::error::{Error, Remedy, Result};
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
pub(super) use library::Library;
use library::{Multiply, Owned, call};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

// The headers' values.
const CUDA_R_16BF: c_int = 14;
const ORDER_COL: c_int = 1;
const ORDER_ROW: c_int = 2;
const NON_TRANSPOSE: c_int = 0;
const TRANSPOSE: c_int = 1;
const SPARSITY_50_PERCENT: c_int = 0;
const COMPUTE_32F: c_int = 2;
const ALG_DEFAULT: c_int = 0;
/// Bytes; what is allocated on a GPU is aligned to more.
const ALIGNMENT: u32 = 16;

/// `y = x W^T` for a 2:4 matrix `W (rows, cols)`, `x (batch, cols)` and `y (batch, rows)`, all row-major in bf16 and given as
/// bits; sums are in f32.
pub(super) struct Product {
    library: Library,
    stream: Arc<CudaStream>,
    rows: usize,
    cols: usize,
    batch: usize,
    workspace: Option<CudaSlice<u8>>,
    // What points to another is dropped before it.
    plan: Owned,
    _algorithm: Owned,
    _matmul: Owned,
    weights: Owned,
    _dense: [Owned; 2],
    handle: Owned,
}

/// Weights `(rows, cols)` without half of their zeros, as the library wants them.
pub(super) struct Compressed {
    bytes: CudaSlice<u8>,
    shape: (usize, usize),
}

impl Product {
    /// For matrices of this shape, on the stream's device.
    ///
    /// # Errors
    /// [`Error::Argument`] unless 16 divides `rows` and `cols` and 8 the `batch`; [`Error::Internal`] when the library fails.
    pub(super) fn new(
        library: Library,
        stream: &Arc<CudaStream>,
        (rows, cols, batch): (usize, usize, usize),
    ) -> Result<Product> {
        let allowed = [(rows, 16), (cols, 16), (batch, 8)].iter().all(|&(n, by)| n > 0 && n.is_multiple_of(by));
        let size = |n: usize| i64::try_from(n).ok().filter(|_| allowed);
        let (Some(m), Some(k), Some(n)) = (size(rows), size(cols), size(batch)) else {
            let problem = "cuSPARSELt multiplies multiples of 16, 16 and 8 in bf16";
            return Err(Error::argument("rows, cols, batch", format!("{rows}, {cols}, {batch}"), problem));
        };
        stream.context().bind_to_thread().w()?;
        let handle = library.handle()?;
        let on = handle.get();
        let weights = Owned::new(Some(library.cusparseLtMatDescriptorDestroy), |to| {
            // SAFETY: the handle is initialised, and `to` is room for a descriptor; so below.
            unsafe {
                call!(
                    library,
                    cusparseLtStructuredDescriptorInit(
                        on,
                        to,
                        m,
                        k,
                        k,
                        ALIGNMENT,
                        CUDA_R_16BF,
                        ORDER_ROW,
                        SPARSITY_50_PERCENT
                    )
                )
            }
        })?;
        let dense = |rows: i64, cols: i64, ld: i64, order: c_int| {
            Owned::new(Some(library.cusparseLtMatDescriptorDestroy), |to| {
                // SAFETY: as above.
                unsafe {
                    call!(library, cusparseLtDenseDescriptorInit(on, to, rows, cols, ld, ALIGNMENT, CUDA_R_16BF, order))
                }
            })
        };
        // The library's product is W X^T (rows, batch), which by columns is our result by rows.
        let (x, y) = (dense(n, k, k, ORDER_ROW)?, dense(m, n, m, ORDER_COL)?);
        let matmul = Owned::new(None, |to| {
            let (a, b, d) = (weights.get(), x.get(), y.get());
            // SAFETY: the three descriptors are initialised, and outlive this one.
            unsafe {
                call!(
                    library,
                    cusparseLtMatmulDescriptorInit(on, to, NON_TRANSPOSE, TRANSPOSE, a, b, d, d, COMPUTE_32F)
                )
            }
        })?;
        let algorithm = Owned::new(Some(library.cusparseLtMatmulAlgSelectionDestroy), |to| {
            // SAFETY: the product's descriptor is initialised, and outlives this one.
            unsafe { call!(library, cusparseLtMatmulAlgSelectionInit(on, to, matmul.get(), ALG_DEFAULT)) }
        })?;
        let plan = Owned::new(Some(library.cusparseLtMatmulPlanDestroy), |to| {
            // SAFETY: both are initialised, and outlive the plan.
            unsafe { call!(library, cusparseLtMatmulPlanInit(on, to, matmul.get(), algorithm.get())) }
        })?;
        let mut product = Product {
            library,
            stream: stream.clone(),
            rows,
            cols,
            batch,
            workspace: None,
            plan,
            _algorithm: algorithm,
            _matmul: matmul,
            weights,
            _dense: [x, y],
            handle,
        };
        product.make_room()?;
        Ok(product)
    }

    /// The workspace that the plan asks for.
    fn make_room(&mut self) -> Result<()> {
        let mut bytes = 0;
        // SAFETY: handle and plan are initialised; one number is written.
        unsafe { call!(self.library, cusparseLtMatmulGetWorkspace(self.handle.get(), self.plan.get(), &mut bytes)) }?;
        if self.workspace.as_ref().map_or(0, CudaSlice::len) < bytes {
            // SAFETY: the library writes what it reads.
            self.workspace = Some(unsafe { self.stream.alloc(bytes) }.w()?);
        }
        Ok(())
    }

    /// Compresses `weights (rows, cols)`.
    ///
    /// # Errors
    /// [`Error::Argument`] when a group of four keeps more than two; [`Error::Internal`] when the library fails.
    pub(super) fn compress(&self, weights: &CudaSlice<u16>) -> Result<Compressed> {
        check(weights.len() == self.rows * self.cols)?;
        self.stream.context().bind_to_thread().w()?;
        let (on, matrix, stream) = (self.handle.get(), self.weights.get(), self.stream.cu_stream().cast());
        let (is_sparse_a, mut bytes, mut scratch_bytes) = (1, 0, 0);
        let mut wrong = self.stream.clone_htod(&[c_int::MAX]).w()?;
        {
            let ((from, _read), (to, _written)) =
                (weights.device_ptr(&self.stream), wrong.device_ptr_mut(&self.stream));
            let (from, to) = (from as *const c_void, to as *mut c_int);
            // SAFETY: the descriptor is that of `weights`, whose length fits; one number is written.
            unsafe {
                call!(
                    self.library,
                    cusparseLtSpMMAPruneCheck2(on, matrix, is_sparse_a, NON_TRANSPOSE, from, to, stream)
                )
            }?;
        }
        let wrong = self.stream.clone_dtoh(&wrong).w()?;
        self.stream.synchronize().w()?;
        if wrong[0] != 0 {
            return Err(Error::argument(
                "weights",
                "not 2:4",
                "a group of four keeps more than two".remedy("prune them to 2:4"),
            ));
        }
        // SAFETY: two numbers are written.
        unsafe { call!(self.library, cusparseLtSpMMACompressedSize2(on, matrix, &mut bytes, &mut scratch_bytes)) }?;
        let mut compressed = self.stream.alloc_zeros::<u8>(bytes).w()?;
        let mut scratch = self.stream.alloc_zeros::<u8>(scratch_bytes.max(1)).w()?;
        {
            let (from, _read) = weights.device_ptr(&self.stream);
            let (to, _written) = compressed.device_ptr_mut(&self.stream);
            let (scratch, _used) = scratch.device_ptr_mut(&self.stream);
            let (from, to, scratch) = (from as *const c_void, to as *mut c_void, scratch as *mut c_void);
            // SAFETY: as above, and both buffers have the sizes that the library asked for.
            unsafe {
                call!(
                    self.library,
                    cusparseLtSpMMACompress2(on, matrix, is_sparse_a, NON_TRANSPOSE, from, to, scratch, stream)
                )
            }?;
        }
        Ok(Compressed { bytes: compressed, shape: (self.rows, self.cols) })
    }

    /// Tries the library's algorithms, and takes the fastest from then on. `y` is written.
    pub(super) fn search(&mut self, weights: &Compressed, x: &CudaSlice<u16>, y: &mut CudaSlice<u16>) -> Result<()> {
        // What each algorithm needs is known only when it is chosen; NVIDIA's example searches without a workspace, too.
        self.workspace = None;
        self.multiply("cusparseLtMatmulSearch", self.library.cusparseLtMatmulSearch, weights, x, y)?;
        self.make_room()
    }

    /// The product, of weights that [`Product::compress`] gave; nothing waits for it.
    pub(super) fn run(&mut self, weights: &Compressed, x: &CudaSlice<u16>, y: &mut CudaSlice<u16>) -> Result<()> {
        self.multiply("cusparseLtMatmul", self.library.cusparseLtMatmul, weights, x, y)
    }

    fn multiply(
        &mut self,
        name: &str,
        function: Multiply,
        weights: &Compressed,
        x: &CudaSlice<u16>,
        y: &mut CudaSlice<u16>,
    ) -> Result<()> {
        let Product { library, stream, rows, cols, batch, workspace, plan, handle, .. } = self;
        stream.context().bind_to_thread().w()?;
        check(weights.shape == (*rows, *cols) && x.len() == *batch * *cols && y.len() == *batch * *rows)?;
        let ((a, _a), (b, _b), (d, _d)) =
            (weights.bytes.device_ptr(stream), x.device_ptr(stream), y.device_ptr_mut(stream));
        let room = workspace.as_mut().map(|workspace| workspace.device_ptr_mut(stream));
        let room = room.as_ref().map_or(null_mut(), |(room, _written)| *room as *mut c_void);
        let (one, zero, mut streams) = (1f32, 0f32, [stream.cu_stream().cast::<c_void>()]);
        // SAFETY: the plan is of matrices of these sizes, the workspace as large as it asks; beta is 0, so that C is not read.
        let status = unsafe {
            function(
                handle.get(),
                plan.get(),
                &one,
                a as *const c_void,
                b as *const c_void,
                &zero,
                d as *const c_void,
                d as *mut c_void,
                room,
                streams.as_mut_ptr(),
                1,
            )
        };
        library.succeeded(name, status)
    }
}

fn check(fits: bool) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::internal("cuSPARSELt", "a buffer does not fit its product")) }
}

impl Drop for Product {
    fn drop(&mut self) {
        // The plan is in use as long as a product runs. An error would be that of a product, and nobody waits for it any more.
        self.stream.synchronize().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::skipped_without;

    /// Needs the library, which comes with PyTorch, but no GPU.
    #[test]
    fn the_library_loads_and_says_what_fails() {
        let library = match Library::load() {
            Ok(library) => library,
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("LD_LIBRARY_PATH") || text.contains("use version 0.8"), "{text}");
                return skipped_without(format!("cuSPARSELt: {error}"));
            }
        };
        assert!(library.to_string().starts_with("cuSPARSELt 0.8."), "{library}");
        eprintln!("{library}");
        match (library.handle(), crate::device::open(0)) {
            (handle, Ok(_)) => assert!(handle.is_ok()),
            (Ok(_), Err(_)) => eprintln!("initialised without a GPU"),
            (Err(error), Err(_)) => {
                eprintln!("{error}");
                let text = error.to_string();
                assert!(text.starts_with("cusparseLtInit: CUSPARSE_STATUS_"), "{text}");
            }
        }
        let error = library.succeeded("cusparseLtMatmul", 10).unwrap_err();
        assert_eq!(error.to_string(), "cusparseLtMatmul: CUSPARSE_STATUS_NOT_SUPPORTED (status 10)");
    }
}
