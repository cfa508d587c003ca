//! CUDA's shared libraries. An executable of `scripts/cuda-build.sh` names none of them, so that it starts anywhere: its calls
//! are bound when they are first made, to what was loaded here. In one that was linked in the usual way they are loaded already.

use crate::error::{Error, Problem, Remedy, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use std::error::Error as _;
use std::ffi::c_int;
use std::mem::ManuallyDrop;

/// Loads the driver's library and those of the toolkit that candle calls.
///
/// # Errors
/// [`Error::Argument`], which says what is missing, and the remedy.
pub(crate) fn load() -> Result<()> {
    let missing = |problem: Problem| Error::argument("device", "cuda", problem);
    open("libcuda.so.1", RTLD_GLOBAL)
        .map_err(|e| missing(e.remedy("install NVIDIA's driver, or compute on the CPU with --device cpu")))?;
    let version = env!("LACUNA_CUDA_VERSION");
    let major = version.split('.').next().unwrap_or(version);
    for library in [format!("libcublas.so.{major}"), "libcurand.so.10".to_owned()] {
        open(&library, RTLD_GLOBAL).map_err(|e| {
            missing(e.remedy(format!(
                "put the folder of CUDA {major}'s libraries on LD_LIBRARY_PATH: /usr/local/cuda/lib64, or \
                 nvidia/cu{major}/lib in the site-packages of a Python that has PyTorch"
            )))
        })?;
    }
    Ok(())
}

/// One of NVIDIA's libraries, which stays loaded; with `RTLD_GLOBAL` its functions are found by whoever calls them by name.
pub(crate) fn open(name: &str, scope: c_int) -> Result<ManuallyDrop<Library>, String> {
    // SAFETY: the libraries' initialisers are NVIDIA's, and run on any thread.
    unsafe { Library::open(Some(name), RTLD_LAZY | scope) }.map(ManuallyDrop::new).map_err(linker_error)
}

/// The dynamic linker's own words about its failure.
pub(crate) fn linker_error(error: libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
