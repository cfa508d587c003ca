//! Carrying a [`Rewrite`] out: streams in, positional writes out, a journal between.

use super::journal::Journal;
use super::staging::{Resumed, Staging, is_free_name, parent, write_error};
use super::{BLOCK_BYTES, MANIFEST, Manifest, OtherFile, Piece, Rewrite, Run};
use crate::checkpoint::source::{STREAM_BYTES, Source};
use crate::error::{Error, Remedy, Result};
use crate::progress::{Progress, Stage};
use crate::sync::{locked, on_threads, unlocked};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// The outcome of a [`Rewrite::run`].
#[derive(Clone, Debug)]
pub struct Copied {
    /// The origin of every tensor.
    pub manifest: Manifest,
    /// Bytes of tensors that this run put into place.
    pub written: u64,
    /// Bytes of those that the file system did not copy, but shares with the source until either is changed.
    pub shared: u64,
    /// Bytes of tensors that were in place already.
    pub resumed: u64,
    /// Seconds that this run spent, by task.
    pub seconds: Seconds,
}

/// Seconds that a copy spent, by task. Streams run side by side, so that parts can add up to more than the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Waiting for bytes of the source, over all streams.
    pub read: f64,
    /// Dealing them out to tensors, with checksums, over all streams.
    pub slice: f64,
    /// Handing them to the file system, over all streams.
    pub write: f64,
    /// Flushing them to the disk at the end.
    pub flush: f64,
    /// From the first byte to the rename.
    pub total: f64,
}

/// Nanoseconds that threads add to.
#[derive(Default)]
struct Clock {
    read: AtomicU64,
    slice: AtomicU64,
    write: AtomicU64,
}

fn nanos(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

/// Counts bytes, shows mebibytes.
struct Meter {
    stage: Stage,
    bytes: Mutex<u64>,
}

impl Meter {
    fn add(&self, bytes: u64) -> Result<()> {
        let mut sum = locked(&self.bytes);
        let shown = *sum >> 20;
        *sum += bytes;
        self.stage.inc((*sum >> 20) - shown)
    }
}

/// The files beside the weights of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideFiles {
    /// The source's tokenizer, generation settings, licence and every other file that holds no weights.
    Copied,
    /// None of those.
    Left,
}

impl Rewrite {
    /// Writes the files to the new directory `out`, and beside them the `generated` ones (name, bytes), [`MANIFEST`], and
    /// the source's own if they are wanted. If an earlier run was stopped, by whatever means, this one goes on from its last
    /// finished piece; if it had ended, nothing is written.
    ///
    /// Memory: a buffer of at most a mebibyte for each of [`Source::streams`], and the list of pieces.
    ///
    /// # Errors
    /// Those of [`Rewrite::check_output`]; [`Error::File`] when another process writes this output, or the disk is full;
    /// [`Error::Io`], [`Error::Hub`] when reading or writing fails; [`Error::Interrupted`]. What was copied until then is
    /// kept for the next run.
    pub fn run(
        &self,
        source: &dyn Source,
        out: &Path,
        about: &Map<String, Value>,
        generated: &[(String, Vec<u8>)],
        side_files: SideFiles,
        progress: Progress,
    ) -> Result<Copied> {
        if !source.has_weights() {
            // It says so, before anything is made.
            source.stream(0, 0..1, &mut |_| Ok(()))?;
        }
        if let Some(name) = generated.iter().map(|(name, _)| name).find(|name| !is_free_name(name)) {
            return Err(Error::argument("file name", name, "give a plain name that is not a weight file's"));
        }
        if let Some(manifest) = self.check_output(out)? {
            let same = |name: &String, bytes: &[u8]| {
                let sum = format!("{:08x}", crc32fast::hash(bytes));
                manifest.others.iter().any(|other| other.name == *name && other.crc32 == sum)
            };
            let copied = side_files == SideFiles::Left || copies_are_same(source, &manifest, generated)?;
            if manifest.about != *about || !copied || !generated.iter().all(|(name, bytes)| same(name, bytes)) {
                return Err(Error::file(
                    out,
                    "already exists, made with other arguments or of other files"
                        .remedy("remove it, or choose another"),
                ));
            }
            Staging::clear(out, self)?;
            let resumed = self.data_bytes();
            return Ok(Copied { manifest, written: 0, shared: 0, resumed, seconds: Seconds::default() });
        }
        let started = Instant::now();
        let staging = Staging::enter(out, self)?;
        let Resumed { files, journal, done } = staging.resume(self)?;
        let todo: Vec<usize> = (0..done.len()).filter(|&piece| done[piece].is_none()).collect();
        let written: u64 = todo.iter().map(|&piece| self.pieces[piece].bytes).sum();
        let resumed = self.data_bytes() - written;
        let meter = Meter { stage: progress.stage("copy (MiB)", self.data_bytes() >> 20), bytes: Mutex::new(0) };
        meter.add(resumed)?;
        let done = Mutex::new(done);
        let clock = Clock::default();
        let target = Target {
            rewrite: self,
            out,
            files: &files,
            journal: &journal,
            done: &done,
            meter: &meter,
            clock: &clock,
            shared: AtomicU64::new(0),
            sharing_failed: AtomicBool::new(false),
        };
        target.copy(source, &self.runs(source, &todo))?;
        let shared = target.shared.into_inner();

        let done = unlocked(done);
        let sums: Vec<u32> = done.into_iter().flatten().collect();
        let data = staging.data();
        let others = copy_others(source, out, &data, generated, side_files)?;
        let manifest = Manifest { others, ..self.manifest(source, about, &sums) };
        let weights = manifest.files.iter().map(|file| file.name.as_str());
        let beside = manifest.others.iter().map(|file| file.name.as_str());
        staging.keep_only(&weights.chain(beside).collect::<Vec<_>>())?;
        let mut text = serde_json::to_vec(&manifest).map_err(|error| Error::file(out, error))?;
        text.push(b'\n');
        write_synced(out, &data.join(MANIFEST), |sink| sink(&text))?;

        let flushing = Instant::now();
        for file in &files {
            file.sync_all().map_err(|e| write_error(out, "flush", e))?;
        }
        File::open(&data).and_then(|dir| dir.sync_all()).map_err(|e| write_error(out, "flush", e))?;
        if out.symlink_metadata().is_ok() {
            return Err(Error::file(
                out,
                "has come to exist while it was being written".remedy("remove it and start again"),
            ));
        }
        std::fs::rename(&data, out).map_err(|e| write_error(out, "rename into place", e))?;
        File::open(parent(out)).and_then(|dir| dir.sync_all()).map_err(|e| write_error(out, "flush", e))?;
        let spent = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let seconds = Seconds {
            read: spent(&clock.read),
            slice: spent(&clock.slice),
            write: spent(&clock.write),
            flush: flushing.elapsed().as_secs_f64(),
            total: started.elapsed().as_secs_f64(),
        };
        staging.remove();
        Ok(Copied { manifest, written, shared, resumed, seconds })
    }
}

/// Writes a file from what `fill` gives, and to the disk. Returns its length and CRC-32.
fn write_synced(
    out: &Path,
    path: &Path,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<(u64, u32)> {
    let mut file = File::create(path).map_err(|e| write_error(out, "create", e))?;
    let sum = sum_of(|sink| {
        fill(&mut |bytes| {
            file.write_all(bytes).map_err(|e| write_error(out, "write", e))?;
            sink(bytes)
        })
    })?;
    file.sync_all().map_err(|e| write_error(out, "flush", e))?;
    Ok(sum)
}

/// The source's files beside the weights that an output gets.
fn copied_names(source: &dyn Source, generated: &[(String, Vec<u8>)]) -> Result<Vec<String>> {
    let mut names = source.side_files()?;
    names.retain(|name| !generated.iter().any(|(other, _)| other == name) && is_free_name(name));
    Ok(names)
}

/// Returns whether the source's files beside the weights are still those that the manifest lists.
fn copies_are_same(source: &dyn Source, manifest: &Manifest, generated: &[(String, Vec<u8>)]) -> Result<bool> {
    let names = copied_names(source, generated)?;
    if names.len() + generated.len() != manifest.others.len() {
        return Ok(false);
    }
    for name in names {
        let (bytes, sum) = sum_of(|sink| source.side_file(&name, sink))?;
        let sum = format!("{sum:08x}");
        if !manifest.others.iter().any(|other| other.name == name && other.bytes == bytes && other.crc32 == sum) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Length and CRC-32 of what `fill` gives.
pub(crate) fn sum_of(fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>) -> Result<(u64, u32)> {
    let mut hasher = crc32fast::Hasher::new();
    let mut length = 0;
    fill(&mut |bytes| {
        hasher.update(bytes);
        length += bytes.len() as u64;
        Ok(())
    })?;
    Ok((length, hasher.finalize()))
}

/// Length and CRC-32 of a file; `None` if there is none.
pub(crate) fn sum_of_file(path: &Path) -> Result<Option<(u64, u32)>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(Error::io("open", path))?,
    };
    let mut buffer = vec![0; STREAM_BYTES as usize];
    sum_of(|sink| {
        loop {
            match file.read(&mut buffer).map_err(Error::io("read", path))? {
                0 => return Ok(()),
                bytes => sink(&buffer[..bytes])?,
            }
        }
    })
    .map(Some)
}

/// Writes what stands beside the weights: the generated files, and the source's that are not among them.
fn copy_others(
    source: &dyn Source,
    out: &Path,
    data: &Path,
    generated: &[(String, Vec<u8>)],
    side_files: SideFiles,
) -> Result<Vec<OtherFile>> {
    let mut others = Vec::new();
    let mut add = |name: &str, (bytes, sum)| {
        others.push(OtherFile { name: name.to_owned(), bytes, crc32: format!("{sum:08x}") });
    };
    if side_files == SideFiles::Copied {
        for name in copied_names(source, generated)? {
            add(&name, write_synced(out, &data.join(&name), |sink| source.side_file(&name, sink))?);
        }
    }
    for (name, bytes) in generated {
        add(name, write_synced(out, &data.join(name), |sink| sink(bytes))?);
    }
    others.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(others)
}

/// Writes what is not zero: the file was made at its full length and holds zeros where nothing was written, so what is
/// sparse stays sparse.
fn write_sparse(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut start = None;
    let mut place = 0;
    for block in bytes.chunks(BLOCK_BYTES as usize) {
        match (start, block.iter().all(|&byte| byte == 0)) {
            (Some(from), true) => {
                file.write_all_at(&bytes[from..place], at + from as u64)?;
                start = None;
            }
            (None, false) => start = Some(place),
            _ => {}
        }
        place += block.len();
    }
    start.map_or(Ok(()), |from| file.write_all_at(&bytes[from..], at + from as u64))
}

/// Makes `bytes` bytes of `to` the very blocks of `from`, copied once either is changed; all three are multiples of a
/// block. Whether that was done.
#[cfg(target_os = "linux")]
fn share_blocks(from: &File, offset: u64, bytes: u64, to: &File, to_offset: u64) -> bool {
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: offset,
        src_length: bytes,
        dest_offset: to_offset,
    };
    // SAFETY: both files are open, and the kernel reads the range only.
    unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE as _, &range) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn share_blocks(_: &File, _: u64, _: u64, _: &File, _: u64) -> bool {
    false
}

/// State that the threads of a copy share.
struct Target<'a> {
    rewrite: &'a Rewrite,
    out: &'a Path,
    files: &'a [File],
    journal: &'a Journal,
    done: &'a Mutex<Vec<Option<u32>>>,
    meter: &'a Meter,
    clock: &'a Clock,
    shared: AtomicU64,
    sharing_failed: AtomicBool,
}

impl Target<'_> {
    /// Copies `runs`, as many at a time as the source has streams. Ends with the first error.
    fn copy(&self, source: &dyn Source, runs: &[Run]) -> Result<()> {
        let copied = on_threads(runs, source.streams(), |_, run, failed| self.copy_run(source, run, failed));
        // The first error in time: others may have failed because of it.
        copied.into_iter().try_for_each(|(_, copied)| copied)
    }

    /// Has the file system share whole blocks of the source with the output, where it can and both are equally far into a
    /// block. Returns the ranges of output files that need not be written.
    fn share(&self, source: &dyn Source, run: &Run) -> Vec<(usize, Range<u64>)> {
        let mut shared = Vec::new();
        let Some(file) = source.local(run.shard) else { return shared };
        let pieces: Vec<&Piece> = run.pieces.iter().map(|&id| &self.rewrite.pieces[id]).collect();
        let adjacent =
            |a: &&Piece, b: &&Piece| a.file == b.file && a.from + a.bytes == b.from && a.to + a.bytes == b.to;
        for stretch in pieces.chunk_by(adjacent) {
            let (first, last) = (stretch[0], stretch[stretch.len() - 1]);
            let skip = first.from.next_multiple_of(BLOCK_BYTES) - first.from;
            let end = (last.from + last.bytes) / BLOCK_BYTES * BLOCK_BYTES;
            let bytes = end.saturating_sub(first.from + skip);
            let to = first.to + skip;
            if bytes == 0 || !to.is_multiple_of(BLOCK_BYTES) || self.sharing_failed.load(Ordering::Relaxed) {
                continue;
            }
            if share_blocks(file, first.from + skip, bytes, &self.files[first.file], to) {
                self.shared.fetch_add(bytes, Ordering::Relaxed);
                shared.push((first.file, to..to + bytes));
            } else {
                // Most file systems cannot, and none can across two of them.
                self.sharing_failed.store(true, Ordering::Relaxed);
            }
        }
        shared
    }

    /// Writes `bytes` to `at` in a file, except what the file shares with the source.
    fn write(&self, file: usize, bytes: &[u8], at: u64, shared: &[(usize, Range<u64>)]) -> Result<()> {
        let end = at + bytes.len() as u64;
        let write = |part: Range<u64>| {
            let bytes = &bytes[(part.start - at) as usize..(part.end - at) as usize];
            write_sparse(&self.files[file], bytes, part.start).map_err(|e| write_error(self.out, "write", e))
        };
        // One at most: a piece is part of one stretch, and the middle of that is shared or nothing.
        let overlaps = |(other, range): &&(usize, Range<u64>)| *other == file && range.start < end && at < range.end;
        match shared.iter().find(overlaps) {
            None => write(at..end),
            Some((_, range)) => {
                write(at..range.start.max(at))?;
                write(range.end.min(end)..end)
            }
        }
    }

    /// Streams one run and deals its bytes out to the pieces.
    fn copy_run(&self, source: &dyn Source, run: &Run, failed: &AtomicBool) -> Result<()> {
        let shared = self.share(source, run);
        let mut pieces = run.pieces.iter().copied();
        let mut current = pieces.next();
        let mut hasher = crc32fast::Hasher::new();
        let mut at = run.range.start;
        let (started, mut writing, mut inside_sink) = (Instant::now(), 0, 0);
        let streamed = source.stream(run.shard, run.range.clone(), &mut |mut bytes| {
            let entered = Instant::now();
            if failed.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            while let Some(id) = current.filter(|_| !bytes.is_empty()) {
                let piece = &self.rewrite.pieces[id];
                // Bytes of a gap.
                let skip = piece.from.saturating_sub(at).min(bytes.len() as u64);
                (bytes, at) = (&bytes[skip as usize..], at + skip);
                if bytes.is_empty() {
                    break;
                }
                let inside = at - piece.from;
                let take = (piece.bytes - inside).min(bytes.len() as u64);
                let part = &bytes[..take as usize];
                hasher.update(part);
                let before = Instant::now();
                self.write(piece.file, part, piece.to + inside, &shared)?;
                writing += nanos(before);
                (bytes, at) = (&bytes[take as usize..], at + take);
                if inside + take == piece.bytes {
                    let sum = std::mem::replace(&mut hasher, crc32fast::Hasher::new()).finalize();
                    self.journal.add(id, sum).map_err(|e| write_error(self.out, "write", e))?;
                    locked(self.done)[id] = Some(sum);
                    self.meter.add(piece.bytes)?;
                    current = pieces.next();
                }
            }
            at += bytes.len() as u64;
            inside_sink += nanos(entered);
            Ok(())
        });
        self.clock.read.fetch_add(nanos(started).saturating_sub(inside_sink), Ordering::Relaxed);
        self.clock.slice.fetch_add(inside_sink.saturating_sub(writing), Ordering::Relaxed);
        self.clock.write.fetch_add(writing, Ordering::Relaxed);
        streamed?;
        match current {
            None => Ok(()),
            Some(id) => {
                let piece = &self.rewrite.pieces[id];
                let file = &source.files()[piece.shard];
                let problem = format!("bytes {}..{} were not delivered", piece.from, piece.from + piece.bytes)
                    .remedy("try again");
                Err(Error::file(format!("{}/{file}", source.origin()), problem))
            }
        }
    }
}
