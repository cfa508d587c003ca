//! Statistics as files.

use super::{Input, Statistics};
use crate::checkpoint::{Array, Checkpoint, CheckpointWriter};
use crate::error::{Error, Remedy, Result};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const DESCRIPTION: &str = "statistics.json";

/// The linears and counts of tokens that the stored arrays belong to.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    windows: usize,
    inputs: Vec<InputDescription>,
}

/// An input, whose arrays are `N.squares`, `N.sums`, `N.deviations` and `N.gram`, where N is its place in the list.
#[derive(Debug, Serialize, Deserialize)]
struct InputDescription {
    /// The weights' names.
    linears: Vec<String>,
    tokens: u64,
}

impl Statistics {
    /// Writes them to a new directory: `model.safetensors` with the sums in f64 and grams in f32, and `statistics.json`, which
    /// says whose they are. What [`Statistics::load`] reads is equal.
    ///
    /// # Errors
    /// [`Error::File`] when `dir` exists, when there are no statistics, or the disk is full; [`Error::Io`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let mut inputs: Vec<(Vec<String>, &Arc<Input>)> = Vec::new();
        for (name, input) in &self.inputs {
            match inputs.iter_mut().find(|(_, other)| Arc::ptr_eq(other, input)) {
                Some((names, _)) => names.push(name.clone()),
                None => inputs.push((vec![name.clone()], input)),
            }
        }
        let mut plan = Vec::new();
        for (i, (_, input)) in inputs.iter().enumerate() {
            let width = input.squares.len();
            plan.push((format!("{i}.squares"), Dtype::F64, vec![width]));
            if !input.sums.is_empty() {
                plan.push((format!("{i}.sums"), Dtype::F64, vec![width]));
                plan.push((format!("{i}.deviations"), Dtype::F64, vec![width]));
            }
            if !input.gram.is_empty() {
                plan.push((format!("{i}.gram"), Dtype::F32, vec![width, width]));
            }
        }
        let mut writer = CheckpointWriter::arrays(dir, plan)?;
        for (i, (_, input)) in inputs.iter().enumerate() {
            writer.write_array(&format!("{i}.squares"), Array::F64(&input.squares))?;
            writer.write_array(&format!("{i}.sums"), Array::F64(&input.sums))?;
            writer.write_array(&format!("{i}.deviations"), Array::F64(&input.deviations))?;
            writer.write_array(&format!("{i}.gram"), Array::F32(&input.gram))?;
        }
        let describe =
            |(linears, input): (Vec<String>, &Arc<Input>)| InputDescription { linears, tokens: input.tokens };
        let description = Description { windows: self.windows, inputs: inputs.into_iter().map(describe).collect() };
        let json = serde_json::to_vec_pretty(&description).map_err(|error| Error::file(dir, error))?;
        writer.add_file(DESCRIPTION, &json)?;
        writer.finish()
    }

    /// Reads what [`Statistics::save`] wrote.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Tensor`] for a directory that holds something else or is damaged; [`Error::Io`].
    pub fn load(dir: impl AsRef<Path>) -> Result<Statistics> {
        SavedStatistics::open(dir.as_ref())?.read()
    }
}

/// Statistics in files that are open, to be read when wanted.
#[derive(Debug)]
pub(crate) struct SavedStatistics {
    arrays: Checkpoint,
    description: Description,
}

impl SavedStatistics {
    /// # Errors
    /// As [`Statistics::load`].
    pub(crate) fn open(dir: &Path) -> Result<SavedStatistics> {
        let path = dir.join(DESCRIPTION);
        let json = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let wrong =
            |error| Error::file(&path, format!("does not describe statistics ({error})").remedy("gather them again"));
        let description = serde_json::from_slice(&json).map_err(wrong)?;
        Ok(SavedStatistics { arrays: Checkpoint::open_arrays(dir)?, description })
    }

    /// # Errors
    /// As [`Statistics::load`].
    pub(crate) fn read(&self) -> Result<Statistics> {
        let mut inputs = BTreeMap::new();
        for (i, InputDescription { linears, tokens }) in self.description.inputs.iter().enumerate() {
            let f64s = |name: String| self.arrays.array(&name, f64::from_le_bytes);
            let optional = |name: String| if self.arrays.contains(&name) { f64s(name) } else { Ok(Vec::new()) };
            let gram = format!("{i}.gram");
            let input = Arc::new(Input {
                tokens: *tokens,
                squares: f64s(format!("{i}.squares"))?,
                sums: optional(format!("{i}.sums"))?,
                deviations: optional(format!("{i}.deviations"))?,
                gram: if self.arrays.contains(&gram) {
                    self.arrays.array(&gram, f32::from_le_bytes)?
                } else {
                    Vec::new()
                },
            });
            inputs.extend(linears.iter().map(|name| (name.clone(), input.clone())));
        }
        Ok(Statistics { inputs, windows: self.description.windows })
    }
}
