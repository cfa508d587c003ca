//! Single files that are there whole or not at all.

use crate::error::{Error, Problem, Remedy, Result};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempDir};

/// Writes a hidden sibling with `fill`, flushes it to disk and renames it over `path`.
pub(crate) fn replace(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    filled(path, fill)?.persist(path).map_err(|e| write_error(path)(e.error))?;
    Ok(())
}

/// As [`replace`], and fails when `path` exists.
pub(crate) fn create(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    check_free(path)?;
    match filled(path, fill)?.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => check_free(path),
        Err(e) => Err(write_error(path)(e.error)),
    }
}

/// Fails when something stands at `path`.
fn check_free(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(Error::file(path, "already exists".remedy("remove it, or choose another output")));
    }
    Ok(())
}

/// Says before long work what would only come out after it: that the file or directory `path` cannot be made.
///
/// # Errors
/// [`Error::File`] when something stands there, [`Error::Io`] when its parent is missing or cannot be written.
pub fn check_output(path: &Path) -> Result<()> {
    check_free(path)?;
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(Error::file(folder, "no such directory".remedy("create it before writing into it")));
    }
    tempfile::tempfile_in(folder).map(drop).map_err(Error::io("create a file in", folder))
}

/// The directory that `path` is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn filled(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<NamedTempFile> {
    let folder = folder_of(path);
    let mut file = tempfile::Builder::new()
        .prefix(".lacuna-")
        // What the umask leaves of it, as for any other file; tempfile's own default is private.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(Error::io("create a file in", folder))?;
    fill(file.as_file_mut())?;
    file.as_file().sync_all().map_err(write_error(path))?;
    Ok(file)
}

/// A full disk must be told from a forbidden file; for `map_err`.
pub(crate) fn write_error(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::file(path, format!("the disk is full ({error})").remedy("free some space, or write to another disk"))
        }
        _ => Error::io("write", path)(error),
    }
}

/// Makes a directory with everything that `fill` puts into the hidden sibling it is given; `path` must not exist, and its
/// parent must.
pub(crate) fn create_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = NewDir::create(path)?;
    fill(dir.path())?;
    dir.finish()
}

/// A directory that appears when it is finished; dropped before, it leaves nothing.
#[derive(Debug)]
pub(crate) struct NewDir {
    out: PathBuf,
    temp: TempDir,
}

impl NewDir {
    /// Makes the hidden sibling of `out`, which must not exist; its parent must.
    pub(crate) fn create(out: &Path) -> Result<Self> {
        refuse_existing(out)?;
        let Some(name) = out.file_name().and_then(|name| name.to_str()) else {
            return Err(Error::file(out, "cannot be an output directory".remedy("give it a name")));
        };
        let parent = folder_of(out);
        let temp = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".tmp")
            // As `mkdir` would; tempfile's own choice, 0700, would outlive the rename.
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => {
                    Error::file(parent, "no such directory".remedy("create it before writing into it"))
                }
                // tempfile adds the temporary path, which tells the user nothing.
                kind => Error::io("create an output directory in", parent)(io::Error::from(kind)),
            })?;
        Ok(NewDir { out: out.to_path_buf(), temp })
    }

    /// The final path.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// The path until then.
    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Flushes the list of its files, which must have been flushed themselves if they are to outlive a power cut, and renames
    /// it into place.
    pub(crate) fn finish(mut self) -> Result<()> {
        let flush = |dir: &Path| File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("flush", &self.out));
        flush(self.path())?;
        if self.out.symlink_metadata().is_ok() {
            let problem = "has come to exist while it was being written".remedy("remove it and start again");
            return Err(Error::file(&self.out, problem));
        }
        std::fs::rename(self.path(), &self.out).map_err(Error::io("rename into place", &self.out))?;
        // The rename itself.
        let flushed = flush(folder_of(&self.out));
        // There is nothing under the temporary name any more.
        self.temp.disable_cleanup(true);
        flushed
    }
}

/// Fails if there is anything at `out`, which is to be a directory.
pub(crate) fn refuse_existing(out: &Path) -> Result<()> {
    if out.symlink_metadata().is_ok() {
        return Err(Error::file(out, "already exists".remedy("remove it, or choose another output directory")));
    }
    Ok(())
}

/// Names the kind of a file by its first `bytes`, if it is not what its name promises.
pub(crate) fn stranger(bytes: &[u8]) -> Option<Problem> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let begins = |with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()));
    if text.is_empty() {
        Some("is empty".remedy("copy or download it again"))
    } else if begins("version https://git-lfs") {
        // What `git clone` leaves where the LFS extension is not installed.
        Some("is a Git LFS pointer, not the file".remedy("run `git lfs pull` in its directory"))
    } else if begins("<!doctype html") || begins("<html") {
        Some("is a web page, not the file".remedy("download the file itself, on a hub by `resolve` in place of `blob`"))
    } else if bytes.starts_with(&[0x1f, 0x8b]) {
        Some("is compressed (gzip)".remedy("unpack it with `gunzip`"))
    } else {
        None
    }
}
