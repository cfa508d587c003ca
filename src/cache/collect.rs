//! Lists the results in a cache, and removes some of them.

use super::{Cache, DESCRIPTION, Description, files};
use crate::error::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Age from which what was being filled or removed counts as left over by a process that was killed.
const LEFT_OVER: Duration = Duration::from_secs(24 * 60 * 60);

/// A kept result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedResult {
    /// Name of its directory.
    pub name: String,
    /// The stage that it came from; `damaged` for what cannot be read, `unfinished` for what a killed process left.
    pub stage: String,
    /// A title for people.
    pub title: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// The time at which it was made or used last.
    pub used: SystemTime,
    #[serde(skip)]
    path: PathBuf,
}

impl CachedResult {
    /// Time since it was used last.
    pub fn age(&self) -> Duration {
        self.used.elapsed().unwrap_or_default()
    }

    fn read(path: &Path, name: String) -> CachedResult {
        let modified = |path: &Path| path.metadata().and_then(|file| file.modified());
        let used = modified(&path.join(DESCRIPTION)).or_else(|_| modified(path)).unwrap_or(SystemTime::UNIX_EPOCH);
        let (stage, title) = match Description::read(path) {
            _ if name.starts_with('.') => ("unfinished".to_owned(), String::new()),
            Ok(description) => (description.stage, description.title),
            Err(_) => ("damaged".to_owned(), String::new()),
        };
        CachedResult { name, stage, title, bytes: files::bytes(path), used, path: path.to_path_buf() }
    }

    fn is_unfinished(&self) -> bool {
        self.stage == "unfinished"
    }
}

/// The results to be removed. Damaged entries and leftovers of killed processes are removed in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collect {
    /// Removes results that were not used for this long.
    pub older_than: Option<Duration>,
    /// Removes the results that were used least recently, until this many bytes are left.
    pub max_bytes: Option<u64>,
    /// Removes nothing.
    pub dry_run: bool,
}

/// Returns whether the cache gives such names: `STAGE-HASH`, and `.STAGE-HASH.` with more behind it while it is filled
/// or removed.
fn is_ours(name: &str) -> bool {
    let entry = match name.strip_prefix('.') {
        Some(hidden) => hidden.split('.').next().filter(|entry| entry.len() + 1 < hidden.len()),
        None => Some(name),
    };
    let parts = entry.and_then(|entry| entry.rsplit_once('-'));
    parts.is_some_and(|(stage, hash)| {
        !stage.is_empty() && hash.len() == 32 && hash.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    })
}

impl Cache {
    /// All kept results, those used last first.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be read; one that does not exist holds nothing.
    pub fn entries(&self) -> Result<Vec<CachedResult>> {
        let mut entries = self.scan()?;
        entries.retain(|entry| !entry.is_unfinished());
        Ok(entries)
    }

    fn scan(&self) -> Result<Vec<CachedResult>> {
        let Some(dir) = self.dir() else { return Ok(Vec::new()) };
        let list = match std::fs::read_dir(dir) {
            Ok(list) => list,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", dir)(error)),
        };
        let mut entries = Vec::new();
        for entry in list {
            let entry = entry.map_err(Error::io("read", dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The directory may hold what is none of ours. Other processes add and remove meanwhile.
            if is_ours(&name) && entry.path().is_dir() {
                entries.push(CachedResult::read(&entry.path(), name));
            }
        }
        entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.name.cmp(&b.name)));
        Ok(entries)
    }

    /// Removes what `collect` says, and returns it.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be read, or an entry cannot be removed.
    pub fn collect(&self, collect: &Collect) -> Result<Vec<CachedResult>> {
        self.remove(self.scan()?, collect, None)
    }

    /// Makes room for what was just kept as `newest`.
    pub(super) fn trim(&self, newest: &str) -> Result<()> {
        let collect = Collect { max_bytes: Some(self.max_bytes()), ..Collect::default() };
        self.remove(self.scan()?, &collect, Some(newest)).map(drop)
    }

    fn remove(&self, entries: Vec<CachedResult>, collect: &Collect, newest: Option<&str>) -> Result<Vec<CachedResult>> {
        let (mut left, mut full) = (0, false);
        let mut removed = Vec::new();
        for entry in entries {
            let keep = if entry.is_unfinished() {
                entry.age() < LEFT_OVER
            } else if newest == Some(entry.name.as_str()) {
                left += entry.bytes;
                true
            } else {
                full |= collect.max_bytes.is_some_and(|max| left + entry.bytes > max);
                let goes = full || entry.stage == "damaged" || collect.older_than.is_some_and(|age| entry.age() >= age);
                left += if goes { 0 } else { entry.bytes };
                !goes
            };
            if keep {
                continue;
            }
            if !collect.dry_run {
                files::remove(&entry.path)?;
            }
            removed.push(entry);
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_caches_stays() {
        let dir = tempfile::tempdir().unwrap();
        let ours = "statistics-0123456789abcdef0123456789abcdef";
        let strangers =
            ["src", ".git", "my-thesis", ".statistics", "statistics-0123", "data-0123456789ABCDEF0123456789ABCDEF"];
        for name in strangers.iter().chain([&ours]) {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("file"), "x").unwrap();
        }
        assert!(
            is_ours(&format!(".{ours}.aB3x.tmp"))
                && is_ours(&format!(".{ours}.Q.gone"))
                && !is_ours(&format!(".{ours}"))
        );
        let cache = Cache::at(dir.path(), 1 << 20);
        let removed = cache.collect(&Collect { max_bytes: Some(0), ..Collect::default() }).unwrap();
        assert_eq!(removed.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), [ours]);
        assert!(strangers.iter().all(|name| dir.path().join(name).join("file").is_file()));
    }
}
