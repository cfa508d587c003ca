//! `lacuna kernel doctor`: what cells need, whether it is there, and what to type where it is not.

use super::built::Built;
use super::install::{self, Installed};
use super::output::Output;
use super::rust_source;
use super::session::{Audience, Session};
use super::{environment, places};
use lacuna::checkpoint::available_bytes;
use lacuna::display::mime;
use serde::Serialize;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Slots, stubs and what cells compile to take some 50 MB a notebook that runs.
const BYTES_NEEDED: u64 = 200 << 20;
/// A session that adds dependencies of its own compiles them here.
const BYTES_WANTED: u64 = 2 << 30;

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ok,
    /// Cells run, but something that was asked for may be missing.
    Warning,
    /// Cells do not run.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) status: Status,
    /// The finding: the thing that is there, or the problem.
    pub(crate) found: String,
    /// The command to type, if there is a problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Check { name, status: Status::Ok, found: found.into(), remedy: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check { name, status: Status::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn failure(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Check { name, status: Status::Failure, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at everything, and runs a cell if nothing is known that would keep it from running. What that compiles stays in the
/// kernel's cache.
pub(crate) fn checks() -> Vec<Check> {
    let toolchain = toolchain();
    let mut checks = vec![match &toolchain {
        Ok(toolchain) => Check::ok("toolchain", format!("{}, {}", toolchain.version, toolchain.sysroot.display())),
        Err(problem) => Check::failure(
            "toolchain",
            problem,
            "install Rust from https://rustup.rs, or put cargo and rustc on the PATH",
        ),
    }];
    if let Ok(toolchain) = &toolchain {
        checks.push(source(&toolchain.sysroot));
        checks.push(libstd(toolchain));
        checks.push(linker(toolchain));
        checks.push(library(toolchain));
    }
    checks.push(disk());
    checks.push(jupyter());
    checks.push(cuda());
    if checks.iter().all(|check| check.status != Status::Failure) {
        checks.push(session());
    }
    checks
}

/// The check that all others serve: a session that runs a cell.
fn session() -> Check {
    let started = Instant::now();
    let ran = Session::start(Audience::looking(|_| {})).map_err(|error| format!("no session starts: {error:#}"));
    let start = started.elapsed().as_secs_f64();
    let ran = ran.and_then(|mut session| {
        let outcome = session.run("let six: usize = 6;\nsix * 7");
        if let Some(error) = outcome.error {
            return Err(format!("a session starts, but its first cell failed: {}", error.message));
        }
        let is_right = |output: &Output| matches!(output, Output::Result(value) if value.get(mime::PLAIN).is_some_and(|text| text == "42"));
        if !outcome.outputs.iter().any(is_right) {
            return Err(format!("a session starts, but its first cell shows {:?} for 6 * 7", outcome.outputs));
        }
        Ok(outcome.times.seconds())
    });
    match ran {
        Ok(cell) => Check::ok("session", format!("starts in {start:.1} s and runs a cell in {cell:.1} s")),
        Err(problem) => {
            let cache = Built::find().and_then(|built| environment::cache(&built));
            let place = cache.map_or_else(|_| "the kernel's cache".into(), |cache| cache.display().to_string());
            let remedy = format!(
                "lacuna cache gc --older-than 0s, which removes what was compiled in {place}, or set XDG_CACHE_HOME to a \
                 directory elsewhere; then look again"
            );
            Check::failure("session", problem, remedy)
        }
    }
}

struct Toolchain {
    sysroot: PathBuf,
    rustc: PathBuf,
    version: String,
}

fn toolchain() -> Result<Toolchain, String> {
    let sysroot = environment::sysroot().map_err(|error| format!("{error:#}"))?;
    let rustc = sysroot.join("bin/rustc");
    let version = first_line(Command::new(&rustc).arg("--version"))?;
    let own = sysroot.join("bin/cargo");
    first_line(Command::new(if own.is_file() { own.as_os_str() } else { OsStr::new("cargo") }).arg("--version"))?;
    Ok(Toolchain { sysroot, rustc, version })
}

/// The first line of a program's output, or why there is none.
fn first_line(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot run {program}: {error}"))?;
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    let line = String::from_utf8_lossy(text).lines().next().unwrap_or_default().trim().to_owned();
    if output.status.success() { Ok(line) } else { Err(format!("{program} failed: {line}")) }
}

fn source(sysroot: &Path) -> Check {
    match rust_source::find(sysroot) {
        Some(library) => Check::ok("rust-src", library.display().to_string()),
        None => Check::failure(
            "rust-src",
            "the standard library's source is missing; without it no `let` has a type",
            rust_source::REMEDY,
        ),
    }
}

/// Cells share one libstd with the library, so it must be there as a shared object.
fn libstd(toolchain: &Toolchain) -> Check {
    let directory = first_line(Command::new(&toolchain.rustc).args(["--print", "target-libdir"]));
    let directory = match directory {
        Ok(directory) => PathBuf::from(directory),
        Err(problem) => return Check::failure("libstd", problem, REINSTALL),
    };
    let prefix = format!("{}std-", env::consts::DLL_PREFIX);
    let is_libstd = |name: &str| name.starts_with(&prefix) && name.ends_with(env::consts::DLL_SUFFIX);
    let mut names = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    match names.find(|name| name.to_str().is_some_and(is_libstd)) {
        Some(name) => Check::ok("libstd", directory.join(name).display().to_string()),
        None => Check::failure("libstd", format!("no shared {prefix}* in {}", directory.display()), REINSTALL),
    }
}

const REINSTALL: &str =
    "rustup toolchain install stable --force; a distribution has it in a package such as libstd-rust-dev";

/// Compiles a program in a temporary directory; what rustc says when it does not.
fn compile(toolchain: &Toolchain, source: &str, more: &[&OsStr]) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let path = directory.path().join("probe.rs");
    fs::write(&path, source).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    let mut command = Command::new(&toolchain.rustc);
    command.args(["--edition=2024", "-Cprefer-dynamic", "--crate-name=probe", "--out-dir"]).arg(directory.path());
    let output = command.args(more).arg(&path).output().map_err(|error| format!("cannot run rustc: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let error = text.lines().find(|line| line.starts_with("error")).unwrap_or("rustc failed");
    Err(error.to_owned())
}

fn linker(toolchain: &Toolchain) -> Check {
    match compile(toolchain, "fn main() {}", &[]) {
        Ok(()) => Check::ok("linker", "links a program"),
        Err(problem) => Check::failure("linker", problem, "apt-get install gcc libc6-dev, or your system's C compiler"),
    }
}

/// The library is there, and this compiler reads it: rustc reads only what the same version wrote.
fn library(toolchain: &Toolchain) -> Check {
    const REMEDY: &str = "cargo build, in lacuna's source";
    let built = match Built::find() {
        Ok(built) => built,
        Err(error) => return Check::failure("library", error.to_string(), REMEDY),
    };
    let mut external = std::ffi::OsString::from("lacuna=");
    external.push(&built.library);
    let mut search = std::ffi::OsString::from("-Ldependency=");
    search.push(&built.dependencies);
    let arguments = [OsStr::new("--emit=metadata"), OsStr::new("--extern"), &external, &search];
    match compile(toolchain, "extern crate lacuna; fn main() {}", &arguments) {
        Ok(()) => Check::ok("library", built.library.display().to_string()),
        Err(problem) => Check::failure("library", format!("{}: {problem}", built.library.display()), REMEDY),
    }
}

fn disk() -> Check {
    let cache = match Built::find().and_then(|built| environment::cache(&built)) {
        Ok(cache) => cache,
        Err(error) => {
            return Check::failure(
                "disk",
                format!("{error:#}"),
                "set XDG_CACHE_HOME to a directory that can be written",
            );
        }
    };
    // Writable is more than free.
    if let Err(error) = tempfile::tempfile_in(&cache) {
        let remedy = "set XDG_CACHE_HOME to a directory that can be written";
        return Check::failure("disk", format!("cannot write in {}: {error}", cache.display()), remedy);
    }
    let (held, slots) = places::slots(&cache);
    let place = format!("{} ({held} of {slots} slots in use)", cache.display());
    match available_bytes(&cache) {
        Some(free) => room(free, &place),
        None => Check::ok("disk", place),
    }
}

fn room(free: u64, place: &str) -> Check {
    let found = format!("{:.1} GB free for {place}", free as f64 / 1e9);
    let remedy = "free some space, or set XDG_CACHE_HOME to a directory on another disk";
    match free {
        ..BYTES_NEEDED => Check::failure("disk", found, remedy),
        BYTES_NEEDED..BYTES_WANTED => Check::warning("disk", found, remedy),
        _ => Check::ok("disk", found),
    }
}

/// Not needed by `lacuna notebook run`, so nothing here is a failure.
fn jupyter() -> Check {
    let install = format!("{} kernel install", program());
    let Some(jupyter) = on_path("jupyter") else {
        return Check::warning("jupyter", "no `jupyter` on the PATH", format!("pipx install jupyterlab; {install}"));
    };
    match install::installed(&jupyter) {
        Installed::Here(directory) => Check::ok("jupyter", directory.display().to_string()),
        Installed::Other { directory, executable } => Check::warning(
            "jupyter",
            format!("{} starts {}, which is another binary", directory.display(), executable.display()),
            install,
        ),
        Installed::Nowhere => Check::warning("jupyter", "it does not know the kernel yet", install),
    }
}

fn cuda() -> Check {
    let driver = Path::new("/proc/driver/nvidia/version").exists();
    if !candle_core::utils::cuda_is_available() {
        return match driver {
            true => {
                Check::warning("cuda", "there is a driver, but this build has no CUDA", "cargo build --features cuda")
            }
            false => Check::ok("cuda", "none; cells compute on the CPU"),
        };
    }
    match candle_core::Device::new_cuda(0) {
        Ok(_) => Check::ok("cuda", "device 0 opens"),
        Err(error) => Check::warning(
            "cuda",
            format!("device 0 does not open: {error}"),
            "nvidia-smi, to see the driver and its version; cells can compute on the CPU",
        ),
    }
}

/// This program, as it can be typed.
fn program() -> String {
    env::current_exe().map_or_else(|_| "lacuna".to_owned(), |path| path.display().to_string())
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_a_failure() {
        assert_eq!(room(BYTES_NEEDED - 1, "here").status, Status::Failure);
        assert_eq!(room(BYTES_NEEDED, "here").status, Status::Warning);
        let check = room(BYTES_WANTED, "here");
        assert_eq!((check.status, check.remedy), (Status::Ok, None));
        assert!(room(0, "/tmp").found.contains("/tmp"));
    }

    #[test]
    fn missing_source_says_what_to_type() {
        let toolchain = tempfile::tempdir().unwrap();
        // Where the machine has it from a distribution, it is found even so.
        let check = source(toolchain.path());
        let missing = rust_source::find(toolchain.path()).is_none();
        assert_eq!(check.status == Status::Failure, missing);
        assert_eq!(check.remedy.is_some_and(|remedy| remedy.contains("rustup component add rust-src")), missing);
    }
}
