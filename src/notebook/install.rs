//! Jupyter's kernelspec: a directory with a JSON file that says how to start this binary as a kernel, and its pictures.

use super::compiled::{self, Compiled};
use super::environment;
use super::places::TOOLCHAIN;
use super::session::{Audience, Session};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// The kernel's name for Jupyter, and its directory's.
const NAME: &str = "lacuna";

/// The API reference's directory, beside a kernelspec and in cargo's target directory.
const DOCUMENTATION: &str = "doc";

const LOGOS: [(&str, &[u8]); 3] = [
    ("logo-32x32.png", include_bytes!("logo/logo-32x32.png")),
    ("logo-64x64.png", include_bytes!("logo/logo-64x64.png")),
    ("logo-svg.svg", include_bytes!("logo/logo-svg.svg")),
];

/// Variables whose values a kernel must keep where Jupyter is started from a menu, so that it finds compiled cells and
/// downloaded crates.
const KEPT: [&str; 3] = ["XDG_CACHE_HOME", "CARGO_HOME", "RUSTUP_HOME"];

/// A directory in which Jupyter looks for kernels.
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
            Place::User => user_data().context("no directory for Jupyter's kernels: set HOME or JUPYTER_DATA_DIR")?,
        };
        Ok(data.join("kernels").join(NAME))
    }
}

/// As jupyter_core's `jupyter_data_dir`.
fn user_data() -> Option<PathBuf> {
    if let Some(directory) = env::var_os("JUPYTER_DATA_DIR").filter(|path| !path.is_empty()) {
        return Some(directory.into());
    }
    let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
    if cfg!(target_os = "macos") {
        return home.map(|home| home.join("Library/Jupyter"));
    }
    let xdg = env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    xdg.or_else(|| home.map(|home| home.join(".local/share"))).map(|data| data.join("jupyter"))
}

/// Writes the kernelspec after a first cell has run, so that nothing is left to be prepared when Jupyter starts it.
/// Returns the kernelspec's directory.
///
/// # Errors
/// Fails when the directory cannot be written, or a session does not start. An earlier installation is then still
/// there.
pub(crate) fn install(place: &Place) -> Result<PathBuf> {
    let directory = place.directory()?;
    let kernels = directory.parent().unwrap_or(Path::new("/"));
    let cannot =
        || format!("cannot write in {}; --user, --prefix and --sys-prefix name other places", kernels.display());
    // Written there first: a directory that cannot be written should not cost the time of a session.
    fs::create_dir_all(kernels).with_context(cannot)?;
    let staged = tempfile::Builder::new().prefix(".lacuna-").tempdir_in(kernels).with_context(cannot)?;
    let spec = serde_json::to_string_pretty(&kernelspec()?)? + "\n";
    for (name, bytes) in LOGOS.into_iter().chain([("kernel.json", spec.as_bytes())]) {
        fs::write(staged.path().join(name), bytes).with_context(cannot)?;
    }
    // Jupyter serves what lies beside a kernelspec, and so the API reference, once `cargo doc` has made it.
    symlink(documentation()?, staged.path().join(DOCUMENTATION)).with_context(cannot)?;
    // A temporary directory is private; Jupyter may run as another user.
    fs::set_permissions(staged.path(), fs::Permissions::from_mode(0o755)).with_context(cannot)?;
    warm(1)?;
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(cannot)?;
    }
    fs::rename(staged.path(), &directory).with_context(cannot)?;
    Ok(directory)
}

/// The directory in which `cargo doc` leaves the API reference of this build.
fn documentation() -> Result<PathBuf> {
    let executable = env::current_exe().context("cannot find this program's own path")?;
    let target = executable.parent().and_then(Path::parent).context("this program lies in no target directory")?;
    Ok(target.join(DOCUMENTATION))
}

/// The API reference's address within a Jupyter server, if it has been made.
pub(super) fn documentation_link() -> Option<String> {
    let is_there = documentation().ok()?.join(NAME).join("index.html").is_file();
    is_there.then(|| format!("/kernelspecs/{NAME}/{DOCUMENTATION}/{NAME}/index.html"))
}

fn kernelspec() -> Result<Value> {
    let executable = env::current_exe().context("cannot find this program's own path")?;
    let mut variables = Map::new();
    for name in KEPT {
        if let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) {
            variables.insert(name.into(), text(&value)?);
        }
    }
    variables.insert(TOOLCHAIN.into(), text(environment::sysroot()?.as_os_str())?);
    Ok(json!({
        "argv": [text(executable.as_os_str())?, "kernel", "serve", "{connection_file}"],
        "display_name": "Lacuna (Rust)",
        "language": "rust",
        "interrupt_mode": "message",
        "env": variables,
        "metadata": {"debugger": false},
    }))
}

fn text(value: &OsStr) -> Result<Value> {
    let Some(text) = value.to_str() else { bail!("{} is not Unicode, which kernel.json is", value.display()) };
    // Jupyter puts variables of its environment in for what looks like one.
    Ok(Value::from(text.replace('$', "$$")))
}

/// Runs a first cell in each of the first `slots` free slots, so that as many notebooks at once start warm.
///
/// # Errors
/// Fails when a session does not start, or its first cell fails.
pub(crate) fn warm(slots: usize) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..slots {
        let mut session = Session::start(Audience::looking(|_| {}))?;
        // A table, because its type is what takes rust-analyzer longest.
        let outcome = session.run("let warm = df!(\"a\" => [1])?;\nwarm.height()");
        if let Some(error) = outcome.error {
            bail!("the kernel starts, but a first cell failed: {}", error.message);
        }
        held.push(session.into_slot());
    }
    Ok(())
}

/// The outcome of `uninstall`.
pub(crate) struct Uninstalled {
    /// The kernelspec's directory, which is gone.
    pub(crate) directory: PathBuf,
    /// The kernel's compiled cells, and the bytes of them that were removed.
    pub(crate) compiled: Vec<(Compiled, u64)>,
    /// The kernelspec of the same program elsewhere, for which the compiled cells stay.
    pub(crate) other: Option<PathBuf>,
}

/// Removes the kernelspec, and what its kernel has compiled, as far as no session uses it and no other kernelspec starts
/// the same program. `None` if there was none.
///
/// # Errors
/// Fails when a file cannot be removed.
pub(crate) fn uninstall(place: &Place) -> Result<Option<Uninstalled>> {
    let directory = place.directory()?;
    if !directory.join("kernel.json").is_file() {
        return Ok(None);
    }
    let spec = read_spec(&directory);
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    let mut uninstalled = Uninstalled { directory, compiled: Vec::new(), other: None };
    if let Some((executable, spec)) = spec {
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
        let mut places = kernelspecs(environments);
        uninstalled.other = places.find(|other| read_spec(other).is_some_and(|(same, _)| same == executable));
        if uninstalled.other.is_none() {
            // Jupyter's `$$` is a `$`.
            let cache = spec["env"]["XDG_CACHE_HOME"].as_str().map(|path| PathBuf::from(path.replace("$$", "$")));
            for compiled in compiled::of(&executable, cache) {
                let freed = compiled::remove(&compiled)?;
                uninstalled.compiled.push((compiled, freed));
            }
        }
    }
    Ok(Some(uninstalled))
}

/// The program that a kernelspec starts, and the kernelspec.
fn read_spec(directory: &Path) -> Option<(PathBuf, Value)> {
    let spec: Value = serde_json::from_slice(&fs::read(directory.join("kernel.json")).ok()?).ok()?;
    let executable = spec["argv"][0].as_str().unwrap_or_default().replace("$$", "$");
    Some((PathBuf::from(executable), spec))
}

/// The directories that may hold the kernelspec: JUPYTER_PATH, the user's directory, the environments' at `prefixes`,
/// the system's.
fn kernelspecs(prefixes: impl Iterator<Item = PathBuf>) -> impl Iterator<Item = PathBuf> {
    let mut data: Vec<PathBuf> = env::split_paths(&env::var_os("JUPYTER_PATH").unwrap_or_default()).collect();
    data.extend(user_data());
    data.extend(prefixes.map(|prefix| prefix.join("share/jupyter")));
    data.extend(["/usr/local/share/jupyter", "/usr/share/jupyter"].map(PathBuf::from));
    data.into_iter().map(|data| data.join("kernels").join(NAME))
}

/// The state of the kernel's installation.
pub(super) enum Installed {
    /// It starts this binary.
    Here(PathBuf),
    Other {
        directory: PathBuf,
        executable: PathBuf,
    },
    Nowhere,
}

/// Looks where the program `jupyter` does: JUPYTER_PATH, the user's directory, its own prefix, the system's.
pub(super) fn installed(jupyter: &Path) -> Installed {
    let prefix = jupyter.parent().and_then(Path::parent).map(Path::to_path_buf);
    for directory in kernelspecs(prefix.into_iter()) {
        let Some((executable, _)) = read_spec(&directory) else { continue };
        let same = env::current_exe().is_ok_and(|own| own == executable);
        return if same { Installed::Here(directory) } else { Installed::Other { directory, executable } };
    }
    Installed::Nowhere
}
