//! The standard library's source: without it rust-analyzer knows no type of a `let`, and evcxr wants each spelled out.

use anyhow::{Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes sure that the source is there and found: the toolchain's own, RUST_SRC_PATH, a distribution's package, or
/// else installs it, and says so.
pub(super) fn provide() -> Result<()> {
    if in_sysroot() || env::var_os("RUST_SRC_PATH").is_some_and(|path| is_library(Path::new(&path))) {
        return Ok(());
    }
    if use_distribution() {
        return Ok(());
    }
    // rustup has it for its own toolchains, if it can reach its server; Debian packages it as well.
    if install("rustup", &["component", "add", "rust-src"]) && in_sysroot() {
        return Ok(());
    }
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if root && install("apt-get", &["install", "-y", "-q", "rust-web-src"]) && use_distribution() {
        return Ok(());
    }
    bail!(
        "notebook cells need the standard library's source for the types of `let`; install it with \
         `rustup component add rust-src` or `apt-get install rust-web-src`, or set RUST_SRC_PATH to its `library` folder"
    )
}

fn is_library(path: &Path) -> bool {
    path.join("core/src/lib.rs").is_file()
}

fn in_sysroot() -> bool {
    let Ok(output) = Command::new("rustc").args(["--print", "sysroot"]).output() else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    is_library(&Path::new(&sysroot).join("lib/rustlib/src/rust/library"))
}

/// Debian's rust-web-src and rust-src: the newest below /usr/src.
fn use_distribution() -> bool {
    let Ok(entries) = std::fs::read_dir("/usr/src") else { return false };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("rustc-"))
        .map(|entry| entry.path().join("library"))
        .filter(|path| is_library(path))
        .collect();
    found.sort();
    let Some(library) = found.pop() else { return false };
    // SAFETY: called by `environment::enter`, before other threads use the environment.
    unsafe { env::set_var("RUST_SRC_PATH", library) };
    true
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
