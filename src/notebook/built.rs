//! The library and program that `cargo build` made, and the copy by which a session keeps the build that it began with.
//!
//! cargo removes the library while it compiles, and then puts another one in its place, which does not fit to what a
//! session has loaded. So a session links its cells against names of its own for the program, the library, and what
//! rustc reads beside them: hard links in the cache, in a directory for each build, which is locked as long as a
//! session uses it. The first session after a build makes them, in some 20 ms; where a file cannot have a second name
//! (on another file system, or as another user's), program and library are copied, and the rest is read where it was built.

use super::lock::is_at;
use super::screen::say;
use anyhow::{Context, Result, bail};
use lacuna::progress::check_interrupt;
use sha2::{Digest, Sha256};
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The first part of the name of a kept build's directory; its lock is a file of that name with `.lock` behind it.
pub(super) const PREFIX: &str = "build-";

/// The name that this program is kept under.
pub(super) const PROGRAM: &str = "lacuna";

/// Longer than a build of everything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The library and the folders that `cargo build` left.
pub(super) struct Built {
    pub(super) library: PathBuf,
    /// The folder of the library and its dependencies.
    pub(super) dependencies: PathBuf,
}

impl Built {
    /// The build of this program; its library may be missing while there is another one being made.
    pub(super) fn find() -> Result<Self> {
        let executable = env::current_exe().context("cannot find this program's own path")?;
        // A copy of the binary still knows where it was built.
        let beside = executable.parent().map(Path::to_path_buf);
        let candidates: Vec<PathBuf> = beside.into_iter().chain([PathBuf::from(env!("LACUNA_BUILD_DIR"))]).collect();
        let there = candidates.iter().find(|directory| library_in(directory).is_file());
        let there = there.or_else(|| candidates.iter().find(|directory| is_being_built(directory)));
        match there {
            Some(directory) => Ok(Built { library: library_in(directory), dependencies: directory.join("deps") }),
            None => Err(gone(&candidates[candidates.len() - 1].join("deps"))),
        }
    }

    /// The directory of the profile, in which cargo works.
    fn directory(&self) -> &Path {
        self.dependencies.parent().unwrap_or(Path::new("/"))
    }
}

fn library_name() -> String {
    format!("{}lacuna{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX)
}

fn library_in(directory: &Path) -> PathBuf {
    directory.join("deps").join(library_name())
}

fn gone(dependencies: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "notebook cells link {}, which `cargo build` leaves in {}: it is gone. Build again, and run lacuna from there",
        library_name(),
        dependencies.display()
    )
}

/// The build that a session has begun with.
pub(super) struct KeptBuild {
    /// This program, which runs cells and stands in for rustc.
    pub(super) executable: PathBuf,
    pub(super) library: PathBuf,
    /// The folder in which rustc finds the library's dependencies.
    pub(super) dependencies: PathBuf,
    /// Another build, another key.
    pub(super) key: String,
    /// Nothing is removed while this is open.
    _held: File,
}

/// Keeps the build in `cache` for a session, and removes those that no session uses any more. It is the build that this
/// process runs, or if that was removed, the one on disk, for which this waits as long as cargo works on it.
///
/// # Errors
/// Fails when there is no build, the user does not want to wait, or a file cannot be written.
pub(super) fn keep(cache: &Path, built: &Built) -> Result<KeptBuild> {
    keep_of(cache, built, Files::own())
}

fn keep_of(cache: &Path, built: &Built, own: Option<Files>) -> Result<KeptBuild> {
    loop {
        let key = match own.as_ref().map(|own| own.give_names(cache, built)).transpose()?.flatten() {
            Some(key) => key,
            None => give_names_to_last(cache, built)?,
        };
        let held = hold(cache, &key)?;
        let directory = cache.join(format!("{PREFIX}{key}"));
        if !directory.is_dir() {
            // `lacuna cache gc` was faster.
            continue;
        }
        let library = directory.join("deps").join(library_name());
        let linked = directory.join(LINKED).is_file();
        let dependencies = if linked { directory.join("deps") } else { built.dependencies.clone() };
        remove_unused(cache, Some(&key))?;
        return Ok(KeptBuild { executable: directory.join(PROGRAM), library, dependencies, key, _held: held });
    }
}

/// A file that says that all of the library's dependencies are there, too.
const LINKED: &str = "linked";

/// The two files that make a build: the program, and the library that it loads.
struct Files {
    executable: PathBuf,
    library: PathBuf,
    /// Inode, length and time of the last change of the program, which is linked anew with each library.
    program: (u64, u64, i64, i64),
    /// The library's inode.
    inode: u64,
}

fn identity(file: &Metadata) -> (u64, u64, i64, i64) {
    (file.ino(), file.len(), file.mtime(), file.mtime_nsec())
}

impl Files {
    /// The files that this process runs, also if cargo has removed their names since.
    #[cfg(target_os = "linux")]
    fn own() -> Option<Self> {
        let maps = fs::read("/proc/self/maps").ok()?;
        let name = library_name();
        // `address permissions offset device inode path`, where the path may say ` (deleted)`.
        let (inode, library) = maps.split(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.splitn(6, |byte| *byte == b' ');
            let inode: u64 = std::str::from_utf8(fields.nth(4)?).ok()?.parse().ok()?;
            let path = fields.next()?.trim_ascii_start();
            let path = Path::new(OsStr::from_bytes(path.strip_suffix(b" (deleted)").unwrap_or(path)));
            (path.file_name() == Some(OsStr::new(&name))).then(|| (inode, path.to_path_buf()))
        })?;
        let program = identity(&fs::metadata("/proc/self/exe").ok()?);
        Some(Files { executable: executable().ok()?, library, program, inode })
    }

    #[cfg(not(target_os = "linux"))]
    fn own() -> Option<Self> {
        None
    }

    /// The files of cargo's last build.
    fn last(built: &Built) -> Result<Self> {
        let executable = executable()?;
        let program = fs::metadata(&executable).with_context(|| format!("cannot read {}", executable.display()))?;
        let Ok(library) = fs::metadata(&built.library) else { return Err(gone(&built.dependencies)) };
        let (program, inode) = (identity(&program), library.ino());
        Ok(Files { executable, library: built.library.clone(), program, inode })
    }

    fn key(&self) -> String {
        let digest = Sha256::digest(format!("{:?} {}", self.program, self.inode));
        hex::encode(&digest[..6])
    }

    /// Returns whether the names are still those of these files.
    fn are_there(&self) -> bool {
        let program = fs::metadata(&self.executable).is_ok_and(|file| identity(&file) == self.program);
        program && fs::metadata(&self.library).is_ok_and(|file| file.ino() == self.inode)
    }

    /// Gives the build names in `cache`, unless it has them, and returns its key; none if the files are gone.
    fn give_names(&self, cache: &Path, built: &Built) -> Result<Option<String>> {
        let key = self.key();
        let directory = cache.join(format!("{PREFIX}{key}"));
        if directory.is_dir() {
            return Ok(Some(key));
        }
        if !self.are_there() {
            return Ok(None);
        }
        let make = || -> io::Result<bool> {
            let staged = tempfile::Builder::new().prefix(".build-").tempdir_in(cache)?;
            let dependencies = staged.path().join("deps");
            fs::create_dir(&dependencies)?;
            let (program, library) = (staged.path().join(PROGRAM), dependencies.join(library_name()));
            let files = link_or_copy(&self.executable, &program).and_then(|()| link_or_copy(&self.library, &library));
            // cargo may have been faster.
            if !self.are_there() {
                return Ok(false);
            }
            files?;
            if link_all(&built.dependencies, &dependencies).is_ok() {
                fs::write(staged.path().join(LINKED), "")?;
            }
            match fs::rename(staged.path(), &directory) {
                // Another session was faster.
                Err(_) if directory.is_dir() => Ok(true),
                renamed => renamed.map(|()| true),
            }
        };
        let made = make().with_context(|| {
            let place = directory.display();
            format!("cannot keep the build of {} in {place}", built.directory().display())
        })?;
        Ok(made.then_some(key))
    }
}

/// Gives the build that cargo has left last names in `cache`, and returns its key.
fn give_names_to_last(cache: &Path, built: &Built) -> Result<String> {
    loop {
        let _quiet = wait_for_build(built.directory(), PATIENCE)?;
        check_interrupt()?;
        if let Some(key) = Files::last(built)?.give_names(cache, built)? {
            return Ok(key);
        }
    }
}

/// This program on disk: the file that was started, or the one that a build has put in its place.
fn executable() -> Result<PathBuf> {
    let path = env::current_exe().context("cannot find this program's own path")?;
    // The system says so where the file has lost its name.
    let named = path
        .as_os_str()
        .as_bytes()
        .strip_suffix(b" (deleted)")
        .map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)));
    Ok(match named {
        Some(named) if !path.exists() && named.exists() => named,
        Some(_) if !path.exists() => PathBuf::from("/proc/self/exe"),
        _ => path,
    })
}

/// A second name for a file, or a copy where it can have none.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let is_link = fs::symlink_metadata(from)?.is_symlink();
    if is_link || fs::hard_link(from, to).is_err() {
        fs::copy(from, to)?;
    }
    Ok(())
}

/// Second names for what rustc reads of the library's dependencies: metadata, and macros.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let path = entry.path();
        let is_read = path.extension().is_some_and(|end| end == "rmeta" || end == &env::consts::DLL_SUFFIX[1..]);
        if is_read && !entry.file_name().as_bytes().starts_with(b"liblacuna") {
            fs::hard_link(&path, to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The file that cargo locks while it works in `directory`.
fn cargo_lock(directory: &Path) -> Option<File> {
    File::open(directory.join(".cargo-lock")).ok()
}

/// Returns whether cargo builds there at this moment.
fn is_being_built(directory: &Path) -> bool {
    cargo_lock(directory).is_some_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Waits until cargo does not work in `directory`, and keeps it from that while what is returned is open.
fn wait_for_build(directory: &Path, patience: Duration) -> Result<Option<File>> {
    let Some(lock) = cargo_lock(directory) else { return Ok(None) };
    let started = Instant::now();
    let mut told = false;
    loop {
        match lock.try_lock_shared() {
            Ok(()) => return Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => {}
            // A file system that has no locks: cargo does without, too.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
        if !std::mem::replace(&mut told, true) {
            say("lacuna is being built; waiting");
        }
        check_interrupt()?;
        if started.elapsed() >= patience {
            bail!(
                "lacuna has been being built in {} for {} minutes; end that build, or start again when it is done",
                directory.display(),
                patience.as_secs() / 60
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Locks the name of a build for as long as what is returned is open.
fn hold(cache: &Path, key: &str) -> Result<File> {
    let path = cache.join(format!("{PREFIX}{key}.lock"));
    let cannot = || format!("cannot lock {}; XDG_CACHE_HOME names another place", path.display());
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(cannot)?;
        file.lock_shared().with_context(cannot)?;
        // Who removes a build removes its lock.
        if is_at(&file, &path) {
            return Ok(file);
        }
    }
}

/// Removes builds that are kept in `cache` and that no session uses, but for the one of this `key`.
///
/// # Errors
/// Fails when a file cannot be removed.
pub(super) fn remove_unused(cache: &Path, key: Option<&str>) -> Result<()> {
    let entries = match fs::read_dir(cache) {
        Ok(entries) => entries.flatten(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", cache.display())),
    };
    for entry in entries {
        let (name, directory) = (entry.file_name(), entry.path());
        let Some(other) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if key == Some(other) || !directory.is_dir() {
            continue;
        }
        let lock_path = cache.join(format!("{PREFIX}{other}.lock"));
        let cannot = || format!("cannot remove {}", directory.display());
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).with_context(cannot)?;
        if lock.try_lock().is_err() || !is_at(&lock, &lock_path) {
            continue;
        }
        // From its name first, so that a session that begins sees all of it or nothing.
        let gone = tempfile::Builder::new().prefix(".gone-").tempdir_in(cache).with_context(cannot)?;
        match fs::rename(&directory, gone.path().join("build")) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            renamed => renamed.with_context(cannot)?,
        }
        fs::remove_file(&lock_path).with_context(cannot)?;
        gone.close().with_context(cannot)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A build of this test's own program, in a directory of its own, and a cache.
    fn build(root: &Path) -> (PathBuf, Built) {
        let dependencies = root.join("debug/deps");
        fs::create_dir_all(&dependencies).unwrap();
        for name in ["libhalf-1.rmeta", "libmacros-2.so", "libhalf-1.rlib", "liblacuna-3.rmeta"] {
            fs::write(dependencies.join(name), name).unwrap();
        }
        let library = dependencies.join(library_name());
        fs::write(&library, "first").unwrap();
        let cache = root.join("cache");
        fs::create_dir(&cache).unwrap();
        (cache, Built { library, dependencies })
    }

    #[test]
    fn a_session_keeps_its_build() {
        let root = tempfile::tempdir().unwrap();
        let (cache, built) = build(root.path());
        let first = keep_of(&cache, &built, None).unwrap();
        let names = |kept: &KeptBuild| {
            let entries = fs::read_dir(&kept.dependencies).unwrap();
            let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&first), ["libhalf-1.rmeta", &library_name(), "libmacros-2.so"]);
        let program = fs::metadata(&first.executable).unwrap();
        assert_eq!(program.len(), fs::metadata(env::current_exe().unwrap()).unwrap().len());
        assert_eq!(keep_of(&cache, &built, None).unwrap().key, first.key, "the same build, the same names");

        // Another build.
        fs::remove_file(&built.library).unwrap();
        assert!(keep_of(&cache, &built, None).err().unwrap().to_string().contains("it is gone"));
        fs::write(root.path().join("debug/other"), "takes the inode").unwrap();
        fs::write(&built.library, "second").unwrap();
        let second = keep_of(&cache, &built, None).unwrap();
        assert_ne!(second.key, first.key);
        let read = |kept: &KeptBuild| fs::read_to_string(&kept.library).unwrap();
        assert_eq!((read(&first), read(&second)), ("first".into(), "second".into()));
        // What is held stays, and what is not goes with its lock.
        remove_unused(&cache, None).unwrap();
        assert_eq!((read(&first), read(&second)), ("first".into(), "second".into()));
        drop(first);
        let second = (keep_of(&cache, &built, None).unwrap(), second).0;
        assert_eq!((read(&second).as_str(), fs::read_dir(&cache).unwrap().count()), ("second", 2));
        drop(second);
        remove_unused(&cache, None).unwrap();
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
    }

    #[test]
    fn a_build_that_runs_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let (cache, built) = build(root.path());
        let lock = || File::create(root.path().join("debug/.cargo-lock")).unwrap();
        let cargo = lock();
        cargo.lock().unwrap();
        fs::remove_file(&built.library).unwrap();
        assert!(is_being_built(built.directory()));
        let impatient = wait_for_build(built.directory(), Duration::from_millis(150)).err().unwrap().to_string();
        assert!(impatient.contains("end that build"), "{impatient}");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| keep_of(&cache, &built, None).map(|kept| fs::read(kept.library).unwrap()));
            std::thread::sleep(Duration::from_millis(300));
            assert!(!waits.is_finished());
            fs::write(&built.library, "new").unwrap();
            drop(cargo);
            assert_eq!(waits.join().unwrap().unwrap(), b"new");
        });
        // cargo is not kept from its work.
        lock().try_lock().unwrap();
    }

    #[test]
    fn what_cannot_have_a_second_name_is_copied() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::write(root.path().join("real"), "text").unwrap();
        std::os::unix::fs::symlink("real", &from).unwrap();
        link_or_copy(&from, &to).unwrap();
        assert!(fs::symlink_metadata(&to).unwrap().is_file() && fs::read(&to).unwrap() == b"text");
    }
}
