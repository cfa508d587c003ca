//! Scores of models: perplexity, as the Wanda and SparseGPT reference codes compute it; multiple choice and generation,
//! as lm-evaluation-harness does. Every score has a bootstrap interval.

mod choice;
mod example;
mod generation;
mod hub;
mod suite;
mod task;

pub use choice::{ChoicePrediction, ChoiceScores, score_choices};
pub use example::{Choice, Glue, Prompt};
pub use generation::{GenerationConfig, GenerationPrediction, GenerationScores, score_generation};
pub use hub::TaskKind;
pub use suite::{Suite, SuiteRow, SuiteScores, score_suite, suite_tasks};
pub use task::{Task, TaskRecord};

use crate::error::{Error, Remedy, Result};
use crate::model::{Head, LOGIT_ROWS, Model, log_sum_exp};
use crate::progress::Progress;
use crate::record::{EvaluationRecord, TextRecord};
use crate::stats::{Bootstrap, Interval};
use crate::text::Windows;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// The scores of a model on a text.
#[derive(Clone, PartialEq)]
pub struct Evaluation {
    /// The text and its windows.
    pub text: TextRecord,
    /// Negative log-likelihood of each predicted token in nats, `(windows, seqlen - 1)`: the first token of a window is
    /// not predicted.
    pub losses: Vec<Vec<f64>>,
    /// Mean of `losses`.
    pub nll_nats: f64,
    /// `exp(nll_nats)`.
    pub perplexity: f64,
    /// Bootstrap interval of `nll_nats`, over windows; `None` for a single window.
    pub nll_interval: Option<Interval>,
}

crate::debug::one_line!(rich Evaluation, |evaluation| {
    format!("Evaluation({}: perplexity {:.4}, {} tokens)", evaluation.text.name, evaluation.perplexity, evaluation.tokens())
});

impl Evaluation {
    /// Computes the scores from the losses of each predicted token in nats, `(windows, seqlen - 1)`, with the default
    /// bootstrap.
    pub(crate) fn from_losses(text: TextRecord, losses: Vec<Vec<f64>>) -> Result<Evaluation> {
        let tokens: usize = losses.iter().map(Vec::len).sum();
        let nll_nats = losses.iter().flatten().sum::<f64>() / tokens as f64;
        let evaluation = Evaluation { text, losses, nll_nats, perplexity: nll_nats.exp(), nll_interval: None };
        evaluation.bootstrap(&Bootstrap::default())
    }

    /// Mean loss of each window in nats, `(windows,)`: what the interval resamples, and what
    /// [`Bootstrap::paired_difference`] compares between two models on the same windows. Their mean is `nll_nats`, since
    /// windows are of one length.
    pub fn window_nll_nats(&self) -> Vec<f64> {
        self.losses.iter().map(|losses| losses.iter().sum::<f64>() / losses.len() as f64).collect()
    }

    /// This evaluation with the interval that `bootstrap` gives; [`evaluate`] takes the default one.
    ///
    /// # Errors
    /// As [`Bootstrap::score`].
    pub fn bootstrap(self, bootstrap: &Bootstrap) -> Result<Evaluation> {
        let nll_interval = bootstrap.score(&self.window_nll_nats())?.interval;
        Ok(Evaluation { nll_interval, ..self })
    }

    /// `exp` of `nll_interval`.
    pub fn perplexity_interval(&self) -> Option<Interval> {
        self.nll_interval.map(|interval| interval.map(f64::exp))
    }

    /// Number of predicted tokens.
    pub fn tokens(&self) -> u64 {
        self.losses.iter().map(|losses| losses.len() as u64).sum()
    }

    /// The evaluation as a record's part.
    pub fn record(&self) -> EvaluationRecord {
        EvaluationRecord {
            text: self.text.clone(),
            tokens: self.tokens(),
            nll_nats: self.nll_nats,
            perplexity: self.perplexity,
            nll_interval: self.nll_interval,
            perplexity_interval: self.perplexity_interval(),
        }
    }
}

/// Scores `windows`: forward in the model's dtype, logits in f32, log-softmax accumulated in f64. Layers are used one at a
/// time; memory is one layer, the activations of all windows, and the embedding.
///
/// # Errors
/// [`Error::Argument`] for windows of fewer than two tokens or ids outside the vocabulary; [`Error::Tensor`] when the loss
/// is not a finite number; [`Error::Interrupted`].
pub fn evaluate(model: &Model, windows: &Windows, progress: Progress) -> Result<Evaluation> {
    if windows.seqlen < 2 || windows.ids.is_empty() {
        let problem = "scoring needs at least one window of two tokens";
        return Err(Error::argument("windows", format!("{} x {}", windows.ids.len(), windows.seqlen), problem));
    }
    let hidden = model.hidden_states(&windows.ids, progress)?;
    let stage = progress.stage("losses", hidden.len() as u64);
    let head = model.head()?;
    let mut losses = Vec::with_capacity(hidden.len());
    for (x, ids) in hidden.iter().zip(&windows.ids) {
        losses.push(window_losses(&head, &x.squeeze(0)?, ids)?);
        stage.inc(1)?;
    }
    finite(model, losses.iter().flatten().sum())?;
    Evaluation::from_losses(windows.record(), losses)
}

/// Losses `(seqlen - 1,)` of the tokens after the first, from the last hidden states `x (seqlen, hidden)`.
fn window_losses(head: &Head, x: &Tensor, ids: &[u32]) -> Result<Vec<f64>> {
    target_losses(head, &x.narrow(0, 0, ids.len() - 1)?, &ids[1..])
}

/// Losses in nats `(n,)` of `targets (n,)`, each predicted from its row of the last hidden states `x (n, hidden)`.
fn target_losses(head: &Head, x: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let mut losses = Vec::with_capacity(targets.len());
    for (start, targets) in (0..).step_by(LOGIT_ROWS).zip(targets.chunks(LOGIT_ROWS)) {
        let logits = head.logits(&x.narrow(0, start, targets.len())?)?.to_device(&Device::Cpu)?; // (rows, vocab)
        let vocab = logits.dims()[1];
        let values: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let rows = values.par_chunks(vocab).zip(targets);
        losses.par_extend(rows.map(|(row, &target)| log_sum_exp(row) - f64::from(row[target as usize])));
    }
    Ok(losses)
}

/// Fails when a sum of losses is no number.
fn finite(model: &Model, loss: f64) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    let problem = format!("are not finite in {:?}", model.dtype()).remedy("evaluate in f32");
    Err(Error::tensor(model.name(), "logits", problem))
}

/// Applies `f` to each item: on the CPU several at a time, on a GPU one after another. Items are whole sequences, work
/// enough for a thread.
fn each<T: Send>(model: &Model, items: &mut [T], f: impl Fn(&mut T) -> Result<()> + Send + Sync) -> Result<()> {
    if model.device().is_cpu() { items.par_iter_mut().try_for_each(f) } else { items.iter_mut().try_for_each(f) }
}
