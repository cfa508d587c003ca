//! The zip archives that NumPy and PyTorch keep arrays in.

use super::damaged;
use crate::error::{Error, Remedy, Result};
use crate::files::write_error;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

/// Both libraries begin an array's bytes on such a multiple, so that files can be mapped.
const ALIGNMENT: u16 = 64;

/// An archive to read.
pub(super) struct Archive<'a> {
    path: &'a Path,
    zip: ZipArchive<BufReader<File>>,
}

impl<'a> Archive<'a> {
    pub(super) fn open(path: &'a Path, file: File) -> Result<Self> {
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| failure(path, e))?;
        if zip.has_duplicate_names() {
            return Err(damaged(path, "two entries of the archive have one name"));
        }
        // Else a small archive could have any number of large entries.
        if zip.has_overlapping_files().map_err(|e| failure(path, e))? {
            return Err(damaged(path, "two entries of the archive share their bytes"));
        }
        Ok(Archive { path, zip })
    }

    /// Names of all entries, in the archive's order.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let names = self.zip.file_names().map(|name| name.map(|name| name.into_owned()));
        names.collect::<Result<_, _>>().map_err(|e| failure(self.path, e))
    }

    /// The bytes of an entry, whose checksum the archive holds.
    pub(super) fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let mut entry = self.zip.by_name(name).map_err(|e| failure(self.path, e))?;
        let size = entry.size();
        let mut bytes = Vec::new();
        // One more than it may have, so that the end is seen, and the checksum compared.
        match entry.by_ref().take(size.saturating_add(1)).read_to_end(&mut bytes) {
            Ok(read) if read as u64 == size => Ok(bytes),
            Ok(_) => Err(damaged(self.path, format!("entry `{name}` has not the {size} bytes that it should have"))),
            Err(e) => Err(damaged(self.path, format!("entry `{name}` cannot be read ({e})"))),
        }
    }
}

fn failure(path: &Path, error: ZipError) -> Error {
    match error {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Error::io("read", path)(e),
        ZipError::FileNotFound => damaged(path, "an entry that the archive needs is missing"),
        other => {
            // What torch.save wrote before PyTorch 1.6 was no archive.
            let problem = format!("not a readable zip archive ({other}): it is cut off or something else");
            Error::file(path, problem.remedy("copy it again, or save it again with numpy.savez or torch.save"))
        }
    }
}

/// An archive to write: entries are stored, and dated 1980, so that equal content gives equal bytes.
pub(super) struct ArchiveWriter<'a> {
    path: &'a Path,
    zip: ZipWriter<BufWriter<&'a mut File>>,
}

impl<'a> ArchiveWriter<'a> {
    pub(super) fn new(path: &'a Path, file: &'a mut File) -> Self {
        ArchiveWriter { path, zip: ZipWriter::new(BufWriter::new(file)) }
    }

    /// Adds an entry made of `parts`.
    pub(super) fn add(&mut self, name: &str, parts: &[&[u8]]) -> Result<()> {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            .large_file(bytes >= u64::from(u32::MAX))
            .with_alignment(ALIGNMENT);
        self.zip.start_file(name, options).map_err(|e| self.failure(e))?;
        parts.iter().try_for_each(|part| self.zip.write_all(part)).map_err(write_error(self.path))
    }

    pub(super) fn finish(self) -> Result<()> {
        let path = self.path;
        let mut out = self.zip.finish().map_err(|e| write_failure(path, e))?;
        out.flush().map_err(write_error(path))
    }

    fn failure(&self, error: ZipError) -> Error {
        write_failure(self.path, error)
    }
}

fn write_failure(path: &Path, error: ZipError) -> Error {
    match error {
        ZipError::Io(e) => write_error(path)(e),
        other => Error::file(path, format!("cannot be written as a zip archive ({other})")),
    }
}
