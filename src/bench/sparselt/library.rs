//! The library itself: its functions, found at run time, its errors, and its structs.

use crate::device::libraries;
use crate::error::{Error, Problem, Remedy, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr::NonNull;

/// Major and minor version of the headers that the functions, [`Opaque`] and the numbers here are from.
const VERSION: [c_int; 2] = [0, 8];

/// Memory of one of the library's structs, whose content only the library knows.
#[repr(C, align(16))]
pub(super) struct Opaque([u8; 512]);

pub(super) type Destroy = unsafe extern "C" fn(*const Opaque) -> c_int;
pub(super) type Multiply = unsafe extern "C" fn(
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

/// A table of functions, found by the names that the library has for them.
macro_rules! library {
    ($($function:ident: $signature:ty;)*) => {
        /// The library's functions.
        #[derive(Clone, Copy)]
        #[expect(non_snake_case, reason = "they are called as in the library")]
        pub(in crate::bench) struct Library {
            version: [c_int; 3],
            $(pub(super) $function: $signature,)*
        }

        impl Library {
            fn of(library: &libloading::os::unix::Library, version: [c_int; 3]) -> Result<Library, libloading::Error> {
                $(
                    // SAFETY: in the headers of this version, the function of this name has this signature.
                    #[expect(non_snake_case, reason = "as above")]
                    let $function = *unsafe { library.get::<$signature>(stringify!($function)) }?;
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

/// Calls a function of the library, and makes an error of its status. The caller is responsible for its arguments.
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
    pub(in crate::bench) fn load() -> Result<Library> {
        const NAME: &str = "libcusparseLt.so.0";
        let refused = |value: &str, problem: Problem| Error::argument("cuSPARSELt", value, problem);
        let library = libraries::open(NAME, libc::RTLD_LOCAL).map_err(|e| {
            let remedy = "put its folder on LD_LIBRARY_PATH: nvidia/cusparselt/lib in the site-packages of a Python \
                          that has PyTorch";
            refused("not found", e.remedy(remedy))
        })?;
        let unusable = |problem: String| refused(NAME, problem.into());
        // SAFETY: all versions have it like this.
        let property =
            unsafe { library.get::<unsafe extern "C" fn(c_int, *mut c_int) -> c_int>("cusparseLtGetProperty") };
        let property = property.map_err(|e| unusable(libraries::linker_error(e)))?;
        let mut version = [-1; 3];
        for (which, value) in (0..).zip(&mut version) {
            // SAFETY: 0, 1 and 2 are major version, minor version and patch level; one number is written.
            let status = unsafe { property(which, value) };
            if status != 0 {
                return Err(unusable(format!("cusparseLtGetProperty: status {status}")));
            }
        }
        let text = |numbers: &[c_int]| numbers.iter().map(c_int::to_string).collect::<Vec<_>>().join(".");
        if version[..2] != VERSION {
            let problem = "its structs are not known here"
                .remedy(format!("use version {}, as CUDA 13's PyTorch does", text(&VERSION)));
            return Err(refused(&text(&version), problem));
        }
        Library::of(&library, version).map_err(|e| unusable(libraries::linker_error(e)))
    }

    pub(super) fn succeeded(&self, function: &str, status: c_int) -> Result<()> {
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
        Err(Error::internal(function, format!("{name} (status {status})")))
    }

    /// A handle of the library for the device that is current on this thread.
    pub(super) fn handle(&self) -> Result<Owned> {
        Owned::new(Some(self.cusparseLtDestroy), |handle| {
            // SAFETY: it is room for a handle.
            unsafe { call!(self, cusparseLtInit(handle)) }
        })
    }
}

/// A struct of the library's. It does not move, as others may point to it.
pub(super) struct Owned {
    value: NonNull<Opaque>,
    destroy: Option<Destroy>,
}

impl Owned {
    pub(super) fn new(destroy: Option<Destroy>, init: impl FnOnce(*mut Opaque) -> Result<()>) -> Result<Owned> {
        let value = NonNull::from(Box::leak(Box::new(Opaque([0; 512]))));
        let mut owned = Owned { value, destroy: None };
        init(owned.get())?;
        owned.destroy = destroy;
        Ok(owned)
    }

    pub(super) fn get(&self) -> *mut Opaque {
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

pub(super) use call;
