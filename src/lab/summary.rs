//! Summaries of the results in a cache and of the weights on a device.

use super::Stage;
use crate::cache::{Cache, Uses};
use crate::device::{self, Memory};
use crate::format::size;
use crate::model::{Model, Residency};
use candle_core::DeviceLocation;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Results that a cache keeps, by stage, and how often this session found one.
#[derive(Clone, PartialEq, Serialize)]
pub struct CacheSummary {
    /// Directory of the cache; `None` for a cache that keeps nothing.
    pub dir: Option<PathBuf>,
    /// Bytes that may be kept.
    pub max_bytes: u64,
    /// By the stage's name.
    pub stages: BTreeMap<String, StageSummary>,
}

crate::debug::one_line!(rich CacheSummary, |summary| {
    let kept: usize = summary.stages.values().map(|stage| stage.kept).sum();
    format!("CacheSummary({kept} results, {} bytes)", summary.bytes())
});

/// Results that a cache keeps of one stage, and how often this session found one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageSummary {
    /// Number of results that are kept, of any model.
    pub kept: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Numbers of results that this session computed and found.
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
    pub fn of_stage(&self, stage: Stage) -> StageSummary {
        self.stages.get(stage.name()).copied().unwrap_or_default()
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

    /// The bytes in use, the limit and the directory, as text.
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

/// Weights of a lab's model on its device, and the device's memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceMemory {
    /// `cpu`, or `cuda:0` and so on.
    pub device: String,
    /// The weights that are there.
    pub weights: Residency,
    /// Memory of the device, if it is a GPU.
    pub memory: Option<Memory>,
}

impl DeviceMemory {
    pub(super) fn of(model: &Model) -> DeviceMemory {
        let device = match model.device().location() {
            DeviceLocation::Cpu => "cpu".to_owned(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        };
        DeviceMemory { device, weights: model.residency(), memory: device::memory(model.device()) }
    }
}

impl fmt::Display for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Residency { tensors, bytes, budget_bytes, hits, reads, evictions } = self.weights;
        write!(f, "{}: {} of weights in {tensors} tensors, ", self.device, size(bytes))?;
        match budget_bytes {
            None => f.write_str("all of the model")?,
            Some(budget) => {
                let budget = size(budget);
                write!(f, "of at most {budget}; {hits} found there, {reads} read, {evictions} gone to make room")?;
            }
        }
        match self.memory {
            Some(Memory { total_bytes, free_bytes }) => {
                write!(f, "; the device has {} free of {}", size(free_bytes), size(total_bytes))
            }
            None => Ok(()),
        }
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
