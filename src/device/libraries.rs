//! CUDA's shared libraries. An executable of `scripts/cuda-build.sh` names none of them, so that it starts anywhere: its calls
//! are bound when they are first made, to what was loaded here. In one that was linked in the usual way they are loaded already.

use crate::error::{Error, Problem, Remedy, Result};
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::NonNull;

/// Loads the driver's library and those of the toolkit that candle calls.
///
/// # Errors
/// [`Error::Argument`], which says what is missing, and the remedy.
pub(crate) fn load() -> Result<()> {
    let missing = |problem: Problem| Error::argument("device", "cuda", problem);
    open("libcuda.so.1", libc::RTLD_GLOBAL)
        .map_err(|e| missing(e.remedy("install NVIDIA's driver, or compute on the CPU with --device cpu")))?;
    let version = env!("LACUNA_CUDA_VERSION");
    let major = version.split('.').next().unwrap_or(version);
    for library in [format!("libcublas.so.{major}"), "libcurand.so.10".to_owned()] {
        open(&library, libc::RTLD_GLOBAL).map_err(|e| {
            missing(e.remedy(format!(
                "put the folder of CUDA {major}'s libraries on LD_LIBRARY_PATH: /usr/local/cuda/lib64, or \
                 nvidia/cu{major}/lib in the site-packages of a Python that has PyTorch"
            )))
        })?;
    }
    Ok(())
}

/// One of NVIDIA's libraries, which stays loaded; with `RTLD_GLOBAL` its functions are found by whoever calls them by name.
pub(crate) fn open(name: &str, scope: c_int) -> Result<NonNull<c_void>, String> {
    let text = CString::new(name).map_err(|e| e.to_string())?;
    // SAFETY: the name ends in a NUL. The libraries' initialisers are NVIDIA's, and run on any thread.
    let library = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_LAZY | scope) };
    NonNull::new(library).ok_or_else(|| linker_error(&format!("{name} cannot be loaded")))
}

/// The address of a function of a library that [`open`] gave.
pub(crate) fn symbol(library: NonNull<c_void>, name: &CStr) -> Result<NonNull<c_void>, String> {
    // SAFETY: the library is loaded, and the name ends in a NUL.
    let address = unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) };
    NonNull::new(address).ok_or_else(|| linker_error(&format!("{} is missing", name.to_string_lossy())))
}

/// The dynamic linker's message about its last failure on this thread; `otherwise` if it has none.
fn linker_error(otherwise: &str) -> String {
    // SAFETY: the text is the dynamic linker's, and stays until this thread calls it again.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return otherwise.to_owned();
    }
    // SAFETY: as above, and not null.
    unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
}
