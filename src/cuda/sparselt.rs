//! cuSPARSELt, NVIDIA's library for products with 2:4 matrices on tensor cores. It is loaded only when asked for, and may be missing.

use super::libraries;
use crate::{Error, Result};
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::transmute;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// Major and minor version of the headers that all below is from: the functions, [`Opaque`] and the numbers.
const VERSION: [c_int; 2] = [0, 8];

/// What each of the library's structs is in memory. Their content is the library's.
#[repr(C, align(16))]
struct Opaque([u8; 512]);

type Destroy = unsafe extern "C" fn(*const Opaque) -> c_int;
type Multiply = unsafe extern "C" fn(
    *const Opaque,
    *mut Opaque,
    *const f32,
    *const c_void,
    *const c_void,
    *const f32,
    *const c_void,
    *mut c_void,
    *mut c_void,
    *mut *mut c_void,
    i32,
) -> c_int;

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

/// A table of functions, found by the names that the library has for them.
macro_rules! library {
    ($($function:ident: $signature:ty;)*) => {
        /// The library's functions.
        #[derive(Clone, Copy)]
        #[expect(non_snake_case, reason = "they are called as in the library")]
        pub(super) struct Library {
            version: [c_int; 3],
            $($function: $signature,)*
        }

        impl Library {
            fn of(library: NonNull<c_void>, version: [c_int; 3]) -> Result<Library, String> {
                $(
                    let name = CStr::from_bytes_with_nul(concat!(stringify!($function), "\0").as_bytes());
                    let address = libraries::symbol(library, name.unwrap_or_default())?.as_ptr();
                    // SAFETY: in the headers of this version, the function of this name has this signature.
                    #[expect(non_snake_case, reason = "as above")]
                    let $function = unsafe { transmute::<*mut c_void, $signature>(address) };
                )*
                Ok(Library { version, $($function,)* })
            }
        }
    };
}

library! {
    cusparseLtGetErrorName: unsafe extern "C" fn(c_int) -> *const c_char;
    cusparseLtInit: unsafe extern "C" fn(*mut Opaque) -> c_int;
    cusparseLtDestroy: Destroy;
    cusparseLtDenseDescriptorInit:
        unsafe extern "C" fn(*const Opaque, *mut Opaque, i64, i64, i64, u32, c_int, c_int) -> c_int;
    cusparseLtStructuredDescriptorInit:
        unsafe extern "C" fn(*const Opaque, *mut Opaque, i64, i64, i64, u32, c_int, c_int, c_int) -> c_int;
    cusparseLtMatDescriptorDestroy: Destroy;
    cusparseLtMatmulDescriptorInit: unsafe extern "C" fn(
        *const Opaque,
        *mut Opaque,
        c_int,
        c_int,
        *const Opaque,
        *const Opaque,
        *const Opaque,
        *const Opaque,
        c_int,
    ) -> c_int;
    cusparseLtMatmulAlgSelectionInit: unsafe extern "C" fn(*const Opaque, *mut Opaque, *const Opaque, c_int) -> c_int;
    cusparseLtMatmulAlgSelectionDestroy: Destroy;
    cusparseLtMatmulPlanInit: unsafe extern "C" fn(*const Opaque, *mut Opaque, *const Opaque, *const Opaque) -> c_int;
    cusparseLtMatmulPlanDestroy: Destroy;
    cusparseLtMatmulGetWorkspace: unsafe extern "C" fn(*const Opaque, *const Opaque, *mut usize) -> c_int;
    cusparseLtMatmulSearch: Multiply;
    cusparseLtMatmul: Multiply;
    cusparseLtSpMMAPruneCheck2:
        unsafe extern "C" fn(*const Opaque, *const Opaque, c_int, c_int, *const c_void, *mut c_int, *mut c_void) -> c_int;
    cusparseLtSpMMACompressedSize2: unsafe extern "C" fn(*const Opaque, *const Opaque, *mut usize, *mut usize) -> c_int;
    cusparseLtSpMMACompress2: unsafe extern "C" fn(
        *const Opaque,
        *const Opaque,
        c_int,
        c_int,
        *const c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
    ) -> c_int;
}

/// Calls a function; what it wants of its arguments is for the caller to see to.
macro_rules! call {
    ($library:expr, $function:ident($($argument:expr),* $(,)?)) => {
        $library.succeeded(stringify!($function), ($library.$function)($($argument),*))
    };
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.version;
        write!(f, "cuSPARSELt {major}.{minor}.{patch}")
    }
}

impl Library {
    /// The library that the dynamic linker finds.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is none, or one of a version whose structs are not known here; with the remedy.
    pub(super) fn load() -> Result<Library> {
        const NAME: &str = "libcusparseLt.so.0";
        let refused = |problem: String| Error::argument("cuSPARSELt", NAME, problem);
        let not_found = |e: String| {
            let remedy = "put the folder of cuSPARSELt on LD_LIBRARY_PATH: nvidia/cusparselt/lib in the site-packages of a Python";
            refused(format!("{e}; {remedy} that has PyTorch"))
        };
        let library = libraries::open(NAME, libc::RTLD_LOCAL).map_err(not_found)?;
        let address = libraries::symbol(library, c"cusparseLtGetProperty").map_err(refused)?.as_ptr();
        // SAFETY: all versions have it like this.
        let property = unsafe { transmute::<*mut c_void, unsafe extern "C" fn(c_int, *mut c_int) -> c_int>(address) };
        let mut version = [-1; 3];
        for (property_type, value) in (0..).zip(&mut version) {
            // SAFETY: 0, 1 and 2 are major version, minor version and patch level; one number is written.
            let status = unsafe { property(property_type, value) };
            if status != 0 {
                return Err(refused(format!("cusparseLtGetProperty: status {status}")));
            }
        }
        let [major, minor, _] = version;
        if [major, minor] != VERSION {
            let known = VERSION.map(|number| number.to_string()).join(".");
            return Err(refused(format!(
                "is version {major}.{minor}, of which nothing is known here; install {known}"
            )));
        }
        Library::of(library, version).map_err(refused)
    }

    fn succeeded(&self, function: &str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: any number may be asked about.
        let name = unsafe { (self.cusparseLtGetErrorName)(status) };
        let name = match name.is_null() {
            true => "unknown".into(),
            // SAFETY: it is a text of the library's, which stays loaded.
            false => unsafe { CStr::from_ptr(name) }.to_string_lossy(),
        };
        let source = candle_core::Error::Msg(format!("{name} (status {status})"));
        Err(Error::Compute { doing: function.to_owned(), source })
    }

    /// What the library knows about the device that is current on this thread.
    fn handle(&self) -> Result<Owned> {
        Owned::new(Some(self.cusparseLtDestroy), |handle| {
            // SAFETY: it is room for a handle.
            unsafe { call!(self, cusparseLtInit(handle)) }
        })
    }
}

/// A struct of the library's. It does not move, as others may point to it.
struct Owned {
    value: NonNull<Opaque>,
    destroy: Option<Destroy>,
}

impl Owned {
    fn new(destroy: Option<Destroy>, init: impl FnOnce(*mut Opaque) -> Result<()>) -> Result<Owned> {
        let value = NonNull::from(Box::leak(Box::new(Opaque([0; 512]))));
        let mut owned = Owned { value, destroy: None };
        init(owned.get())?;
        owned.destroy = destroy;
        Ok(owned)
    }

    fn get(&self) -> *mut Opaque {
        self.value.as_ptr()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: it was initialised, and whoever points to it was dropped before.
            unsafe { destroy(self.get()) };
        }
        // SAFETY: it came from a box.
        drop(unsafe { Box::from_raw(self.get()) });
    }
}

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

impl Product {
    /// For matrices of this shape, on the stream's device.
    ///
    /// # Errors
    /// [`Error::Argument`] unless 16 divides `rows` and `cols` and 8 the `batch`; [`Error::Compute`] when the library fails.
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

    /// `weights (rows, cols)` as the library wants them.
    ///
    /// # Errors
    /// [`Error::Argument`] when a group of four keeps more than two; [`Error::Compute`].
    pub(super) fn compress(&self, weights: &CudaSlice<u16>) -> Result<CudaSlice<u8>> {
        self.fits(weights.len() == self.rows * self.cols)?;
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
                "a group of four keeps more than two; prune them to 2:4",
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
        Ok(compressed)
    }

    /// Tries the library's algorithms, and takes the fastest from then on. `y` is written.
    pub(super) fn search(&mut self, weights: &CudaSlice<u8>, x: &CudaSlice<u16>, y: &mut CudaSlice<u16>) -> Result<()> {
        self.multiply("cusparseLtMatmulSearch", self.library.cusparseLtMatmulSearch, weights, x, y)?;
        self.make_room()
    }

    /// The product, of weights that [`Product::compress`] gave; nothing waits for it.
    pub(super) fn run(&mut self, weights: &CudaSlice<u8>, x: &CudaSlice<u16>, y: &mut CudaSlice<u16>) -> Result<()> {
        self.multiply("cusparseLtMatmul", self.library.cusparseLtMatmul, weights, x, y)
    }

    fn multiply(
        &mut self,
        name: &str,
        function: Multiply,
        weights: &CudaSlice<u8>,
        x: &CudaSlice<u16>,
        y: &mut CudaSlice<u16>,
    ) -> Result<()> {
        let Product { library, stream, rows, cols, batch, workspace, plan, handle, .. } = self;
        stream.context().bind_to_thread().w()?;
        let fits = x.len() == *batch * *cols && y.len() == *batch * *rows;
        // What `compress` gives holds half of the weights and more.
        if !fits || weights.len() <= *rows * *cols {
            return Err(misfit());
        }
        let ((a, _a), (b, _b), (d, _d)) = (weights.device_ptr(stream), x.device_ptr(stream), y.device_ptr_mut(stream));
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

    fn fits(&self, fits: bool) -> Result<()> {
        if fits { Ok(()) } else { Err(misfit()) }
    }
}

fn misfit() -> Error {
    candle_core::Error::Msg("a buffer does not fit its product".into()).into()
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

    /// Needs the library, which comes with PyTorch, but no GPU.
    #[test]
    fn the_library_loads_and_says_what_fails() {
        let library = match Library::load() {
            Ok(library) => library,
            Err(error) => {
                assert!(error.to_string().contains("LD_LIBRARY_PATH"), "{error}");
                return eprintln!("skipped: {error}");
            }
        };
        assert!(library.to_string().starts_with("cuSPARSELt 0.8."), "{library}");
        eprintln!("{library}");
        match (library.handle(), crate::cuda::open(0)) {
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
