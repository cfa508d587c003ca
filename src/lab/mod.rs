//! A notebook's handle on a model: its weights stay on the device, and what is expensive is computed once, in this session and
//! in the next.
//!
//! ```
//! use lacuna::prelude::*;
//!
//! # fn main() -> Result<()> {
//! # let scratch = tempfile::tempdir().map_err(Error::io("create", "a temporary directory"))?;
//! # let cache = Cache::at(scratch.path(), 1 << 30);
//! # let open = |model: &str| Lab::open_on(model, candle_core::DType::F32, &candle_core::Device::Cpu, cache);
//! # let root = env!("CARGO_MANIFEST_DIR");
//! # let (model, train, test) = ("data/tiny-llama", "data/corpus/train.txt", "data/corpus/test.txt");
//! # let (model, train, test) = (format!("{root}/{model}"), format!("{root}/{train}"), format!("{root}/{test}"));
//! # /*
//! let lab = Lab::open(&model)?.calibrate_on(&train, Sampling::new(16, 256))?;
//! # */
//! # let lab = open(&model)?.with_progress(Progress::Hidden).calibrate_on(&train, Sampling::new(4, 64))?;
//! let test = lab.windows(&test, Consecutive::of(64).first(4))?;
//! for sparsity in [0.5, 0.6] {
//!     let config = PruneConfig::one_shot(Method::Wanda, sparsity);
//!     println!("{sparsity}: {:.2}", lab.evaluate(&config, &test)?.perplexity);
//! }
//! # assert_eq!(lab.cache().of_stage(lacuna::lab::Stage::Statistics).uses.computed, 1);
//! # Ok(())
//! # }
//! ```
//!
//! Results that can be used again depend on the propagation of pruned layers:
//! - With [`Propagate::Dense`](crate::prune::Propagate::Dense), as [`PruneConfig::one_shot`] has it, statistics and gradients are those of the dense model, whatever the
//!   sparsity and the method. Another sparsity costs a selection and an evaluation.
//! - With [`Propagate::Pruned`](crate::prune::Propagate::Pruned), as in the reference implementations and in [`PruneConfig::new`], a layer is calibrated on what the
//!   pruned layers before it give, which another sparsity changes from the first layer on. So another sparsity costs another
//!   calibration; gradients, and the statistics that an allocation looks at, are still those of the dense model. Perplexities
//!   differ a little, mostly at high sparsities: compare numbers of one mode only, and those of papers with this one.
//!
//! With either, masks and evaluations of a configuration that was run before are looked up. `docs/cache.md` says what is kept,
//! and what makes a difference.

mod evaluate;
mod keys;
mod summary;

pub use evaluate::Candidate;
pub use keys::Stage;
pub use summary::{CacheSummary, DeviceMemory, StageSummary};

use crate::cache::{Cache, Found, Key};
use crate::calibrate::{Gather, SavedStatistics, Statistics, calibrate_each, calibrate_with};
use crate::checkpoint::{Checkpoint, CheckpointWriter};
use crate::error::{Error, Remedy, Result};
use crate::evaluate::Evaluation;
use crate::experts::{ExpertScores, Keep, prune_experts};
use crate::gradients::{Accumulate, Gradients, gradients};
use crate::importance::Method;
use crate::mask::MaskSet;
use crate::model::Model;
use crate::progress::Progress;
use crate::prune::{Known, MasksConfig, Needs, PruneConfig, Pruned, Subject, masks_of, prune_subject, pruned_before};
use crate::record::TensorRecord;
use crate::structured::{Structured, StructuredConfig, structure_subject};
use crate::sync::locked;
use crate::text::{Consecutive, Sampling, Windows};
use candle_core::{DType, Device};
use keys::{Identity, serialised};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// A model on its device, the text that it is calibrated on, and everything expensive that is known of them.
///
/// Results that depend on the calibration text are computed when they are first needed. Two sessions may share a cache.
pub struct Lab {
    model: Model,
    identity: Identity,
    calibration: Option<Windows>,
    cache: Cache,
    progress: Progress,
    memory: Mutex<Memory>,
}

crate::debug::one_line!(rich Lab, |lab| {
    let text = lab.calibration.as_ref().map_or("not calibrated".into(), |text| format!("calibrated on {}", text.name));
    format!("Lab({:?}, {text})", lab.model)
});

/// Results that this session holds in memory, besides the weights.
#[derive(Debug, Default)]
struct Memory {
    statistics: Option<Arc<Statistics>>,
    /// Files of each layer's statistics with grams, open.
    grams: Option<Arc<Vec<SavedStatistics>>>,
    gradients: Option<Gradients>,
    /// By the names of their keys.
    made: HashMap<String, Made>,
    evaluations: HashMap<String, Evaluation>,
}

/// The facts about a pruned model that can be kept without its weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Made {
    /// The identity of its weights ([`Lab::content`]).
    content: String,
    tensors: Vec<TensorRecord>,
}

impl Lab {
    /// A model in f32 on the CPU, from a directory or a hub id, with the user's cache ([`Cache::from_env`]).
    ///
    /// # Errors
    /// As [`Lab::open_on`] and [`Cache::from_env`].
    pub fn open(spec: &str) -> Result<Lab> {
        Lab::open_on(spec, DType::F32, &Device::Cpu, Cache::from_env()?)
    }

    /// A model in `dtype`, all of it on `device`.
    ///
    /// # Errors
    /// As [`Checkpoint::resolve`] and [`Model::open`]; [`Error::File`] when the weights change while they are read.
    pub fn open_on(spec: &str, dtype: DType, device: &Device, cache: Cache) -> Result<Lab> {
        Lab::of(spec, cache, |checkpoint| Model::open(checkpoint, dtype, device)?.resident())
    }

    /// As [`Lab::open_on`], with at most `bytes` of weights on the device, for a model that is larger
    /// ([`Model::within`]). Of models that [`Lab::prune`] returns, the masks are in memory on the host, or the weights
    /// if the method changes those that stay.
    ///
    /// # Errors
    /// As [`Lab::open_on`].
    pub fn open_within(spec: &str, dtype: DType, device: &Device, bytes: u64, cache: Cache) -> Result<Lab> {
        Lab::of(spec, cache, |checkpoint| Ok(Model::open(checkpoint, dtype, device)?.within(bytes)))
    }

    fn of(spec: &str, cache: Cache, open: impl FnOnce(&Checkpoint) -> Result<Model>) -> Result<Lab> {
        let progress = Progress::Stderr;
        let checkpoint = Checkpoint::resolve(spec, progress)?;
        let sha256 = cache.sha256_of(checkpoint.shards(), progress, || checkpoint.sha256())?;
        checkpoint.assume_sha256(sha256);
        let model = open(&checkpoint)?;
        progress.notes(&model.notes());
        // The files are open since before the hash was asked for; only one that was written to in place could differ.
        let identity = Identity::of(&model, &checkpoint)?;
        Ok(Lab { model, identity, calibration: None, cache, progress, memory: Mutex::default() })
    }

    /// This lab with other progress; a new lab shows it on standard error.
    pub fn with_progress(self, progress: Progress) -> Lab {
        Lab { progress, ..self }
    }

    /// Weights of the model on its device, and the device's free memory.
    pub fn device_memory(&self) -> DeviceMemory {
        DeviceMemory::of(&self.model)
    }

    /// Takes calibration windows from a text ([`Windows::calibration`]). What they give is computed when it is needed.
    ///
    /// # Errors
    /// As [`Windows::calibration`].
    pub fn calibrate_on(self, text: impl AsRef<Path>, sampling: Sampling) -> Result<Lab> {
        let text = text.as_ref();
        let Sampling { windows, seqlen, seed } = sampling;
        let inputs = json!({"calibration": [windows, seqlen, seed]});
        let windows = self.tokens(text, inputs, |tokenizer| Windows::calibration(text, tokenizer, sampling))?;
        Ok(self.with_calibration(windows))
    }

    /// Takes calibration windows that exist already.
    pub fn with_calibration(self, windows: Windows) -> Lab {
        Lab { calibration: Some(windows), memory: Mutex::default(), ..self }
    }

    /// Evaluation windows of a text ([`Windows::evaluation`]).
    ///
    /// # Errors
    /// As [`Windows::evaluation`].
    pub fn windows(&self, text: impl AsRef<Path>, consecutive: Consecutive) -> Result<Windows> {
        let text = text.as_ref();
        let Consecutive { seqlen, windows } = consecutive;
        let inputs = json!({"evaluation": [windows, seqlen]});
        self.tokens(text, inputs, |tokenizer| Windows::evaluation(text, tokenizer, consecutive))
    }

    /// The dense model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The device that the weights are on.
    pub fn device(&self) -> &Device {
        self.model.device()
    }

    /// The calibration windows.
    pub fn calibration(&self) -> Option<&Windows> {
        self.calibration.as_ref()
    }

    /// Norms and sums of what enters each linear of the dense model.
    ///
    /// # Errors
    /// [`Error::Argument`] without calibration text; as [`crate::calibrate::calibrate`].
    pub fn statistics(&self) -> Result<Arc<Statistics>> {
        if let Some(statistics) = &self.memory().statistics {
            self.cache.count(Stage::Statistics.name(), Found::Memory);
            return Ok(statistics.clone());
        }
        let windows = self.needed_calibration()?;
        let key = self.key(Stage::Statistics, json!({"windows": windows.sha256()}));
        let gather = Gather { sums: true, gram: false };
        let statistics = Arc::new(self.stage(
            &key,
            self.title(windows),
            |dir, _| Statistics::load(dir.join("statistics")),
            || calibrate_with(&self.model, windows, gather, self.progress),
            |statistics, dir| statistics.save(dir.join("statistics")).map(|()| Value::Null),
        )?);
        self.memory().statistics = Some(statistics.clone());
        Ok(statistics)
    }

    /// Gradients of every linear of the dense model, summed over the windows.
    ///
    /// # Errors
    /// [`Error::Argument`] without calibration text; as [`crate::gradients::gradients`].
    pub fn gradients(&self) -> Result<Gradients> {
        if let Some(gradients) = &self.memory().gradients {
            self.cache.count(Stage::Gradients.name(), Found::Memory);
            return Ok(gradients.clone());
        }
        let windows = self.needed_calibration()?;
        let key = self.key(Stage::Gradients, json!({"windows": windows.sha256(), "accumulate": "sum"}));
        let gradients = self.stage(
            &key,
            self.title(windows),
            |dir, _| Gradients::load(dir.join("gradients")),
            || gradients(&self.model, windows, Accumulate::Sum, self.progress),
            |gradients, dir| gradients.save(dir.join("gradients")).map(|()| Value::Null),
        )?;
        self.memory().gradients = Some(gradients.clone());
        Ok(gradients)
    }

    /// Statistics with grams, layer by layer on the disk; `None` where they cannot be kept, so that the layer loop computes them.
    fn grams(&self) -> Result<Option<Arc<Vec<SavedStatistics>>>> {
        let (stage, windows) = (Stage::Grams, self.needed_calibration()?);
        if let Some(grams) = &self.memory().grams {
            self.cache.count(stage.name(), Found::Memory);
            return Ok(Some(grams.clone()));
        }
        let linears = self.model.config().linears();
        // More than there are, as linears share inputs.
        let bytes: usize = linears.iter().map(|(_, (_, input))| input * input * size_of::<f32>()).sum();
        if self.cache.dir().is_none() || bytes as u64 > self.cache.max_bytes() {
            return Ok(None);
        }
        let key = self.key(stage, json!({"windows": windows.sha256()}));
        let layer = |dir: &Path, i: usize| dir.join(format!("block-{i}"));
        let open = || {
            self.cache.load(&key, self.progress, |entry| {
                (0..self.model.layers()).map(|i| SavedStatistics::open(&layer(entry.dir(), i))).collect::<Result<_>>()
            })
        };
        let mut grams: Option<Vec<SavedStatistics>> = open()?;
        self.cache.count(stage.name(), if grams.is_some() { Found::Disk } else { Found::Computed });
        if grams.is_none() {
            let gather = Gather { sums: true, gram: true };
            self.cache.keep(&key, self.title(windows), self.progress, |dir| {
                let save = |i, statistics: Statistics| statistics.save(layer(dir, i));
                calibrate_each(&self.model, windows, gather, self.progress, save)?;
                Ok(Value::Null)
            })?;
            grams = open()?;
        }
        let grams = grams.map(Arc::new);
        self.memory().grams = grams.clone();
        Ok(grams)
    }

    /// Prunes the model as [`crate::prune::prune`] does, with what is known.
    ///
    /// # Errors
    /// As [`crate::prune::prune`].
    pub fn prune(&self, config: &PruneConfig) -> Result<Pruned> {
        Ok(self.pruned(config)?.0)
    }

    /// Prunes whole units of the model as [`crate::structured::prune_structured`] does, with what is known.
    ///
    /// # Errors
    /// As [`crate::structured::prune_structured`].
    pub fn prune_structured(&self, config: &StructuredConfig) -> Result<Structured> {
        let (statistics, gradients) = (config.method.needs_inputs(), config.method.needs_gradients());
        self.with_subject(Needs { statistics, grams: false, gradients }, |subject| structure_subject(subject, config))
    }

    /// Scores of every expert of the model on the calibration text ([`ExpertScores::calibrated`]), from one pass through it.
    ///
    /// # Errors
    /// [`Error::Argument`] without calibration text; as [`ExpertScores::calibrated`].
    pub fn expert_scores(&self) -> Result<ExpertScores> {
        let windows = self.needed_calibration()?;
        let key = self.key(Stage::Experts, json!({"windows": windows.sha256()}));
        let scores = self.stage(
            &key,
            self.title(windows),
            |dir, _| ExpertScores::read(&dir.join("scores")),
            || ExpertScores::calibrated(&self.model, windows, self.progress),
            |scores, dir| scores.write(&dir.join("scores")).map(|()| Value::Null),
        )?;
        // Names are no part of the key: the same bytes may now be called otherwise.
        Ok(ExpertScores { model: self.model.name().to_owned(), calibration: Some(windows.record()), ..scores })
    }

    /// The model without the experts that `keep` does not name ([`crate::experts::prune_experts`]).
    ///
    /// # Errors
    /// As [`crate::experts::prune_experts`].
    pub fn prune_experts(&self, keep: &Keep) -> Result<Model> {
        prune_experts(&self.model, keep)
    }

    /// Also returns what its weights are.
    fn pruned(&self, config: &PruneConfig) -> Result<(Pruned, String)> {
        let key = self.pruned_key(config)?;
        let stage = Stage::Pruned.name();
        let found =
            self.cache.load(&key, self.progress, |entry| self.read_pruned(entry.dir(), &entry.value, config))?;
        if let Some((pruned, made)) = found {
            self.cache.count(stage, Found::Disk);
            self.memory().made.insert(key.name(), made.clone());
            return Ok((pruned, made.content));
        }
        self.cache.count(stage, Found::Computed);
        let pruned = self.with_subject(config.needs(), |subject| prune_subject(subject, config))?;
        let made = Made { content: self.content(&pruned.model)?, tensors: pruned.record.tensors.clone() };
        self.memory().made.insert(key.name(), made.clone());
        let title = format!("{}: {} {} {}", self.model.name(), config.method, config.pattern, config.sparsity);
        self.cache.keep(&key, title, self.progress, |dir| self.write_pruned(dir, &pruned, &made, config))?;
        Ok((pruned, made.content))
    }

    fn write_pruned(&self, dir: &Path, pruned: &Pruned, made: &Made, config: &PruneConfig) -> Result<Value> {
        let masks = MaskSet { metadata: None, masks: pruned.masks.clone() };
        masks.save(dir.join("masks.safetensors"))?;
        if config.method == Method::SparseGpt {
            let dtype = crate::checkpoint::dtype_of(self.model.dtype())?;
            let plan = |(name, mask): &(String, _)| (name.clone(), dtype, shape(mask));
            let mut writer = CheckpointWriter::arrays(&dir.join("weights"), pruned.masks.iter().map(plan).collect())?;
            for (name, _) in &pruned.masks {
                writer.write_tensor(name, &pruned.model.tensor(name)?)?;
            }
            writer.finish()?;
        }
        serde_json::to_value(made).map_err(|error| Error::file(dir, error))
    }

    fn read_pruned(&self, dir: &Path, value: &Value, config: &PruneConfig) -> Result<(Pruned, Made)> {
        let made = Made::deserialize(value).map_err(|error| Error::file(dir, error))?;
        let mut masks = MaskSet::load(dir.join("masks.safetensors"))?.masks;
        let order: HashMap<&str, usize> =
            made.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.as_str(), at)).collect();
        masks.sort_by_key(|(name, _)| order.get(name.as_str()));
        let weights = (config.method == Method::SparseGpt).then(|| {
            let saved = Checkpoint::open_arrays(&dir.join("weights"))?;
            let load =
                |(name, _): &(String, _)| Ok((name.clone(), saved.load(name, self.model.dtype(), &Device::Cpu)?));
            masks.iter().map(load).collect::<Result<Vec<_>>>()
        });
        let (weights, tensors) = (weights.transpose()?, made.tensors.clone());
        let pruned = pruned_before(&self.model, self.calibration(), config, masks, weights, tensors)?;
        Ok((pruned, made))
    }

    /// Masks of many methods and sparsities, as [`crate::prune::masks`] makes them, with what is known.
    ///
    /// # Errors
    /// As [`crate::prune::masks`].
    pub fn masks(&self, config: &MasksConfig) -> Result<Vec<MaskSet>> {
        let calibration = self.calibration.as_ref().filter(|_| config.needs_calibration());
        let inputs = json!({"windows": calibration.map(Windows::sha256), "config": serialised(config)?});
        let key = self.key(Stage::Masks, inputs);
        let file = |dir: &Path, i: usize| dir.join(format!("{i}.safetensors"));
        let title = format!("{}: {} x {}", self.model.name(), config.methods.len(), config.sparsities.len());
        let mut sets = self.stage(
            &key,
            title,
            |dir, value| {
                let count = value.as_u64().ok_or_else(|| Error::file(dir, "does not say how many masks it holds"))?;
                (0..count as usize).map(|i| MaskSet::load(file(dir, i))).collect::<Result<Vec<_>>>()
            },
            || self.with_subject(config.needs(), |subject| masks_of(subject, config)),
            |sets, dir| {
                sets.iter().enumerate().try_for_each(|(i, set)| set.save(file(dir, i)))?;
                Ok(sets.len().into())
            },
        )?;
        // Names are no part of the key: the same bytes may now be called otherwise.
        let (model, text) = (self.model.record()?, calibration.map(Windows::record));
        for metadata in sets.iter_mut().filter_map(|set| set.metadata.as_mut()) {
            metadata.model = model.clone();
            if let Some(pruning) = &mut metadata.pruning {
                pruning.calibration = pruning.calibration.take().and(text.clone());
            }
        }
        Ok(sets)
    }

    /// Results that the cache keeps, by stage, and how often this session found one.
    pub fn cache(&self) -> CacheSummary {
        CacheSummary::of(&self.cache)
    }

    /// Calls `f` with the model and the results that it needs of it.
    fn with_subject<T>(&self, needs: Needs, f: impl FnOnce(Subject<'_>) -> Result<T>) -> Result<T> {
        // Without a text, the configuration is refused where it is checked.
        let has_text = self.calibration.as_ref().is_some_and(|windows| !windows.ids.is_empty());
        let statistics = (needs.statistics && has_text).then(|| self.statistics()).transpose()?;
        let gradients = (needs.gradients && has_text).then(|| self.gradients()).transpose()?;
        let grams = if needs.grams && has_text { self.grams()? } else { None };
        let read = grams.map(|grams| {
            move |i: usize| match grams.get(i) {
                Some(layer) => layer.read(),
                None => Ok(Statistics::default()),
            }
        });
        let known = Known {
            statistics: statistics.as_deref(),
            grams: read.as_ref().map(|read| read as &dyn Fn(usize) -> Result<Statistics>),
            gradients: gradients.as_ref(),
        };
        f(Subject { model: &self.model, calibration: self.calibration(), known: &known, progress: self.progress })
    }

    /// The result of a stage: kept, or computed and kept.
    fn stage<T>(
        &self,
        key: &Key,
        title: String,
        load: impl FnOnce(&Path, &Value) -> Result<T>,
        compute: impl FnOnce() -> Result<T>,
        save: impl FnOnce(&T, &Path) -> Result<Value>,
    ) -> Result<T> {
        if let Some(result) = self.cache.load(key, self.progress, |entry| load(entry.dir(), &entry.value))? {
            self.cache.count(key.stage(), Found::Disk);
            return Ok(result);
        }
        self.cache.count(key.stage(), Found::Computed);
        let result = compute()?;
        self.cache.keep(key, title, self.progress, |dir| save(&result, dir))?;
        Ok(result)
    }

    fn needed_calibration(&self) -> Result<&Windows> {
        let missing = || {
            Error::argument("lab", self.model.name(), "has no calibration text".remedy("give it with `calibrate_on`"))
        };
        self.calibration.as_ref().ok_or_else(missing)
    }

    fn title(&self, windows: &Windows) -> String {
        format!("{}: {} x {} of {}", self.model.name(), windows.ids.len(), windows.seqlen, windows.name)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        locked(&self.memory)
    }
}

fn shape(mask: &crate::mask::Mask) -> Vec<usize> {
    let (rows, cols) = mask.shape();
    vec![rows, cols]
}
