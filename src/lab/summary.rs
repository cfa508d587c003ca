//! What a cache holds.

use crate::cache::{Cache, Uses};
use crate::report::size;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// What is kept of each stage, and how often this session found it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CacheSummary {
    /// Where it is kept; `None` for a cache that keeps nothing.
    pub dir: Option<PathBuf>,
    /// Bytes that may be kept.
    pub max_bytes: u64,
    /// By the stage's name.
    pub stages: BTreeMap<String, StageSummary>,
}

/// What is kept of a stage, and how often this session found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageSummary {
    /// Number of results that are kept, of any model.
    pub kept: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How often this session computed and found one.
    pub uses: Uses,
}

impl CacheSummary {
    pub(super) fn of(cache: &Cache) -> CacheSummary {
        let mut stages: BTreeMap<String, StageSummary> = BTreeMap::new();
        // A directory that cannot be read shows as empty; what a lab looks up there says why.
        for entry in cache.entries().unwrap_or_default() {
            let stage = stages.entry(entry.stage).or_default();
            stage.kept += 1;
            stage.bytes += entry.bytes;
        }
        for (name, uses) in cache.uses() {
            stages.entry(name.to_owned()).or_default().uses = uses;
        }
        CacheSummary { dir: cache.dir().map(PathBuf::from), max_bytes: cache.max_bytes(), stages }
    }

    /// A stage; zeros for one that was never used.
    pub fn of_stage(&self, stage: &str) -> StageSummary {
        self.stages.get(stage).copied().unwrap_or_default()
    }

    /// Bytes of all that is kept.
    pub fn bytes(&self) -> u64 {
        self.stages.values().map(|stage| stage.bytes).sum()
    }

    fn rows(&self) -> Vec<[String; 6]> {
        let row = |(name, stage): (&String, &StageSummary)| {
            let Uses { computed, disk_hits, memory_hits } = stage.uses;
            let counts = [computed, disk_hits, memory_hits].map(|count| count.to_string());
            let [computed, disk, memory] = counts;
            [name.clone(), stage.kept.to_string(), size(stage.bytes), computed, disk, memory]
        };
        self.stages.iter().map(row).collect()
    }

    /// How much of what there may be is where.
    pub(crate) fn place(&self) -> String {
        let Some(dir) = &self.dir else { return "nothing is kept on disk".to_owned() };
        let home = std::env::home_dir().filter(|home| home.parent().is_some());
        let dir = match home.as_ref().and_then(|home| dir.strip_prefix(home).ok()) {
            Some(rest) => format!("~/{}", rest.display()),
            None => dir.display().to_string(),
        };
        format!("{} of {} in {dir}", size(self.bytes()), size(self.max_bytes))
    }
}

const HEADINGS: [&str; 6] = ["stage", "kept", "size", "computed", "from disk", "from memory"];

impl fmt::Display for CacheSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        rows.extend(self.rows());
        for [stage, rest @ ..] in rows {
            write!(f, "{stage:12}")?;
            rest.iter().try_for_each(|cell| write!(f, " {cell:>11}"))?;
            writeln!(f)?;
        }
        f.write_str(&self.place())
    }
}
