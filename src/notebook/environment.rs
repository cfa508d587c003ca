//! The environment of a session: the built library, a slot to compile cells in, evcxr's settings.

use super::built::{self, Built, KeptBuild};
use super::places::{
    BACKTRACE, COMPILATIONS, DEPENDENCIES, LIBRARY, PRELUDE, SESSION, SLOTS, STUBS, TOOLCHAIN, WITNESS, WRAPPER,
    directory, not_for_cargo, resolved, user_cache, write_if_new,
};
use super::{compiled, diagnostics, rust_source, stubs};
use anyhow::{Context, Result, bail};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory in which one session compiles its cells; free again when dropped, or when the process ends.
#[must_use]
pub(super) struct Slot {
    /// evcxr's commands that make lacuna known to cells, and its prelude, without whose `EvcxrDisplay` in scope rustc's advice
    /// to import it would keep evcxr from trying `{:?}`.
    pub(super) preamble: String,
    /// The directory.
    pub(super) path: PathBuf,
    /// The build that cells link, whose program runs them.
    pub(super) build: KeptBuild,
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
    let build = built::keep(&cache, &built)?;
    let source = rust_source::lean(&rust_source::provide(&sysroot)?, &cache)?;
    let stubs = stubs::write(&cache)?;
    let (slot, lock) = take_slot(&cache)?;
    let witness = slot.join("library");
    write_if_new(&witness, &build.key)?;
    let preamble = format!(
        ":env RUST_SRC_PATH={}\n:build_env RUSTC_WRAPPER={}\n:dep lacuna = {{ path = {} }}\n{PRELUDE}",
        source.display(),
        build.executable.display(),
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
    set(LIBRARY, build.library.clone().into());
    set(DEPENDENCIES, build.dependencies.clone().into());
    set(WITNESS, witness.into());
    set(COMPILATIONS, slot.join(diagnostics::FILE).into());
    set("EVCXR_TMPDIR", slot.clone().into());
    set("EVCXR_CONFIG_DIR", settings.into());
    Ok(Slot { preamble, path: slot, build, _locks: [held, lock] })
}

/// The toolchain's directory.
pub(super) fn sysroot() -> Result<PathBuf> {
    let pinned = env::var_os(TOOLCHAIN).map(PathBuf::from);
    if let Some(toolchain) = pinned.filter(|toolchain| toolchain.join("bin/rustc").is_file()) {
        return usable_toolchain(toolchain);
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc).args(["--print", "sysroot"]).output();
    let output = output.with_context(|| format!("cannot run {}, which compiles notebook cells", rustc.display()))?;
    if !output.status.success() {
        bail!("{} --print sysroot: {}", rustc.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    usable_toolchain(PathBuf::from(OsStr::from_bytes(output.stdout.trim_ascii())))
}

/// cargo puts the toolchain's libraries into a search path, and the linker into a run path.
fn usable_toolchain(sysroot: PathBuf) -> Result<PathBuf> {
    if let Some(problem) = not_for_cargo(&sysroot) {
        bail!(
            "the Rust toolchain in {} cannot compile notebook cells: its path {problem}. RUSTUP_HOME names another place",
            sysroot.display()
        );
    }
    Ok(sysroot)
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

/// A directory of our own in the user's cache, one per build directory: two checkouts do not share slots.
pub(super) fn cache(built: &Built) -> Result<PathBuf> {
    let cache = directory(&user_cache(None)?, &built.dependencies);
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create {}; XDG_CACHE_HOME names another place", cache.display()))?;
    Ok(resolved(&cache))
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

/// evcxr reads `evcxr.toml` in a directory of ours, not the user's, so that a notebook runs the same everywhere.
fn write_settings(cache: &Path) -> Result<PathBuf> {
    let settings = cache.join("settings");
    // Heavy work is inside the library, which is optimised; a cell is compiled for the speed of compiling it.
    write_if_new(&settings.join("evcxr.toml"), "[evcxr]\nopt_level = \"0\"\n")?;
    Ok(settings)
}
