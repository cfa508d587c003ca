//! Carrying a [`Rewrite`] out: streams in, positional writes out, a journal between.

use super::journal::{self, Journal};
use super::{BLOCK_BYTES, MANIFEST, Manifest, Piece, Rewrite, Run};
use crate::checkpoint::source::Source;
use crate::checkpoint::writer::{available_bytes, disk_full};
use crate::progress::{Progress, Stage};
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// What a [`Rewrite::run`] did.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Where every tensor came from.
    pub manifest: Manifest,
    /// Bytes of tensors that this run put into place.
    pub written: u64,
    /// Bytes of those that the file system did not copy, but shares with the source until either is changed.
    pub shared: u64,
    /// Bytes of tensors that were in place already.
    pub resumed: u64,
    /// Where the time of this run went.
    pub seconds: Seconds,
}

/// Where the time of a copy went. Streams run side by side, so that parts can add up to more than the whole.
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

/// The unfinished output: a hidden directory beside the final one, with the files that are to be renamed into place, and
/// what is needed to go on with them.
struct Staging {
    out: PathBuf,
    dir: PathBuf,
    /// Held as long as this process works here.
    _lock: File,
}

fn staging_of(out: &Path) -> Result<PathBuf> {
    match out.file_name() {
        Some(name) => Ok(out.with_file_name(format!(".{}.partial", name.to_string_lossy()))),
        None => Err(Error::file(out, "cannot be an output directory; give it a name")),
    }
}

impl Staging {
    fn enter(out: &Path, identity: &str) -> Result<Self> {
        let dir = staging_of(out)?;
        let made = std::fs::create_dir(&dir);
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = dir.parent().unwrap_or(Path::new("."));
                return Err(Error::file(parent, "no such directory; create it before writing into it"));
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", &dir)(error));
            }
            _ => {}
        }
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(Error::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::file(&dir, "another process is writing this output; wait for it, or end it"));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        let path = dir.join("identity");
        match std::fs::read_to_string(&path) {
            Ok(old) if old == identity => {}
            // A kill between the first two steps leaves a directory without one, and nothing in it.
            Ok(old) if old.is_empty() => write(out, &path, identity)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => write(out, &path, identity)?,
            Err(error) => return Err(Error::io("read", &path)(error)),
            Ok(_) => {
                let problem = "holds an unfinished output of other arguments, or of a checkpoint that has changed since; \
                               finish that one with its own command, or remove this directory";
                return Err(Error::file(&dir, problem));
            }
        }
        let staging = Staging { out: out.to_path_buf(), dir, _lock: lock };
        match std::fs::create_dir(staging.data()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(write_error(out, "create", error)),
            _ => Ok(staging),
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Opens a weight file at its full length, with its header. What is there already stays. Also says whether it was.
    fn file(&self, name: &str, header: &[u8], bytes: u64) -> Result<(File, bool)> {
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(self.data().join(name));
        let file = open.map_err(|e| write_error(&self.out, "create", e))?;
        let there = file.metadata().map_err(|e| write_error(&self.out, "read", e))?.len() == bytes;
        file.set_len(bytes).map_err(|e| write_error(&self.out, "write", e))?;
        file.write_all_at(header, 0).map_err(|e| write_error(&self.out, "write", e))?;
        Ok((file, there))
    }
}

fn write(out: &Path, path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, text).map_err(|e| write_error(out, "write", e))
}

/// A disk that is full must be told from one that is forbidden; both name the final path.
fn write_error(out: &Path, action: &'static str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let problem = disk_full(&error.to_string());
            Error::file(out, format!("{problem}; then the same command goes on where this one stopped"))
        }
        _ => Error::io(action, out)(error),
    }
}

/// Counts bytes, shows mebibytes.
struct Meter {
    stage: Stage,
    bytes: Mutex<u64>,
}

impl Meter {
    fn add(&self, bytes: u64) -> Result<()> {
        let mut sum = self.bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let shown = *sum >> 20;
        *sum += bytes;
        self.stage.inc((*sum >> 20) - shown)
    }
}

impl Rewrite {
    /// Writes the files to the new directory `out`, and beside them [`MANIFEST`] and what `others` makes of it. If an
    /// earlier run was stopped, by whatever means, this one goes on from its last finished piece; if it had ended, nothing
    /// is written.
    ///
    /// Memory: a mebibyte for each of [`Source::streams`], and the list of pieces.
    ///
    /// # Errors
    /// [`Error::File`] when `out` exists and is not this output, when an unfinished output of something else is in the
    /// way, another process writes it, or the disk is full; [`Error::Io`], [`Error::Hub`] when reading or writing fails;
    /// [`Error::Interrupted`]. What was copied until then is kept for the next run.
    pub fn run(
        &self,
        source: &dyn Source,
        out: &Path,
        about: &Map<String, Value>,
        others: impl FnOnce(&Manifest) -> Result<Vec<(String, Vec<u8>)>>,
        progress: Progress,
    ) -> Result<Copied> {
        if !source.has_weights() {
            // It says so, before anything is made.
            source.stream(0, 0..1, &mut |_| Ok(()))?;
        }
        if out.symlink_metadata().is_ok() {
            let manifest = Manifest::read(out).ok().flatten();
            let Some(manifest) =
                manifest.filter(|manifest| manifest.identity == self.identity && manifest.about == *about)
            else {
                return Err(Error::file(out, "already exists; remove it, or choose another output directory"));
            };
            // A kill after the rename leaves the rest of the staging directory.
            if let Ok(staging) = Staging::enter(out, &self.identity) {
                let _ = std::fs::remove_dir_all(&staging.dir);
            }
            return Ok(Copied {
                manifest,
                written: 0,
                shared: 0,
                resumed: self.data_bytes(),
                seconds: Seconds::default(),
            });
        }
        let parent = match out.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let started = Instant::now();
        let fits = |left: u64| match available_bytes(parent).filter(|&available| available < left) {
            Some(free) => Err(Error::file(out, disk_full(&format!("{left} bytes are needed, {free} are free")))),
            None => Ok(()),
        };
        if !staging_of(out)?.exists() {
            fits(self.data_bytes())?;
        }
        let staging = Staging::enter(out, &self.identity)?;
        let (journal, mut done) = Journal::open(&staging.dir.join("journal"), self)?;
        fits(self.pieces.iter().zip(&done).filter(|(_, done)| done.is_none()).map(|(piece, _)| piece.bytes).sum())?;
        let mut files = Vec::with_capacity(self.files.len());
        for (number, (file, header)) in self.files.iter().zip(&self.headers).enumerate() {
            let bytes: u64 = header.len() as u64 + file.tensors.iter().map(super::OutputTensor::bytes).sum::<u64>();
            let (opened, there) = staging.file(&file.name, header, bytes)?;
            if !there {
                let of_file = |(piece, _): &(&Piece, &mut Option<u32>)| piece.file == number;
                self.pieces.iter().zip(&mut done).filter(of_file).for_each(|(_, done)| *done = None);
            }
            files.push(opened);
        }
        if !journal::same_boot(&staging.dir.join("boot"))? {
            journal::recheck(self, &files, &mut done);
        }

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

        let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sums: Vec<u32> = done.into_iter().flatten().collect();
        let manifest = self.manifest(source, about, &sums);
        let data = staging.data();
        let mut text = serde_json::to_vec(&manifest).map_err(|error| Error::file(out, error))?;
        text.push(b'\n');
        for (name, bytes) in others(&manifest)?.into_iter().chain([(MANIFEST.to_owned(), text)]) {
            let path = data.join(name);
            write(out, &path, bytes)?;
            File::open(&path).and_then(|file| file.sync_all()).map_err(|e| write_error(out, "flush", e))?;
        }
        let flushing = Instant::now();
        for file in &files {
            file.sync_all().map_err(|e| write_error(out, "flush", e))?;
        }
        File::open(&data).and_then(|dir| dir.sync_all()).map_err(|e| write_error(out, "flush", e))?;
        if out.symlink_metadata().is_ok() {
            return Err(Error::file(out, "has come to exist while it was being written; remove it and start again"));
        }
        std::fs::rename(&data, out).map_err(|e| write_error(out, "rename into place", e))?;
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| write_error(out, "flush", e))?;
        let spent = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let seconds = Seconds {
            read: spent(&clock.read),
            slice: spent(&clock.slice),
            write: spent(&clock.write),
            flush: flushing.elapsed().as_secs_f64(),
            total: started.elapsed().as_secs_f64(),
        };
        // The output stands; what is left of the staging directory is removed by the next run if not by this one.
        let _ = std::fs::remove_dir_all(&staging.dir);
        Ok(Copied { manifest, written, shared, resumed, seconds })
    }
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

/// What the threads of a copy share.
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
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let error = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..source.streams().clamp(1, runs.len().max(1)) {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                        if let Err(e) = self.copy_run(source, run, &failed) {
                            // The others will fail because of this one.
                            error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(e);
                            failed.store(true, Ordering::Relaxed);
                            return;
                        }
                    }
                });
            }
        });
        error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
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
        let mut parts = vec![at..end];
        let overlapping = shared.iter().filter(|(other, range)| *other == file && range.start < end && at < range.end);
        for (_, range) in overlapping {
            let outside = |part: Range<u64>| {
                [part.start..part.end.min(range.start), part.start.max(range.end)..part.end]
                    .into_iter()
                    .filter(|part| part.start < part.end)
            };
            parts = parts.into_iter().flat_map(outside).collect();
        }
        for part in parts {
            let bytes = &bytes[(part.start - at) as usize..(part.end - at) as usize];
            write_sparse(&self.files[file], bytes, part.start).map_err(|e| write_error(self.out, "write", e))?;
        }
        Ok(())
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
                    self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[id] = Some(sum);
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
                let problem =
                    format!("bytes {}..{} were not delivered; try again", piece.from, piece.from + piece.bytes);
                Err(Error::file(format!("{}/{file}", source.origin()), problem))
            }
        }
    }
}
