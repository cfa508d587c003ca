//! The unfinished output: a hidden directory beside the final one, with the files that are to be renamed into place, and
//! what is needed to go on with them.

use super::journal::Journal;
use super::{MANIFEST, Manifest, Rewrite};
use crate::checkpoint::writer::{available_bytes, disk_full};
use crate::error::{Error, Problem, Remedy, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A staging directory that this process works in.
pub(super) struct Staging {
    out: PathBuf,
    dir: PathBuf,
    /// Held as long as that.
    _lock: File,
}

/// An output as an earlier run left it.
pub(super) struct Resumed {
    /// The weight files, at their full length and with their headers. Where no piece is done they hold zeros, or what
    /// belongs there.
    pub(super) files: Vec<File>,
    pub(super) journal: Journal,
    /// The checksum of each piece that is in its place.
    pub(super) done: Vec<Option<u32>>,
}

/// The directory that a new one at `out` will stand in.
pub(crate) fn parent(out: &Path) -> &Path {
    out.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// The directory that holds the output at `out` while it is not finished.
fn staging_of(out: &Path) -> Result<PathBuf> {
    match out.file_name() {
        Some(name) => Ok(out.with_file_name(format!(".{}.partial", name.to_string_lossy()))),
        None => Err(Error::file(out, "cannot be an output directory".remedy("give it a name"))),
    }
}

/// A disk that is full must be told from one that is forbidden; both name the final path.
pub(super) fn write_error(out: &Path, action: &'static str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let Problem { cause, remedy } = disk_full(&error.to_string());
            let then = "then the same command goes on where this one stopped";
            Error::file(out, cause.remedy(remedy.map_or(then.to_owned(), |remedy| format!("{remedy}; {then}"))))
        }
        _ => Error::io(action, out)(error),
    }
}

/// Writes a file whole or not at all, and to the disk before anything that comes after it.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, bytes)?;
    File::open(&beside)?.sync_all()?;
    std::fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// An identifier of this run of the machine, from boot to boot; empty where the system does not give one.
fn boot() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn fits(out: &Path, left: u64) -> Result<()> {
    match available_bytes(parent(out)).filter(|&available| available < left) {
        Some(free) => Err(Error::file(out, disk_full(&format!("{left} bytes are needed, {free} are free")))),
        None => Ok(()),
    }
}

impl Rewrite {
    /// Fails where [`Rewrite::run`] would: `out` exists and is not this output whole, its parent is missing, or an
    /// unfinished output of something else is in its place. Returns the manifest of an output that is there whole.
    ///
    /// # Errors
    /// [`Error::File`] in all these cases.
    pub fn check_output(&self, out: &Path) -> Result<Option<Manifest>> {
        if out.symlink_metadata().is_ok() {
            let whole = |manifest: &Manifest| {
                let length = |name: &str| std::fs::metadata(out.join(name)).map(|metadata| metadata.len()).ok();
                let files = manifest.files.iter().map(|file| (&file.name, file.bytes));
                let others = manifest.others.iter().map(|file| (&file.name, file.bytes));
                manifest.identity == self.identity
                    && files.chain(others).all(|(name, bytes)| length(name) == Some(bytes))
            };
            return match Manifest::read(out).ok().flatten().filter(whole) {
                None => Err(Error::file(out, "already exists".remedy("remove it, or choose another output directory"))),
                manifest => Ok(manifest),
            };
        }
        let dir = staging_of(out)?;
        if !parent(out).is_dir() {
            return Err(Error::file(parent(out), "no such directory".remedy("create it before writing into it")));
        }
        match std::fs::read_to_string(dir.join("identity")) {
            Ok(old) if old != self.identity && !old.is_empty() => {
                let problem = "holds an unfinished output of other arguments, or of a checkpoint that has changed \
                               since"
                    .remedy("finish that one with its own command, or remove this directory");
                Err(Error::file(&dir, problem))
            }
            _ => Ok(None),
        }
    }
}

impl Staging {
    /// Enters the staging directory of `out`, made if need be.
    pub(super) fn enter(out: &Path, rewrite: &Rewrite) -> Result<Self> {
        rewrite.check_output(out)?;
        let dir = staging_of(out)?;
        if !dir.exists() {
            fits(out, rewrite.data_bytes())?;
        }
        match std::fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("create", &dir)(error)),
            _ => {}
        }
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(Error::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::file(
                    &dir,
                    "another process is writing this output".remedy("wait for it, or end it"),
                ));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        let staging = Staging { out: out.to_path_buf(), dir, _lock: lock };
        staging.claim(&rewrite.identity).map_err(|e| write_error(out, "write", e))?;
        Ok(staging)
    }

    /// Removes what a kill between the last two steps leaves of a finished output: a staging directory with nothing to go
    /// on with.
    pub(super) fn clear(out: &Path, rewrite: &Rewrite) -> Result<()> {
        let dir = staging_of(out)?;
        // Without an identity it is nobody's, or was being removed.
        let other = std::fs::read_to_string(dir.join("identity")).is_ok_and(|old| old != rewrite.identity);
        if dir.exists() && !other {
            Staging::enter(out, rewrite)?.remove();
        }
        Ok(())
    }

    /// Makes the directory this rewrite's. Without an identity nothing in it can be trusted.
    fn claim(&self, identity: &str) -> io::Result<()> {
        let path = self.dir.join("identity");
        // Without the data, all but the last step of a finished run was taken, and the output has gone since.
        if std::fs::read_to_string(&path).is_ok_and(|old| old == identity) && self.data().is_dir() {
            return Ok(());
        }
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.is_dir() {
                std::fs::remove_dir_all(&path)?;
            } else if path.file_name().is_some_and(|name| name != "lock") {
                std::fs::remove_file(&path)?;
            }
        }
        std::fs::create_dir(self.data())?;
        write_whole(&self.dir.join("boot"), &boot())?;
        write_whole(&path, identity.as_bytes())
    }

    /// The directory that will be the output.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Opens what is there of the output.
    ///
    /// A piece counts once its bytes were handed to the system, which outlives this process. Whether they reached the disk is
    /// unknown once the system was started again: then everything is read back, and what is not right is cleared.
    pub(super) fn resume(&self, rewrite: &Rewrite) -> Result<Resumed> {
        let path = self.dir.join("journal");
        let error = |action| move |e| write_error(&self.out, action, e);
        let mut done = Journal::read(&path, rewrite)?;
        let length = |number: usize| {
            let tensors = rewrite.files[number].tensors.iter().map(super::OutputTensor::bytes).sum::<u64>();
            rewrite.headers[number].len() as u64 + tensors
        };
        let mut files = Vec::with_capacity(rewrite.files.len());
        let mut wrong = Vec::new();
        for (number, file) in rewrite.files.iter().enumerate() {
            let path = self.data().join(&file.name);
            let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
            let opened = open.map_err(error("create"))?;
            if opened.metadata().map_err(error("read"))?.len() != length(number) {
                wrong.push(number);
            }
            files.push(opened);
        }
        // What a file of another length held is lost; the journal must say so before the file looks right again.
        let mut lost = false;
        for (piece, done) in rewrite.pieces.iter().zip(&mut done).filter(|(piece, _)| wrong.contains(&piece.file)) {
            lost |= piece.bytes > 0 && done.take().is_some();
        }
        if lost {
            write_whole(&path, &Journal::text(&done)).map_err(error("write"))?;
        }
        for number in wrong {
            files[number].set_len(0).and_then(|()| files[number].set_len(length(number))).map_err(error("write"))?;
        }
        for (file, header) in files.iter().zip(&rewrite.headers) {
            file.write_all_at(header, 0).map_err(error("write"))?;
        }
        let now = boot();
        // Where the system does not tell, what is there is checked.
        let same = !now.is_empty() && std::fs::read(self.dir.join("boot")).is_ok_and(|old| old == now);
        if !same {
            recheck(rewrite, &files, &mut done).map_err(error("write"))?;
            // First what is true, then that it was checked.
            write_whole(&path, &Journal::text(&done)).map_err(error("write"))?;
            write_whole(&self.dir.join("boot"), &now).map_err(error("write"))?;
        }
        let left = rewrite.pieces.iter().zip(&done).filter(|(_, done)| done.is_none());
        fits(&self.out, left.map(|(piece, _)| piece.bytes).sum())?;
        Ok(Resumed { files, journal: Journal::append(&path, &done)?, done })
    }

    /// Removes from the unfinished output what a run before this one put there and this one did not.
    pub(super) fn keep_only(&self, names: &[&str]) -> Result<()> {
        let data = self.data();
        let list = std::fs::read_dir(&data).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in list.map_err(Error::io("read", &data))? {
            if !names.iter().any(|name| entry.file_name() == **name) {
                std::fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    /// Removes the directory. The output stands, so nothing depends on it.
    pub(super) fn remove(self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Reads every piece back, forgets those that are not as the journal says, and clears their place and that of all others
/// that are not done.
fn recheck(rewrite: &Rewrite, files: &[File], done: &mut [Option<u32>]) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for (piece, slot) in rewrite.pieces.iter().zip(done) {
        let file = &files[piece.file];
        let (mut at, end) = (piece.to, piece.to + piece.bytes);
        let mut hasher = crc32fast::Hasher::new();
        let mut zero = true;
        while at < end {
            let part = &mut buffer[..(end - at).min(1 << 20) as usize];
            file.read_exact_at(part, at)?;
            hasher.update(part);
            zero &= part.iter().all(|&byte| byte == 0);
            at += part.len() as u64;
        }
        if *slot == Some(hasher.finalize()) {
            continue;
        }
        *slot = None;
        if !zero {
            buffer.fill(0);
            for at in (piece.to..end).step_by(1 << 20) {
                file.write_all_at(&buffer[..(end - at).min(1 << 20) as usize], at)?;
            }
        }
    }
    Ok(())
}

/// Returns whether a caller may give a file of this name to a rewrite, to be placed beside the weights.
pub(crate) fn is_free_name(name: &str) -> bool {
    crate::checkpoint::index::is_file_name(name) && name != MANIFEST && !name.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::rewrite::Piece;

    #[test]
    fn after_a_reboot_only_bytes_that_are_there_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, *b"headers:abcdEFGH\x01\x02\x03\x04").unwrap();
        let files = [OpenOptions::new().read(true).write(true).open(&path).unwrap()];
        let piece = |i: u64| Piece { shard: 0, from: 4 * i, bytes: 4, file: 0, to: 8 + 4 * i };
        let rewrite = Rewrite::of_pieces((0..3).map(piece).collect());
        let mut done = vec![Some(crc32fast::hash(b"abcd")), Some(crc32fast::hash(b"efgh")), None];
        recheck(&rewrite, &files, &mut done).unwrap();
        assert_eq!(done, [Some(crc32fast::hash(b"abcd")), None, None]);
        assert_eq!(std::fs::read(&path).unwrap(), *b"headers:abcd\0\0\0\0\0\0\0\0", "the rest is cleared");
    }
}
