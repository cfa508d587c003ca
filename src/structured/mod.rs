//! Structured pruning: whole units (attention heads, neurons or channels) are removed, so that a smaller dense model
//! remains.
//!
//! A unit is a group of rows and columns of several linears that only make sense together (Ma et al. 2023, "LLM-Pruner: On
//! the Structural Pruning of Large Language Models"): a neuron is a row of the gate and of the up projection and the column
//! of the down projection that reads them. Its score joins the scores of all weights in the group, by any metric of
//! [`crate::importance`]. Every tensor of a model is described by what its dimensions count (`layout`), so that removing
//! a unit is cutting every tensor along the dimensions that count it, and zeroing the same without the cut.
//!
//! `config.json` knows one number of heads, one width and so on for the whole model. So each layer loses equally many units.

mod cut;
mod layout;
mod score;

use crate::calibrate::calibrate;
use crate::checkpoint::{Checkpoint, CheckpointWriter, TensorInfo, float_dtype};
use crate::error::{Error, Remedy, Result};
use crate::files::check_output;
use crate::gradients::{Accumulate, gradients};
use crate::importance::Method;
use crate::model::{ExpertStorage, Model, ModelConfig};
use crate::progress::Progress;
use crate::prune::{Known, Subject};
use crate::record::{PruningRecord, Record, StructureRecord, TensorRecord, UnitsRecord, ranges};
pub use crate::settings::{Form, GroupNorm, Unit};
use crate::text::Windows;
use candle_core::{Device, Tensor};
use cut::Cut;
use score::DenseData;
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

/// Settings of structured pruning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StructuredConfig {
    /// The unit that is pruned as a whole.
    pub unit: Unit,
    /// Importance metric of a single weight; any but SparseGPT. One that needs calibration sees the dense model.
    pub method: Method,
    /// Fraction of the units to prune, in `[0, 1)`: `floor(units * sparsity)` of every module (attention, MLP or
    /// expert; linear; for channels the model), so at least one stays. Ties are broken by position, the lower index
    /// first. Above 0 it is an error if that is none in every module.
    pub sparsity: f64,
    /// The norm that joins the scores of a unit's weights.
    pub norm: GroupNorm,
    /// The form of the result.
    pub form: Form,
    /// Seed of random scores, and on record as the seed of the calibration windows.
    pub seed: u64,
    /// If `sparsity` rounds down to no unit of a module that has several, prune one. Else it is an error if nothing is
    /// pruned at all.
    pub at_least_one: bool,
}

impl StructuredConfig {
    /// Pruning with the L2 norm of the weights' scores and seed 0. Units are removed where they can be, else zeroed.
    pub fn new(unit: Unit, method: Method, sparsity: f64) -> Self {
        let form = if unit.is_removable() { Form::Remove } else { Form::Zero };
        StructuredConfig { unit, method, sparsity, norm: GroupNorm::L2, form, seed: 0, at_least_one: false }
    }

    /// Checks the settings on their own, before anything is read.
    ///
    /// # Errors
    /// [`Error::Argument`] for a sparsity outside `[0, 1)`, a unit that can only be zeroed, or a method without scores.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::argument(
                "sparsity",
                self.sparsity,
                "must be at least 0 and below 1: one unit must stay",
            ));
        }
        if self.form == Form::Remove && !self.unit.is_removable() {
            let problem = "cannot be removed from one linear alone, for what comes before or after it would no longer \
                           fit"
            .remedy("zero them (`--zero`), or remove heads, neurons or channels");
            return Err(Error::argument("structure", self.unit, problem));
        }
        if self.method == Method::SparseGpt {
            let problem = "changes the weights that stay and gives none of them a score"
                .remedy("choose another method for units");
            return Err(Error::argument("method", self.method, problem));
        }
        Ok(())
    }

    fn validate_with(&self, model: &Model, calibration: Option<&Windows>) -> Result<()> {
        self.validate()?;
        if model.config().moe.as_ref().is_some_and(|moe| moe.storage != ExpertStorage::Separate) {
            let problem = "its experts are stacked in one tensor and its attention has sinks, which structured \
                           pruning does not support"
                .remedy("prune whole experts");
            return Err(Error::argument("model", model.name(), problem));
        }
        if self.method.needs_calibration() && calibration.is_none_or(|windows| windows.ids.is_empty()) {
            return Err(Error::argument("method", self.method, "needs calibration text"));
        }
        Ok(())
    }

    /// The number of units, of `units`, that are pruned.
    fn count(&self, units: usize) -> usize {
        let least = usize::from(self.at_least_one && self.sparsity > 0.0 && units > 1);
        ((units as f64 * self.sparsity) as usize).max(least)
    }

    /// Fails when `modules`, of so many units each, would lose none although some should be pruned.
    fn check_rounding(&self, units: impl Iterator<Item = usize>) -> Result<()> {
        let most = units.max().unwrap_or_default();
        if self.sparsity == 0.0 || self.count(most) > 0 {
            return Ok(());
        }
        let problem = if most > 1 {
            format!("rounds down to none of {most} {}, so that nothing would be pruned", self.unit).remedy(format!(
                "give at least {}, or take one of each module with `--at-least-one`",
                least_fraction(most)
            ))
        } else {
            format!("takes nothing away: no module has more than one of the {}, and one must stay", self.unit).into()
        };
        Err(Error::argument("sparsity", self.sparsity, problem))
    }
}

/// The least fraction in two digits at which one unit of `units` is pruned.
fn least_fraction(units: usize) -> f64 {
    let scale = 10f64.powi(2i32.max(units.ilog10() as i32 + 1));
    let fraction = (scale / units as f64).ceil() / scale;
    // A product just below one would round down again.
    if (units as f64 * fraction) as usize == 0 { fraction + 1.0 / scale } else { fraction }
}

/// A model without some of its units, in memory.
#[derive(Clone)]
pub struct Structured {
    /// The model: smaller, or with zeros in place.
    pub model: Model,
    /// The record of the settings and results, with the units that were pruned.
    pub record: Record,
}

crate::debug::one_line!(rich Structured, |structured| format!("Structured({:?})", structured.record));

/// The units of one module.
#[derive(Clone, Debug, PartialEq)]
struct Module {
    name: String,
    units: usize,
    /// Indices of the pruned ones, ascending.
    gone: Vec<usize>,
}

/// The cuts that are to be made in a model.
struct CutPlan<'a> {
    settings: &'a StructuredConfig,
    model: &'a Model,
    /// The configuration afterwards.
    config: ModelConfig,
    modules: Vec<Module>,
    by_name: HashMap<String, usize>,
}

/// Prunes units of a model in memory. The input is not changed.
///
/// # Errors
/// [`Error::Argument`] for a configuration that makes no sense or does not fit the model, such as gpt-oss;
/// [`Error::Tensor`] for weights that are not finite; [`Error::Interrupted`].
pub fn prune_structured(
    model: &Model,
    calibration: Option<&Windows>,
    config: &StructuredConfig,
    progress: Progress,
) -> Result<Structured> {
    structure_subject(Subject { model, calibration, known: &Known::default(), progress }, config)
}

/// Prunes as [`prune_structured`] does, with what is known of the model.
pub(crate) fn structure_subject(subject: Subject<'_>, config: &StructuredConfig) -> Result<Structured> {
    let started = Instant::now();
    let Subject { model, calibration, progress, .. } = subject;
    let plan = CutPlan::new(subject, config)?;
    let names = model.config().tensors();
    let stage = progress.stage("cut", names.len() as u64);
    let (mut tensors, mut zeros) = (HashMap::new(), HashMap::new());
    for (name, shape) in names {
        let mut tensor = model.tensor(&name)?;
        if let Some(cut) = plan.cut(&name, &shape)? {
            tensor = cut.apply(&tensor)?.to_dtype(model.dtype())?;
            zeros.insert(name.clone(), cut::zeros(&tensor, &shape)?);
        }
        tensors.insert(name, tensor);
        stage.inc(1)?;
    }
    let record = plan.record(calibration, &zeros, started)?;
    Ok(Structured { model: model.reshaped(plan.config, tensors)?, record })
}

/// Prunes units of a checkpoint to a new directory `out`: the same tensors, dtypes and shards, smaller or with zeros in
/// place, `config.json` with the new numbers and all its other keys, and `lacuna.json` with the record. `model` is that
/// checkpoint opened with the dtype and device to compute on.
///
/// Weights that stay are bit-exact, except for norms that take the mean of a dimension that has become narrower: their
/// scales, and for channels `rms_norm_eps`, make up for it.
/// A Llama whose `hidden_size` is no multiple of its heads afterwards becomes a `mistral` without a window, which is the same
/// arithmetic, because transformers refuses such a `llama`.
///
/// Memory: one linear with its scores, or one tensor and its cut; before that, with a method that needs calibration, what
/// [`calibrate`] or [`gradients`] takes. `out` appears when everything is in it.
///
/// # Errors
/// As [`prune_structured`], and [`Error::Io`] when `out` exists or cannot be written; [`Error::Tensor`] for a tensor of
/// which it is not known whether it must be cut.
pub fn prune_structured_to(
    model: &Model,
    calibration: Option<&Windows>,
    config: &StructuredConfig,
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
    check_output(out)?;
    let known = Known::default();
    let plan = CutPlan::new(Subject { model, calibration, known: &known, progress }, config)?;
    let json = plan.config_json(checkpoint)?;
    let mut shards = vec![Vec::new(); checkpoint.shards().len()];
    for info in checkpoint.tensors() {
        shards[info.shard].push((info.name.clone(), info.dtype, plan.shape(checkpoint, info)?));
    }
    shards.retain(|shard| !shard.is_empty());
    let mut writer = CheckpointWriter::create_from(checkpoint, out, shards)?;
    let stage = progress.stage("write", checkpoint.tensors().count() as u64);
    let mut zeros = HashMap::new();
    for info in checkpoint.tensors() {
        zeros.extend(plan.write(checkpoint, info, &mut writer)?);
        stage.inc(1)?;
    }
    let record = plan.record(calibration, &zeros, started)?;
    if let Some(json) = json {
        writer.add_file("config.json", &json)?;
    }
    writer.finish_with(checkpoint, &record)?;
    Ok(record)
}

impl<'a> CutPlan<'a> {
    /// Scores all units and decides which ones are pruned.
    fn new(subject: Subject<'a>, settings: &'a StructuredConfig) -> Result<CutPlan<'a>> {
        let Subject { model, calibration, known, progress } = subject;
        settings.validate_with(model, calibration)?;
        settings.check_rounding(score::sizes(model.config(), settings.unit))?;
        let config = layout::resized(model.config(), settings)?;
        let statistics = match calibration.filter(|_| settings.method.needs_inputs() && known.statistics.is_none()) {
            Some(windows) => Some(calibrate(model, windows, progress)?),
            None => None,
        };
        let gradients = match calibration.filter(|_| settings.method.needs_gradients() && known.gradients.is_none()) {
            Some(windows) => Some(gradients(model, windows, Accumulate::Sum, progress)?),
            None => None,
        };
        let known = DenseData {
            statistics: known.statistics.or(statistics.as_ref()),
            gradients: known.gradients.or(gradients.as_ref()),
        };
        let modules = score::choose(model, known, settings, progress)?;
        let by_name = modules.iter().enumerate().map(|(i, module)| (module.name.clone(), i)).collect();
        Ok(CutPlan { settings, model, config, modules, by_name })
    }

    /// The cut of the tensor; `None` where it has no such units.
    fn cut(&self, name: &str, shape: &[usize]) -> Result<Option<Cut>> {
        let Some(place) = layout::place(self.model.config(), name) else {
            // Older checkpoints store the frequencies of the rotary embedding, which depend on the width of a head only.
            if self.settings.form == Form::Zero || self.settings.sparsity == 0.0 || name.ends_with(".inv_freq") {
                return Ok(None);
            }
            let problem = "is none that a model of this family has, so it is not known whether it must be cut"
                .remedy("remove it from the checkpoint, or zero units instead of removing them");
            return Err(Error::tensor(self.model.name(), name, problem));
        };
        let mut cut = Cut::new(self.settings.form, place.is_norm());
        for (dim, axis) in place.groups(self.model.config(), self.settings.unit).into_iter().enumerate() {
            let Some(axis) = axis else { continue };
            let Some(module) = self.by_name.get(&axis.module).map(|&i| &self.modules[i]) else { continue };
            if shape.get(dim) != Some(&(module.units * axis.span)) {
                let problem = format!("has shape {shape:?}, which does not fit config.json");
                return Err(Error::tensor(self.model.name(), name, problem));
            }
            cut.along(dim, module, axis.span);
        }
        Ok(Some(cut).filter(Cut::has_units))
    }

    /// The linears of single experts that the tensor `info` is made of, in the order of their bytes: each expert has units of
    /// its own. None of a tensor that is cut as one.
    fn linears<'c>(&self, checkpoint: &'c Checkpoint, info: &TensorInfo) -> Vec<&'c TensorInfo> {
        match layout::place(self.model.config(), &info.name) {
            Some(_) => Vec::new(),
            None => checkpoint.parts_of(&info.name).collect(),
        }
    }

    /// The shape of a stored tensor afterwards.
    fn shape(&self, checkpoint: &Checkpoint, info: &TensorInfo) -> Result<Vec<usize>> {
        let cut = |info: &TensorInfo| -> Result<Vec<usize>> {
            Ok(self.cut(&info.name, &info.shape)?.map_or(info.shape.clone(), |cut| cut.shape(&info.shape)))
        };
        let shapes: Vec<Vec<usize>> = self.linears(checkpoint, info).into_iter().map(cut).collect::<Result<_>>()?;
        match (shapes.first().map(Vec::as_slice), info.shape.first()) {
            // Each expert has lost equally many units.
            (Some(&[_, cols]), Some(&experts)) if experts > 0 => {
                let rows: usize = shapes.iter().map(|shape| shape[0]).sum();
                Ok(vec![experts, rows / experts, cols])
            }
            _ => cut(info),
        }
    }

    /// Writes a tensor as it is to be. Returns how many zeros each matrix with such units has then, what was cut included.
    fn write(
        &self,
        checkpoint: &Checkpoint,
        info: &TensorInfo,
        writer: &mut CheckpointWriter,
    ) -> Result<Vec<(String, u64)>> {
        let Some(dtype) = float_dtype(info.dtype) else {
            writer.write(&info.name, &checkpoint.read(&info.name)?)?;
            return Ok(Vec::new());
        };
        let mut zeros = Vec::new();
        let mut cut = |info: &TensorInfo| -> Result<Tensor> {
            let tensor = checkpoint.load_finite(&info.name, dtype, &Device::Cpu)?;
            let Some(cut) = self.cut(&info.name, &info.shape)? else { return Ok(tensor) };
            let tensor = cut.apply(&tensor)?;
            zeros.push((info.name.clone(), cut::zeros(&tensor, &info.shape)?));
            Ok(tensor)
        };
        let linears = self.linears(checkpoint, info);
        let tensor = match linears.is_empty() {
            true => {
                let tensor = cut(info)?;
                // The model may call it by another name.
                if let Some(count) = zeros.last().map(|(_, count)| *count) {
                    zeros.extend(checkpoint.parts_of(&info.name).map(|part| (part.name.clone(), count)));
                }
                tensor
            }
            false => {
                let linears: Vec<Tensor> = linears.into_iter().map(cut).collect::<Result<_>>()?;
                Tensor::cat(&linears, 0)?.reshape(self.shape(checkpoint, info)?)?
            }
        };
        writer.write_tensor(&info.name, &tensor)?;
        Ok(zeros)
    }

    /// The new `config.json`; `None` where it stays as it is.
    fn config_json(&self, checkpoint: &Checkpoint) -> Result<Option<Vec<u8>>> {
        let changes = layout::changes(self.model.config(), &self.config);
        if changes.is_empty() {
            return Ok(None);
        }
        let path = checkpoint.dir().join("config.json");
        let mut json = checkpoint.config()?;
        json.extend(changes);
        let mut read = ModelConfig::from_json(&path, &json)?;
        // An output head of its own may be in the file although this denies it.
        read.tie_word_embeddings = self.config.tie_word_embeddings;
        if read != self.config {
            return Err(Error::file(
                &path,
                "with the smaller sizes, it would be read with other settings, too; this model cannot be cut",
            ));
        }
        let mut text = serde_json::to_vec_pretty(&json).map_err(|error| Error::file(&path, error))?;
        text.push(b'\n');
        Ok(Some(text))
    }

    /// `zeros` are those of every tensor that was cut, by name.
    fn record(&self, calibration: Option<&Windows>, zeros: &HashMap<String, u64>, started: Instant) -> Result<Record> {
        // At least one of each module: the units that went are on record.
        let StructuredConfig { unit, method, sparsity, norm, form, seed, at_least_one: _ } = *self.settings;
        let pruning = PruningRecord {
            seed,
            dtype: self.model.dtype().try_into()?,
            calibration: calibration.filter(|_| method.needs_calibration()).map(Windows::record),
            ..PruningRecord::new(method, unit, sparsity)
        };
        let structure = StructureRecord {
            unit,
            group_norm: norm,
            form,
            parameters: self.config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum(),
            config: layout::changes(self.model.config(), &self.config).into_iter().collect(),
            removed: self.modules.iter().map(Module::record).collect(),
        };
        let matrix = |(name, shape): (String, Vec<usize>)| {
            let shape = <[usize; 2]>::try_from(shape).ok()?;
            Some(TensorRecord { zeros: *zeros.get(&name)?, name, shape })
        };
        let tensors = self.model.config().tensors().into_iter().filter_map(matrix).collect();
        let mut record = Record {
            pruning: Some(pruning),
            structure: Some(structure),
            tensors,
            ..Record::dense(self.model.record()?)
        };
        record.environment.insert("prune_seconds".into(), started.elapsed().as_secs_f64().into());
        Ok(record)
    }
}

impl Module {
    fn record(&self) -> UnitsRecord {
        UnitsRecord { module: self.name.clone(), of: self.units, count: self.gone.len(), units: ranges(&self.gone) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounds_to_nothing_is_refused_with_a_fraction_that_does_not() {
        for units in [2, 3, 4, 7, 11, 64, 96, 100, 896, 1001, 4096, 13824, 151_936] {
            let config = |sparsity| StructuredConfig::new(Unit::Neurons, Method::Magnitude, sparsity);
            let least = least_fraction(units);
            assert!(least < 1.0 && config(least).count(units) >= 1, "{units}: {least}");
            config(least).check_rounding([1, units].into_iter()).unwrap();
            config(0.0).check_rounding([units].into_iter()).unwrap();
            let below = config(0.9 / units as f64);
            let error = below.check_rounding([units].into_iter()).unwrap_err().to_string();
            assert!(error.contains(&format!("give at least {least}, or")), "{error}");
            let one = StructuredConfig { at_least_one: true, ..below };
            assert_eq!([one.count(units), one.count(1), config(0.0).count(units)], [1, 0, 0]);
        }
        let one = StructuredConfig { at_least_one: true, ..StructuredConfig::new(Unit::Heads, Method::Magnitude, 0.5) };
        let error = one.check_rounding([1].into_iter()).unwrap_err().to_string();
        assert!(error.contains("more than one of the heads, and one must stay"), "{error}");
    }
}
