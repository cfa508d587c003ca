//! Pruning: a method, a configuration, and the block loop.
//!
//! The loop holds one block's weights and the calibration activations, never the model: a block is read, its inputs pass
//! through it, its weights are scored and selected, and what comes out of the pruned block (or of the dense one) goes into
//! the next.

mod apply;
mod masks;

pub use apply::{apply, prune_with, validate};
pub use masks::{MasksConfig, masks};

use crate::calibrate::{Statistics, calibrate};
use crate::checkpoint::{Checkpoint, CheckpointWriter, TensorInfo};
pub use crate::importance::Method;
use crate::importance::Scorer;
use crate::mask::{Mask, Pattern, Per, select};
use crate::model::{Block, ExpertStorage, Linear, Model, Wanted, pass};
use crate::progress::{Progress, check_interrupt};
use crate::record::{PruningRecord, Record, TensorRecord};
use crate::text::Windows;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

/// What a block's inputs are during calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Propagate {
    /// The outputs of the pruned blocks before it, as in the reference implementations.
    Pruned,
    /// The outputs of the dense blocks before it: one forward pass serves every method and ratio.
    Dense,
}

crate::error::named!(Propagate, "propagate", Pruned => "pruned", Dense => "dense");

/// How to prune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PruneConfig {
    /// Importance metric.
    pub method: Method,
    /// Shape of the zeros.
    pub pattern: Pattern,
    /// What an unstructured selection compares; N:M always compares within a group.
    pub per: Per,
    /// Fraction of zeros in each linear, in `[0, 1)`. An N:M pattern prescribes its own.
    pub sparsity: f64,
    /// What a block's inputs are during calibration.
    pub propagate: Propagate,
    /// Seed of random scores, and on record as the seed of the calibration windows.
    pub seed: u64,
}

impl PruneConfig {
    /// Unstructured pruning to `sparsity` as the method's paper does it: per row for Wanda, per layer otherwise; pruned
    /// propagation, seed 0.
    pub fn new(method: Method, sparsity: f64) -> Self {
        let per = if method == Method::Wanda { Per::Row } else { Per::Layer };
        PruneConfig { method, pattern: Pattern::Unstructured, per, sparsity, propagate: Propagate::Pruned, seed: 0 }
    }

    /// `n:m` pruning (kept-of-M) with the sparsity that this means.
    pub fn n_of_m(method: Method, n: usize, m: usize) -> Self {
        let pattern = Pattern::NofM { n, m };
        PruneConfig { pattern, per: Per::Row, ..PruneConfig::new(method, pattern.sparsity().unwrap_or_default()) }
    }

    /// Checks the settings on their own, before anything is read.
    ///
    /// # Errors
    /// [`Error::Argument`] for a sparsity outside `[0, 1)`, or another one than the pattern prescribes.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::argument("sparsity", self.sparsity, "must be at least 0 and below 1"));
        }
        if let Some(prescribed) = self.pattern.sparsity()
            && (prescribed - self.sparsity).abs() > 1e-9
        {
            let problem =
                format!("pattern {} prescribes {prescribed}; leave the sparsity out or choose another", self.pattern);
            return Err(Error::argument("sparsity", self.sparsity, problem));
        }
        Ok(())
    }

    fn validate_with(&self, calibration: Option<&Windows>) -> Result<()> {
        self.validate()?;
        if self.method.needs_calibration() && calibration.is_none_or(|windows| windows.ids.is_empty()) {
            return Err(Error::argument("method", self.method, "needs calibration text"));
        }
        Ok(())
    }

    fn record(&self, model: &Model, calibration: Option<&Windows>) -> PruningRecord {
        PruningRecord {
            method: self.method.to_string(),
            pattern: self.pattern.to_string(),
            per: if self.pattern == Pattern::Unstructured { self.per } else { Per::Row }.to_string(),
            sparsity: self.sparsity,
            propagate: self.propagate.to_string(),
            seed: self.seed,
            dtype: model.dtype().as_str().into(),
            calibration: calibration.filter(|_| self.method.needs_calibration()).map(Windows::record),
        }
    }
}

/// A pruned model in memory.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// The model with zeros in place.
    pub model: Model,
    /// The mask of each pruned linear, in model order.
    pub masks: Vec<(String, Mask)>,
    /// What was done.
    pub record: Record,
}

/// Prunes a model in memory. The input is not changed; unpruned tensors are shared with it.
///
/// # Errors
/// [`Error::Argument`] for a configuration that makes no sense or does not fit the model, and for a model whose experts are
/// stacked in one tensor (gpt-oss); [`Error::Tensor`] for weights
/// that are not finite, [`Error::Interrupted`].
pub fn prune(model: &Model, calibration: Option<&Windows>, config: &PruneConfig, progress: Progress) -> Result<Pruned> {
    let started = Instant::now();
    let (mut masks, mut replaced) = (Vec::new(), Vec::new());
    let tensors = for_each_block(model, calibration, config, progress, |block, block_masks| {
        replaced.extend(block.linears().into_iter().map(|linear| (linear.name.clone(), linear.weight.clone())));
        masks.extend(block_masks);
        Ok(())
    })?;
    let record = record(model, calibration, config, tensors, started)?;
    Ok(Pruned { model: model.with_tensors(replaced)?, masks, record })
}

/// Prunes a checkpoint to a new directory `out`: the same tensors, dtypes and shards, zeros in place, every other weight
/// bit-exact, and `lacuna.json` with the record. `model` is that checkpoint opened with the dtype and device to compute on.
///
/// Memory: one block's weights and the activations of the calibration windows. `out` appears when everything is in it.
///
/// # Errors
/// As [`prune`], and [`Error::Io`] when `out` exists or cannot be written.
pub fn prune_to(
    model: &Model,
    calibration: Option<&Windows>,
    config: &PruneConfig,
    out: &Path,
    progress: Progress,
) -> Result<Record> {
    let started = Instant::now();
    let Some(checkpoint) = model.checkpoint() else {
        return Err(Error::file(out, "the model exists in memory only; prune the checkpoint that it came from"));
    };
    config.validate_with(calibration)?;
    let mut writer = CheckpointWriter::like(checkpoint, out, None)?;
    let mut pruned = HashSet::new();
    let tensors = for_each_block(model, calibration, config, progress, |_, masks| {
        for (name, mask) in masks {
            write_masked(checkpoint, &mut writer, &name, &mask)?;
            pruned.insert(name);
        }
        Ok(())
    })?;
    let others: Vec<_> = checkpoint.tensors().filter(|tensor| !pruned.contains(&tensor.name)).collect();
    let stage = progress.stage("copy", others.len() as u64);
    for tensor in others {
        copy(checkpoint, &mut writer, tensor)?;
        stage.inc(1)?;
    }
    let record = record(model, calibration, config, tensors, started)?;
    finish(checkpoint, writer, out, &record)?;
    Ok(record)
}

/// Adds the record and the files beside the weights, and lets `out` appear.
fn finish(checkpoint: &Checkpoint, mut writer: CheckpointWriter, out: &Path, record: &Record) -> Result<()> {
    let json = serde_json::to_vec_pretty(record).map_err(|error| Error::file(out, error))?;
    writer.add_file("lacuna.json", &json)?;
    writer.copy_others(checkpoint)?;
    check_interrupt()?;
    writer.finish()
}

/// Copies a tensor as it is stored. Most of these were never part of a computation, so what is not finite shows here.
fn copy(checkpoint: &Checkpoint, writer: &mut CheckpointWriter, tensor: &TensorInfo) -> Result<()> {
    let dtype = match tensor.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => return writer.write(&tensor.name, &checkpoint.read(&tensor.name)?),
    };
    writer.write_tensor(&tensor.name, &checkpoint.load_finite(&tensor.name, dtype, &Device::Cpu)?)
}

/// Copies a tensor as it is stored, with zeros where the mask says so. Returns what was written.
fn write_masked(checkpoint: &Checkpoint, writer: &mut CheckpointWriter, name: &str, mask: &Mask) -> Result<Vec<u8>> {
    let mut bytes = checkpoint.read(name)?;
    let (rows, cols) = mask.shape();
    let width = bytes.len() / (rows * cols).max(1);
    mask.for_each_pruned(|index| bytes[index * width..(index + 1) * width].fill(0));
    writer.write(name, &bytes)?;
    Ok(bytes)
}

fn record(
    model: &Model,
    calibration: Option<&Windows>,
    config: &PruneConfig,
    tensors: Vec<TensorRecord>,
    started: Instant,
) -> Result<Record> {
    let pruning = Some(config.record(model, calibration));
    let mut record = Record { pruning, tensors, ..Record::dense(model.record()?) };
    record.environment.insert("prune_seconds".into(), started.elapsed().as_secs_f64().into());
    Ok(record)
}

/// The block loop. `sink` gets each block after its weights were zeroed, and the masks of its linears.
fn for_each_block(
    model: &Model,
    calibration: Option<&Windows>,
    config: &PruneConfig,
    progress: Progress,
    mut sink: impl FnMut(&Block, Vec<(String, Mask)>) -> Result<()>,
) -> Result<Vec<TensorRecord>> {
    config.validate_with(calibration)?;
    if model.config().moe.as_ref().is_some_and(|moe| moe.storage != ExpertStorage::Separate) {
        let problem =
            "its experts are stacked in one tensor, whose weights cannot be pruned singly; prune whole experts";
        return Err(Error::argument("model", model.name(), problem));
    }
    let calibration = calibration.filter(|_| config.method.needs_calibration());
    let dense = match (calibration, config.propagate) {
        (Some(windows), Propagate::Dense) => Some(calibrate(model, windows, progress)?),
        _ => None,
    };
    let propagated = calibration.filter(|_| config.propagate == Propagate::Pruned);
    let mut hidden = propagated.map(|windows| model.embed(&windows.ids)).transpose()?.unwrap_or_default();
    let rope = model.rope(propagated.map_or(0, |windows| windows.seqlen));
    // A step is one window through one block, which happens twice (once in the last), or the selection in one block.
    let steps = model.blocks() * (2 * hidden.len() + 1) - hidden.len();
    let stage = progress.stage("prune", steps as u64);
    let mut tensors = Vec::new();
    for i in 0..model.blocks() {
        let mut block = model.block(i)?;
        let mut own = Statistics::new(hidden.len());
        own.expect(&block.linears())?;
        pass(model, &block, &rope, &mut hidden, Wanted::Taps, &stage, |window| own.add(window))?;
        let statistics = dense.as_ref().unwrap_or(&own);
        let mut masks = Vec::new();
        for linear in block.linears_mut() {
            let (mask, zeros) = prune_linear(linear, statistics, config)?;
            let (out, input) = mask.shape();
            tensors.push(TensorRecord { name: linear.name.clone(), shape: [out, input], zeros });
            masks.push((linear.name.clone(), mask));
            check_interrupt()?;
        }
        if i + 1 < model.blocks() {
            pass(model, &block, &rope, &mut hidden, Wanted::Output, &stage, |()| ())?;
        }
        stage.inc(1)?;
        sink(&block, masks)?;
    }
    Ok(tensors)
}

/// Selects and zeroes the weights of one linear. Also returns its number of zeros, those included that it had before.
fn prune_linear(linear: &mut Linear, statistics: &Statistics, config: &PruneConfig) -> Result<(Mask, u64)> {
    let shape = linear.weight.dims2()?;
    let dtype = linear.weight.dtype();
    let mut weights: Vec<f32> =
        linear.weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let norms = statistics.column_norms(&linear.name);
    let scorer = Scorer::new(config.method, &linear.name, norms.as_deref(), config.seed)?;
    let mask = select(&linear.name, shape, config.pattern, config.per, config.sparsity, |row, scores| {
        scorer.row(row, &weights[row * shape.1..(row + 1) * shape.1], scores);
    })?;
    mask.for_each_pruned(|index| weights[index] = 0.0);
    let zeros = weights.iter().filter(|&&weight| weight == 0.0).count() as u64;
    linear.weight =
        Tensor::from_vec(weights, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(linear.weight.device())?;
    Ok((mask, zeros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_pruned_in_memory_is_no_source_of_a_checkpoint() {
        let model = Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-mixtral")).unwrap();
        let config = PruneConfig::new(Method::Magnitude, 0.5);
        let pruned = prune(&model, None, &config, Progress::Hidden).unwrap();
        assert_eq!((pruned.record.sparsity(), pruned.model.record().unwrap().sha256.as_str()), (0.5, ""));
        let out = tempfile::tempdir().unwrap().path().join("out");
        let error = prune_to(&pruned.model, None, &config, &out, Progress::Hidden).unwrap_err().to_string();
        assert!(error.contains("in memory only") && !out.exists(), "{error}");
    }
}
