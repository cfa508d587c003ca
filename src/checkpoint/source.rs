//! A checkpoint of which only the headers need be at hand; its bytes are read by ranges, from a disk or over a network.

use super::{Checkpoint, HeadersOnly, Hub, Stored, TensorInfo};
use crate::error::{Error, Remedy, Result};
use crate::progress::{Progress, check_interrupt};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Most bytes that a stream holds and hands over at a time.
pub(super) const STREAM_BYTES: u64 = 1 << 18;

/// Headers that were read and checked, and the bytes behind them.
pub trait Source: Sync {
    /// The directory, or `owner/name@commit`, for messages and manifests.
    fn origin(&self) -> String;

    /// The model's name, for people.
    fn name(&self) -> String {
        let origin = self.origin();
        Path::new(&origin).file_name().map_or_else(|| origin.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// File names of the shards; [`TensorInfo::shard`] counts them.
    fn files(&self) -> Vec<String>;

    /// All tensors: shard by shard, in the order of their bytes.
    fn index(&self) -> &[TensorInfo];

    /// The name that the tensor called `name` has in the file, where that is another one ([`TensorInfo::name`]).
    fn stored_name<'a>(&'a self, name: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(name)
    }

    /// Oddities of the files that do no harm, one sentence each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The contents of `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Hub`] when it is missing or not a JSON object.
    fn config_json(&self) -> Result<Map<String, Value>>;

    /// The names of all other files that hold no weights: tokenizer, generation settings, licence, code. Without
    /// `config.json`, and without what tells how the checkpoint itself was made.
    ///
    /// # Errors
    /// [`Error::Io`] when they cannot be listed.
    fn side_files(&self) -> Result<Vec<String>>;

    /// Hands over the bytes of one of [`Source::side_files`], piece by piece.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Hub`] when it cannot be read; whatever `sink` fails with.
    fn side_file(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Hands over the bytes `range` of the file of `shard`, in order, piece by piece.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] or [`Error::Hub`] when they cannot be read; whatever `sink` fails with.
    fn stream(&self, shard: usize, range: Range<u64>, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// The file of `shard`, where it is on this machine, so that a file system may share its blocks.
    fn local(&self, _shard: usize) -> Option<&File> {
        None
    }

    /// Format and bytes of the tensor `info`, one of [`Source::index`], in its file.
    fn stored(&self, info: &TensorInfo) -> Stored {
        Stored { format: None, bytes: info.bytes() }
    }

    /// A text that is another one once the bytes may have changed.
    fn stamp(&self) -> String {
        self.origin()
    }

    /// Returns whether there are bytes to read, and not headers alone.
    fn has_weights(&self) -> bool {
        true
    }

    /// The number of streams that are worth having in flight.
    fn streams(&self) -> usize;

    /// Bytes between two wanted ranges that cost less to receive than another request.
    fn worth_skipping(&self) -> u64;
}

/// Opens the directory `spec` if there is one, else reads the headers of `owner/name[@revision]` from a hub with the
/// environment's settings ([`Hub::from_env`]). A model that is whole in the hub's cache is read there. A directory may
/// hold headers only.
///
/// # Errors
/// [`Error::Argument`] when `spec` is neither; those of [`Checkpoint::open`], [`HeadersOnly::open`] and
/// [`Hub::headers`].
pub fn open_source(spec: &str, progress: Progress) -> Result<Box<dyn Source>> {
    let source: Box<dyn Source> = match Path::new(spec) {
        path if HeadersOnly::is_at(path) => Box::new(HeadersOnly::open(path)?),
        path if path.exists() => Box::new(Checkpoint::open(path)?),
        _ => Hub::from_env()?.source(spec, progress)?,
    };
    progress.notes(&source.notes());
    Ok(source)
}

/// Returns whether two tensors of `source` have one type, one shape and the same bytes. Reading stops at the first
/// difference.
///
/// # Errors
/// Those of [`Source::stream`].
pub(crate) fn same_bytes(source: &dyn Source, one: &TensorInfo, other: &TensorInfo) -> Result<bool> {
    // As much of both as is held at a time.
    const PIECE: u64 = 1 << 20;
    if (one.dtype, &one.shape) != (other.dtype, &other.shape) {
        return Ok(false);
    }
    let read = |info: &TensorInfo, from: u64, into: &mut Vec<u8>| {
        into.clear();
        let start = info.range.start + from;
        source.stream(info.shard, start..(start + PIECE).min(info.range.end), &mut |bytes| {
            into.extend_from_slice(bytes);
            Ok(())
        })
    };
    let (mut ones, mut others, mut at) = (Vec::new(), Vec::new(), 0);
    while at < one.bytes() {
        read(one, at, &mut ones)?;
        read(other, at, &mut others)?;
        if ones != others {
            return Ok(false);
        }
        at += PIECE;
    }
    Ok(true)
}

impl Source for Checkpoint {
    fn origin(&self) -> String {
        self.dir().display().to_string()
    }

    fn name(&self) -> String {
        Checkpoint::name(self).to_owned()
    }

    fn files(&self) -> Vec<String> {
        // An index may name shards in folders.
        let name =
            |path: &std::path::PathBuf| path.strip_prefix(self.dir()).unwrap_or(path).to_string_lossy().into_owned();
        self.shards().iter().map(name).collect()
    }

    fn index(&self) -> &[TensorInfo] {
        &self.0.tensors
    }

    fn stored_name<'a>(&'a self, name: &'a str) -> Cow<'a, str> {
        Checkpoint::stored_name(self, name)
    }

    fn notes(&self) -> Vec<String> {
        Checkpoint::notes(self)
    }

    fn config_json(&self) -> Result<Map<String, Value>> {
        self.config()
    }

    fn side_files(&self) -> Result<Vec<String>> {
        let paths = super::writer::side_files(self.dir())?;
        let names = paths.iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        Ok(names.filter(|name| name != "config.json").collect())
    }

    fn side_file(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let path = self.dir().join(name);
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let mut buffer = vec![0; STREAM_BYTES as usize];
        loop {
            check_interrupt()?;
            match file.read(&mut buffer).map_err(Error::io("read", &path))? {
                0 => return Ok(()),
                bytes => sink(&buffer[..bytes])?,
            }
        }
    }

    fn stream(&self, shard: usize, range: Range<u64>, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.is_sparse() {
            return self.stream_expanded(shard, range, sink);
        }
        let path = &self.shards()[shard];
        read_ahead(&self.0.files[shard], &range);
        let mut buffer = vec![0; STREAM_BYTES.min(range.end - range.start) as usize];
        let mut at = range.start;
        while at < range.end {
            check_interrupt()?;
            let piece = &mut buffer[..STREAM_BYTES.min(range.end - at) as usize];
            self.0.files[shard].read_exact_at(piece, at).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    Error::file(path, "the file has become shorter since it was opened".remedy("open it again"))
                }
                _ => Error::io("read", path)(error),
            })?;
            sink(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn local(&self, shard: usize) -> Option<&File> {
        self.0.files.get(shard).filter(|_| !self.is_sparse())
    }

    fn stored(&self, info: &TensorInfo) -> Stored {
        self.stored_as(info)
    }

    fn stamp(&self) -> String {
        let stamp = |(path, file): (&std::path::PathBuf, &File)| {
            let metadata = file.metadata().ok();
            let changed = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
            format!("{:?} {:?} {changed:?}\n", path.file_name(), metadata.map(|metadata| metadata.len()))
        };
        self.shards().iter().zip(&self.0.files).map(stamp).collect()
    }

    fn streams(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from).min(2)
    }

    fn worth_skipping(&self) -> u64 {
        0
    }
}

impl Checkpoint {
    /// [`Source::stream`] of a sparse checkpoint: the bytes that would stand there if it were dense.
    fn stream_expanded(
        &self,
        shard: usize,
        range: Range<u64>,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = vec![0; STREAM_BYTES.min(range.end - range.start) as usize];
        let mut at = range.start;
        for info in self.tensors().filter(|info| info.shard == shard && info.range.end > range.start) {
            while (info.range.start..info.range.end.min(range.end)).contains(&at) {
                check_interrupt()?;
                let piece = &mut buffer[..STREAM_BYTES.min(info.range.end.min(range.end) - at) as usize];
                self.read_at(info, at - info.range.start, piece)?;
                sink(piece)?;
                at += piece.len() as u64;
            }
        }
        if at < range.end {
            let problem =
                format!("stored sparse, it has no bytes {at}..{} of a tensor", range.end).remedy("decompress it first");
            return Err(Error::file(&self.shards()[shard], problem));
        }
        Ok(())
    }
}

/// Has the system read a range before it is asked for: streams of one file that run side by side look random to it.
fn read_ahead(file: &File, range: &Range<u64>) {
    #[cfg(target_os = "linux")]
    // SAFETY: the file is open, and an advice changes nothing but what is cached.
    unsafe {
        let (start, bytes) = (range.start as libc::off_t, (range.end - range.start) as libc::off_t);
        libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(file), start, bytes, libc::POSIX_FADV_WILLNEED);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}
