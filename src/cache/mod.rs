//! A cache of expensive stages' results on disk; an entry's name is a hash of everything that the result depends on.
//!
//! An entry is a directory `STAGE-HASH` with the stage's files, and with `entry`, which says what it is and has a CRC-32 of
//! every file. It is filled under a hidden name beside its place, flushed, and renamed; so it is there whole or not at all,
//! whoever is killed and however many processes do the same. What is damaged is removed, and made again. Files of an entry
//! that another process removes stay readable for who has opened them.

mod collect;
mod files;

pub use collect::{CachedResult, Collect};

use crate::error::{Error, Remedy, Result};
use crate::progress::Progress;
use crate::sync::locked;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Bumped when entries of older versions can no longer be read; it is part of every name.
const SCHEMA: u32 = 1;

/// Bytes that a cache holds unless `LACUNA_CACHE_MAX_BYTES` says otherwise: 10 GiB.
pub const DEFAULT_MAX_BYTES: u64 = 10 << 30;

/// The file that describes an entry.
const DESCRIPTION: &str = "entry";

/// Bytes as people write them: `1000`, `500M`, `1.5 GiB`, `5GB` (K, M, G and T alone are powers of 1024).
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (base, power) = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => (1.0f64, 0),
        "kb" => (1e3, 1),
        "mb" => (1e3, 2),
        "gb" => (1e3, 3),
        "tb" => (1e3, 4),
        "k" | "kib" => (1024.0, 1),
        "m" | "mib" => (1024.0, 2),
        "g" | "gib" => (1024.0, 3),
        "t" | "tib" => (1024.0, 4),
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * base.powi(power);
    (bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// A directory of kept results, bounded in size. Cloning is cheap, and clones count together.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

crate::debug::one_line!(Cache, |cache| {
    let place = cache.0.dir.as_ref().map_or("in memory only".into(), |dir| dir.display().to_string());
    format!("Cache({place}, at most {} bytes)", cache.0.max_bytes)
});

#[derive(Debug)]
struct Inner {
    /// `None` where nothing is kept.
    dir: Option<PathBuf>,
    max_bytes: u64,
    uses: Mutex<BTreeMap<&'static str, Uses>>,
}

/// Numbers of times that a stage was computed, and that its result was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Uses {
    /// Times that it was computed.
    pub computed: u64,
    /// Times that its result was read from the disk.
    pub disk_hits: u64,
    /// Times that its result was still in memory.
    pub memory_hits: u64,
}

/// The place in which a result was found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    Computed,
    Disk,
    Memory,
}

/// The inputs that a result depends on.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    stage: &'static str,
    version: u32,
    inputs: Value,
}

impl Key {
    /// A stage, the version of its code, and everything else that its result depends on.
    pub(crate) fn new(stage: &'static str, version: u32, inputs: Value) -> Key {
        Key { stage, version, inputs }
    }

    pub(crate) fn stage(&self) -> &'static str {
        self.stage
    }

    /// The entry's name: equal keys have equal names.
    pub(crate) fn name(&self) -> String {
        let crate_version = env!("CARGO_PKG_VERSION");
        let text = format!("{SCHEMA}\0{crate_version}\0{}\0{}\0{}", self.stage, self.version, self.inputs);
        format!("{}-{:.32}", self.stage, hex::encode(Sha256::digest(text)))
    }
}

/// The contents of an entry's file `entry`, after a line with the CRC-32 of the rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Description {
    stage: String,
    /// For people: which model, which text.
    title: String,
    /// The inputs of which the name is a hash, for people too.
    inputs: Value,
    /// Results that are no arrays.
    value: Value,
    files: Vec<files::Sum>,
}

impl Description {
    fn read(dir: &Path) -> Result<Description> {
        let path = dir.join(DESCRIPTION);
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let parsed = text.split_once('\n').and_then(|(sum, json)| {
            let sum = u32::from_str_radix(sum, 16).ok()?;
            (crc32fast::hash(json.as_bytes()) == sum).then(|| serde_json::from_str(json).ok())?
        });
        parsed.ok_or_else(|| Error::file(&path, "is damaged"))
    }

    /// Writes the file `entry` into `staging`, which is then renamed to `dir`, unless the entry would then have more
    /// than `max_bytes`.
    fn write(&self, staging: &Path, dir: &Path, max_bytes: u64) -> Result<()> {
        let path = staging.join(DESCRIPTION);
        let json = serde_json::to_string_pretty(self).map_err(|error| Error::file(dir, error))?;
        let text = format!("{:08x}\n{json}", crc32fast::hash(json.as_bytes()));
        let bytes = self.files.iter().map(|file| file.bytes).sum::<u64>() + text.len() as u64;
        if bytes > max_bytes {
            let problem =
                format!("{bytes} bytes, and the cache holds {max_bytes}").remedy("LACUNA_CACHE_MAX_BYTES may say more");
            return Err(Error::file(dir, problem));
        }
        std::fs::write(&path, text).map_err(crate::files::write_error(&path))?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("flush", &path))
    }
}

/// An entry whose files are as they were written.
#[derive(Debug)]
pub(crate) struct CacheEntry {
    dir: PathBuf,
    /// Results that are no arrays.
    pub(crate) value: Value,
}

impl CacheEntry {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Cache {
    /// The user's cache: `LACUNA_CACHE_DIR`, else `lacuna` in `XDG_CACHE_HOME` or `~/.cache`; there, the folder `stages`. It
    /// holds at most `LACUNA_CACHE_MAX_BYTES` bytes, or [`DEFAULT_MAX_BYTES`].
    ///
    /// # Errors
    /// [`Error::Argument`] when no directory can be named, or the limit is no size ([`parse_bytes`]).
    pub fn from_env() -> Result<Cache> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let user = || {
            let xdg = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
            let home = || std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
            Some(xdg.or_else(|| home().map(|home| home.join(".cache")))?.join("lacuna"))
        };
        let dir = variable("LACUNA_CACHE_DIR").map(PathBuf::from).or_else(user);
        let dir = dir.ok_or_else(|| Error::argument("LACUNA_CACHE_DIR", "", "name a directory for kept results"))?;
        let max_bytes = match variable("LACUNA_CACHE_MAX_BYTES") {
            None => DEFAULT_MAX_BYTES,
            Some(value) => {
                let text = value.to_string_lossy();
                let must = "must be a number of bytes, or such as 500M or 2G";
                parse_bytes(&text).ok_or_else(|| Error::argument("LACUNA_CACHE_MAX_BYTES", &text, must))?
            }
        };
        Ok(Cache::at(dir.join("stages"), max_bytes))
    }

    /// A cache of at most `max_bytes` in `dir`, which is made when the first result is kept. Results that were used
    /// least recently are evicted first; a result larger than that is not kept.
    pub fn at(dir: impl Into<PathBuf>, max_bytes: u64) -> Cache {
        let dir: PathBuf = dir.into();
        // Cells may change the working directory.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        Cache(Arc::new(Inner { dir: Some(dir), max_bytes, uses: Mutex::default() }))
    }

    /// A cache that keeps nothing.
    pub fn none() -> Cache {
        Cache(Arc::new(Inner { dir: None, max_bytes: 0, uses: Mutex::default() }))
    }

    /// The directory of the entries; `None` for a cache that keeps nothing.
    pub fn dir(&self) -> Option<&Path> {
        self.0.dir.as_deref()
    }

    /// Bytes that entries may take together.
    pub fn max_bytes(&self) -> u64 {
        self.0.max_bytes
    }

    /// Numbers of times that each stage was computed and found, by this value and its clones.
    pub fn uses(&self) -> BTreeMap<&'static str, Uses> {
        locked(&self.0.uses).clone()
    }

    pub(crate) fn count(&self, stage: &'static str, found: Found) {
        let mut uses = locked(&self.0.uses);
        let uses = uses.entry(stage).or_default();
        match found {
            Found::Computed => uses.computed += 1,
            Found::Disk => uses.disk_hits += 1,
            Found::Memory => uses.memory_hits += 1,
        }
    }

    /// The kept result of `key`, which `read` makes of its entry. An entry that is damaged, or that `read` does not understand,
    /// is removed with a warning, and not there.
    ///
    /// # Errors
    /// [`Error::Interrupted`], and [`Error::Compute`] from `read`: a device that is full is no fault of the entry.
    pub(crate) fn load<T>(
        &self,
        key: &Key,
        progress: Progress,
        read: impl FnOnce(&CacheEntry) -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(dir) = self.place(key).filter(|dir| dir.is_dir()) else { return Ok(None) };
        let result = Description::read(&dir).and_then(|description| {
            files::verify(&dir, &description.files)?;
            read(&CacheEntry { dir: dir.clone(), value: description.value })
        });
        match result {
            Ok(result) => {
                touch(&dir);
                Ok(Some(result))
            }
            Err(error @ (Error::Interrupted | Error::Compute { .. })) => Err(error),
            // Another process has removed it meanwhile.
            Err(_) if !dir.join(DESCRIPTION).exists() && !dir.is_dir() => Ok(None),
            // It may be readable the next time, unless a file is missing.
            Err(Error::Io { action, path, source }) if source.kind() != std::io::ErrorKind::NotFound => {
                let error = Error::Io { action, path, source };
                progress.stage("cache", 0).note(format!("{error}; the result is made again"));
                Ok(None)
            }
            Err(error) => {
                progress.stage("cache", 0).note(format!("{error}; the entry is removed, and made again"));
                // On a disk that is read-only it stays, and is made again each time.
                let _ = files::remove(&dir);
                Ok(None)
            }
        }
    }

    /// The value that an entry was kept with, without looking at its files.
    pub(crate) fn value(&self, key: &Key) -> Option<Value> {
        let dir = self.place(key)?;
        let description = Description::read(&dir).ok()?;
        touch(&dir);
        Some(description.value)
    }

    /// Keeps what `fill` puts into the directory it is given, and the value that it returns. Where that is not possible, as on
    /// a full disk, that is said, and the work goes on.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(crate) fn keep(
        &self,
        key: &Key,
        title: String,
        progress: Progress,
        fill: impl FnOnce(&Path) -> Result<Value>,
    ) -> Result<()> {
        let Some(dir) = self.place(key) else { return Ok(()) };
        let result = self.write(key, title, &dir, fill);
        // Another process may have been faster: its entry is as good.
        match result.and_then(|()| self.trim(&key.name())) {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) if !dir.is_dir() => {
                progress.stage("cache", 0).note(format!("{}: not kept: {error}", key.stage));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write(&self, key: &Key, title: String, dir: &Path, fill: impl FnOnce(&Path) -> Result<Value>) -> Result<()> {
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create the cache", parent))?;
        }
        crate::files::create_dir(dir, |staging| {
            let value = fill(staging)?;
            let files = files::sums(staging)?;
            let description =
                Description { stage: key.stage.to_owned(), title, inputs: key.inputs.clone(), value, files };
            description.write(staging, dir, self.0.max_bytes)
        })
    }

    fn place(&self, key: &Key) -> Option<PathBuf> {
        Some(self.dir()?.join(key.name()))
    }

    /// SHA-256 of what `files` hold, which `compute` finds out; remembered for as long as paths, sizes, inodes and times stay as
    /// they are, as build tools do.
    ///
    /// # Errors
    /// [`Error::File`] when a file changed while it was read; [`Error::Io`]; those of `compute`.
    pub(crate) fn sha256_of(
        &self,
        files: &[PathBuf],
        progress: Progress,
        compute: impl FnOnce() -> Result<String>,
    ) -> Result<String> {
        const STAGE: &str = "hash";
        let before = files::Identity::of(files)?;
        let key = Key::new(STAGE, 1, before.inputs());
        let read = |entry: &CacheEntry| match entry.value.as_str() {
            Some(sha256) => Ok(sha256.to_owned()),
            None => Err(Error::file(&entry.dir, "holds no hash")),
        };
        if let Some(sha256) = self.load(&key, progress, read)? {
            self.count(STAGE, Found::Disk);
            return Ok(sha256);
        }
        self.count(STAGE, Found::Computed);
        let sha256 = compute()?;
        before.check()?;
        if before.is_settled() {
            let title = files.first().map(|path| path.display().to_string()).unwrap_or_default();
            self.keep(&key, title, progress, |_| Ok(sha256.clone().into()))?;
        }
        Ok(sha256)
    }
}

/// Notes that an entry was used. A cache that cannot be written still serves.
fn touch(dir: &Path) {
    let _ = File::open(dir.join(DESCRIPTION)).and_then(|file| file.set_modified(SystemTime::now()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_key_is_its_stage_version_and_inputs() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path(), 1 << 20);
        let key = |stage, version, input: &str| Key::new(stage, version, json!({"of": input}));
        let one = key("a", 1, "x");
        cache
            .keep(&one, "title".into(), Progress::Hidden, |dir| {
                std::fs::write(dir.join("file"), "content").map_err(Error::io("write", dir))?;
                Ok(json!({"kept": [1, "two"]}))
            })
            .unwrap();
        let find = |key: &Key| {
            let read = |entry: &CacheEntry| Ok((entry.value.clone(), std::fs::read(entry.path("file")).unwrap()));
            cache.load(key, Progress::Hidden, read).unwrap()
        };
        assert_eq!(find(&one), Some((json!({"kept": [1, "two"]}), b"content".to_vec())));
        assert_eq!(cache.value(&one), Some(json!({"kept": [1, "two"]})));
        for other in [key("b", 1, "x"), key("a", 2, "x"), key("a", 1, "y")] {
            assert_eq!((find(&other), cache.value(&other)), (None, None), "{other:?}");
        }
        // A second process that kept the same meanwhile changes nothing; one that reads something else in it makes it anew.
        cache.keep(&one, "title".into(), Progress::Hidden, |_| Ok(Value::Null)).unwrap();
        assert!(find(&one).is_some_and(|(_, file)| file == b"content"));
        let misread = |_: &CacheEntry| -> Result<()> { Err(Error::file("x", "of another kind")) };
        assert!(cache.load(&one, Progress::Hidden, misread).unwrap().is_none() && find(&one).is_none());
        assert!(cache.load(&one, Progress::Hidden, misread).unwrap().is_none());
    }

    #[test]
    fn hashes_are_remembered_while_files_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"), 1 << 20);
        // Written long ago, and not touched by anyone since.
        let old = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let hash = |file: &PathBuf, is: &str| {
            cache.sha256_of(std::slice::from_ref(file), Progress::Hidden, || Ok(is.to_owned())).unwrap()
        };
        assert_eq!(hash(&old, "one"), "one");
        assert_eq!(hash(&old, "two"), "one");
        // One that changed just now may change again within a tick of the clock: it is read each time.
        let fresh = dir.path().join("fresh");
        std::fs::write(&fresh, "a").unwrap();
        assert_eq!([hash(&fresh, "one"), hash(&fresh, "two")], ["one", "two"]);
        let during = cache.sha256_of(std::slice::from_ref(&fresh), Progress::Hidden, || {
            std::fs::write(&fresh, "bc").unwrap();
            Ok("three".into())
        });
        assert!(during.unwrap_err().to_string().contains("has changed while it was read"));
    }
}
