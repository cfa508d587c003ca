//! Compiled cells on disk, a directory a build of lacuna: what there is, and its removal.
//!
//! A session holds a shared lock on its build's directory, and an exclusive one on its slot there.

use super::built::{self, Built};
use super::lock::is_at;
use super::places;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The file that sessions lock.
const LOCK: &str = "lock";
/// The file that holds the directory of the build's libraries.
const BUILD: &str = "build";

/// The compiled cells of one build of lacuna.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Notebooks that could start warm at once.
    pub(crate) slots: usize,
    /// Sessions that run.
    pub(crate) in_use: usize,
    /// The time at which the last cell was compiled.
    pub(crate) used: SystemTime,
    /// The build is no longer there.
    pub(crate) is_orphan: bool,
}

impl Compiled {
    fn read(path: PathBuf) -> Self {
        let (in_use, slots) = places::slots(&path);
        let modified = |path: PathBuf| path.metadata().and_then(|file| file.modified()).ok();
        let sources = (0..places::SLOTS).map(|number| path.join(format!("slot-{number}/src/lib.rs")));
        let used = sources.chain([path.clone()]).filter_map(modified).max().unwrap_or(SystemTime::UNIX_EPOCH);
        let build = fs::read_to_string(path.join(BUILD));
        let is_orphan = build.is_ok_and(|build| !Path::new(&build).is_dir());
        Compiled { bytes: bytes(&path), slots, in_use, used, is_orphan, path }
    }

    /// Time since the last cell was compiled.
    pub(crate) fn age(&self) -> Duration {
        self.used.elapsed().unwrap_or_default()
    }
}

/// Lists the compiled cells of each build for this user, the last used first.
///
/// # Errors
/// Fails when the directory cannot be named or read; one that does not exist holds nothing.
pub(crate) fn all() -> Result<Vec<Compiled>> {
    let user = places::user_cache(None)?;
    let entries = match fs::read_dir(&user) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", user.display())),
    };
    let paths = entries.flatten().map(|entry| entry.path()).filter(|path| is_ours(path));
    let mut all: Vec<Compiled> = paths.map(Compiled::read).collect();
    all.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
    Ok(all)
}

/// Returns whether sessions make directories of this name: a hash of the build's.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() == 12 && name.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) && path.is_dir()
}

/// Bytes that would be free without a directory, which may be disappearing: a file that has another name elsewhere counts
/// nothing. Links are not followed.
fn bytes(directory: &Path) -> u64 {
    let (mut todo, mut bytes) = (vec![directory.to_path_buf()], 0);
    // Names of files that have several, still to be found.
    let mut names: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let Ok(file) = entry.metadata() else { continue };
            if file.is_dir() {
                todo.push(entry.path());
                continue;
            }
            let left = names.entry((file.dev(), file.ino())).or_insert(file.nlink());
            *left = left.saturating_sub(1);
            if *left == 0 {
                bytes += file.len();
            }
        }
    }
    bytes
}

/// Notes that a session uses `directory`, which is made, for the build in `dependencies`. Nothing in it is removed while
/// the file that is returned is open, but for slots that no session holds.
pub(super) fn hold(directory: &Path, dependencies: &Path) -> Result<File> {
    let path = directory.join(LOCK);
    let cannot = || format!("cannot lock {}; XDG_CACHE_HOME names another place", path.display());
    loop {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}; XDG_CACHE_HOME names another place", directory.display()))?;
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = match open {
            // It was removed in this moment.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            open => open.with_context(cannot)?,
        };
        file.lock_shared().with_context(cannot)?;
        if is_at(&file, &path) {
            places::write_if_new(&directory.join(BUILD), &dependencies.to_string_lossy())?;
            return Ok(file);
        }
    }
}

/// The lock on a directory that no session uses.
fn take(directory: &Path) -> Result<Option<File>> {
    let path = directory.join(LOCK);
    let cannot = || format!("cannot lock {}", path.display());
    let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(cannot)?;
    match file.try_lock() {
        // Sessions of older versions hold their slots only.
        Ok(()) => Ok(Some(file).filter(|file| is_at(file, &path) && places::slots(directory).0 == 0)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
    }
}

/// Removes what no session uses: all, or where sessions run the slots that they do not hold. Returns the bytes that it
/// freed.
///
/// # Errors
/// Fails when a file cannot be removed.
pub(crate) fn remove(compiled: &Compiled) -> Result<u64> {
    let directory = compiled.path.as_path();
    let cannot = || format!("cannot remove {}", directory.display());
    if let Some(_held) = take(directory)? {
        // From its name first, so that a session that begins makes a new one.
        let parent = directory.parent().unwrap_or(Path::new("/"));
        let gone = tempfile::Builder::new().prefix(".gone-").tempdir_in(parent).with_context(cannot)?;
        fs::rename(directory, gone.path().join("cells")).with_context(cannot)?;
        gone.close().with_context(cannot)?;
        for above in [Some(parent), parent.parent()].into_iter().flatten() {
            // Where nothing else is kept.
            let _ = fs::remove_dir(above);
        }
        return Ok(compiled.bytes);
    }
    built::remove_unused(directory, None)?;
    for number in 0..places::SLOTS {
        let slot = directory.join(format!("slot-{number}"));
        let Ok(lock) = File::open(directory.join(format!("slot-{number}.lock"))) else { continue };
        if slot.is_dir() && lock.try_lock().is_ok() {
            fs::remove_dir_all(&slot).with_context(cannot)?;
        }
    }
    Ok(compiled.bytes.saturating_sub(bytes(directory)))
}

/// Removes what sessions before the last one needed: stubs of other dependencies, the library of another toolchain, other
/// builds.
/// Returns the bytes that it freed; none while a session runs.
///
/// # Errors
/// Fails when a file cannot be removed.
pub(crate) fn trim(compiled: &Compiled) -> Result<u64> {
    let directory = compiled.path.as_path();
    let Some(_held) = take(directory)? else { return Ok(0) };
    let cannot = || format!("cannot remove {}", directory.display());
    let named = |prefix: &str| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory).with_context(cannot)?.flatten();
        let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        let mut paths: Vec<PathBuf> = named.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        paths.sort_by_key(|path| path.metadata().and_then(|file| file.modified()).ok());
        Ok(paths)
    };
    for prefix in ["stubs-", "packages-", "library-"] {
        let mut paths = named(prefix)?;
        paths.pop();
        for path in paths {
            fs::remove_dir_all(path).with_context(cannot)?;
        }
    }
    let last = named(built::PREFIX)?.pop();
    let name = last.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    built::remove_unused(directory, name.and_then(|name| name.strip_prefix(built::PREFIX)))?;
    // Left by sessions that were killed while they wrote.
    for prefix in [".build-", ".gone-", ".library-"] {
        for path in named(prefix)? {
            fs::remove_dir_all(path).with_context(cannot)?;
        }
    }
    Ok(compiled.bytes.saturating_sub(bytes(directory)))
}

/// The compiled cells of the build whose program is `executable`, below the user's cache or below `cache_home`.
pub(super) fn of(executable: &Path, cache_home: Option<PathBuf>) -> Vec<Compiled> {
    let Ok(user) = places::user_cache(cache_home) else { return Vec::new() };
    let beside = executable.parent().map(|directory| directory.join("deps"));
    // A copy of this program uses the libraries where it was built.
    let own = std::env::current_exe().is_ok_and(|own| own == executable);
    let built = own.then(|| Built::find().ok()).flatten().map(|built| built.dependencies);
    let mut paths: Vec<PathBuf> =
        beside.into_iter().chain(built).map(|dependencies| places::directory(&user, &dependencies)).collect();
    paths.dedup();
    paths.into_iter().filter(|path| is_ours(path)).map(Compiled::read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sessions_hold_stays() {
        let home = tempfile::tempdir().unwrap();
        let dependencies = home.path().join("build/deps");
        fs::create_dir_all(&dependencies).unwrap();
        let directory = places::directory(&places::user_cache(Some(home.path().into())).unwrap(), &dependencies);
        let session = hold(&directory, &dependencies).unwrap();
        let slot = |number: usize| {
            fs::create_dir(directory.join(format!("slot-{number}"))).unwrap();
            fs::write(directory.join(format!("slot-{number}/cell.so")), [0; 1000]).unwrap();
            File::create(directory.join(format!("slot-{number}.lock"))).unwrap()
        };
        let (_free, held) = (slot(0), slot(1));
        held.lock().unwrap();
        let read = || of(&home.path().join("build/lacuna"), Some(home.path().into()));
        let [compiled] = &read()[..] else { panic!("{:?}", read()) };
        assert_eq!((compiled.slots, compiled.in_use, compiled.is_orphan), (2, 1, false));
        assert_eq!(remove(compiled).unwrap(), 1000);
        assert!(!directory.join("slot-0").exists() && directory.join("slot-1/cell.so").is_file());
        // A session that has no slot yet.
        held.unlock().unwrap();
        assert_eq!(remove(&read()[0]).unwrap(), 1000);
        assert!(directory.join(BUILD).is_file());
        for (name, seconds) in [("stubs-a", 1), ("stubs-c", 3), ("stubs-b", 2)] {
            fs::create_dir(directory.join(name)).unwrap();
            fs::write(directory.join(name).join("Cargo.toml"), [0; 10]).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::open(directory.join(name)).unwrap().set_modified(time).unwrap();
        }
        assert_eq!(trim(&read()[0]).unwrap(), 0);
        drop(session);
        assert_eq!(trim(&read()[0]).unwrap(), 20);
        assert!(directory.join("stubs-c").is_dir());
        fs::remove_dir(&dependencies).unwrap();
        assert!(read()[0].is_orphan);
        remove(&read()[0]).unwrap();
        assert!(read().is_empty() && !home.path().join("lacuna").exists());
        // The next session finds nothing in its way.
        drop(hold(&directory, &dependencies).unwrap());
    }
}
