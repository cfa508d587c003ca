//! Pruning: a method, a configuration, and the layer loop.
//!
//! The loop holds one layer's weights and the calibration activations, never the model: a layer is read, its inputs
//! pass through it, its weights are scored and selected, and the outputs of the pruned layer (or of the dense one) are
//! the inputs of the next.

mod apply;
mod config;
mod known;
mod layer_loop;
mod masks;

pub use crate::importance::Method;
pub use apply::{apply, apply_to, validate};
pub use config::{Propagate, PruneConfig};
pub use layer_loop::outliers;
pub use masks::{MasksConfig, masks};

pub(crate) use known::{Known, Needs, Subject};
pub(crate) use masks::masks_of;

use crate::calibrate::{Gather, Statistics};
use crate::checkpoint::{Checkpoint, CheckpointWriter, TensorInfo, float_dtype};
use crate::device;
use crate::dsnot::{self, DsnotInputs};
use crate::error::{Error, Remedy, Result};
use crate::gradients::Gradients;
use crate::importance::Evidence;
use crate::mask::{Mask, apply_on_device, select_levels};
use crate::model::{DecoderLayer, Linear, Model};
use crate::progress::{Progress, Stage, check_interrupt};
use crate::record::{Record, TensorRecord};
use crate::sparsegpt::{Factor, SparseGpt, sparsegpt, sparsegpt_on_device};
use crate::text::Windows;
use candle_core::{DType, Device, Tensor};
use layer_loop::{Dense, Targets, check_model, note_silent, select_on_device, weights_of};
use std::collections::BTreeSet;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

/// A pruned model in memory.
#[derive(Clone)]
pub struct Pruned {
    /// The model with zeros in place.
    pub model: Model,
    /// The mask of each pruned linear, in model order.
    pub masks: Vec<(String, Mask)>,
    /// The record of the settings and results.
    pub record: Record,
}

crate::debug::one_line!(rich Pruned, |pruned| format!("Pruned({:?}, {} masks)", pruned.record, pruned.masks.len()));

/// Prunes a model in memory. The input is not changed; unpruned tensors are shared with it. Of a model that has a budget
/// ([`Model::within`]) masks are in memory, or weights where the method changes those that stay.
///
/// # Errors
/// [`Error::Argument`] for a configuration that makes no sense or does not fit the model, and for a model whose experts are
/// packed in MXFP4 (gpt-oss); [`Error::Tensor`] for weights
/// that are not finite, [`Error::Interrupted`].
pub fn prune(model: &Model, calibration: Option<&Windows>, config: &PruneConfig, progress: Progress) -> Result<Pruned> {
    prune_subject(Subject { model, calibration, known: &Known::default(), progress }, config)
}

/// Prunes as [`prune`] does, with what is known of the model.
pub(crate) fn prune_subject(subject: Subject<'_>, config: &PruneConfig) -> Result<Pruned> {
    let started = Instant::now();
    let Subject { model, calibration, .. } = subject;
    let (mut masks, mut replaced) = (Vec::new(), Vec::new());
    let as_masks = model.in_parts() && config.method != Method::SparseGpt;
    let tensors = for_each_layer(subject, config, |layer, layer_masks| {
        let changed: HashSet<&str> = layer_masks.iter().map(|(name, _)| name.as_str()).collect();
        let linears = layer.linears().into_iter().filter(|linear| changed.contains(linear.name.as_str()));
        for linear in linears.filter(|_| !as_masks) {
            let weight = if model.in_parts() { device::to_host(&linear.weight)? } else { linear.weight.clone() };
            replaced.push((linear.name.clone(), weight));
        }
        masks.extend(layer_masks);
        Ok(())
    })?;
    let record = record(model, calibration, config, tensors, started)?;
    let model = if as_masks { model.with_masks(masks.iter().cloned())? } else { model.with_tensors(replaced)? };
    Ok(Pruned { model, masks, record })
}

/// Makes the result of [`prune`] again from what was kept of it: the masks, the zeros of each tensor, and the weights where the
/// method changes those that stay.
pub(crate) fn pruned_before(
    model: &Model,
    calibration: Option<&Windows>,
    config: &PruneConfig,
    masks: Vec<(String, Mask)>,
    weights: Option<Vec<(String, Tensor)>>,
    tensors: Vec<TensorRecord>,
) -> Result<Pruned> {
    let started = Instant::now();
    let pruned = match weights {
        Some(weights) => model.with_tensors(weights)?,
        None => model.with_masks(masks.iter().cloned())?,
    };
    let record = record(model, calibration, config, tensors, started)?;
    Ok(Pruned { model: pruned, masks, record })
}

/// Prunes a checkpoint to a new directory `out`: the same tensors, dtypes and shards, zeros in place, every other weight
/// bit-exact, and `lacuna.json` with the record. `model` is that checkpoint opened with the dtype and device to compute on.
///
/// Memory: one layer's weights and the activations of the calibration windows; and of up to two layers before it, which are written
/// meanwhile, the masks, or the weights where the method changes those that stay. `out` appears when everything is in it.
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
        return Err(Error::file(
            out,
            "the model exists in memory only".remedy("prune the checkpoint that it came from"),
        ));
    };
    config.validate_with(calibration)?;
    let mut writer = CheckpointWriter::like(checkpoint, out, None)?;
    let mut pruned = HashSet::new();
    let subject = Subject { model, calibration, known: &Known::default(), progress };
    let mut write = |outcomes: Vec<(String, Outcome)>| {
        for (name, outcome) in outcomes {
            match outcome {
                Outcome::Mask(mask) => drop(write_masked(checkpoint, &mut writer, &name, &mask)?),
                Outcome::Weights(weights) => writer.write_tensor(&name, &weights)?,
            }
            pruned.insert(name);
        }
        Ok(())
    };
    let outcomes = |layer: &DecoderLayer, masks: Vec<(String, Mask)>| -> Result<Vec<(String, Outcome)>> {
        let linears: HashMap<_, _> = layer.linears().into_iter().map(|linear| (linear.name.as_str(), linear)).collect();
        let outcome = |(name, mask): (String, Mask)| {
            let outcome = match linears.get(name.as_str()) {
                Some(linear) if config.method == Method::SparseGpt => Outcome::Weights(as_in(checkpoint, linear)?),
                _ => Outcome::Mask(mask),
            };
            Ok((name, outcome))
        };
        masks.into_iter().map(outcome).collect()
    };
    let tensors = if rayon::current_thread_index().is_some() {
        // To wait here for another thread, which may need those of the pool, could be for ever.
        for_each_layer(subject, config, |layer, masks| write(outcomes(layer, masks)?))?
    } else {
        std::thread::scope(|scope| {
            let (give, layers) = mpsc::sync_channel(0);
            let writing = scope.spawn(move || layers.into_iter().try_for_each(write));
            let tensors = for_each_layer(subject, config, |layer, masks| {
                // Nobody takes it when writing has failed, which says why.
                give.send(outcomes(layer, masks)?).map_err(|_| Error::Interrupted)
            });
            drop(give);
            let written: Result<()> = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.and(tensors)
        })?
    };
    let others: Vec<_> = checkpoint.divided().filter(|tensor| !pruned.contains(&tensor.name)).collect();
    let stage = progress.stage("copy", others.len() as u64);
    for tensor in others {
        copy(checkpoint, &mut writer, tensor)?;
        stage.inc(1)?;
    }
    let record = record(model, calibration, config, tensors, started)?;
    writer.finish_with(checkpoint, &record)?;
    Ok(record)
}

/// Copies a tensor as it is stored. Most of these were never part of a computation, so what is not finite shows here.
fn copy(checkpoint: &Checkpoint, writer: &mut CheckpointWriter, tensor: &TensorInfo) -> Result<()> {
    let Some(dtype) = float_dtype(tensor.dtype) else {
        return writer.write(&tensor.name, &checkpoint.read(&tensor.name)?);
    };
    writer.write_tensor(&tensor.name, &checkpoint.load_finite(&tensor.name, dtype, &Device::Cpu)?)
}

/// Copies a tensor as it is stored, with zeros where the mask says so. Returns its bytes.
fn write_masked(checkpoint: &Checkpoint, writer: &mut CheckpointWriter, name: &str, mask: &Mask) -> Result<Vec<u8>> {
    let mut bytes = checkpoint.read(name)?;
    let (rows, cols) = mask.shape();
    let width = bytes.len() / (rows * cols).max(1);
    mask.for_each_pruned(|index| bytes[index * width..(index + 1) * width].fill(0));
    writer.write(name, &bytes)?;
    Ok(bytes)
}

/// The form in which a linear is written.
enum Outcome {
    Mask(Mask),
    Weights(Tensor),
}

/// Weights that were computed, on the host in the dtype that the checkpoint has.
fn as_in(checkpoint: &Checkpoint, linear: &Linear) -> Result<Tensor> {
    let stored = checkpoint.get(&linear.name)?.dtype;
    let Some(dtype) = float_dtype(stored) else {
        let problem =
            format!("is {stored:?}, in which changed weights cannot be written").remedy("convert it to bf16 first");
        return Err(Error::tensor(checkpoint.dir(), &linear.name, problem));
    };
    Ok(device::to_host(&linear.weight)?.to_dtype(dtype)?)
}

fn record(
    model: &Model,
    calibration: Option<&Windows>,
    config: &PruneConfig,
    tensors: Vec<TensorRecord>,
    started: Instant,
) -> Result<Record> {
    let pruning = Some(config.record(model, calibration)?);
    let mut record = Record { pruning, tensors, ..Record::dense(model.record()?) };
    record.environment.insert("prune_seconds".into(), started.elapsed().as_secs_f64().into());
    Ok(record)
}

/// Prunes layer by layer. `sink` gets each layer after its weights were changed, and the masks of its linears.
fn for_each_layer(
    subject: Subject<'_>,
    config: &PruneConfig,
    mut sink: impl FnMut(&DecoderLayer, Vec<(String, Mask)>) -> Result<()>,
) -> Result<Vec<TensorRecord>> {
    let Subject { model, calibration, .. } = subject;
    config.validate_with(calibration)?;
    let rules = check_model(model, &config.rules)?;
    let dense = Dense::new(subject, &[config.method], config.allocation)?;
    let scored = (config.method, config.seed);
    let targets = Targets::new(subject, config.allocation, &rules, &[config.sparsity], scored, &dense)?;
    let gather = Gather { sums: config.refine.is_some(), gram: config.method == Method::SparseGpt };
    let gather = (config.method.needs_inputs() || config.refine.is_some()).then_some(gather);
    let mut tensors = Vec::new();
    subject.for_each_layer(gather, config.propagate, |layer, statistics, stage| {
        let (gradients, checkpoint) = (dense.gradients.as_ref(), model.checkpoint());
        let silent = BTreeSet::new();
        let mut pruner = Pruner { config, statistics, gradients, checkpoint, stage, factor: None, silent };
        let mut masks = Vec::new();
        for linear in layer.linears_mut() {
            let Some(sparsity) = targets.get(0, &linear.name) else { continue };
            let (mask, zeros) = pruner.prune(linear, sparsity)?;
            let (out, input) = mask.shape();
            tensors.push(TensorRecord { name: linear.name.clone(), shape: [out, input], zeros });
            masks.push((linear.name.clone(), mask));
            check_interrupt()?;
        }
        note_silent(stage, &pruner.silent);
        sink(layer, masks)
    })?;
    Ok(tensors)
}

/// Prunes the linears of one layer.
struct Pruner<'a> {
    config: &'a PruneConfig,
    statistics: &'a Statistics,
    gradients: Option<&'a Gradients>,
    /// The checkpoint that the model was opened from.
    checkpoint: Option<&'a Checkpoint>,
    stage: &'a Stage,
    /// The last linear that had one, and the factor of its gram matrix: the next may share its input.
    factor: Option<(String, Factor)>,
    /// Linears of which the calibration text says nothing.
    silent: BTreeSet<String>,
}

impl Pruner<'_> {
    /// Changes the weights of one linear. Also returns its number of zeros, those included that it had before.
    fn prune(&mut self, linear: &mut Linear, sparsity: f64) -> Result<(Mask, u64)> {
        if let Some(pruned) = self.prune_on_device(linear, sparsity)? {
            return Ok(pruned);
        }
        let shape = linear.weight.dims2()?;
        let mut weights = weights_of(linear)?;
        let mask = match self.config.method {
            Method::SparseGpt => {
                let mask = self.reconstruct(linear, &mut weights, shape, sparsity)?;
                weights = self.as_stored(&linear.name, weights, shape.1)?;
                mask
            }
            _ => self.select(&linear.name, &weights, shape, sparsity)?,
        };
        mask.for_each_pruned(|index| weights[index] = 0.0);
        let zeros = weights.iter().filter(|&&weight| weight == 0.0).count() as u64;
        linear.weight = Tensor::from_vec(weights, shape, &Device::Cpu)?
            .to_dtype(linear.weight.dtype())?
            .to_device(linear.weight.device())?;
        Ok((mask, zeros))
    }

    /// As [`Pruner::prune`], on the device that holds the weights; `None` if that is no GPU with kernels for the
    /// settings.
    fn prune_on_device(&mut self, linear: &mut Linear, sparsity: f64) -> Result<Option<(Mask, u64)>> {
        let Pruner { config, statistics, gradients, .. } = *self;
        if config.refine.is_some() {
            return Ok(None);
        }
        let evidence = Evidence::of(&linear.name, config.method, Some(statistics), gradients, config.seed)?;
        let Some(masks) = select_on_device(linear, &evidence, config.criterion(), &[sparsity])? else {
            return Ok(None);
        };
        let Some(mask) = masks.into_iter().next() else { return Ok(None) };
        let Some((weight, zeros)) = apply_on_device(&linear.weight, &mask)? else { return Ok(None) };
        if evidence.is_silent() {
            self.silent.insert(linear.name.clone());
        }
        linear.weight = weight;
        Ok(Some((mask, zeros)))
    }

    fn select(&mut self, name: &str, weights: &[f32], shape: (usize, usize), sparsity: f64) -> Result<Mask> {
        let Pruner { config, statistics, gradients, .. } = *self;
        let evidence = Evidence::of(name, config.method, Some(statistics), gradients, config.seed)?;
        if evidence.is_silent() {
            self.silent.insert(name.to_owned());
        }
        let scorer = evidence.scorer_within(name, weights, shape)?;
        let masks = select_levels(name, shape, config.criterion(), &[sparsity], |row, scores| scorer.row(row, scores))?;
        let mut mask = masks.into_iter().next().unwrap_or_else(|| Mask::none(shape.0, shape.1));
        if let Some(settings) = &config.refine {
            let missing = || Error::tensor("statistics", name, "has none, and DSnoT needs those of its input");
            let norms = statistics.column_norms(name).ok_or_else(missing)?;
            let sums = statistics.column_sums(name).ok_or_else(missing)?;
            let variances = statistics.column_variances(name).ok_or_else(missing)?;
            let inputs = DsnotInputs { norms: &norms, sums: &sums, variances: &variances };
            dsnot::refine(name, weights, &mut mask, &inputs, config.pattern, settings)?;
        }
        Ok(mask)
    }

    /// Updated weights, `cols` a row, as the checkpoint will hold them, so that what the next layer is calibrated on is what is written.
    fn as_stored(&self, name: &str, weights: Vec<f32>, cols: usize) -> Result<Vec<f32>> {
        let stored = self.checkpoint.and_then(|checkpoint| float_dtype(checkpoint.get(name).ok()?.dtype));
        let Some(dtype @ (DType::F16 | DType::BF16)) = stored else { return Ok(weights) };
        let count = weights.len();
        let rounded =
            Tensor::from_vec(weights, count, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F32)?.to_vec1()?;
        match rounded.iter().position(|weight: &f32| !weight.is_finite()) {
            None => Ok(rounded),
            Some(at) => {
                let (row, col) = (at / cols, at % cols);
                let problem = format!("its updated weight at row {row}, column {col} is too large for {dtype:?}")
                    .remedy("convert the checkpoint to bf16");
                Err(Error::tensor("SparseGPT", name, problem))
            }
        }
    }

    fn reconstruct(
        &mut self,
        linear: &Linear,
        weights: &mut [f32],
        shape: (usize, usize),
        sparsity: f64,
    ) -> Result<Mask> {
        let (name, device) = (linear.name.as_str(), linear.weight.device());
        let settings = SparseGpt::default();
        let factor = match self.factor.take() {
            Some((other, factor)) if self.statistics.same_input(&other, name) => factor,
            _ => {
                let missing = || Error::tensor("statistics", name, "has none, and SparseGPT needs those of its input");
                let gram = self.statistics.gram(name).ok_or_else(missing)?;
                let factor = Factor::new(name, &gram, shape.1, &settings)?;
                if factor.damping() > settings.damping {
                    let (damping, used) = (settings.damping, factor.damping());
                    self.stage.note(format!("{name}: H is not positive definite with damping {damping}; used {used}"));
                }
                factor
            }
        };
        let PruneConfig { pattern, ties, .. } = *self.config;
        let mask = match sparsegpt_on_device(device, name, weights, &factor, (pattern, sparsity, ties), &settings)? {
            Some(mask) => mask,
            None => sparsegpt(name, weights, &factor, pattern, sparsity, &settings, ties)?.mask,
        };
        self.factor = Some((name.to_owned(), factor));
        Ok(mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;

    #[test]
    fn updated_weights_are_rounded_as_they_are_stored_and_one_that_is_too_large_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        let plan = vec![vec![("w".to_owned(), Dtype::F16, vec![2, 3])]];
        let mut writer = CheckpointWriter::create(&path, plan).unwrap();
        writer.write("w", &[0; 12]).unwrap();
        writer.add_file("config.json", br#"{"model_type": "llama"}"#).unwrap();
        writer.finish().unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let pruner = Pruner {
            config: &PruneConfig::new(Method::SparseGpt, 0.5),
            statistics: &Statistics::default(),
            gradients: None,
            checkpoint: Some(&checkpoint),
            stage: &Progress::Hidden.stage("prune", 1),
            factor: None,
            silent: BTreeSet::new(),
        };
        let stored = |name: &str, last: f32| pruner.as_stored(name, vec![0.1, 0.0, -1.0, 2.0, last, 3.0], 3);
        assert_eq!(stored("w", 65504.0).unwrap(), [0.099_975_586, 0.0, -1.0, 2.0, 65504.0, 3.0]);
        let error = stored("w", 70000.0).unwrap_err().to_string();
        assert!(error.contains("`w`: its updated weight at row 1, column 1 is too large for F16; convert"), "{error}");
        // Of a model in memory nothing is known of how it will be stored.
        assert_eq!(stored("other", 70000.0).unwrap()[4], 70000.0);
    }

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
