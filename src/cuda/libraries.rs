//! CUDA's shared libraries. An executable of `scripts/cuda-build.sh` names none of them, so that it starts anywhere: its calls
//! are bound when they are first made, to what was loaded here. In one that was linked in the usual way they are loaded already.

use crate::{Error, Result};
use std::ffi::{CStr, CString};

/// Loads the driver's library and those of the toolkit that candle calls.
///
/// # Errors
/// [`Error::Argument`], which says what is missing, and the remedy.
pub(super) fn load() -> Result<()> {
    let missing = |problem: String| Error::argument("device", "cuda", problem);
    load_one("libcuda.so.1")
        .map_err(|e| missing(format!("{e}; install NVIDIA's driver, or compute on the CPU with --device cpu")))?;
    let version = env!("LACUNA_CUDA_VERSION");
    let major = version.split('.').next().unwrap_or(version);
    for library in [format!("libcublas.so.{major}"), "libcurand.so.10".to_owned()] {
        load_one(&library).map_err(|e| {
            missing(format!(
                "{e}; put the folder of CUDA {major}'s libraries on LD_LIBRARY_PATH: /usr/local/cuda/lib64, or \
                 nvidia/cu{major}/lib in the site-packages of a Python that has PyTorch"
            ))
        })?;
    }
    Ok(())
}

fn load_one(name: &str) -> std::result::Result<(), String> {
    let text = CString::new(name).map_err(|e| e.to_string())?;
    // SAFETY: the name ends in a NUL. The libraries' initialisers are NVIDIA's, and run on any thread.
    if !unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_LAZY | libc::RTLD_GLOBAL) }.is_null() {
        return Ok(());
    }
    // SAFETY: the text is the dynamic linker's, and stays until this thread calls it again.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return Err(format!("{name} cannot be loaded"));
    }
    // SAFETY: as above, and not null.
    Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
}
