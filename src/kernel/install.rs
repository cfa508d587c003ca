//! Jupyter's kernelspec: a directory with a JSON file that says how to start this binary as a kernel.

use super::session::Session;
use anyhow::{Context, Result};
use serde_json::json;
use std::env;
use std::fs;
use std::path::PathBuf;

/// The kernel's name for Jupyter, and its directory's.
const NAME: &str = "lacuna";

/// Where Jupyter looks for kernels.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The user's data directory.
    User,
    /// `PREFIX/share/jupyter`, a system's or a virtual environment's.
    Prefix(PathBuf),
}

impl Place {
    /// The kernelspec's directory.
    fn directory(&self) -> Result<PathBuf> {
        let data = match self {
            Place::Prefix(prefix) => std::path::absolute(prefix)?.join("share").join("jupyter"),
            Place::User => match env::var_os("JUPYTER_DATA_DIR").filter(|path| !path.is_empty()) {
                Some(directory) => directory.into(),
                None => user_data().context("no directory for Jupyter's kernels: set HOME or JUPYTER_DATA_DIR")?,
            },
        };
        Ok(data.join("kernels").join(NAME))
    }
}

/// As jupyter_core's `jupyter_data_dir`.
fn user_data() -> Option<PathBuf> {
    let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
    if cfg!(target_os = "macos") {
        return home.map(|home| home.join("Library/Jupyter"));
    }
    let xdg = env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    xdg.or_else(|| home.map(|home| home.join(".local/share"))).map(|data| data.join("jupyter"))
}

/// Writes the kernelspec and runs one cell, so that Jupyter's first start is within its patience. Returns the
/// kernelspec's directory.
///
/// # Errors
/// When the directory cannot be written, or a session does not start; the kernelspec is written only after one did.
pub(crate) fn install(place: &Place) -> Result<PathBuf> {
    let directory = place.directory()?;
    let executable = env::current_exe().context("cannot find this program's own path")?;
    let outcome = Session::start(Box::new(|_, _| {}))?.run("use lacuna::prelude::*;\nlet ready = true;\nready");
    if let Some(error) = outcome.error {
        anyhow::bail!("the kernel starts, but a first cell failed: {}", error.message);
    }
    let spec = json!({
        "argv": [executable, "--control_file", "{connection_file}"],
        "display_name": "Lacuna (Rust)",
        "language": "rust",
        "interrupt_mode": "message",
        "metadata": {"debugger": false},
    });
    let text = serde_json::to_string_pretty(&spec)? + "\n";
    super::document::write_file(&directory.join("kernel.json"), text.as_bytes())?;
    Ok(directory)
}

/// Removes the kernelspec. Returns its directory, or `None` if there was none.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn uninstall(place: &Place) -> Result<Option<PathBuf>> {
    let directory = place.directory()?;
    if !directory.join("kernel.json").is_file() {
        return Ok(None);
    }
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    Ok(Some(directory))
}
