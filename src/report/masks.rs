//! Masks as a directory of files.

#[cfg(feature = "report")]
use super::Plot;
use super::json::{pretty, write_atomic};
use crate::error::{Error, Remedy, Result};
use crate::files;
use crate::mask::{MaskFormat, MaskSet, Pattern};
use crate::progress::Progress;
use crate::record::SCHEMA_VERSION;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// One file of a directory that [`write_masks`] made.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct MaskFile {
    /// The masks' file name.
    pub file: String,
    /// Importance metric.
    pub method: String,
    /// Shape of the zeros.
    pub pattern: String,
    /// The comparison group.
    pub per: String,
    /// Target sparsity.
    pub target: f64,
    /// Number of pruned weights.
    pub pruned: u64,
    /// Number of weights.
    pub elements: u64,
    /// `pruned / elements`.
    pub sparsity: f64,
    /// Sparsity of the row that loses least.
    pub min_row_sparsity: f64,
    /// Sparsity of the row that loses most.
    pub max_row_sparsity: f64,
    /// Checksum of the masks ([`MaskSet::sha256`]).
    pub sha256: String,
}

/// Writes each set, by its method and sparsity or pattern, to a new directory `dir`: `wanda-0.50.safetensors` (or another
/// `format`), `wanda-0.50.json` with metadata and statistics, with the feature `report` `wanda-0.50.png` with the
/// spread of sparsity; and `summary.json` over all. `dir` appears when everything is in it.
///
/// # Errors
/// [`Error::File`] when `dir` exists; [`Error::Argument`] for sets that are not known to have been selected, or two of one
/// name; [`Error::Io`] when writing fails.
pub fn write_masks(dir: &Path, sets: &[MaskSet], format: MaskFormat, progress: Progress) -> Result<Vec<MaskFile>> {
    let stage = progress.stage("write", sets.len() as u64);
    let mut written = Vec::with_capacity(sets.len());
    files::create_dir(dir, |dir| {
        let mut stems = BTreeSet::new();
        for set in sets {
            let Some((metadata, pruning)) = set.metadata.as_ref().and_then(|m| Some((m, m.pruning.as_ref()?))) else {
                return Err(Error::argument(
                    "masks",
                    "unknown",
                    "have no method that a file could be called by".remedy("save them one by one"),
                ));
            };
            let sparsity = match metadata.pattern() {
                Pattern::Unstructured => level(pruning.sparsity),
                Pattern::NofM { n, m } => format!("{n}of{m}"),
            };
            let stem = format!("{}-{sparsity}", pruning.method);
            if !stems.insert(stem.clone()) {
                return Err(Error::argument(
                    "masks",
                    stem,
                    "two sets have that method and sparsity".remedy("leave one out"),
                ));
            }
            let file = format!("{stem}.{}", format.extension());
            set.save_as(dir.join(&file), format)?;
            let statistics = set.statistics();
            #[cfg(feature = "report")]
            {
                let zeros = match metadata.pattern() {
                    Pattern::Unstructured => sparsity,
                    pattern => pattern.to_string(),
                };
                let title = format!("Spread of sparsity: {} at {zeros}", pruning.method);
                let png = Plot::mask_sparsity(title, &statistics).png()?;
                write_atomic(&dir.join(format!("{stem}.png")), &png)?;
            }
            let sha256 = set.sha256();
            let about = json!({
                "schema": SCHEMA_VERSION, "file": file, "sha256": sha256, "metadata": metadata, "statistics": statistics,
            });
            write_json(&dir.join(format!("{stem}.json")), &about)?;
            written.push(MaskFile {
                file,
                method: pruning.method.to_string(),
                pattern: pruning.pattern.to_string(),
                per: pruning.per.to_string(),
                target: pruning.sparsity,
                pruned: statistics.all.pruned,
                elements: statistics.all.elements,
                sparsity: statistics.all.sparsity,
                min_row_sparsity: statistics.all.min_row_sparsity,
                max_row_sparsity: statistics.all.max_row_sparsity,
                sha256,
            });
            stage.inc(1)?;
        }
        let model = sets.first().and_then(|set| set.metadata.as_ref()).map(|metadata| &metadata.model);
        write_json(&dir.join("summary.json"), &json!({"schema": SCHEMA_VERSION, "model": model, "masks": written}))
    })?;
    Ok(written)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_atomic(path, pretty(value)?.as_bytes())
}

/// A sparsity in a file's name: two decimals, or as many as it needs.
fn level(sparsity: f64) -> String {
    let (short, exact) = (format!("{sparsity:.2}"), sparsity.to_string());
    if exact.len() > short.len() { exact } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_in_names() {
        for (sparsity, text) in [(0.5, "0.50"), (0.0, "0.00"), (0.57, "0.57"), (0.125, "0.125")] {
            assert_eq!(level(sparsity), text);
        }
    }
}
