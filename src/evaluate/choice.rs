//! Multiple choice by likelihood, as lm-evaluation-harness scores it.

use super::example::Choice;
use super::task::{Task, TaskRecord};
use super::{each, finite, target_losses};
use crate::error::{Error, Problem, Remedy, Result};
use crate::model::{DecoderLayer, KvCache, Model, ModelConfig, Rope, Wanted};
use crate::progress::{Progress, Stage};
use crate::stats::{Bootstrap, Score};
use crate::text::{Bos, BosRecord, Encoder};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The scores of a model on a multiple-choice task.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceScores {
    /// The task.
    pub task: TaskRecord,
    /// The tokens in front of each example. Older results lack it.
    #[serde(default)]
    pub bos: BosRecord,
    /// Share of examples whose answer has the highest log-likelihood: the harness's `acc`.
    pub acc: Score,
    /// Share of examples whose answer has the highest log-likelihood per character: the harness's `acc_norm`. Without
    /// the division, long choices would be less likely whatever they say.
    pub acc_norm: Score,
    /// The accuracy of guessing: the mean of one over the number of choices.
    pub chance: f64,
    /// Examples that were longer than the model's context and lost tokens at their beginning.
    pub truncated: usize,
    /// One entry per example, in the order of the file.
    pub predictions: Vec<ChoicePrediction>,
}

crate::debug::one_line!(rich ChoiceScores, |scores| {
    let (acc, norm, of) = (scores.acc.value, scores.acc_norm.value, scores.predictions.len());
    format!("ChoiceScores({}: acc {acc:.4}, acc_norm {norm:.4}, {of} examples)", scores.task.name)
});

/// A model's prediction for one example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoicePrediction {
    /// Its line in the file, from 1.
    pub line: usize,
    /// The right choice, from 0.
    pub answer: usize,
    /// The most likely choice; of equal ones the first.
    pub predicted: usize,
    /// The most likely choice per character.
    pub predicted_norm: usize,
    /// Log-likelihood of each choice given the context, in nats, summed over its tokens.
    pub log_likelihoods: Vec<f64>,
}

impl ChoiceScores {
    /// 1 for each example that `acc` counts, else 0: what [`Bootstrap::paired_difference`] compares between two models.
    pub fn correct(&self) -> Vec<f64> {
        correct(&self.predictions, |p| p.predicted)
    }

    /// As [`ChoiceScores::correct`], for `acc_norm`.
    pub fn correct_norm(&self) -> Vec<f64> {
        correct(&self.predictions, |p| p.predicted_norm)
    }
}

/// Tokens whose hidden states are held at one time; a model whose layers are read when needed is read once for each such
/// part of a task.
const TOKENS: usize = 32_768;

/// Scores every choice of `task` by its log-likelihood after the context, as `HFLM.loglikelihood` of lm-evaluation-harness
/// 0.4.13 does. White space at the end of a context is moved to the choice, a space is put between them ([`Choice::glue`]),
/// and a choice's tokens are what `encode(context + choice)` has beyond the length of `encode(context)`. What stands in front
/// of a text is `bos`; an empty context becomes the token for the beginning of a text. A sequence longer than
/// `max_position_embeddings` loses tokens at its beginning. The score of an example depends on no other example.
///
/// Layers are used one at a time, as in [`super::evaluate`]; in each, a context passes once and its choices read its keys
/// and values.
///
/// # Errors
/// [`Error::File`] with the line of an example that cannot be scored; [`Error::File`] for a model without a tokenizer;
/// [`Error::Tensor`] when a log-likelihood is not a finite number; [`Error::Interrupted`].
pub fn score_choices(
    model: &Model,
    task: &Task<Choice>,
    bos: Bos,
    bootstrap: &Bootstrap,
    progress: Progress,
) -> Result<ChoiceScores> {
    let tokenizer = model.tokenizer()?;
    let encoder = Encoder::new(&tokenizer, bos, model.start_token()?)?;
    let mut truncated = 0;
    let mut runs = Vec::new();
    for (index, example) in task.examples.iter().enumerate() {
        let parts = encode(model, &encoder, example).map_err(|problem| task.problem(example.line, problem))?;
        truncated += usize::from(parts.iter().any(|run| run.dropped > 0));
        runs.extend(parts.into_iter().map(|run| Run { example: index, ..run }));
    }
    let stage = progress.stage(&task.name, (runs.len() * (model.layers() + 1)) as u64);
    let mut scores: Vec<Vec<f64>> = task.examples.iter().map(|example| vec![0.0; example.choices.len()]).collect();
    for part in parts(&runs) {
        for (run, losses) in part.iter().zip(losses(model, part, &stage)?) {
            for ((choice, _), loss) in run.continuations.iter().zip(losses) {
                finite(model, loss)?;
                scores[run.example][*choice] = -loss;
            }
        }
    }
    let predictions: Vec<_> =
        task.examples.iter().zip(scores).map(|(example, scores)| predict(example, scores)).collect();
    let chance = task.examples.iter().map(|e| 1.0 / e.choices.len() as f64).sum::<f64>() / task.examples.len() as f64;
    Ok(ChoiceScores {
        task: task.record(),
        bos: encoder.record(),
        acc: bootstrap.score(&correct(&predictions, |p| p.predicted))?,
        acc_norm: bootstrap.score(&correct(&predictions, |p| p.predicted_norm))?,
        chance,
        truncated,
        predictions,
    })
}

/// 1 for each example whose answer is `chosen`, else 0.
fn correct(predictions: &[ChoicePrediction], chosen: fn(&ChoicePrediction) -> usize) -> Vec<f64> {
    predictions.iter().map(|p| f64::from(u8::from(chosen(p) == p.answer))).collect()
}

fn predict(example: &Choice, log_likelihoods: Vec<f64>) -> ChoicePrediction {
    let normed =
        log_likelihoods.iter().zip(&example.choices).map(|(score, choice)| score / choice.chars().count() as f64);
    ChoicePrediction {
        line: example.line,
        answer: example.answer,
        predicted: argmax(log_likelihoods.iter().copied()),
        predicted_norm: argmax(normed),
        log_likelihoods,
    }
}

/// Position of the largest number, the first of equal ones.
fn argmax(numbers: impl Iterator<Item = f64>) -> usize {
    let best = numbers.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(at, _)| at)
}

/// Choices of one example that see the very same context. These are all of them, unless the context had to be cut by a
/// different length for each, or the choices are contexts themselves.
struct Run {
    example: usize,
    /// Tokens that the context lost at its beginning.
    dropped: usize,
    context: Vec<u32>,
    /// Index and tokens of each choice.
    continuations: Vec<(usize, Vec<u32>)>,
}

impl Run {
    /// Tokens that pass through the layers: nothing is predicted from a choice's last one.
    fn tokens(&self) -> usize {
        self.context.len() + self.continuations.iter().map(|(_, ids)| ids.len() - 1).sum::<usize>()
    }

    /// Positions of its longest sequence, at most those of the model's context.
    fn positions(&self) -> usize {
        self.context.len() + self.continuations.iter().map(|(_, ids)| ids.len() - 1).max().unwrap_or(0)
    }
}

fn no_start() -> Problem {
    "has no context, and neither the tokenizer nor config.json has a token to begin with (`bos_token`)"
        .remedy("add one, or a context")
}

/// Tokens of an example; what is wrong with it is an error without its line.
fn encode(model: &Model, encoder: &Encoder, example: &Choice) -> Result<Vec<Run>, Problem> {
    let said = |error: Error| Problem::from(error);
    let positions = model.config().max_position_embeddings;
    let mut runs: BTreeMap<_, Vec<(usize, Vec<u32>)>> = BTreeMap::new();
    for (i, (context, continuation)) in example.requests().enumerate() {
        let (context, continuation) = if context.is_empty() {
            let start = encoder.start();
            let start = start.ok_or_else(no_start)?;
            let mut ids = encoder.plain(&continuation).map_err(said)?;
            if ids.first() == Some(&start) {
                ids.remove(0);
            }
            (vec![start], ids)
        } else {
            let trimmed = context.trim_end();
            let mut ids = encoder.encode(trimmed).map_err(said)?;
            let whole = encoder.encode(&format!("{context}{continuation}")).map_err(said)?;
            let continuation = whole.get(ids.len()..).unwrap_or_default().to_vec();
            if ids.is_empty() {
                ids.push(encoder.start().ok_or_else(no_start)?);
            }
            (ids, continuation)
        };
        if continuation.is_empty() {
            return Err(format!("choice {i} adds no token to the context; its tokenizer joins them").into());
        }
        if continuation.len() > positions {
            let tokens = continuation.len();
            return Err(format!("choice {i} has {tokens} tokens, more than the model's context of {positions}").into());
        }
        // The last token is predicted, but predicts nothing, and takes no position.
        let length = context.len() + continuation.len() - 1;
        let dropped = length.saturating_sub(positions);
        runs.entry((dropped, context[dropped..].to_vec())).or_default().push((i, continuation));
    }
    let run = |((dropped, context), continuations)| Run { example: 0, dropped, context, continuations };
    Ok(runs.into_iter().map(run).collect())
}

/// Consecutive runs of at most [`TOKENS`] tokens, or of one run.
fn parts(runs: &[Run]) -> Vec<&[Run]> {
    let (mut parts, mut rest) = (Vec::new(), runs);
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|run| {
            tokens += run.tokens();
            tokens <= TOKENS
        });
        let (part, after) = rest.split_at(fits.count().max(1));
        parts.push(part);
        rest = after;
    }
    parts
}

/// Hidden states of a run: `(1, tokens, hidden)` of the context and of each continuation without its last token.
struct Hidden {
    context: Tensor,
    continuations: Vec<Option<Tensor>>,
}

impl Hidden {
    /// Through one layer. The continuations see the context's keys and values, which end with this call.
    fn pass(&mut self, layer: &DecoderLayer, config: &ModelConfig, rope: &Rope) -> Result<()> {
        let mut cache = KvCache::default();
        let run = |x: &mut Tensor, cache: &mut KvCache| -> Result<()> {
            if let Some(y) = layer.run(config, rope, x, Some(cache), &mut (), Wanted::Output)? {
                *x = y;
            }
            Ok(())
        };
        run(&mut self.context, &mut cache)?;
        self.continuations.iter_mut().flatten().try_for_each(|x| run(x, &mut cache.clone()))
    }
}

/// Loss in nats of each continuation of each run, summed over its tokens.
fn losses(model: &Model, runs: &[Run], stage: &Stage) -> Result<Vec<Vec<f64>>> {
    // Up to the model's context, tables hold for any length: those of the longest sequence are those of each, dynamic ones too.
    let rope = model.rope(runs.iter().map(Run::positions).max().unwrap_or(1));
    let mut hidden = embed(model, runs)?;
    model.each_layer(|_, layer| {
        each(model, &mut hidden, |hidden| {
            hidden.pass(&layer, model.config(), &rope)?;
            stage.inc(1)
        })
    })?;
    let head = model.head()?;
    let mut losses = Vec::with_capacity(runs.len());
    for (run, hidden) in runs.iter().zip(hidden) {
        // The context's last token predicts the first token of every continuation.
        let last = hidden.context.narrow(1, run.context.len() - 1, 1)?;
        let rows: Vec<&Tensor> =
            hidden.continuations.iter().flat_map(|x| std::iter::once(&last).chain(x.as_ref())).collect();
        let targets: Vec<u32> = run.continuations.iter().flat_map(|(_, ids)| ids).copied().collect();
        let each = target_losses(&head, &Tensor::cat(&rows, 1)?.squeeze(0)?, &targets)?;
        let mut rest = each.as_slice();
        losses.push(
            run.continuations
                .iter()
                .map(|(_, ids)| {
                    let (own, after) = rest.split_at(ids.len());
                    rest = after;
                    own.iter().sum()
                })
                .collect(),
        );
        stage.inc(1)?;
    }
    Ok(losses)
}

/// Embeddings of what passes through the layers.
fn embed(model: &Model, runs: &[Run]) -> Result<Vec<Hidden>> {
    let inputs = |run: &Run| -> Vec<Vec<u32>> {
        let inputs = run.continuations.iter().map(|(_, ids)| ids[..ids.len() - 1].to_vec());
        std::iter::once(run.context.clone()).chain(inputs).filter(|ids| !ids.is_empty()).collect()
    };
    let all: Vec<Vec<u32>> = runs.iter().flat_map(inputs).collect();
    let mut embedded = model.embed(&all)?.into_iter();
    let mut next = || embedded.next().ok_or_else(|| Error::argument("examples", runs.len(), "an embedding is missing"));
    runs.iter()
        .map(|run| {
            let context = next()?;
            let one = |(_, ids): &(usize, Vec<u32>)| (ids.len() > 1).then(&mut next).transpose();
            Ok(Hidden { context, continuations: run.continuations.iter().map(one).collect::<Result<_>>()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Glue;

    #[test]
    fn the_first_of_equal_choices_is_taken() {
        assert_eq!(argmax([-3.0, -1.0, -1.0].into_iter()), 1);
        assert_eq!(argmax([-1.0].into_iter()), 0);
    }

    #[test]
    fn length_decides_per_character_and_not_per_byte() {
        let example = Choice {
            line: 3,
            context: "x".into(),
            choices: vec!["ab".into(), "éééé".into(), "abcdef".into()],
            answer: 1,
            glue: Glue::UnlessSpaced,
            ending: None,
        };
        // Per character -2, -1 and -1.5; per byte the second would be -0.5, the last still -1.5.
        let prediction = predict(&example, vec![-4.0, -4.0, -9.0]);
        assert_eq!((prediction.predicted, prediction.predicted_norm), (0, 1));
        let prediction = predict(&example, vec![-4.0, -6.0, -7.5]);
        assert_eq!((prediction.predicted, prediction.predicted_norm), (0, 2), "-1.25 a character, not -0.75 a byte");
    }

    #[test]
    fn parts_hold_all_runs_in_order_and_few_tokens() {
        let run = |example: usize, tokens: usize| Run {
            example,
            dropped: 0,
            context: vec![0; tokens],
            continuations: vec![(0, vec![0])],
        };
        let runs = [run(0, 20_000), run(1, 12_768), run(2, 1), run(3, 40_000), run(4, 5)];
        let lengths: Vec<usize> = parts(&runs).iter().map(|part| part.len()).collect();
        assert_eq!(lengths, [2, 1, 1, 1]);
        assert!(parts(&[]).is_empty());
    }
}
