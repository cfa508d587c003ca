//! A journal of the pieces of an unfinished output that are done.

use super::Rewrite;
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Bytes of an entry: the piece's number, its CRC-32, and the CRC-32 of those two, by which an entry that was cut off
/// half-way is recognised.
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
    /// The checksum of each piece of `rewrite` that the journal at `path`, which need not exist, calls done. It ends with
    /// its first entry that is not whole.
    pub(super) fn read(path: &Path, rewrite: &Rewrite) -> Result<Vec<Option<u32>>> {
        let mut done = vec![None; rewrite.pieces.len()];
        let old = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            old => old.map_err(Error::io("read", path))?,
        };
        let word =
            |entry: &[u8], at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        for read in old.chunks_exact(ENTRY_BYTES) {
            let (piece, sum) = (word(read, 0), word(read, 4));
            match done.get_mut(piece as usize) {
                Some(slot) if read == entry(piece, sum) => *slot = Some(sum),
                _ => break,
            }
        }
        Ok(done)
    }

    /// Opens the journal at `path` to add to it. What it says is `done`: what a kill cut off must not stand between the
    /// entries before and after it.
    pub(super) fn append(path: &Path, done: &[Option<u32>]) -> Result<Journal> {
        let open = OpenOptions::new().create(true).append(true).open(path);
        let file = open.map_err(Error::io("open", path))?;
        let valid = done.iter().flatten().count() * ENTRY_BYTES;
        file.set_len(valid as u64).map_err(Error::io("write", path))?;
        Ok(Journal { file })
    }

    /// The bytes of a journal that says `done`.
    pub(super) fn text(done: &[Option<u32>]) -> Vec<u8> {
        let entries = done.iter().enumerate().filter_map(|(piece, sum)| Some(entry(piece as u32, (*sum)?)));
        entries.flatten().collect()
    }

    /// Notes that a piece is in its place. One write, so that entries of several threads do not mix.
    pub(super) fn add(&self, piece: usize, sum: u32) -> std::io::Result<()> {
        (&self.file).write_all(&entry(piece as u32, sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::rewrite::Piece;

    #[test]
    fn torn_and_foreign_entries_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let piece = |i: u64| Piece { shard: 0, from: 4 * i, bytes: 4, file: 0, to: 8 + 4 * i };
        let rewrite = Rewrite::of_pieces((0..3).map(piece).collect());
        let open = || {
            let done = Journal::read(&path, &rewrite).unwrap();
            (Journal::append(&path, &done).unwrap(), done)
        };
        let (journal, done) = open();
        assert_eq!(done, [None; 3]);
        journal.add(2, 7).unwrap();
        journal.add(0, 9).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let (journal, done) = open();
        assert_eq!(done, [None, None, Some(7)], "the torn entry is not believed");
        journal.add(1, 5).unwrap();
        assert_eq!(open().1, [None, Some(5), Some(7)], "nor does it hide the next");
        std::fs::write(&path, Journal::text(&[Some(1), None, Some(2)])).unwrap();
        assert_eq!(open().1, [Some(1), None, Some(2)]);
        std::fs::write(&path, entry(3, 1)).unwrap();
        assert_eq!(open().1, [None; 3], "there is no piece 3");
    }
}
