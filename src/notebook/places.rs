//! Directories in which cells are compiled, and the variables by which the processes of a session tell each other about them.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::env;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// This process stands in for rustc.
pub(super) const WRAPPER: &str = "LACUNA_RUSTC_WRAPPER";
/// The process that has the session.
pub(super) const SESSION: &str = "LACUNA_SESSION";
/// Packages that are not compiled.
pub(super) const STUBS: &str = "LACUNA_STUBS";
/// The shared library that cells link.
pub(super) const LIBRARY: &str = "LACUNA_LIBRARY";
/// The directory of the library's own dependencies.
pub(super) const DEPENDENCIES: &str = "LACUNA_DEPENDENCIES";
/// The file in which the wrapper keeps what rustc said of the cell.
pub(super) const COMPILATIONS: &str = "LACUNA_COMPILATIONS";
/// A file that is written anew whenever a slot gets another library: what the slot has compiled follows from that.
pub(super) const WITNESS: &str = "LACUNA_WITNESS";
/// The toolchain's directory, in the environment of an installed kernel: Jupyter may be started from a menu, where no
/// shell has put cargo on the PATH, or in a directory that rustup gives another toolchain.
pub(super) const TOOLCHAIN: &str = "LACUNA_TOOLCHAIN";
/// The user's own RUST_BACKTRACE, which evcxr overwrites.
pub(super) const BACKTRACE: &str = "LACUNA_BACKTRACE";

/// The import that every cell begins with, in Jupyter and without it.
pub(super) const PRELUDE: &str = "use lacuna::prelude::*;";

/// Variables that the process that runs cells must not pass on to the processes that it starts.
pub(super) const PRIVATE: [&str; 13] = [
    WRAPPER,
    SESSION,
    STUBS,
    LIBRARY,
    DEPENDENCIES,
    COMPILATIONS,
    WITNESS,
    BACKTRACE,
    "RUSTC",
    "RUST_SRC_PATH",
    "EVCXR_TMPDIR",
    "EVCXR_CONFIG_DIR",
    TOOLCHAIN,
];

/// More sessions at a time than anyone runs on one machine.
pub(super) const SLOTS: usize = 32;

/// Describes the part of a path that the tools that compile cells cannot handle; most paths that a person types have
/// none.
///
/// evcxr and rust-analyzer want text, cargo joins paths with `:` and reads lists of files in which `\` escapes, evcxr looks
/// for a path between quotes, the linker splits its arguments at commas, and gcc puts something in for `%` in what it writes.
pub(super) fn not_for_cargo(path: &Path) -> Option<String> {
    let Some(text) = path.to_str() else { return Some("is not UTF-8".into()) };
    let found = text.chars().find(|c| c.is_control() || matches!(c, ':' | ',' | '"' | '\\' | '%'))?;
    Some(if found.is_control() { format!("has a control character ({found:?})") } else { format!("has a `{found}`") })
}

/// The directory in which all builds compile cells: in the user's cache, which is `home` if that is given. If cargo
/// cannot work in its path, a directory for temporary files takes its place.
pub(super) fn user_cache(home: Option<PathBuf>) -> Result<PathBuf> {
    let user = home.or_else(|| env::var_os("XDG_CACHE_HOME").map(PathBuf::from)).filter(|path| path.is_absolute());
    let user = user.or_else(|| {
        let below = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        env::home_dir().filter(|home| !home.as_os_str().is_empty()).map(|home| home.join(below))
    });
    let user = resolved(&user.context("no directory for compiled cells: set HOME or XDG_CACHE_HOME")?);
    let Some(problem) = not_for_cargo(&user) else { return Ok(user.join("lacuna").join("kernel")) };
    let cannot = || {
        format!(
            "notebook cells cannot be compiled below {}: the path {problem}; XDG_CACHE_HOME names another place",
            user.display()
        )
    };
    stand_in(&user, &env::temp_dir()).with_context(cannot)
}

/// The path without links and `..`, as cargo sees its working directory; what of it is not there yet stays as it is.
pub(super) fn resolved(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(there), Ok(rest)) = (fs::canonicalize(above), path.strip_prefix(above)) {
            return if rest.as_os_str().is_empty() { there } else { there.join(rest) };
        }
    }
    path.to_path_buf()
}

/// A directory below `temporary` that only this user can write, in the place of `user`.
fn stand_in(user: &Path, temporary: &Path) -> Result<PathBuf> {
    let temporary = &resolved(temporary);
    if let Some(problem) = not_for_cargo(temporary) {
        bail!("{}, which could take its place, {problem}, too; TMPDIR names another place", temporary.display());
    }
    // SAFETY: geteuid has no preconditions.
    let own = unsafe { libc::geteuid() };
    let ours = temporary.join(format!("lacuna-{own}"));
    match fs::DirBuilder::new().mode(0o700).create(&ours) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot create {}", ours.display()));
        }
        _ => {}
    }
    // What compiles and runs there must not be somebody else's.
    let there = fs::symlink_metadata(&ours).with_context(|| format!("cannot read {}", ours.display()))?;
    if !there.is_dir() || there.uid() != own || there.mode() & 0o022 != 0 {
        bail!("{} is not a directory that only you can write; TMPDIR names another place", ours.display());
    }
    let key: String = hex::encode(&Sha256::digest(user.as_os_str().as_bytes())[..6]);
    Ok(ours.join(key).join("kernel"))
}

/// Below `user`, where the build whose libraries are in `dependencies` compiles cells.
pub(super) fn directory(user: &Path, dependencies: &Path) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(dependencies.as_os_str().as_encoded_bytes());
    hash.update(env!("CARGO_PKG_VERSION"));
    let key = hex::encode(&hash.finalize()[..6]);
    user.join(key)
}

/// The number of slots that sessions hold, and the number on disk.
pub(super) fn slots(cache: &Path) -> (usize, usize) {
    let exists = |number: &usize| cache.join(format!("slot-{number}")).is_dir();
    let is_free = |number: &usize| {
        let lock = File::open(cache.join(format!("slot-{number}.lock")));
        lock.is_ok_and(|lock| lock.try_lock_shared().is_ok())
    };
    let existing: Vec<usize> = (0..SLOTS).filter(exists).collect();
    (existing.iter().filter(|number| !is_free(number)).count(), existing.len())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn paths_that_people_have_stay() {
        for name in ["a b", "it's", "Äpfel", "🍎", "$HOME", "#1", "a;b", "-x", "(a)", "a=b", "a&b", "*", " a "] {
            assert_eq!(not_for_cargo(&Path::new("/home").join(name)), None, "{name}");
        }
        for (name, expected) in [
            (&b"a\nb"[..], "has a control character ('\\n')"),
            (b"a:b", "has a `:`"),
            (b"a\"b", "has a `\"`"),
            (b"a\\b", "has a `\\`"),
            (b"a,b", "has a `,`"),
            (b"100%", "has a `%`"),
            (b"caf\xe9", "is not UTF-8"),
        ] {
            let problem = not_for_cargo(&Path::new("/home").join(OsStr::from_bytes(name)));
            assert_eq!(problem.as_deref(), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn a_cache_that_cargo_cannot_use_has_a_stand_in() {
        let temporary = tempfile::tempdir().unwrap();
        let temporary = fs::canonicalize(temporary.path()).unwrap();
        let place = |user: &[u8]| stand_in(Path::new(OsStr::from_bytes(user)), &temporary);
        let (one, other) = (place(b"/a:b").unwrap(), place(b"/caf\xe9").unwrap());
        assert!(one != other && one.starts_with(&temporary) && not_for_cargo(&other).is_none(), "{}", one.display());
        assert_eq!(place(b"/a:b").unwrap(), one, "the same again");
        // Not in what others can write, and not where it would be no better.
        let ours = one.parent().and_then(Path::parent).unwrap();
        fs::set_permissions(ours, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(place(b"/a:b").unwrap_err().to_string().contains("only you can write"));
        fs::remove_dir_all(ours).unwrap();
        std::os::unix::fs::symlink("/", ours).unwrap();
        assert!(place(b"/a:b").unwrap_err().to_string().contains("TMPDIR"));
        let refused = stand_in(Path::new("/a:b"), Path::new("/tmp/a:b")).unwrap_err().to_string();
        assert!(refused.contains("TMPDIR names another place"), "{refused}");
    }

    #[test]
    fn links_and_parents_are_resolved() {
        let directory = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir(real.join("real")).unwrap();
        std::os::unix::fs::symlink("real", real.join("link")).unwrap();
        for path in ["link/a/b", "real/../link/a/b", "real/a/b"] {
            assert_eq!(resolved(&real.join(path)), real.join("real/a/b"), "{path}");
        }
        assert_eq!(resolved(&real), real);
    }
}
