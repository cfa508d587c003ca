//! rustc, as cargo sees it when it builds a cell.

use super::diagnostics::Compilation;
use super::processes::is_program;
use super::rustc_message::Diagnostic;
use super::{cell_source, places};
use anyhow::{Context, Result};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// evcxr's name for the crate of a cell.
const CELL: &str = "ctx";

/// Returns whether cargo started this process in rustc's place. The variable alone is no proof: every process that a
/// session starts inherits it, `lacuna` itself among them.
pub(super) fn is_wrapper() -> bool {
    env::var_os(places::WRAPPER).is_some() && env::args_os().nth(1).is_some_and(|arg| is_program(&arg, "rustc"))
}

/// Acts as rustc and ends the process.
#[expect(clippy::print_stderr, reason = "cargo shows what rustc says there")]
pub(super) fn run() -> ! {
    let mut args = env::args_os().skip(1);
    let rustc = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    end_when_unwanted();
    let code = match compile(&rustc, &args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            1
        }
    };
    std::process::exit(code)
}

/// Ends this process with rustc and the linker as soon as cargo, or the session that waits for cargo, is gone: what
/// compiles on would be in the way of the next session that gets the slot.
fn end_when_unwanted() {
    let cargo = parent_id();
    let session: Option<i32> = env::var(places::SESSION).ok().and_then(|id| id.parse().ok());
    // SAFETY: setpgid only moves this process.
    if unsafe { libc::setpgid(0, 0) } != 0 {
        return;
    }
    std::thread::spawn(move || {
        // SAFETY: signal 0 only asks whether the process exists.
        let is_there = |id: i32| unsafe { libc::kill(id, 0) } == 0;
        while parent_id() == cargo && session.is_none_or(is_there) {
            std::thread::sleep(Duration::from_millis(100));
        }
        // SAFETY: the group is this process's own.
        unsafe { libc::kill(0, libc::SIGKILL) };
    });
}

fn compile(rustc: &OsStr, args: &[OsString]) -> Result<i32> {
    let invocation = Invocation::parse(args);
    let stubs = env::var_os(places::STUBS).map(PathBuf::from);
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let is_stub = stubs.zip(package).is_some_and(|(stubs, package)| package.starts_with(stubs));
    let library = PathBuf::from(env::var_os(places::LIBRARY).unwrap_or_default());
    if is_stub && let Some(out) = &invocation.out_dir {
        let witness = PathBuf::from(env::var_os(places::WITNESS).unwrap_or_default());
        invocation.pretend(out, &witness)?;
        return Ok(0);
    }
    let mut command = Command::new(rustc);
    if invocation.crate_name.as_deref() == Some(OsStr::new(CELL)) {
        command.args(link_real_library(&without_incremental(args), &library));
        // The last of several counts. One unit is compiled sooner than sixteen are that hold a few lines each.
        command.args(["-C", "codegen-units=1"]);
        if let Some(dependencies) = env::var_os(places::DEPENDENCIES) {
            let mut search = OsString::from("dependency=");
            search.push(dependencies);
            command.arg("-L").arg(search);
        }
        return compile_cell(command, args, &invocation);
    }
    let status = command.args(args).status().with_context(|| format!("cannot run {}", rustc.display()))?;
    Ok(status.code().unwrap_or(1))
}

/// Compiles a cell from its changed source, and keeps what rustc said.
fn compile_cell(mut command: Command, args: &[OsString], invocation: &Invocation) -> Result<i32> {
    let path = args.iter().map(Path::new).find(|path| path.extension() == Some(OsStr::new("rs")));
    let path = path.context("a cell without a source file")?;
    let cannot = |what: &str| format!("cannot {what} {}", path.display());
    let generated = fs::read_to_string(path).with_context(|| cannot("read"))?;
    if let Some(failure) = cell_source::first_failure(&generated) {
        let line = serde_json::to_string(&failure)? + "\n";
        std::io::stderr().write_all(line.as_bytes()).context("cannot write to standard error")?;
        return Ok(1);
    }
    let links_library = args.iter().any(|arg| arg.as_encoded_bytes().starts_with(b"lacuna="));
    let source = cell_source::changed(&generated, links_library);
    if source != generated {
        fs::write(path, &source).with_context(|| cannot("write"))?;
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut code = output.status.code().unwrap_or(1);
    if code == 0
        && links_library
        && let Some(out) = &invocation.out_dir
        && let Some(refusal) = cell_source::refusal(
            &source,
            &out.join(format!("{}{CELL}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX)),
        )
    {
        said.push_str(&serde_json::to_string(&refusal)?);
        said.push('\n');
        code = 1;
    }
    if let Some(file) = env::var_os(places::COMPILATIONS) {
        Compilation { source, diagnostics: Diagnostic::all(&said) }.keep(Path::new(&file))?;
    }
    std::io::stderr().write_all(said.as_bytes()).context("cannot write to standard error")?;
    Ok(code)
}

/// `args` without incremental compilation: a cell is compiled once, and what is kept for a next time takes longer to write than to
/// make again.
fn without_incremental(args: &[OsString]) -> Vec<OsString> {
    let is_it = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"incremental=");
    let mut kept: Vec<OsString> = Vec::with_capacity(args.len());
    for arg in args {
        if is_it(arg) && kept.last().is_some_and(|before| before == "-C") {
            kept.pop();
        } else {
            kept.push(arg.clone());
        }
    }
    kept
}

/// `args` with the real library in the stub's place.
fn link_real_library(args: &[OsString], library: &Path) -> Vec<OsString> {
    let mut real = OsString::from("lacuna=");
    real.push(library);
    let is_stub = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"lacuna=");
    let after_extern = |index: usize| index > 0 && args[index - 1] == "--extern";
    let replaced = args.iter().enumerate().map(|(i, arg)| if after_extern(i) && is_stub(arg) { &real } else { arg });
    replaced.cloned().collect()
}

/// The arguments of a call of rustc that matter here.
#[derive(Default)]
struct Invocation {
    crate_name: Option<OsString>,
    out_dir: Option<PathBuf>,
    extra_filename: String,
    crate_types: Vec<String>,
    emit: Vec<String>,
}

impl Invocation {
    fn parse(args: &[OsString]) -> Self {
        let mut invocation = Invocation::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy();
            if let Some(emit) = text.strip_prefix("--emit=") {
                invocation.emit = emit.split(',').map(str::to_owned).collect();
            } else if arg == "--crate-name" {
                invocation.crate_name = args.next().cloned();
            } else if arg == "--out-dir" {
                invocation.out_dir = args.next().map(PathBuf::from);
            } else if arg == "--crate-type" {
                invocation.crate_types.extend(args.next().map(|arg| arg.to_string_lossy().into_owned()));
            } else if arg == "-C"
                && let Some(option) = args.next()
                && let Some(extra) = option.to_string_lossy().strip_prefix("extra-filename=")
            {
                invocation.extra_filename = extra.to_owned();
            }
        }
        invocation
    }

    /// Writes what cargo expects of a compilation: empty files, and a note that they depend on the slot's witness, so that
    /// another library makes the stubs, and the cell behind them, dirty.
    fn pretend(&self, out: &Path, witness: &Path) -> Result<()> {
        let name = format!("{}{}", self.crate_name.as_deref().unwrap_or_default().display(), self.extra_filename);
        let mut outputs = Vec::new();
        for emit in &self.emit {
            match emit.as_str() {
                "link" => outputs.extend(self.crate_types.iter().map(|crate_type| match crate_type.as_str() {
                    "dylib" => format!("{}{name}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX),
                    _ => format!("lib{name}.rlib"),
                })),
                "metadata" => outputs.push(format!("lib{name}.rmeta")),
                _ => {}
            }
        }
        // A space would end a path in this format, as in make's.
        let witness = witness.to_string_lossy().replace(' ', "\\ ");
        let mut depends = String::new();
        for output in outputs {
            let path = out.join(output);
            fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
            depends.push_str(&format!("{}: {witness}\n\n", path.to_string_lossy().replace(' ', "\\ ")));
        }
        let path = out.join(format!("{name}.d"));
        fs::write(&path, format!("{depends}{witness}:\n")).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn cell_links_the_real_library() {
        let real = link_real_library(
            &args("--crate-name ctx --extern lacuna=/slot/liblacuna.so --extern rand=/slot/librand.rlib"),
            Path::new("/build/liblacuna.so"),
        );
        let expected = "--crate-name ctx --extern lacuna=/build/liblacuna.so --extern rand=/slot/librand.rlib";
        assert_eq!(real, args(expected));
    }

    #[test]
    fn a_cell_is_not_compiled_incrementally() {
        let kept = without_incremental(&args("--crate-name ctx -C incremental=/slot/inc -C opt-level=0 incremental=x"));
        assert_eq!(kept, args("--crate-name ctx -C opt-level=0 incremental=x"));
    }

    #[test]
    fn stub_leaves_what_cargo_looks_for() {
        let out = tempfile::tempdir().unwrap();
        let call = args(
            "--crate-name half --crate-type lib --emit=dep-info,metadata,link -C metadata=1 -C extra-filename=-1f",
        );
        Invocation::parse(&call).pretend(out.path(), Path::new("/slot 0/library")).unwrap();
        for name in ["libhalf-1f.rlib", "libhalf-1f.rmeta"] {
            assert!(out.path().join(name).is_file(), "{name}");
        }
        let depends = fs::read_to_string(out.path().join("half-1f.d")).unwrap();
        assert!(depends.ends_with("/slot\\ 0/library:\n"), "{depends}");
    }
}
