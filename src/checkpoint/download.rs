//! Files of a model on a hub, downloaded into the cache that Hugging Face's libraries share: the content of a file stands in
//! `blobs` under its ETag, and a snapshot of a commit is a folder of links to it.

use super::http::{Client, Target};
use super::hub::{Hub, Spec};
use super::index::Index;
use super::remote::{self, Remote};
use super::writer::is_beside_weights;
use super::{Checkpoint, INDEX, SINGLE, Source, check_is_directory};
use crate::error::{Error, Remedy, Result};
use crate::progress::{POLL, Progress, check_interrupt};
use hf_hub::{Cache, CacheRepo};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// End of the range that is asked for where the hub does not tell a file's size.
const TO_THE_END: u64 = i64::MAX as u64;
/// Bytes of a partial file that are hashed at a time.
const PIECE: usize = 1 << 20;

impl Hub {
    /// Downloads the safetensors weights and every file beside them that holds none (config, tokenizer, code) of `owner/name[@revision]`, whatever of it the cache lacks,
    /// and returns the directory. A model that is whole in the cache is not asked for again; one that was interrupted
    /// goes on where it stopped. Offline, what the cache has must do.
    ///
    /// # Errors
    /// [`Error::Argument`] when `spec` has another form; [`Error::Hub`] when the hub refuses, does not know the model or
    /// its revision, has no safetensors of it, or cannot be reached, or offline, the cache lacks weights; [`Error::Interrupted`].
    pub fn download(&self, spec: &str, progress: Progress) -> Result<PathBuf> {
        let spec = Spec::parse(spec)?;
        let cache = Cache::new(self.cache.clone());
        if let Some(dir) = whole_snapshot(&cache, &spec) {
            return Ok(dir);
        }
        let cached = cached_snapshot(&cache, &spec);
        if self.offline {
            return cached.filter(|dir| is_complete(dir)).ok_or_else(|| self.offline_error(&spec));
        }
        let client = Client::new(self, spec);
        let spec = client.spec();
        let (commit, files) = match remote::list(&client) {
            Ok(listing) => listing,
            // Its tokenizer may have another form, or none, and the weights are what was asked for.
            Err(error) => match cached.filter(|dir| client.is_unreachable() && is_complete(dir)) {
                Some(dir) => return Ok(dir),
                None => return Err(error),
            },
        };

        // All files of one commit, even if the branch moves on meanwhile.
        let repo = cache.repo(spec.at(&commit));
        let dir = repo.pointer_path(&commit);
        let fetch = |file: &str| fetch(&client, &repo, &dir, &client.file(&commit, file), progress);
        // Small files first: where the weights are, the rest is too.
        for file in files.iter().filter(|file| is_beside_weights(file)) {
            fetch(file)?;
        }
        if files.contains(SINGLE) {
            fetch(SINGLE)?;
        } else if files.contains(INDEX) {
            fetch(INDEX)?;
            for shard in Index::read(&dir.join(INDEX))?.shards() {
                if !files.contains(shard) {
                    return Err(spec.error(
                        format!("{INDEX} names shard {shard}, which the repository lacks")
                            .remedy("tell its owner, or use another revision"),
                    ));
                }
                fetch(shard)?;
            }
        } else {
            return Err(remote::no_weights(spec, &files));
        }
        // Only now does the branch's name stand for this commit.
        cache.repo(spec.at(&spec.revision)).create_ref(&commit).map_err(Error::io("write the cache", &self.cache))?;
        check_is_directory(&dir)?;
        Ok(dir)
    }

    /// The error for a model that the cache lacks while the hub must not be asked.
    fn offline_error(&self, spec: &Spec) -> Error {
        let what = match cached_snapshot(&Cache::new(self.cache.clone()), spec) {
            Some(_) => "is not whole in",
            None => "is not in",
        };
        let cache = self.cache.display();
        spec.error(
            format!("{} {what} the cache {cache}, and HF_HUB_OFFLINE forbids to ask a hub for it", spec.listing())
                .remedy(
                    "unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or set HF_HUB_CACHE to the cache that has it",
                ),
        )
    }

    /// Reads config, index and headers of `owner/name[@revision]`, all of one commit, and no weights.
    ///
    /// # Errors
    /// [`Error::Argument`] when `spec` has another form; [`Error::Hub`] when the hub refuses, does not know the model or
    /// its revision, has no safetensors of it, or cannot be reached; [`Error::File`] or [`Error::Tensor`] when its files
    /// break a rule of the format, as for [`Checkpoint::open`]; [`Error::Interrupted`].
    pub fn headers(&self, spec: &str, progress: Progress) -> Result<Remote> {
        let spec = Spec::parse(spec)?;
        if self.offline { Err(self.offline_error(&spec)) } else { Remote::open(self, spec, progress) }
    }

    /// The cached download of `owner/name[@revision]` if it has config and weights, else its headers from the hub.
    ///
    /// # Errors
    /// Those of [`Hub::headers`] and of [`Checkpoint::open`].
    pub fn source(&self, spec: &str, progress: Progress) -> Result<Box<dyn Source>> {
        let cached = cached_snapshot(&Cache::new(self.cache.clone()), &Spec::parse(spec)?);
        match cached.filter(|dir| is_complete(dir)) {
            Some(dir) => Ok(Box::new(Checkpoint::open(dir)?)),
            None => Ok(Box::new(self.headers(spec, progress)?)),
        }
    }
}

/// The directory in the cache that the revision, a branch or a commit, stood for last time.
fn cached_snapshot(cache: &Cache, spec: &Spec) -> Option<PathBuf> {
    let folder = cache.path().join(spec.at(&spec.revision).folder_name());
    let commit =
        std::fs::read_to_string(folder.join("refs").join(&spec.revision)).unwrap_or_else(|_| spec.revision.clone());
    let dir = folder.join("snapshots").join(commit.trim());
    dir.is_dir().then_some(dir)
}

/// The directory in the cache, if nothing of the model can be missing there.
fn whole_snapshot(cache: &Cache, spec: &Spec) -> Option<PathBuf> {
    cached_snapshot(cache, spec).filter(|dir| is_complete(dir) && dir.join("tokenizer.json").exists())
}

/// Returns whether config and all weights are there.
fn is_complete(dir: &Path) -> bool {
    let weights = dir.join(SINGLE).exists()
        || Index::read(&dir.join(INDEX)).is_ok_and(|index| index.shards().iter().all(|shard| dir.join(shard).exists()));
    weights && dir.join("config.json").exists()
}

/// Puts the file `target` into the snapshot `dir` under its name, unless it is there. What has arrived when this is interrupted
/// stays, and the next download goes on behind it. Where the hub tells the SHA-256 of the content, which it does for weights, the
/// file is checked against it.
///
/// # Errors
/// [`Error::Hub`] when the hub does not deliver, or delivers something else; [`Error::Io`] or [`Error::File`] when the cache
/// cannot be written; [`Error::Interrupted`].
fn fetch(client: &Client, cache: &CacheRepo, dir: &Path, target: &Target<'_>, progress: Progress) -> Result<()> {
    let pointer = dir.join(target.name);
    if pointer.exists() {
        return Ok(());
    }
    let described = client.describe(target)?;
    let Some(etag) = described.etag else {
        // Servers refuse a range of a file without bytes, and then tell nothing else about it.
        return link(&pointer, |path| fs::write(path, b""));
    };
    if !etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) || etag.starts_with('.') {
        let problem =
            format!("the ETag of {} is `{etag}`, which no hub gives", target.name).remedy("check HF_ENDPOINT");
        return Err(client.spec().error(problem));
    }
    let blob = cache.blob_path(&etag);
    let blobs = blob.parent().unwrap_or(dir);
    fs::create_dir_all(blobs).map_err(cannot_write(blobs))?;
    // Of several processes one downloads, and the others find what it made.
    let lock = Lock::take(&with_suffix(&blob, "lock"))?;
    if !blob.exists() {
        let part = with_suffix(&blob, "part");
        complete(client, target, &part, described.size, &etag, progress)?;
        fs::rename(&part, &blob).map_err(cannot_write(&blob))?;
    }
    drop(lock);
    let up = "../".repeat(target.name.matches('/').count());
    let content = PathBuf::from(format!("{up}../../blobs/{etag}"));
    link(&pointer, |path| std::os::unix::fs::symlink(&content, path).or_else(|_| fs::copy(&blob, path).map(|_| ())))
}

/// Downloads what the partial file `part` lacks, and checks the whole.
fn complete(
    client: &Client,
    target: &Target<'_>,
    part: &Path,
    size: Option<u64>,
    etag: &str,
    progress: Progress,
) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(part)
        .map_err(cannot_write(part))?;
    let is_hash = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (mut hash, mut at) = (Sha256::new(), 0u64);
    let mut buffer = vec![0; PIECE];
    loop {
        check_interrupt()?;
        match file.read(&mut buffer).map_err(Error::io("read", part))? {
            0 => break,
            bytes => {
                at += bytes as u64;
                if is_hash {
                    hash.update(&buffer[..bytes]);
                }
            }
        }
    }
    if size.is_some_and(|size| at > size) {
        file.set_len(0).and_then(|()| file.rewind()).map_err(cannot_write(part))?;
        (hash, at) = (Sha256::new(), 0);
    }
    let stage = progress.stage(target.name, size.unwrap_or(at));
    stage.inc(at)?;
    let total = client.range(target, at..size.unwrap_or(TO_THE_END), size, &mut |bytes| {
        file.write_all(bytes).map_err(cannot_write(part))?;
        if is_hash {
            hash.update(bytes);
        }
        at += bytes.len() as u64;
        stage.inc(bytes.len() as u64)
    })?;
    let problem = if at != total {
        Some(format!("{} has {total} bytes at the hub, and {at} came", target.name))
    } else if is_hash && hex::encode(hash.finalize()) != etag {
        Some(format!("what came of {} has another SHA-256 than the hub tells", target.name))
    } else {
        None
    };
    if let Some(problem) = problem {
        // What is wrong is not gone on with.
        fs::remove_file(part).map_err(cannot_write(part))?;
        return Err(client.spec().error(problem.remedy("run again, which downloads it anew")));
    }
    file.sync_all().map_err(cannot_write(part))
}

/// Makes `pointer` by `make`, in one step; another process may have been faster.
fn link(pointer: &Path, make: impl FnMut(&Path) -> io::Result<()>) -> Result<()> {
    let folder = pointer.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(cannot_write(folder))?;
    let made = tempfile::Builder::new().prefix(".lacuna-").make_in(folder, make).map_err(cannot_write(pointer))?;
    made.persist(pointer).map(|_| ()).map_err(|e| cannot_write(pointer)(e.error))
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::PermissionDenied => {
            let problem = format!("cannot be written to the cache ({error})")
                .remedy("free some space, or set HF_HOME to another directory");
            Error::file(path, problem)
        }
        _ => Error::io("write", path)(error),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// The right to download one file; it ends with the process at the latest.
struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for whoever has it.
    fn take(path: &Path) -> Result<Lock> {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(cannot_write(path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::WouldBlock) => {
                    check_interrupt()?;
                    std::thread::sleep(POLL);
                }
                // A file system without locks: two downloads of one file write the same bytes.
                Err(TryLockError::Error(_)) => return Ok(Lock { _file: file }),
            }
        }
    }
}
