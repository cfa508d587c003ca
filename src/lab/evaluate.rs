//! What a lab measures of models: perplexity, tasks, text that they generate.

use super::{Lab, Made, Stage};
use crate::cache::Found;
use crate::checkpoint::{Array, Checkpoint, CheckpointWriter};
use crate::error::{Error, Result};
use crate::evaluate::{
    Choice, ChoiceScores, Evaluation, GenerationConfig, GenerationScores, Prompt, Task, evaluate, score_choices,
    score_generation,
};
use crate::exact_json::exact_floats;
use crate::generate::{GenerateConfig, generate};
use crate::mask::MaskSet;
use crate::model::Model;
use crate::prune::{PruneConfig, Pruned, apply};
use crate::record::Record;
use crate::stats::Bootstrap;
use crate::structured::Structured;
use crate::text::{Bos, Windows};
use safetensors::Dtype;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A model that a lab scores.
#[derive(Clone, Copy, Debug)]
pub enum Candidate<'a> {
    /// The model that pruning with this configuration gives. It is pruned only if no evaluation of it is cached.
    Config(&'a PruneConfig),
    /// The lab's model with zeros where the masks say so.
    Masks(&'a MaskSet),
    /// Any model, such as [`Lab::model`], the dense one.
    Model(&'a Model),
}

impl<'a> From<&'a PruneConfig> for Candidate<'a> {
    fn from(config: &'a PruneConfig) -> Self {
        Candidate::Config(config)
    }
}

impl<'a> From<&'a MaskSet> for Candidate<'a> {
    fn from(masks: &'a MaskSet) -> Self {
        Candidate::Masks(masks)
    }
}

impl<'a> From<&'a Model> for Candidate<'a> {
    fn from(model: &'a Model) -> Self {
        Candidate::Model(model)
    }
}

impl<'a> From<&'a Pruned> for Candidate<'a> {
    fn from(pruned: &'a Pruned) -> Self {
        Candidate::Model(&pruned.model)
    }
}

impl<'a> From<&'a Structured> for Candidate<'a> {
    fn from(structured: &'a Structured) -> Self {
        Candidate::Model(&structured.model)
    }
}

impl Lab {
    /// Scores what pruning gives, or a model ([`evaluate`]).
    ///
    /// # Errors
    /// As [`crate::prune::prune`] and [`evaluate`].
    pub fn evaluate<'a>(&self, candidate: impl Into<Candidate<'a>>, test: &Windows) -> Result<Evaluation> {
        let candidate = candidate.into();
        let (content, model) = self.content_of(candidate)?;
        if let Some(evaluation) = self.find_evaluation(&content, test)? {
            return Ok(evaluation);
        }
        self.with_model(candidate, model, |model| self.evaluate_model(model, &content, test))
    }

    /// Scores a model on a multiple-choice task ([`score_choices`]).
    ///
    /// # Errors
    /// As [`crate::prune::prune`] and [`score_choices`].
    pub fn score_choices<'a>(
        &self,
        candidate: impl Into<Candidate<'a>>,
        task: &Task<Choice>,
        bos: Bos,
        bootstrap: &Bootstrap,
    ) -> Result<ChoiceScores> {
        let inputs =
            json!({"task": task.record().sha256, "examples": task.examples.len(), "bos": bos, "bootstrap": bootstrap});
        let scores: ChoiceScores = self.scored(Stage::Choices, candidate.into(), inputs, &task.name, |model| {
            score_choices(model, task, bos, bootstrap, self.progress)
        })?;
        Ok(ChoiceScores { task: task.record(), ..scores })
    }

    /// Scores the answers that a model generates ([`score_generation`]).
    ///
    /// # Errors
    /// As [`crate::prune::prune`] and [`score_generation`].
    pub fn score_generation<'a>(
        &self,
        candidate: impl Into<Candidate<'a>>,
        task: &Task<Prompt>,
        config: &GenerationConfig,
        bootstrap: &Bootstrap,
    ) -> Result<GenerationScores> {
        let examples = task.examples.len();
        let inputs =
            json!({"task": task.record().sha256, "examples": examples, "config": config, "bootstrap": bootstrap});
        let scores: GenerationScores = self.scored(Stage::Answers, candidate.into(), inputs, &task.name, |model| {
            score_generation(model, task, config, bootstrap, self.progress)
        })?;
        Ok(GenerationScores { task: task.record(), ..scores })
    }

    /// The continuation of `prompt` by a model, without the prompt ([`generate`]).
    ///
    /// # Errors
    /// As [`crate::prune::prune`] and [`generate`].
    pub fn generate<'a>(
        &self,
        candidate: impl Into<Candidate<'a>>,
        prompt: &str,
        config: &GenerateConfig,
    ) -> Result<String> {
        let inputs = json!({"prompt": prompt, "config": config});
        self.scored(Stage::Text, candidate.into(), inputs, prompt, |model| generate(&model.resident()?, prompt, config))
    }

    /// What `compute` measures of a candidate: kept as JSON, or computed and kept.
    fn scored<T: Serialize + DeserializeOwned>(
        &self,
        stage: Stage,
        candidate: Candidate<'_>,
        inputs: Value,
        what: &str,
        compute: impl FnOnce(&Model) -> Result<T>,
    ) -> Result<T> {
        let (content, model) = self.content_of(candidate)?;
        let key = self.key(stage, json!({"content": content, "of": inputs}));
        let file = |dir: &Path| dir.join("scores.json");
        self.stage(
            &key,
            format!("{}: {what}", self.model.name()),
            |dir, _| {
                let path = file(dir);
                let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
                let mut value: Value = serde_json::from_str(&text).map_err(|error| Error::file(&path, error))?;
                exact_floats(&text, &mut value).ok_or_else(|| Error::file(&path, "names one key twice"))?;
                T::deserialize(value).map_err(|error| Error::file(&path, error))
            },
            || self.with_model(candidate, model, compute),
            |scores, dir| {
                let json = serde_json::to_vec(scores).map_err(|error| Error::file(dir, error))?;
                fs::write(file(dir), json).map_err(Error::io("write", file(dir)))?;
                Ok(Value::Null)
            },
        )
    }

    /// The identity of a candidate's weights ([`Lab::content`]), and the model where it had to be made to know that.
    fn content_of(&self, candidate: Candidate<'_>) -> Result<(String, Option<Model>)> {
        match candidate {
            Candidate::Model(model) => Ok((self.content(model)?, None)),
            Candidate::Masks(masks) => {
                let model = apply(&self.model, masks)?;
                Ok((self.content(&model)?, Some(model)))
            }
            Candidate::Config(config) => match self.made(config)? {
                Some(made) => Ok((made.content, None)),
                None => {
                    let (pruned, content) = self.pruned(config)?;
                    Ok((content, Some(pruned.model)))
                }
            },
        }
    }

    /// Calls `f` with a candidate's model, which is `made` if that is there.
    fn with_model<T>(
        &self,
        candidate: Candidate<'_>,
        made: Option<Model>,
        f: impl FnOnce(&Model) -> Result<T>,
    ) -> Result<T> {
        match (made, candidate) {
            (Some(model), _) => f(&model),
            (None, Candidate::Model(model)) => f(model),
            (None, Candidate::Masks(masks)) => f(&apply(&self.model, masks)?),
            (None, Candidate::Config(config)) => f(&self.pruned(config)?.0.model),
        }
    }

    /// Evaluates the dense model; the record that others are compared with.
    ///
    /// # Errors
    /// As [`Lab::evaluate`].
    pub fn dense(&self, test: &Windows) -> Result<Record> {
        Ok(Record::dense(self.model.record()?).with_evaluation(self.evaluate(&self.model, test)?.record()))
    }

    /// Prunes and evaluates; the record of both. A sweep is a loop over this.
    ///
    /// # Errors
    /// As [`Lab::evaluate`].
    pub fn record(&self, config: &PruneConfig, test: &Windows) -> Result<Record> {
        if let Some((made, evaluation)) = self.evaluated(config, test)? {
            let pruning = Some(config.record(&self.model, self.calibration())?);
            let record = Record { pruning, tensors: made.tensors, ..Record::dense(self.model.record()?) };
            return Ok(record.with_evaluation(evaluation.record()));
        }
        let (pruned, content) = self.pruned(config)?;
        let evaluation = self.evaluate_model(&pruned.model, &content, test)?;
        Ok(pruned.record.with_evaluation(evaluation.record()))
    }

    /// The facts about what a configuration gave before; `None` if it was not run.
    fn made(&self, config: &PruneConfig) -> Result<Option<Made>> {
        let key = self.pruned_key(config)?;
        if let Some(made) = self.memory().made.get(&key.name()) {
            return Ok(Some(made.clone()));
        }
        Ok(self.cache.value(&key).and_then(|value| Made::deserialize(value).ok()))
    }

    /// The cached evaluation of a configuration, found without pruning; `None` if there is none.
    fn evaluated(&self, config: &PruneConfig, test: &Windows) -> Result<Option<(Made, Evaluation)>> {
        let Some(made) = self.made(config)? else { return Ok(None) };
        Ok(self.find_evaluation(&made.content, test)?.map(|evaluation| (made, evaluation)))
    }

    fn evaluate_model(&self, model: &Model, content: &str, test: &Windows) -> Result<Evaluation> {
        if let Some(evaluation) = self.find_evaluation(content, test)? {
            return Ok(evaluation);
        }
        let (key, stage) = (self.evaluation_key(content, test), Stage::Evaluation.name());
        self.cache.count(stage, Found::Computed);
        let evaluation = evaluate(model, test, self.progress)?;
        self.cache.keep(&key, self.title(test), self.progress, |dir| {
            let losses: Vec<f64> = evaluation.losses.iter().flatten().copied().collect();
            let shape = vec![evaluation.losses.len(), losses.len() / evaluation.losses.len().max(1)];
            let mut writer = CheckpointWriter::arrays(&dir.join("losses"), vec![("losses".into(), Dtype::F64, shape)])?;
            writer.write_array("losses", Array::F64(&losses))?;
            writer.finish()?;
            Ok(Value::Null)
        })?;
        self.memory().evaluations.insert(key.name(), evaluation.clone());
        Ok(evaluation)
    }

    fn find_evaluation(&self, content: &str, test: &Windows) -> Result<Option<Evaluation>> {
        let (key, stage) = (self.evaluation_key(content, test), Stage::Evaluation.name());
        if let Some(evaluation) = self.memory().evaluations.get(&key.name()) {
            self.cache.count(stage, Found::Memory);
            return Ok(Some(Evaluation { text: test.record(), ..evaluation.clone() }));
        }
        let found = self.cache.load(&key, self.progress, |entry| {
            let arrays = Checkpoint::open_arrays(&entry.path("losses"))?;
            let losses = arrays.array("losses", f64::from_le_bytes)?;
            let predicted = test.seqlen.saturating_sub(1).max(1);
            Evaluation::from_losses(test.record(), losses.chunks(predicted).map(<[f64]>::to_vec).collect())
        })?;
        if let Some(evaluation) = &found {
            self.cache.count(stage, Found::Disk);
            self.memory().evaluations.insert(key.name(), evaluation.clone());
        }
        Ok(found)
    }
}
