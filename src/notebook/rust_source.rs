//! The standard library's source: without it rust-analyzer knows no type of a `let`, and evcxr wants each spelled out.

use anyhow::{Context, Result, bail};
use ra_ap_syntax::{AstNode, Edition, SourceFile, ast};
use sha2::{Digest, Sha256};
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory in which Debian's packages put it.
const DISTRIBUTION: &str = "/usr/src";

/// The commands to type where it is missing.
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

/// A copy of the source in `cache` without what no type depends on: comments, bodies of functions, and vendors' intrinsics, which are
/// half of all there is. rust-analyzer reads the source at each start.
pub(super) fn lean(library: &Path, cache: &Path) -> Result<PathBuf> {
    // Set by an earlier session of this process.
    if library.parent() == Some(cache) {
        return Ok(library.to_path_buf());
    }
    let core = library.join("core/src/lib.rs");
    let of_core = fs::metadata(&core).with_context(|| format!("cannot read {}", core.display()))?;
    let mut key = Sha256::new_with_prefix(library.as_os_str().as_encoded_bytes());
    key.update(format!("{:?} {} {LEFT_OUT:?} {LEAN}", of_core.modified().ok(), of_core.len()));
    let key = hex::encode(&key.finalize()[..6]);
    let lean = cache.join(format!("library-{key}"));
    if lean.is_dir() {
        return Ok(lean);
    }
    let copy = || -> io::Result<()> {
        let staged = tempfile::Builder::new().prefix(".library-").tempdir_in(cache)?;
        copy(library, staged.path(), Path::new(""), &|source| without_comments(&without_bodies(source)))?;
        match fs::rename(staged.path(), &lean) {
            // Another session was faster.
            Err(_) if lean.is_dir() => Ok(()),
            renamed => renamed,
        }
    };
    copy().with_context(|| format!("cannot copy {} to {}", library.display(), lean.display()))?;
    Ok(lean)
}

/// Counts what copies leave out, so that those of an earlier version are not taken.
pub(super) const LEAN: u32 = 2;

/// Folders of which only an empty `mod.rs` stays.
const LEFT_OUT: [&str; 2] = ["stdarch/crates/core_arch/src", "portable-simd/crates/core_simd/src"];

/// Copies the source files of a package, without the bodies of its functions.
pub(super) fn copy_without_bodies(from: &Path, to: &Path) -> io::Result<()> {
    copy(from, to, Path::new(""), &without_bodies)
}

fn copy(from: &Path, to: &Path, inside: &Path, change: &dyn Fn(&str) -> String) -> io::Result<()> {
    if LEFT_OUT.iter().any(|left_out| inside == Path::new(left_out)) {
        return fs::write(to.join("mod.rs"), "");
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let (source, target) = (entry.path(), to.join(&name));
        let extension = source.extension().and_then(|extension| extension.to_str());
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy(&source, &target, &inside.join(&name), change)?;
        } else if extension == Some("rs") {
            // What is no text no compiler reads either.
            fs::write(target, change(&String::from_utf8_lossy(&fs::read(source)?)))?;
        } else if matches!(extension, Some("toml" | "lock")) {
            fs::copy(source, target)?;
        }
    }
    Ok(())
}

/// Without the bodies of functions, as far as no type depends on them: an `impl` or a future that a function returns has the type
/// of its body, a constant may be the length of an array, and a body may hold items. A file with errors stays as it is.
fn without_bodies(source: &str) -> String {
    let parsed = SourceFile::parse(source, Edition::CURRENT);
    if !parsed.errors().is_empty() {
        return source.to_owned();
    }
    let mut lean = String::with_capacity(source.len());
    let mut done = 0;
    for function in parsed.tree().syntax().descendants().filter_map(ast::Fn::cast) {
        let Some(body) = function.body() else { continue };
        let range = body.syntax().text_range();
        let (start, end) = (usize::from(range.start()), usize::from(range.end()));
        let returns_body = function.ret_type().is_some_and(|ty| ty.syntax().text().to_string().contains("impl"));
        let is_needed = function.const_token().is_some() || function.async_token().is_some() || returns_body;
        let holds_items = ["impl", "macro_rules", "mod "].iter().any(|word| source[start..end].contains(word));
        // Inside of one that is left out.
        if start < done || is_needed || holds_items {
            continue;
        }
        lean.push_str(&source[done..start]);
        lean.push_str("{}");
        done = end;
    }
    lean.push_str(&source[done..]);
    lean
}

/// Without lines that are a comment, or nothing but documentation.
fn without_comments(source: &str) -> String {
    let is_comment = |line: &&str| {
        let line = line.trim();
        line.starts_with("//") || (line.starts_with("#[doc = ") || line.starts_with("#![doc = ")) && line.ends_with(']')
    };
    source.lines().filter(|line| !is_comment(line)).flat_map(|line| [line, "\n"]).collect()
}

/// A folder that rust-analyzer takes for the library's source, with nothing in it.
///
/// evcxr has rust-analyzer load everything twice at its start: for a first cell of its own, and again once lacuna is a
/// dependency. The first time needs no types.
pub(super) fn nothing(cache: &Path) -> Result<PathBuf> {
    let library = cache.join("no-library");
    let core = library.join("core");
    fs::create_dir_all(&core).with_context(|| format!("cannot create {}", core.display()))?;
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
    let entries = fs::read_dir(directory).ok()?.flatten();
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

    #[test]
    fn bodies_stay_where_a_type_depends_on_them() {
        let source = "trait T { fn a(&self) -> u8 { fn b() {} 1 } fn c(); }\nconst fn d() -> usize { 3 }\nasync fn e() -> u8 { 1 }\n\
                      fn f() -> impl Fn() { || () }\nfn g() { impl T for u8 { fn c() { 2; } } }\nmacro_rules! m { () => { fn h() { 1 } } }\n\
                      fn i(s: &str) -> char { s.chars().find(|c| *c == '}').unwrap() }\n";
        let lean = "trait T { fn a(&self) -> u8 {} fn c(); }\nconst fn d() -> usize { 3 }\nasync fn e() -> u8 { 1 }\n\
                    fn f() -> impl Fn() { || () }\nfn g() { impl T for u8 { fn c() {} } }\nmacro_rules! m { () => { fn h() { 1 } } }\n\
                    fn i(s: &str) -> char {}\n";
        assert_eq!(without_bodies(source), lean);
        assert_eq!(without_bodies("fn broken( { 1 }"), "fn broken( { 1 }");
    }

    #[test]
    fn copy_keeps_the_code_and_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let (library, cache) = (directory.path().join("library"), directory.path().join("cache"));
        let write = |path: &str, text: &str| {
            let path = library.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "core/src/lib.rs",
            "//! Core.\n/// One.\n#[doc = concat!(\"a\", \"b\")]\npub fn one() -> u8 { 1 } // one\n",
        );
        write("core/Cargo.toml", "[package]");
        write("core/README.md", "text");
        write("stdarch/crates/core_arch/src/mod.rs", "mod x86;");
        write("stdarch/crates/core_arch/src/x86.rs", "fn add() {}");
        fs::create_dir(&cache).unwrap();
        let lean = lean(&library, &cache).unwrap();
        let read = |path: &str| fs::read_to_string(lean.join(path)).unwrap();
        assert_eq!(read("core/src/lib.rs"), "pub fn one() -> u8 {} // one\n");
        assert_eq!(read("core/Cargo.toml"), "[package]");
        assert_eq!(read("stdarch/crates/core_arch/src/mod.rs"), "");
        assert!(!lean.join("stdarch/crates/core_arch/src/x86.rs").exists() && !lean.join("core/README.md").exists());
        let names = || fs::read_dir(&cache).unwrap().count();
        assert_eq!(names(), 1, "nothing else is left");
        assert_eq!(super::lean(&library, &cache).unwrap(), lean);
        write("core/src/lib.rs", "pub fn two() -> u8 { 2 }");
        assert_ne!(super::lean(&library, &cache).unwrap(), lean, "another toolchain, another copy");
        fs::remove_dir_all(&cache).unwrap();
        assert!(super::lean(&library, &cache).unwrap_err().to_string().contains("cannot copy"));
    }
}
