//! Arrays of one run that memory is too small for: appended to a temporary file that has no name, so that nothing is left
//! of it when the process ends, however it ends.

use crate::checkpoint::available_bytes;
use crate::error::{Error, Remedy, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Elements that are turned into bytes at a time.
const PIECE: usize = 1 << 16;

/// An unnamed file of f32 arrays in the system's temporary directory (`TMPDIR`).
#[derive(Debug)]
pub(crate) struct Scratch {
    file: File,
    dir: PathBuf,
    end: u64,
    /// Bytes that will be written in all.
    needed: u64,
}

impl Scratch {
    /// An empty file, to which `needed` bytes will be written.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be written, [`Error::File`] when fewer bytes are free there.
    pub(crate) fn create(needed: u64) -> Result<Scratch> {
        let dir = std::env::temp_dir();
        let file = tempfile::tempfile_in(&dir).map_err(|error| {
            // tempfile adds the temporary path, which tells the user nothing.
            Error::io("make a temporary file (TMPDIR says where) in", &dir)(error.kind().into())
        })?;
        let free = available_bytes(&dir);
        let scratch = Scratch { file, dir, end: 0, needed };
        match free {
            Some(free) if free < needed => Err(scratch.full(&format!("{free} are free"))),
            _ => Ok(scratch),
        }
    }

    fn full(&self, detail: &str) -> Error {
        let problem = format!("the disk is full ({} bytes are needed for temporary files, {detail})", self.needed)
            .remedy("free some space, or let TMPDIR name a directory on another disk");
        Error::file(&self.dir, problem)
    }

    /// Writes `values` behind all others, and says where.
    ///
    /// # Errors
    /// [`Error::File`] when the disk is full, else [`Error::Io`].
    pub(crate) fn append(&mut self, values: &[f32]) -> Result<u64> {
        let start = self.end;
        let mut bytes = Vec::with_capacity(size_of_val(values).min(PIECE * size_of::<f32>()));
        for piece in values.chunks(PIECE) {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
            self.file.write_all_at(&bytes, self.end).map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    self.full(&error.to_string())
                }
                _ => Error::io("write a temporary file in", &self.dir)(error),
            })?;
            self.end += bytes.len() as u64;
        }
        Ok(start)
    }

    /// The `len` values at `start`, which [`Scratch::append`] gave.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn read(&self, start: u64, len: usize) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(len);
        let mut bytes = vec![0; len.min(PIECE) * size_of::<f32>()];
        while values.len() < len {
            let bytes = &mut bytes[..(len - values.len()).min(PIECE) * size_of::<f32>()];
            let at = start + (values.len() * size_of::<f32>()) as u64;
            self.file.read_exact_at(bytes, at).map_err(Error::io("read back a temporary file in", &self.dir))?;
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|&word| f32::from_le_bytes(word)));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::skipped;

    #[test]
    fn arrays_come_back_as_they_were_written() {
        let mut scratch = Scratch::create(0).unwrap();
        let long: Vec<f32> = (0..PIECE + 7).map(|i| (i as f32).sin()).collect();
        let arrays = [vec![1.5, f32::MIN_POSITIVE / 2.0, -0.0], Vec::new(), long, vec![7.0]];
        let starts: Vec<u64> = arrays.iter().map(|values| scratch.append(values).unwrap()).collect();
        for (values, &start) in arrays.iter().zip(&starts).rev() {
            let read = scratch.read(start, values.len()).unwrap();
            assert!(read.iter().map(|x| x.to_bits()).eq(values.iter().map(|x| x.to_bits())));
        }
        let error = scratch.read(starts[3], 2).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot read back a temporary file in {}", scratch.dir.display())),
            "{error}"
        );
    }

    #[test]
    fn a_full_disk_is_said_with_the_directory_and_the_bytes() {
        let dir = std::env::temp_dir();
        let error = Scratch::create(1 << 60).unwrap_err().to_string();
        let expected = format!("{}: the disk is full (1152921504606846976 bytes are needed", dir.display());
        assert!(error.starts_with(&expected) && error.contains(" are free); "), "{error}");

        let Ok(file) = File::options().write(true).open("/dev/full") else { return skipped("/dev/full") };
        let mut full = Scratch { file, dir, end: 0, needed: 42 };
        let error = full.append(&[1.0]).unwrap_err().to_string();
        assert!(error.contains("the disk is full (42 bytes are needed") && error.contains("TMPDIR"), "{error}");
    }
}
