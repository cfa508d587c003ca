//! A lab and what it keeps, in cells.

use super::card::{Card, column, table};
use crate::error::Result;
use crate::format::{size, thousands};
use crate::lab::{CacheSummary, DeviceMemory, Lab, StageSummary};
use crate::rich::{Bundle, Rich, shown_in_cells};
use serde_json::json;

impl Rich for CacheSummary {
    fn bundle(&self) -> Result<Bundle> {
        let numbers = |get: fn(&StageSummary) -> u64| self.stages.values().map(get).collect::<Vec<_>>();
        let stages = table(vec![
            column("stage", self.stages.keys().map(String::as_str).collect::<Vec<_>>()),
            column("kept", numbers(|stage| stage.kept as u64)),
            column("size_bytes", numbers(|stage| stage.bytes)),
            column("computed", numbers(|stage| stage.uses.computed)),
            column("from disk", numbers(|stage| stage.uses.disk_hits)),
            column("from memory", numbers(|stage| stage.uses.memory_hits)),
        ])?;
        // Without the directory: reports are the same on every machine.
        let json = json!({"bytes": self.bytes(), "max_bytes": self.max_bytes, "stages": self.stages});
        Card::new(format!("Cache: {}", self.place()), json).table(stages).bundle()
    }
}

impl Rich for DeviceMemory {
    fn bundle(&self) -> Result<Bundle> {
        let json = serde_json::to_value(self).unwrap_or_default();
        let weights = self.weights;
        let mut facts = vec![
            ("weights", format!("{} in {} tensors", size(weights.bytes), weights.tensors)),
            ("at most", weights.budget_bytes.map_or("all of the model".to_owned(), size)),
            ("found there", weights.hits.to_string()),
            ("read", weights.reads.to_string()),
            ("gone to make room", weights.evictions.to_string()),
        ];
        if let Some(memory) = self.memory {
            facts.push(("device", format!("{} free of {}", size(memory.free_bytes), size(memory.total_bytes))));
        }
        Card::new(self.to_string(), json).facts("memory", &self.device, facts)?.bundle()
    }
}

/// Without the cache, which is another in every run: [`Lab::cache`] shows it.
impl Rich for Lab {
    fn bundle(&self) -> Result<Bundle> {
        let (model, calibration) = (self.model().record()?, self.calibration().map(crate::text::Windows::record));
        let device = if self.device().is_cpu() { "CPU" } else { "GPU" };
        let parameters = thousands(i128::from(model.parameters));
        let text = calibration.as_ref().map_or_else(
            || "none yet: calibrate_on gives it".to_owned(),
            |text| format!("{} windows of {} tokens of {}", text.windows, text.seqlen, text.name),
        );
        let summary = format!("Lab of {}: {parameters} parameters on the {device}", model.name);
        let json = json!({"model": model, "device": device, "calibration": calibration});
        let facts = vec![
            ("parameters", parameters),
            ("arithmetic", format!("{} on the {device}", self.model().dtype().as_str())),
            ("calibration", text),
        ];
        Card::new(summary, json).facts("lab", &model.name, facts)?.bundle()
    }
}

shown_in_cells!(CacheSummary, DeviceMemory, Lab);
