//! Making new weight files out of ranges of old ones: no byte passes through a tensor, and none that is not wanted is
//! read.
//!
//! A [`Rewrite`] says, tensor by tensor, which ranges of which shards make it up. [`Rewrite::run`] copies them in pieces of
//! 256 KiB and more, in the order of the source, several streams at a time, and notes every finished piece in a journal
//! beside the unfinished output. So a run that was killed at any instant goes on where it stopped, and the output appears
//! under its final name only when all of it is on the disk.

mod copy;
mod journal;
mod staging;

pub use copy::{Copied, Seconds, SideFiles};
pub(crate) use copy::{sum_of, sum_of_file};
pub(crate) use staging::{is_free_name, parent};

use super::source::{STREAM_BYTES, Source};
use super::{TensorInfo, header, index};
use crate::error::{Error, Remedy, Result};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Name of the file that says where every tensor of an output came from.
pub const MANIFEST: &str = "manifest.json";

/// Version of the JSON that [`Manifest`] serialises to.
pub const MANIFEST_SCHEMA: u32 = 1;

/// Longest piece that is copied, and lost by a kill, at a time, of an output of up to 64 GiB.
const PIECE_BYTES: u64 = 256 << 10;

/// The most pieces of an output, unless it has more ranges: pieces of a larger output are longer, so that the list of
/// pieces takes megabytes whatever the checkpoint.
const PIECES: u64 = 1 << 18;

/// Changed whenever an unfinished output of an earlier version cannot be gone on with.
const FORMAT: u32 = 1;

/// Bytes of one shard of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Index into [`Source::files`].
    pub shard: usize,
    /// Offsets from the beginning of that file.
    pub range: Range<u64>,
}

impl Segment {
    fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A tensor of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputTensor {
    /// Its name.
    pub name: String,
    /// Type of an element.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The ranges of bytes that make up the tensor, in order.
    pub segments: Vec<Segment>,
}

impl OutputTensor {
    /// The whole of a tensor of the source.
    pub fn whole(info: &TensorInfo) -> Self {
        let segments = vec![Segment { shard: info.shard, range: info.range.clone() }];
        OutputTensor { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone(), segments }
    }

    /// The slices `keep` of a tensor of the source along dimension `dim`, in that order.
    ///
    /// # Errors
    /// [`Error::Argument`] when a slice is no whole number of bytes; the caller has checked `dim` and `keep`.
    pub fn slices(info: &TensorInfo, dim: usize, keep: &[usize]) -> Result<Self> {
        let outer: usize = info.shape[..dim].iter().product();
        let count = info.shape[dim];
        let total = (outer * count) as u64;
        if total == 0 || !info.bytes().is_multiple_of(total) {
            let problem = format!("{} x {:?} cannot be cut along dimension {dim}", info.dtype, info.shape);
            return Err(Error::argument("tensor", &info.name, problem));
        }
        let slice = info.bytes() / total;
        let mut segments: Vec<Segment> = Vec::new();
        for block in 0..outer {
            for &index in keep {
                let start = info.range.start + (block * count + index) as u64 * slice;
                match segments.last_mut() {
                    Some(last) if last.range.end == start => last.range.end += slice,
                    _ => segments.push(Segment { shard: info.shard, range: start..start + slice }),
                }
            }
        }
        let mut shape = info.shape.clone();
        shape[dim] = keep.len();
        Ok(OutputTensor { name: info.name.clone(), dtype: info.dtype, shape, segments })
    }

    /// Bytes of its data.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }
}

/// A file of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    /// Its name in the output directory.
    pub name: String,
    /// Its tensors, in the order of their bytes.
    pub tensors: Vec<OutputTensor>,
}

/// A piece of one tensor: where it is, and where it goes.
#[derive(Clone, Debug)]
struct Piece {
    shard: usize,
    from: u64,
    bytes: u64,
    file: usize,
    to: u64,
}

/// Weight files to be made of ranges of others.
#[derive(Clone, Debug)]
pub struct Rewrite {
    files: Vec<OutputFile>,
    /// The bytes before the data of each file: the length of its header, and the header.
    headers: Vec<Vec<u8>>,
    /// Tensor by tensor, in the order of their bytes.
    pieces: Vec<Piece>,
    identity: String,
}

impl Rewrite {
    /// Lays out `files`. Within a file, tensors with wider elements are put first, so that all are aligned.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is nothing to write, two tensors or files have one name, or the ranges of a tensor
    /// are not as long as its type and shape say.
    pub fn new(source: &dyn Source, mut files: Vec<OutputFile>) -> Result<Self> {
        let wrong = |name: &str, problem: String| Error::argument("output", name, problem);
        if files.iter().all(|file| file.tensors.is_empty()) {
            return Err(wrong("no tensors", "there is nothing to write".into()));
        }
        let (mut names, mut tensor_names) = (HashSet::new(), HashSet::new());
        let (mut headers, mut pieces) = (Vec::new(), Vec::new());
        let bytes = files.iter().flat_map(|file| &file.tensors).try_fold(0u64, |sum, t| sum.checked_add(t.bytes()));
        let bytes = bytes.ok_or_else(|| wrong("bytes", "are more than any disk holds".into()))?;
        let piece_bytes = PIECE_BYTES.max((bytes / PIECES).next_power_of_two());
        for (number, file) in files.iter_mut().enumerate() {
            if !names.insert(file.name.clone()) {
                return Err(wrong(&file.name, "two files have this name".into()));
            }
            file.tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
            let described = |tensor: &OutputTensor| {
                (source.stored_name(&tensor.name).into_owned(), tensor.dtype, tensor.shape.clone())
            };
            let described: Vec<_> = file.tensors.iter().map(described).collect();
            let mut header = header::write(&described).map_err(|problem| wrong(&file.name, problem))?;
            if let Some(remainder) = clonable_remainder(&file.tensors, &header) {
                header::pad(&mut header, remainder, BLOCK_BYTES);
            }
            let mut to = header.len() as u64;
            for tensor in &file.tensors {
                if !tensor_names.insert(tensor.name.clone()) {
                    return Err(wrong(&tensor.name, "two tensors have this name".into()));
                }
                if header::byte_len(tensor.dtype, &tensor.shape) != Some(tensor.bytes()) {
                    let problem = format!("{} x {:?} is not {} bytes", tensor.dtype, tensor.shape, tensor.bytes());
                    return Err(wrong(&tensor.name, problem));
                }
                for segment in &tensor.segments {
                    let mut from = segment.range.start;
                    while from < segment.range.end {
                        let bytes = piece_bytes.min(segment.range.end - from);
                        pieces.push(Piece { shard: segment.shard, from, bytes, file: number, to });
                        from += bytes;
                        to += bytes;
                    }
                }
            }
            headers.push(header);
        }
        let identity = identity(source, &files, &headers, piece_bytes);
        Ok(Rewrite { files, headers, pieces, identity })
    }

    /// The files, as they will be.
    pub fn files(&self) -> &[OutputFile] {
        &self.files
    }

    /// SHA-256 in hexadecimal of what will be copied from where, and of what tells whether the source has changed.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Bytes of the tensors' data.
    pub fn data_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// Bytes of the files, headers included.
    pub fn file_bytes(&self) -> u64 {
        self.data_bytes() + self.headers.iter().map(|header| header.len() as u64).sum::<u64>()
    }

    /// Bytes that a source will be asked for: the data, and gaps that are cheaper to receive than another request.
    pub fn read_bytes(&self, source: &dyn Source) -> u64 {
        let all: Vec<usize> = (0..self.pieces.len()).collect();
        self.runs(source, &all).iter().map(|run| run.range.end - run.range.start).sum()
    }

    /// Requests that a source will be asked.
    pub fn requests(&self, source: &dyn Source) -> usize {
        let all: Vec<usize> = (0..self.pieces.len()).collect();
        self.runs(source, &all).len()
    }

    /// Memory that [`Rewrite::run`] takes beyond the program itself, in bytes: a buffer for each stream, and the list of
    /// pieces with their state.
    pub fn memory_bytes(&self, source: &dyn Source) -> u64 {
        let pieces = self.pieces.len() * (size_of::<Piece>() + 2 * size_of::<usize>() + size_of::<Option<u32>>());
        let headers: usize = self.headers.iter().map(Vec::len).sum();
        let described = source.index().len() * (size_of::<TensorInfo>() + 64) + 4 * headers;
        (pieces + described) as u64 + source.streams() as u64 * STREAM_BYTES
    }

    /// The first of the longest tensors, as bytes without a type, until they are `max_bytes`: enough to measure how fast a
    /// source and a disk are.
    ///
    /// # Errors
    /// Those of [`Rewrite::new`].
    pub fn sample(&self, source: &dyn Source, max_bytes: u64) -> Result<Rewrite> {
        let mut tensors: Vec<&OutputTensor> = self.files.iter().flat_map(|file| &file.tensors).collect();
        tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.bytes()));
        let mut left = max_bytes;
        let mut sampled = Vec::new();
        for tensor in tensors {
            let mut segments = Vec::new();
            for Segment { shard, range } in &tensor.segments {
                let end = range.end.min(range.start + left);
                left -= end - range.start;
                if end > range.start {
                    segments.push(Segment { shard: *shard, range: range.start..end });
                }
            }
            if !segments.is_empty() {
                let bytes: u64 = segments.iter().map(Segment::bytes).sum();
                sampled.push(OutputTensor {
                    name: tensor.name.clone(),
                    dtype: Dtype::U8,
                    shape: vec![bytes as usize],
                    segments,
                });
            }
        }
        Rewrite::new(source, vec![OutputFile { name: "sample.safetensors".into(), tensors: sampled }])
    }

    fn manifest(&self, source: &dyn Source, about: &Map<String, Value>, piece_sums: &[u32]) -> Manifest {
        let mut sums = self.pieces.iter().zip(piece_sums);
        let files = self.files.iter().zip(&self.headers).map(|(file, header)| ManifestFile {
            name: file.name.clone(),
            bytes: header.len() as u64 + file.tensors.iter().map(OutputTensor::bytes).sum::<u64>(),
            tensors: file
                .tensors
                .iter()
                .map(|tensor| {
                    let mut whole = crc32fast::Hasher::new();
                    let mut left = tensor.bytes();
                    while left > 0 {
                        let Some((piece, &sum)) = sums.next() else { break };
                        whole.combine(&crc32fast::Hasher::new_with_initial_len(sum, piece.bytes));
                        left -= piece.bytes;
                    }
                    ManifestTensor {
                        name: tensor.name.clone(),
                        dtype: tensor.dtype.to_string(),
                        shape: tensor.shape.clone(),
                        crc32: format!("{:08x}", whole.finalize()),
                        source: tensor.segments.iter().map(|s| (s.shard, s.range.start, s.range.end)).collect(),
                    }
                })
                .collect(),
        });
        Manifest {
            schema: MANIFEST_SCHEMA,
            identity: self.identity.clone(),
            about: about.clone(),
            shards: source.files(),
            files: files.collect(),
            others: Vec::new(),
            environment: Map::from_iter([
                ("source".to_owned(), source.origin().into()),
                ("lacuna".to_owned(), env!("CARGO_PKG_VERSION").into()),
            ]),
        }
    }
}

/// The index of weight files made of `source`, by its name; nothing for a single one, which needs none.
pub(crate) fn index_text(source: &dyn Source, files: &[OutputFile]) -> Option<(String, Vec<u8>)> {
    let placed = |file: &'_ OutputFile| {
        let stored = |tensor: &OutputTensor| (source.stored_name(&tensor.name).into_owned(), file.name.clone());
        file.tensors.iter().map(stored).collect::<Vec<_>>()
    };
    let placed = files.iter().flat_map(placed);
    let bytes = files.iter().flat_map(|file| &file.tensors).map(OutputTensor::bytes).sum();
    (files.len() > 1).then(|| (super::INDEX.to_owned(), index::write(placed, bytes)))
}

/// A record of the files that an output was made of.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_SCHEMA`] of the writer.
    pub schema: u32,
    /// [`Rewrite::identity`].
    pub identity: String,
    /// The purpose of the rewrite.
    pub about: Map<String, Value>,
    /// The source's weight files, which [`ManifestTensor::source`] counts.
    pub shards: Vec<String>,
    /// The output's weight files.
    pub files: Vec<ManifestFile>,
    /// The files beside them, by name.
    pub others: Vec<OtherFile>,
    /// The place of the source and the version of this program: facts that may differ between equal outputs.
    #[serde(default)]
    pub environment: Map<String, Value>,
}

crate::debug::one_line!(Manifest, |manifest| {
    format!("Manifest({} files, {} others)", manifest.files.len(), manifest.others.len())
});

/// A weight file of an output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its tensors, in the order of their bytes.
    pub tensors: Vec<ManifestTensor>,
}

/// A file of an output that holds no weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of its bytes, in hexadecimal.
    pub crc32: String,
}

/// A tensor of an output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestTensor {
    /// Its name ([`TensorInfo::name`]).
    pub name: String,
    /// Type of an element, as safetensors writes it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// CRC-32 (ISO-HDLC, as `zlib.crc32`) of its bytes, in hexadecimal.
    pub crc32: String,
    /// The ranges it was copied from, in order: shard, first byte, and the byte after the last.
    pub source: Vec<(usize, u64, u64)>,
}

impl Manifest {
    /// Reads [`MANIFEST`] in `dir`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::File`] when it is no manifest of this version, [`Error::Io`] when it cannot be read.
    pub fn read(dir: &std::path::Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(Error::io("read", &path))?,
        };
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|e| Error::file(&path, format!("not a manifest ({e})")))?;
        if manifest.schema != MANIFEST_SCHEMA {
            let problem =
                format!("schema {} is not {MANIFEST_SCHEMA}", manifest.schema).remedy("use the version that wrote it");
            return Err(Error::file(&path, problem));
        }
        Ok(Some(manifest))
    }
}

/// Block of the file systems that can share blocks between files.
const BLOCK_BYTES: u64 = 4096;

/// The length of the header, modulo a block, with which most bytes of a file are as far into a block as in the source, so
/// that a file system may share those blocks; `None` if that is not worth the padding.
fn clonable_remainder(tensors: &[OutputTensor], header: &[u8]) -> Option<u64> {
    let mut bytes: BTreeMap<u64, u64> = BTreeMap::new();
    let mut to = 0;
    for segment in tensors.iter().flat_map(|tensor| &tensor.segments) {
        // A header's length is a multiple of 8, for alignment.
        let remainder = (segment.range.start + BLOCK_BYTES - to % BLOCK_BYTES) % BLOCK_BYTES;
        if remainder.is_multiple_of(8) && segment.bytes() >= BLOCK_BYTES {
            *bytes.entry(remainder).or_default() += segment.bytes();
        }
        to += segment.bytes();
    }
    let (&remainder, &most) = bytes.iter().max_by_key(|&(_, bytes)| bytes)?;
    (most >= PIECE_BYTES && header.len() as u64 % BLOCK_BYTES != remainder).then_some(remainder)
}

#[cfg(test)]
impl Rewrite {
    fn of_pieces(pieces: Vec<Piece>) -> Self {
        Rewrite { files: Vec::new(), headers: Vec::new(), pieces, identity: String::new() }
    }
}

/// A hash of everything that decides which bytes the output will hold.
fn identity(source: &dyn Source, files: &[OutputFile], headers: &[Vec<u8>], piece_bytes: u64) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {piece_bytes}\n"));
    headers.iter().for_each(|header| hash.update(header));
    hash.update(source.stamp());
    for info in source.index() {
        hash.update(format!("{}\0{}\0{:?}\0{}\0{:?}\n", info.name, info.dtype, info.shape, info.shard, info.range));
    }
    for file in files {
        hash.update(format!("{}\0\n", file.name));
        for tensor in &file.tensors {
            hash.update(format!("{}\0{}\0{:?}\0", tensor.name, tensor.dtype, tensor.shape));
            for segment in &tensor.segments {
                hash.update(format!("{} {:?}\0", segment.shard, segment.range));
            }
        }
    }
    hex::encode(hash.finalize())
}

/// A stretch of the source that is streamed at once, and the pieces that it holds, in order.
#[derive(Debug)]
struct Run {
    shard: usize,
    range: Range<u64>,
    pieces: Vec<usize>,
}

/// Longest stretch of one stream: long enough that a request costs nothing beside it, short enough that all streams are
/// busy until the end.
const RUN_BYTES: u64 = 32 << 20;

/// Gaps may be one byte in this many of all bytes that are read.
const GAP_SHARE: u64 = 200;

impl Rewrite {
    /// Groups `pieces` into runs, in the order of the source, so that each shard is read once from front to back.
    fn runs(&self, source: &dyn Source, pieces: &[usize]) -> Vec<Run> {
        let mut order = pieces.to_vec();
        order.sort_by_key(|&id| (self.pieces[id].shard, self.pieces[id].from));
        let wanted: u64 = pieces.iter().map(|&id| self.pieces[id].bytes).sum();
        let gap = |before: usize, after: usize| -> Option<u64> {
            let (before, after) = (&self.pieces[before], &self.pieces[after]);
            (before.shard == after.shard).then(|| after.from.checked_sub(before.from + before.bytes)).flatten()
        };
        // The smallest gaps first, while they are few bytes in all.
        let mut gaps: Vec<u64> = order.windows(2).filter_map(|pair| gap(pair[0], pair[1])).collect();
        gaps.sort_unstable();
        let mut budget = wanted / GAP_SHARE;
        let mut longest = 0;
        for gap in gaps.into_iter().take_while(|&gap| gap <= source.worth_skipping()) {
            match budget.checked_sub(gap) {
                Some(left) => (budget, longest) = (left, gap),
                None => {
                    // Gaps of this length would not all fit.
                    longest = gap.saturating_sub(1).min(longest);
                    break;
                }
            }
        }
        let mut runs: Vec<Run> = Vec::new();
        for id in order {
            let piece = &self.pieces[id];
            let end = piece.from + piece.bytes;
            match runs.last_mut() {
                Some(run)
                    if run.shard == piece.shard
                        && (run.range.end..=run.range.end + longest).contains(&piece.from)
                        && end - run.range.start <= RUN_BYTES =>
                {
                    run.range.end = end;
                    run.pieces.push(id);
                }
                _ => runs.push(Run { shard: piece.shard, range: piece.from..end, pieces: vec![id] }),
            }
        }
        runs
    }
}
