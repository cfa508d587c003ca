//! The files of an entry, and files whose hash is remembered.

use crate::checkpoint::sum_of_file;
use crate::error::{Error, Remedy, Result};
use crate::progress::check_interrupt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A file of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sum {
    /// Its path within the entry.
    name: String,
    pub(super) bytes: u64,
    crc32: u32,
}

/// All files under `dir`, by name.
pub(super) fn sums(dir: &Path) -> Result<Vec<Sum>> {
    let mut names = Vec::new();
    list(dir, "", &mut names)?;
    names.sort();
    names.into_par_iter().map(|name| sum(dir, name)).collect()
}

fn list(dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{name}/"), names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

fn sum(dir: &Path, name: String) -> Result<Sum> {
    check_interrupt()?;
    let path = dir.join(&name);
    let (bytes, crc32) = sum_of_file(&path)?.ok_or_else(|| Error::file(&path, "is missing"))?;
    Ok(Sum { name, bytes, crc32 })
}

/// Fails when one of the files is not as it was written.
pub(super) fn verify(dir: &Path, files: &[Sum]) -> Result<()> {
    files.par_iter().try_for_each(|expected| {
        if sum(dir, expected.name.clone())? == *expected {
            return Ok(());
        }
        Err(Error::file(dir.join(&expected.name), "is damaged: its checksum is another"))
    })
}

/// Bytes of the files under `dir`, which may be disappearing.
pub(super) fn bytes(dir: &Path) -> u64 {
    let mut names = Vec::new();
    let _ = list(dir, "", &mut names);
    names.iter().filter_map(|name| dir.join(name).metadata().ok()).map(|file| file.len()).sum()
}

/// Removes an entry: first from its name, so that nobody finds half of it.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let Some((parent, name)) = dir.parent().zip(dir.file_name()) else { return Ok(()) };
    let gone =
        tempfile::Builder::new().prefix(&format!(".{}.", name.to_string_lossy())).suffix(".gone").tempdir_in(parent);
    // A full disk has no room for another name, and is the very case in which entries have to be removed.
    let Ok(gone) = gone else {
        return std::fs::remove_dir_all(dir).map_err(Error::io("remove", dir));
    };
    match std::fs::rename(dir, gone.path().join("entry")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        // What cannot be unlinked now is hidden, and collected later.
        _ => Ok(()),
    }
}

/// Metadata by which a file is known to be unchanged without reading it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    files: Vec<FileIdentity>,
}

#[derive(Debug, PartialEq, Eq)]
struct FileIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Nanoseconds since 1970: of the content, and of anything about the file.
    modified: i128,
    changed: i128,
}

impl Identity {
    pub(super) fn of(paths: &[PathBuf]) -> Result<Identity> {
        let file = |path: &PathBuf| {
            let path = path.canonicalize().map_err(Error::io("find", path))?;
            let file = path.metadata().map_err(Error::io("read", &path))?;
            let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
            Ok(FileIdentity {
                device: file.dev(),
                inode: file.ino(),
                bytes: file.size(),
                modified: nanoseconds(file.mtime(), file.mtime_nsec()),
                changed: nanoseconds(file.ctime(), file.ctime_nsec()),
                path,
            })
        };
        Ok(Identity { files: paths.iter().map(file).collect::<Result<_>>()? })
    }

    pub(super) fn inputs(&self) -> Value {
        let file = |file: &FileIdentity| {
            let FileIdentity { path, device, inode, bytes, modified, changed } = file;
            json!([path.to_string_lossy(), device, inode, bytes, modified.to_string(), changed.to_string()])
        };
        self.files.iter().map(file).collect()
    }

    /// Fails when a file is no longer what it was.
    pub(super) fn check(&self) -> Result<()> {
        let paths: Vec<PathBuf> = self.files.iter().map(|file| file.path.clone()).collect();
        let now = Identity::of(&paths)?;
        match self.files.iter().zip(&now.files).find(|(before, now)| before != now) {
            None => Ok(()),
            Some((file, _)) => Err(Error::file(&file.path, "has changed while it was read".remedy("open it again"))),
        }
    }

    /// Returns whether a change from now on would show: file systems count time in ticks, so a file that was changed
    /// just now could change again within the same one.
    pub(super) fn is_settled(&self) -> bool {
        const TICK: Duration = Duration::from_secs(2);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let settled = now.saturating_sub(TICK).as_nanos() as i128;
        self.files.iter().all(|file| file.modified < settled && file.changed < settled)
    }
}
