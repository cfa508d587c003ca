//! Training small models from scratch: Llama and Mixtral architectures, by next-token prediction, on a CPU.
//!
//! The run is a function of corpus and configuration: weights, batches and their order come from the seed, sums are taken
//! in a fixed order whatever the number of threads, and a run that was killed and started again ends in the same bytes as
//! one that was not. Constants are GPT-3's and Llama's: AdamW with betas 0.9 and 0.95, weight decay 0.1 on matrices,
//! gradient norm clipped at 1, linear warm-up, then a cosine down to a tenth of the learning rate.

mod batches;
mod loss;
mod optimizer;
mod save;

use crate::error::{Error, Remedy, Result};
use crate::evaluate::evaluate;
use crate::model::{Model, ModelConfig, cross_entropy};
use crate::progress::Progress;
use crate::record::EvaluationRecord;
use crate::settings::FloatType;
use crate::text::{Consecutive, END_OF_TEXT, NgramPerplexity, Tokenizer, Windows, documents, ngram_perplexity};
use batches::Batches;
use candle_core::{DType, Device, Tensor, Var};
use loss::{Routing, balance};
use optimizer::AdamW;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Settings of a training run. Every field shapes the weights, so all of them are recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Number of decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads; `hidden_size / heads` is the width of one, and even.
    pub heads: usize,
    /// Key/value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of the MLP; of one expert, in a mixture.
    pub intermediate_size: usize,
    /// A mixture of experts (Mixtral) when given, else Llama.
    pub moe: Option<ExpertsConfig>,
    /// True if the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens of the byte-level BPE that is trained first.
    pub vocab_size: usize,
    /// Tokens per window, also the model's longest context.
    pub seqlen: usize,
    /// Windows per step.
    pub batch: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seeds the weights and the order of the windows.
    pub seed: u64,
    /// Weights are saved in this dtype: `bf16`, `f16` or `f32`. Training itself is in f32.
    pub dtype: FloatType,
    /// Files that the weights are saved in.
    pub shards: usize,
}

/// Experts of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertsConfig {
    /// Experts per layer.
    pub experts: usize,
    /// Experts that each token goes to.
    pub top_k: usize,
}

/// The entry of a training run in `lacuna.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// [`crate::record::SCHEMA_VERSION`] of the writer.
    pub schema: u32,
    /// The configuration.
    pub training: TrainConfig,
    /// SHA-256 of each file of the corpus.
    pub corpus: BTreeMap<String, String>,
    /// Number of parameters.
    pub parameters: u64,
    /// Tokens in the training text, and how many the run predicted.
    pub train_tokens: u64,
    /// Tokens predicted while training: `steps * batch * seqlen`.
    pub seen_tokens: u64,
    /// The saved weights on `valid`.
    pub valid: EvaluationRecord,
    /// The saved weights on `test`.
    pub test: EvaluationRecord,
    /// Simpler models on the same tokens of `test`.
    pub ngram: NgramPerplexity,
    /// Per layer, the share of `valid`'s tokens that each expert got; empty without experts. Rows sum to 1.
    pub expert_share: Vec<Vec<f64>>,
    /// Times and versions.
    pub environment: BTreeMap<String, serde_json::Value>,
}

/// Weight of the load-balancing loss (Mixtral's `router_aux_loss_coef`).
const BALANCE: f64 = 0.02;

/// Tokens per forward pass. Gradients are summed over passes of this size, so it is part of the arithmetic; passes run
/// beside each other, one per thread.
const PASS_TOKENS: usize = 1024;

/// Trains on `corpus/train.txt` and writes the model to `out`, a directory that must not exist. A run that was stopped
/// goes on from its last saved state (a hidden file beside `out`, rewritten every `save_every` steps).
///
/// # Errors
/// As [`Trainer::open`], [`Trainer::step`] and [`Trainer::finish`].
pub fn train(
    corpus: impl AsRef<Path>,
    out: impl AsRef<Path>,
    config: &TrainConfig,
    save_every: usize,
    progress: Progress,
) -> Result<TrainRecord> {
    let mut trainer = Trainer::open(corpus, out, config)?;
    let stage = progress.stage("train", config.steps as u64);
    stage.inc(trainer.done() as u64)?;
    let (started, first) = (Instant::now(), trainer.done());
    let mut smooth = None;
    while trainer.done() < config.steps {
        let loss = trainer.step()?;
        let average = smooth.map_or(loss, |smooth: f64| 0.95 * smooth + 0.05 * loss);
        smooth = Some(average);
        let goes_on = stage.inc_with(1, || {
            let tokens = (trainer.done() - first) * config.batch * config.seqlen;
            format!("loss {average:.3}, {:.0} tokens/s", tokens as f64 / started.elapsed().as_secs_f64())
        });
        if goes_on.is_err() || (trainer.done().is_multiple_of(save_every.max(1)) && trainer.done() < config.steps) {
            trainer.save_state()?;
        }
        goes_on?;
    }
    drop(stage);
    trainer.finish(progress)
}

/// A training run, step by step; [`train`] is the loop around it.
pub struct Trainer {
    config: TrainConfig,
    out: PathBuf,
    corpus: BTreeMap<String, String>,
    tokenizer: Tokenizer,
    train: Vec<Vec<u32>>,
    valid: Windows,
    test: Windows,
    model_config: ModelConfig,
    names: Vec<String>,
    vars: Vec<Var>,
    model: Model,
    optimizer: AdamW,
    batches: Batches,
    done: usize,
    started: Instant,
}

impl Trainer {
    /// Reads `train.txt`, `valid.txt` and `test.txt` of `corpus`, trains the tokenizer, and makes the weights or, if a
    /// run of the same configuration on the same corpus was stopped, takes up its state.
    ///
    /// # Errors
    /// Fails when `out` exists, a part of the corpus is missing or too short, the configuration contradicts itself, or
    /// the saved state belongs to another run.
    pub fn open(corpus: impl AsRef<Path>, out: impl AsRef<Path>, config: &TrainConfig) -> Result<Self> {
        let (corpus, out) = (corpus.as_ref(), out.as_ref());
        config.check()?;
        if out.exists() {
            return Err(Error::file(out, "exists".remedy("remove it, or give another --out")));
        }
        let part = |name: &str| corpus.join(name);
        let mut hashes = BTreeMap::new();
        for name in ["train.txt", "valid.txt", "test.txt"] {
            let path = part(name);
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            hashes.insert(name.to_owned(), hex::encode(Sha256::digest(bytes)));
        }
        let texts = documents(part("train.txt"))?;
        let tokenizer = Tokenizer::train_bpe(&texts, config.vocab_size)?;
        let train = tokenizer.encode_documents(&texts)?;
        let valid = Windows::evaluation(part("valid.txt"), Some(&tokenizer), Consecutive::of(config.seqlen))?;
        let test = Windows::evaluation(part("test.txt"), Some(&tokenizer), Consecutive::of(config.seqlen))?;

        let separator = tokenizer.id(END_OF_TEXT).unwrap_or_default();
        let stream = train.iter().flat_map(|ids| std::iter::once(separator).chain(ids.iter().copied())).collect();
        let batches = Batches::new(stream, config.seqlen, config.seed).ok_or_else(|| {
            let problem = format!("has fewer than {} tokens, one window and its successor", config.seqlen + 1);
            Error::file(part("train.txt"), problem)
        })?;

        let json = save::config_json(config, separator);
        let model_config = ModelConfig::from_json(&out.join("config.json"), &json)?;
        let (names, shapes): (Vec<_>, Vec<_>) = model_config.tensors().into_iter().unzip();
        let vars = optimizer::initial(&names, &shapes, config.layers, config.seed)?;
        let tensors = names.iter().cloned().zip(vars.iter().map(|var| var.as_tensor().clone())).collect();
        let model = Model::from_tensors(model_config.clone(), tensors, &Device::Cpu)?;
        let mut trainer = Trainer {
            optimizer: AdamW::new(&vars),
            config: config.clone(),
            out: out.to_path_buf(),
            corpus: hashes,
            tokenizer,
            train,
            valid,
            test,
            model_config,
            names,
            vars,
            model,
            batches,
            done: 0,
            started: Instant::now(),
        };
        trainer.restore_state()?;
        Ok(trainer)
    }

    /// Steps taken, those before an interruption included.
    pub fn done(&self) -> usize {
        self.done
    }

    /// One step of the optimiser: the mean loss of its windows, in nats per token, before the step.
    ///
    /// # Errors
    /// [`Error::Compute`] from candle, or when the loss is no longer a number.
    pub fn step(&mut self) -> Result<f64> {
        let windows = self.batches.step(self.done, self.config.batch);
        let passes: Vec<_> = windows.chunks((PASS_TOKENS / self.config.seqlen).max(1)).collect();
        let passes = passes.into_par_iter().map(|pass| self.gradients(pass)).collect::<Result<Vec<_>>>()?;
        let mut loss = 0.0;
        let mut sum: Option<Vec<Vec<f32>>> = None;
        for (pass_loss, gradients) in passes {
            loss += pass_loss;
            match &mut sum {
                None => sum = Some(gradients),
                Some(sum) => sum.par_iter_mut().zip(&gradients).for_each(|(sum, gradients)| {
                    sum.iter_mut().zip(gradients).for_each(|(sum, gradient)| *sum += gradient);
                }),
            }
        }
        if !loss.is_finite() {
            let problem = format!("the loss became {loss} at step {}", self.done + 1).remedy("lower it");
            return Err(Error::argument("lr", self.config.learning_rate, problem));
        }
        let rate = optimizer::learning_rate(&self.config, self.done);
        self.optimizer.step(&self.vars, &mut sum.unwrap_or_default(), rate, self.done + 1)?;
        self.done += 1;
        Ok(loss)
    }

    /// Loss of some windows, as their part of the step's mean, and its gradients in the order of `vars`.
    fn gradients(&self, windows: &[Vec<u32>]) -> Result<(f64, Vec<Vec<f32>>)> {
        let seqlen = self.config.seqlen;
        let inputs: Vec<u32> = windows.iter().flat_map(|ids| &ids[..seqlen]).copied().collect();
        let targets: Vec<u32> = windows.iter().flat_map(|ids| &ids[1..]).copied().collect();
        let inputs = Tensor::from_vec(inputs, (windows.len(), seqlen), &Device::Cpu)?;
        let mut routing = Routing::default();
        let logits = self.model.forward_batch(&inputs, &mut routing)?; // (windows, seqlen, vocab)
        let loss = cross_entropy(&logits.flatten_to(1)?, targets)?;
        let share = windows.len() as f64 / self.config.batch as f64;
        let predicted = f64::from(loss.to_scalar::<f32>()?) * share;
        let loss = match balance(&routing)? {
            Some(balance) => (loss + (balance * BALANCE)?)?,
            None => loss,
        };
        let gradients = (loss * share)?.backward()?;
        let flat = |var: &Var| match gradients.get(var) {
            Some(gradient) => Ok(gradient.flatten_all()?.to_vec1::<f32>()?),
            // No token went to this expert.
            None => Ok(vec![0.0; var.elem_count()]),
        };
        Ok((predicted, self.vars.iter().map(flat).collect::<Result<_>>()?))
    }

    /// Writes the weights in the dtype asked for, the tokenizer, the configuration and the record, then removes the saved
    /// state. Both evaluations are of the weights as saved.
    ///
    /// # Errors
    /// Fails when not all steps were taken, or `out` cannot be written.
    pub fn finish(self, progress: Progress) -> Result<TrainRecord> {
        if self.done != self.config.steps {
            return Err(Error::argument("steps", self.config.steps, format!("only {} were taken", self.done)));
        }
        let dtype = DType::from(self.config.dtype);
        let rounded: Vec<(String, Tensor)> = self
            .names
            .iter()
            .zip(&self.vars)
            .map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().to_dtype(dtype)?.to_dtype(DType::F32)?)))
            .collect::<Result<_>>()?;
        let model = Model::from_tensors(self.model_config.clone(), rounded.iter().cloned().collect(), &Device::Cpu)?;
        let valid = evaluate(&model, &self.valid, progress)?.record();
        let test = evaluate(&model, &self.test, progress)?.record();
        let vocab = self.config.vocab_size;
        let mut environment = crate::record::environment();
        environment.insert("seconds_since_start_or_resumption".into(), self.started.elapsed().as_secs_f64().into());
        let record = TrainRecord {
            schema: crate::record::SCHEMA_VERSION,
            training: self.config.clone(),
            corpus: self.corpus.clone(),
            parameters: self.vars.iter().map(|var| var.elem_count() as u64).sum(),
            train_tokens: self.train.iter().map(|ids| ids.len() as u64).sum(),
            seen_tokens: (self.config.steps * self.config.batch * self.config.seqlen) as u64,
            valid,
            test,
            ngram: ngram_perplexity(&self.train, &self.valid, &self.test, vocab)?,
            expert_share: if self.config.moe.is_some() { expert_share(&model, &self.valid)? } else { Vec::new() },
            environment,
        };
        save::model(&self.out, &self.config, &self.tokenizer, &rounded, &record)?;
        let state = self.state_path();
        if state.exists() {
            std::fs::remove_file(&state).map_err(Error::io("remove", &state))?;
        }
        Ok(record)
    }
}

/// Per layer, the share of the windows' tokens that each expert gets; empty without experts.
fn expert_share(model: &Model, windows: &Windows) -> Result<Vec<Vec<f64>>> {
    let passes: Vec<_> = windows.ids.chunks((PASS_TOKENS / windows.seqlen).max(1)).collect();
    let passes = passes.into_par_iter().map(|pass| {
        let inputs = Tensor::from_vec(pass.concat(), (pass.len(), windows.seqlen), model.device())?;
        let mut routing = Routing::default();
        model.forward_batch(&inputs, &mut routing)?;
        Ok(routing)
    });
    let mut sum = Routing::default();
    for routing in passes.collect::<Result<Vec<_>>>()? {
        sum.add(&routing);
    }
    Ok(sum.shares())
}

impl TrainConfig {
    /// Checks the settings that the model's own configuration does not check.
    fn check(&self) -> Result<()> {
        for (name, value) in [
            ("layers", self.layers),
            ("hidden", self.hidden_size),
            ("heads", self.heads),
            ("kv-heads", self.kv_heads),
            ("intermediate", self.intermediate_size),
            ("batch", self.batch),
            ("steps", self.steps),
            ("shards", self.shards),
        ] {
            if value == 0 {
                return Err(Error::argument(name, value, "must be at least 1"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.heads * 2) {
            let problem =
                format!("must be a multiple of twice the heads ({}): rotary heads have an even width", self.heads);
            return Err(Error::argument("hidden", self.hidden_size, problem));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::argument("kv-heads", self.kv_heads, format!("must divide the {} heads", self.heads)));
        }
        if let Some(ExpertsConfig { experts, top_k }) = self.moe
            && !(1..=experts).contains(&top_k)
        {
            return Err(Error::argument("top-k", top_k, format!("must be 1 to the number of experts, {experts}")));
        }
        if self.warmup >= self.steps {
            return Err(Error::argument("warmup", self.warmup, format!("must be less than the {} steps", self.steps)));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return Err(Error::argument("lr", self.learning_rate, "must be a positive number"));
        }
        match self.dtype {
            FloatType::F32 | FloatType::Bf16 | FloatType::F16 => Ok(()),
            FloatType::F64 => Err(Error::argument("dtype", self.dtype, "weights can be saved as bf16, f16 or f32")),
        }
    }
}
