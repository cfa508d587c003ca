//! Which pieces of an unfinished output are done.

use super::Rewrite;
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of an entry: the piece's number, its CRC-32, and the CRC-32 of those two, by which an entry that was cut off
/// half-way is told.
const ENTRY_BYTES: usize = 12;

fn entry(piece: u32, sum: u32) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[..4].copy_from_slice(&piece.to_le_bytes());
    entry[4..8].copy_from_slice(&sum.to_le_bytes());
    let check = crc32fast::hash(&entry[..8]);
    entry[8..].copy_from_slice(&check.to_le_bytes());
    entry
}

/// An append-only file of finished pieces.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal at `path`, which need not exist, with the checksum of each piece of `rewrite` that it calls done.
    pub(super) fn open(path: &Path, rewrite: &Rewrite) -> Result<(Journal, Vec<Option<u32>>)> {
        let mut done = vec![None; rewrite.pieces.len()];
        let old = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            old => old.map_err(Error::io("read", path))?,
        };
        let word =
            |entry: &[u8], at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let mut valid = 0;
        for read in old.chunks_exact(ENTRY_BYTES) {
            let (piece, sum) = (word(read, 0), word(read, 4));
            match done.get_mut(piece as usize) {
                Some(slot) if read == entry(piece, sum) => *slot = Some(sum),
                _ => break,
            }
            valid += ENTRY_BYTES;
        }
        let open = OpenOptions::new().create(true).append(true).open(path);
        let file = open.map_err(Error::io("open", path))?;
        // What a kill cut off must not stand between the entries before and after it.
        file.set_len(valid as u64).map_err(Error::io("write", path))?;
        Ok((Journal { file }, done))
    }

    /// Notes that a piece is in its place. One write, so that entries of several threads do not mix.
    pub(super) fn add(&self, piece: usize, sum: u32) -> std::io::Result<()> {
        (&self.file).write_all(&entry(piece as u32, sum))
    }
}

/// Whether the machine has run without a break since the file at `path` was written, so that what was written then is
/// in the page cache or on the disk. Writes the file for the next time.
pub(super) fn same_boot(path: &Path) -> Result<bool> {
    // Where the system does not tell, what is there is checked.
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let same = !boot.is_empty() && std::fs::read(path).is_ok_and(|old| old == boot);
    if !same {
        std::fs::write(path, &boot).map_err(Error::io("write", path))?;
    }
    Ok(same)
}

/// Forgets pieces whose bytes in the output are not what the journal says.
pub(super) fn recheck(rewrite: &Rewrite, files: &[File], done: &mut [Option<u32>]) {
    let mut buffer = Vec::new();
    for (piece, slot) in rewrite.pieces.iter().zip(done) {
        if let Some(sum) = *slot {
            buffer.resize(piece.bytes as usize, 0);
            let read = files[piece.file].read_exact_at(&mut buffer, piece.to);
            if read.is_err() || crc32fast::hash(&buffer) != sum {
                *slot = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::rewrite::Piece;

    fn rewrite(pieces: usize) -> Rewrite {
        let piece = |i: usize| Piece { shard: 0, from: 4 * i as u64, bytes: 4, file: 0, to: 8 + 4 * i as u64 };
        Rewrite {
            files: Vec::new(),
            headers: Vec::new(),
            pieces: (0..pieces).map(piece).collect(),
            identity: String::new(),
        }
    }

    #[test]
    fn torn_and_foreign_entries_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let rewrite = rewrite(3);
        let (journal, done) = Journal::open(&path, &rewrite).unwrap();
        assert_eq!(done, [None; 3]);
        journal.add(2, 7).unwrap();
        journal.add(0, 9).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let (journal, done) = Journal::open(&path, &rewrite).unwrap();
        assert_eq!(done, [None, None, Some(7)], "the torn entry is not believed");
        journal.add(1, 5).unwrap();
        assert_eq!(Journal::open(&path, &rewrite).unwrap().1, [None, Some(5), Some(7)], "nor does it hide the next");
        std::fs::write(&path, entry(3, 1)).unwrap();
        assert_eq!(Journal::open(&path, &rewrite).unwrap().1, [None; 3], "there is no piece 3");
    }

    #[test]
    fn after_a_reboot_only_bytes_that_are_there_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, *b"headers:abcdEFGH").unwrap();
        let files = [File::open(&path).unwrap()];
        let mut done = vec![Some(crc32fast::hash(b"abcd")), Some(crc32fast::hash(b"efgh")), Some(0)];
        recheck(&rewrite(3), &files, &mut done);
        assert_eq!(done, [Some(crc32fast::hash(b"abcd")), None, None]);
        let boot = dir.path().join("boot");
        std::fs::write(&boot, "another").unwrap();
        assert!(!same_boot(&boot).unwrap());
        assert_eq!(same_boot(&boot).unwrap(), Path::new("/proc/sys/kernel/random/boot_id").exists());
    }
}
