//! What a session needs around it: the built library, a slot to compile cells in, evcxr's settings.

use super::{compiled, diagnostics, rust_source, stubs};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// This process stands in for rustc.
pub(super) const WRAPPER: &str = "LACUNA_RUSTC_WRAPPER";
/// The process that has the session.
pub(super) const SESSION: &str = "LACUNA_SESSION";
/// Packages that are not compiled.
pub(super) const STUBS: &str = "LACUNA_STUBS";
/// The shared library that cells link.
pub(super) const LIBRARY: &str = "LACUNA_LIBRARY";
/// Where the library's own dependencies are.
pub(super) const DEPENDENCIES: &str = "LACUNA_DEPENDENCIES";
/// The file in which the wrapper keeps what rustc said of the cell.
pub(super) const COMPILATIONS: &str = "LACUNA_COMPILATIONS";
/// The toolchain's directory, in the environment of an installed kernel: Jupyter may be started from a menu, where no
/// shell has put cargo on the PATH, or in a directory that rustup gives another toolchain.
pub(super) const TOOLCHAIN: &str = "LACUNA_TOOLCHAIN";
/// The user's own RUST_BACKTRACE, which evcxr overwrites.
pub(super) const BACKTRACE: &str = "LACUNA_BACKTRACE";

/// What every cell finds imported, in Jupyter and without it.
pub(super) const PRELUDE: &str = "use lacuna::prelude::*;";

/// What the process that runs cells must not hand on to what it starts.
pub(super) const PRIVATE: [&str; 12] = [
    WRAPPER,
    SESSION,
    STUBS,
    LIBRARY,
    DEPENDENCIES,
    COMPILATIONS,
    BACKTRACE,
    "RUSTC",
    "RUST_SRC_PATH",
    "EVCXR_TMPDIR",
    "EVCXR_CONFIG_DIR",
    TOOLCHAIN,
];

/// More sessions at a time than anyone runs on one machine.
pub(super) const SLOTS: usize = 32;

/// A directory in which one session compiles its cells; free again when dropped, or when the process ends.
#[must_use]
pub(super) struct Slot {
    /// evcxr's commands that make lacuna known to cells, and its prelude, without whose `EvcxrDisplay` in scope rustc's advice
    /// to import it would keep evcxr from trying `{:?}`.
    pub(super) preamble: String,
    /// The directory.
    pub(super) path: PathBuf,
    _locks: [File; 2],
}

/// Prepares this process, through its environment, to host a session: evcxr takes its settings from there.
///
/// Other threads may run, if they read the environment as Rust does, and not by C's `getenv`.
pub(super) fn enter() -> Result<Slot> {
    let set = |name: &str, value: OsString| {
        // SAFETY: std locks the environment for all who use it through std, and the caller promises that there is nobody else.
        unsafe { env::set_var(name, value) }
    };
    let sysroot = sysroot()?;
    // Else each of the many calls of cargo and rustc goes through rustup's proxies.
    if let Some(path) = path_with(&sysroot) {
        set("PATH", path);
    }
    if env::var_os("RUSTC").is_none() {
        set("RUSTC", sysroot.join("bin/rustc").into());
    }
    let built = Built::find()?;
    let cache = cache(&built)?;
    // Before anything is put there.
    let held = compiled::hold(&cache, &built.dependencies)?;
    let source = rust_source::lean(&rust_source::provide(&sysroot)?, &cache)?;
    let stubs = stubs::write(&cache)?;
    let (slot, lock) = take_slot(&cache)?;
    let executable = env::current_exe().context("cannot find this program's own path")?;
    let preamble = format!(
        ":env RUST_SRC_PATH={}\n:build_env RUSTC_WRAPPER={}\n:dep lacuna = {{ path = {} }}\n{PRELUDE}",
        source.display(),
        executable.display(),
        stubs::toml_string(&stubs.join("lacuna").to_string_lossy()),
    );
    let settings = write_settings(&cache)?;
    if let Some(backtrace) = env::var_os("RUST_BACKTRACE") {
        set(BACKTRACE, backtrace);
    }
    set(WRAPPER, "1".into());
    set(SESSION, std::process::id().to_string().into());
    set("RUST_SRC_PATH", rust_source::nothing(&cache)?.into());
    set(STUBS, stubs.into());
    set(LIBRARY, built.library.into());
    set(DEPENDENCIES, built.dependencies.into());
    set(COMPILATIONS, slot.join(diagnostics::FILE).into());
    set("EVCXR_TMPDIR", slot.clone().into());
    set("EVCXR_CONFIG_DIR", settings.into());
    Ok(Slot { preamble, path: slot, _locks: [held, lock] })
}

/// The toolchain's directory.
pub(super) fn sysroot() -> Result<PathBuf> {
    let pinned = env::var_os(TOOLCHAIN).map(PathBuf::from);
    if let Some(toolchain) = pinned.filter(|toolchain| toolchain.join("bin/rustc").is_file()) {
        return Ok(toolchain);
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc).args(["--print", "sysroot"]).output();
    let output = output.with_context(|| format!("cannot run {}, which compiles notebook cells", rustc.display()))?;
    if !output.status.success() {
        bail!("{} --print sysroot: {}", rustc.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// PATH with the toolchain's programs in front; `None` if there is no cargo among them, or they stand there already.
fn path_with(sysroot: &Path) -> Option<OsString> {
    let programs = sysroot.join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    if !programs.join("cargo").is_file() || directories.first() == Some(&programs) {
        return None;
    }
    directories.insert(0, programs);
    env::join_paths(directories).ok()
}

/// What `cargo build` left.
pub(super) struct Built {
    pub(super) library: PathBuf,
    pub(super) dependencies: PathBuf,
}

impl Built {
    pub(super) fn find() -> Result<Self> {
        let name = format!("{}lacuna{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
        let executable = env::current_exe().context("cannot find this program's own path")?;
        // A copy of the binary still knows where it was built.
        let beside = executable.parent().map(Path::to_path_buf);
        let candidates = beside.into_iter().chain([PathBuf::from(env!("LACUNA_BUILD_DIR"))]);
        for directory in candidates {
            let library = directory.join("deps").join(&name);
            if library.is_file() {
                return Ok(Built { library, dependencies: directory.join("deps") });
            }
        }
        bail!(
            "notebook cells link {name}, which `cargo build` leaves in {}: it is gone. Build again, and run lacuna from there",
            Path::new(env!("LACUNA_BUILD_DIR")).join("deps").display()
        )
    }
}

/// A directory of our own in the user's cache, one per build directory: two checkouts do not share slots.
pub(super) fn cache(built: &Built) -> Result<PathBuf> {
    let cache = directory(&user_cache(None)?, &built.dependencies);
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create {}; XDG_CACHE_HOME names another place", cache.display()))?;
    Ok(cache)
}

/// Where all builds compile cells: in the user's cache, which is `home` if that is given.
pub(super) fn user_cache(home: Option<PathBuf>) -> Result<PathBuf> {
    let user = home.or_else(|| env::var_os("XDG_CACHE_HOME").map(PathBuf::from)).filter(|path| path.is_absolute());
    let user = user.or_else(|| {
        let below = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        env::home_dir().filter(|home| !home.as_os_str().is_empty()).map(|home| home.join(below))
    });
    let user = user.context("no directory for compiled cells: set HOME or XDG_CACHE_HOME")?;
    Ok(user.join("lacuna").join("kernel"))
}

/// Below `user`, where the build whose libraries are in `dependencies` compiles cells.
pub(super) fn directory(user: &Path, dependencies: &Path) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(dependencies.as_os_str().as_encoded_bytes());
    hash.update(env!("CARGO_PKG_VERSION"));
    let key: String = hash.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    user.join(key)
}

/// The first slot that no running session holds.
fn take_slot(cache: &Path) -> Result<(PathBuf, File)> {
    for number in 0..SLOTS {
        let lock_path = cache.join(format!("slot-{number}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {
                let slot = cache.join(format!("slot-{number}"));
                fs::create_dir_all(&slot).with_context(|| format!("cannot create {}", slot.display()))?;
                return Ok((slot, lock));
            }
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        }
    }
    bail!("{SLOTS} notebook sessions are running already; end one of them ({})", cache.display())
}

/// How many of the slots are held by sessions, and how many there are on disk.
pub(super) fn slots(cache: &Path) -> (usize, usize) {
    let exists = |number: &usize| cache.join(format!("slot-{number}")).is_dir();
    let is_free = |number: &usize| {
        let lock = File::open(cache.join(format!("slot-{number}.lock")));
        lock.is_ok_and(|lock| lock.try_lock_shared().is_ok())
    };
    let existing: Vec<usize> = (0..SLOTS).filter(exists).collect();
    (existing.iter().filter(|number| !is_free(number)).count(), existing.len())
}

/// evcxr reads `evcxr.toml` in a directory of ours, not the user's, so that a notebook runs the same everywhere.
fn write_settings(cache: &Path) -> Result<PathBuf> {
    let settings = cache.join("settings");
    // Heavy work is inside the library, which is optimised; a cell is compiled for the speed of compiling it.
    write_if_new(&settings.join("evcxr.toml"), "[evcxr]\nopt_level = \"0\"\n")?;
    Ok(settings)
}

/// Writes a file of the cache, unless it is there with the same text; another session may read it at any time.
pub(super) fn write_if_new(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = tempfile::Builder::new().prefix(".lacuna-").tempfile_in(directory)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
