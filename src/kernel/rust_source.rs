//! The standard library's source: without it rust-analyzer knows no type of a `let`, and evcxr wants each spelled out.

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian's packages put it.
const DISTRIBUTION: &str = "/usr/src";

/// What to type where it is missing.
pub(super) const REMEDY: &str = "rustup component add rust-src, or: apt-get install rust-web-src, or set RUST_SRC_PATH to \
                                 the `library` folder of the source";

/// The library's source folder: RUST_SRC_PATH, the toolchain's own, or a distribution's package.
pub(super) fn find(sysroot: &Path) -> Option<PathBuf> {
    find_in(env::var_os("RUST_SRC_PATH").map(PathBuf::from), sysroot, Path::new(DISTRIBUTION))
}

fn find_in(set: Option<PathBuf>, sysroot: &Path, distribution: &Path) -> Option<PathBuf> {
    set.filter(|path| is_library(path)).or_else(|| in_sysroot(sysroot)).or_else(|| from_distribution(distribution))
}

/// The library's source folder, or else installs it, and says so.
pub(super) fn provide(sysroot: &Path) -> Result<PathBuf> {
    if let Some(library) = find(sysroot) {
        return Ok(library);
    }
    // rustup has it for its own toolchains, if it can reach its server; Debian packages it as well.
    if install("rustup", &["component", "add", "rust-src"])
        && let Some(library) = in_sysroot(sysroot)
    {
        return Ok(library);
    }
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    // A fresh machine has no package lists yet.
    if root
        && (install("apt-get", &["install", "-y", "-q", "rust-web-src"])
            || install("apt-get", &["update", "-q"]) && install("apt-get", &["install", "-y", "-q", "rust-web-src"]))
        && let Some(library) = from_distribution(Path::new(DISTRIBUTION))
    {
        return Ok(library);
    }
    bail!("notebook cells need the standard library's source for the types of `let`: {REMEDY}")
}

/// A folder that rust-analyzer takes for the library's source, with nothing in it.
///
/// evcxr has rust-analyzer load everything twice at its start: for a first cell of its own, and again once lacuna is a
/// dependency. The first time needs no types.
pub(super) fn nothing(cache: &Path) -> Result<PathBuf> {
    let library = cache.join("no-library");
    let core = library.join("core");
    std::fs::create_dir_all(&core).with_context(|| format!("cannot create {}", core.display()))?;
    Ok(library)
}

fn is_library(path: &Path) -> bool {
    path.join("core/src/lib.rs").is_file()
}

fn in_sysroot(sysroot: &Path) -> Option<PathBuf> {
    Some(sysroot.join("lib/rustlib/src/rust/library")).filter(|path| is_library(path))
}

/// Debian's rust-web-src and rust-src: the newest below `/usr/src`.
fn from_distribution(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("rustc-"))
        .map(|entry| entry.path().join("library"))
        .filter(|path| is_library(path))
        .max()
}

#[expect(clippy::print_stderr, reason = "what is installed on a user's machine is announced")]
fn install(program: &str, args: &[&str]) -> bool {
    let command = format!("{program} {}", args.join(" "));
    eprintln!("lacuna: the standard library's source is missing; running `{command}`");
    let done = Command::new(program).args(args).stdout(std::io::stderr()).status().is_ok_and(|status| status.success());
    if !done {
        eprintln!("lacuna: `{command}` failed");
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn source_is_found_where_it_may_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (set, sysroot, distribution) = (path("set"), path("toolchain"), path("src"));
        let find = |set: &Path| find_in(Some(set.to_path_buf()), &sysroot, &distribution);
        fs::create_dir_all(distribution.join("rustc-1.0.0/library/core/src")).unwrap();
        assert_eq!(find(&set), None, "a folder without the source is none");
        let write = |library: &Path| {
            fs::create_dir_all(library.join("core/src")).unwrap();
            fs::write(library.join("core/src/lib.rs"), "").unwrap();
        };
        // Each comes before those already there.
        for library in
            [distribution.join("rustc-1.0.0/library"), sysroot.join("lib/rustlib/src/rust/library"), set.clone()]
        {
            write(&library);
            assert_eq!(find(&set), Some(library));
        }
    }
}
