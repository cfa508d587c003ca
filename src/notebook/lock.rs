//! One run of a notebook at a time: two that write the same report would leave a mixture of both.

use anyhow::{Context, Result, bail};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Held while a report is being made; the file behind it is removed when this is dropped.
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock of the report `stem` in `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// Fails when another process holds it, or the directory cannot be written to.
    pub(super) fn take(directory: &Path, stem: &str) -> Result<Self> {
        let cannot = || format!("cannot write reports to {}; --out names another directory", directory.display());
        fs::create_dir_all(directory).with_context(cannot)?;
        let path = directory.join(format!(".{stem}.lock"));
        loop {
            let mut file =
                File::options().create(true).truncate(false).read(true).write(true).open(&path).with_context(cannot)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    // Only for the message.
                    let _ = file.read_to_string(&mut holder);
                    bail!(
                        "the report {} is being made by another run{}; wait for it, or write to another directory \
                         with --out",
                        directory.join(stem).display(),
                        if holder.is_empty() { holder } else { format!(" (process {holder})") }
                    );
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
            }
            // The one before us may have removed the file between our opening and locking it.
            if is_at(&file, &path) {
                file.set_len(0).with_context(cannot)?;
                write!(file, "{}", std::process::id()).with_context(cannot)?;
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

/// Returns whether the file is still the one at `path`: the process that had locked it may have removed it.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let (ours, there) = (file.metadata(), fs::metadata(path));
    ours.is_ok_and(|ours| there.is_ok_and(|there| (ours.dev(), ours.ino()) == (there.dev(), there.ino())))
}

impl Drop for Lock {
    fn drop(&mut self) {
        // An empty file that stays is in nobody's way.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_nothing_stays() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("reports");
        let lock = Lock::take(&out, "a").unwrap();
        let refused = Lock::take(&out, "a").err().unwrap().to_string();
        assert!(refused.contains(&format!("(process {})", std::process::id())), "{refused}");
        let other = Lock::take(&out, "b").unwrap();
        drop((lock, other));
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
        Lock::take(&out, "a").unwrap();
    }

    #[test]
    fn a_file_is_no_directory_for_reports() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = format!("{:#}", Lock::take(file.path(), "a").err().unwrap());
        assert!(error.contains("cannot write reports to") && error.contains("--out"), "{error}");
    }
}
