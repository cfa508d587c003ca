//! Perplexity, as the Wanda and SparseGPT reference codes compute it.

use crate::model::{Head, LOGIT_ROWS, Model, Wanted, log_sum_exp, pass};
use crate::progress::Progress;
use crate::record::{EvaluationRecord, TextRecord};
use crate::text::Windows;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// What a model scores on a text.
#[derive(Clone, Debug, PartialEq)]
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
}

impl Evaluation {
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
        }
    }
}

/// Scores `windows`: forward in the model's dtype, logits in f32, log-softmax accumulated in f64. Blocks are used one at a
/// time; memory is one block, the activations of all windows, and the embedding.
///
/// # Errors
/// [`Error::Argument`] for windows of fewer than two tokens or ids outside the vocabulary; [`Error::Tensor`] when the loss
/// is not a finite number; [`Error::Interrupted`].
pub fn evaluate(model: &Model, windows: &Windows, progress: Progress) -> Result<Evaluation> {
    if windows.seqlen < 2 || windows.ids.is_empty() {
        let problem = "scoring needs at least one window of two tokens";
        return Err(Error::argument("windows", format!("{} x {}", windows.ids.len(), windows.seqlen), problem));
    }
    let mut hidden = model.embed(&windows.ids)?; // (1, seqlen, hidden) each
    let rope = model.rope(windows.seqlen);
    let stage = progress.stage("evaluate", ((model.blocks() + 1) * hidden.len()) as u64);
    for i in 0..model.blocks() {
        let block = model.block(i)?;
        pass(model, &block, &rope, &mut hidden, Wanted::Output, &stage, || (), |()| ())?;
    }
    let head = model.head()?;
    let mut losses = Vec::with_capacity(hidden.len());
    for (x, ids) in hidden.iter().zip(&windows.ids) {
        losses.push(window_losses(&head, &x.squeeze(0)?, ids)?);
        stage.inc(1)?;
    }
    let tokens: usize = losses.iter().map(Vec::len).sum();
    let nll_nats = losses.iter().flatten().sum::<f64>() / tokens as f64;
    if !nll_nats.is_finite() {
        let problem = format!("are not finite in {:?}; evaluate in f32", model.dtype());
        return Err(Error::tensor(model.name(), "logits", problem));
    }
    Ok(Evaluation { text: windows.record(), losses, nll_nats, perplexity: nll_nats.exp() })
}

/// Losses `(seqlen - 1,)` of the tokens after the first, from the last hidden states `x (seqlen, hidden)`.
fn window_losses(head: &Head, x: &Tensor, ids: &[u32]) -> Result<Vec<f64>> {
    let mut losses = Vec::with_capacity(ids.len() - 1);
    for start in (0..ids.len() - 1).step_by(LOGIT_ROWS) {
        let rows = LOGIT_ROWS.min(ids.len() - 1 - start);
        let logits = head.logits(&x.narrow(0, start, rows)?)?.to_device(&Device::Cpu)?; // (rows, vocab)
        let vocab = logits.dims()[1];
        let values: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let rows = values.par_chunks(vocab).zip(&ids[start + 1..]);
        losses.par_extend(rows.map(|(row, &target)| log_sum_exp(row) - f64::from(row[target as usize])));
    }
    Ok(losses)
}
