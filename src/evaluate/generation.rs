//! Generation against accepted answers.

use super::each;
use super::example::Prompt;
use super::task::{Task, TaskRecord};
use crate::error::{Error, Remedy, Result};
use crate::generate::{GenerateConfig, continue_until};
use crate::model::Model;
use crate::progress::Progress;
use crate::stats::{Bootstrap, Score};
use crate::text::{Bos, BosRecord, Encoder};
use serde::{Deserialize, Serialize};

/// Settings of greedy generation: the most tokens of an answer, and texts that end it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationConfig {
    /// Tokens to generate at most for one example.
    pub max_new_tokens: usize,
    /// Texts that end an answer and are not part of it, whichever comes first.
    pub stop: Vec<String>,
    /// The rule for the tokens in front of a prompt.
    pub bos: Bos,
}

impl Default for GenerationConfig {
    /// The default of lm-evaluation-harness: 256 tokens, up to an empty line.
    fn default() -> Self {
        GenerationConfig { max_new_tokens: 256, stop: vec!["\n\n".into()], bos: Bos::Auto }
    }
}

/// The scores of a model on a generation task. White space is trimmed at both ends and counts as one space elsewhere;
/// letters and punctuation are compared as they are.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationScores {
    /// The task.
    pub task: TaskRecord,
    /// The tokens in front of each prompt. Older results lack it.
    #[serde(default)]
    pub bos: BosRecord,
    /// Share of examples whose continuation is one of the answers.
    pub exact_match: Score,
    /// Share of examples whose continuation has one of the answers in it.
    pub contains: Score,
    /// Examples whose prompt left no room for the answer in the model's context and lost tokens at its beginning.
    pub truncated: usize,
    /// One entry per example, in the order of the file.
    pub predictions: Vec<GenerationPrediction>,
}

crate::debug::one_line!(rich GenerationScores, |scores| {
    let (exact, contains, of) = (scores.exact_match.value, scores.contains.value, scores.predictions.len());
    format!("GenerationScores({}: exact match {exact:.4}, contains {contains:.4}, {of} examples)", scores.task.name)
});

/// A model's answer to one example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationPrediction {
    /// Its line in the file, from 1.
    pub line: usize,
    /// The text that the model generated, up to a stop.
    pub text: String,
    /// True if the text is one of the answers.
    pub exact_match: bool,
    /// True if the text contains one of the answers.
    pub contains: bool,
}

/// Continues every prompt of `task` with the most likely tokens and compares with its answers. The whole model is in
/// memory.
///
/// # Errors
/// [`Error::Argument`] when `max_new_tokens` is 0 or leaves no room for a prompt; [`Error::File`] with the line of an
/// example that cannot be continued, and for a model without a tokenizer; [`Error::Interrupted`].
pub fn score_generation(
    model: &Model,
    task: &Task<Prompt>,
    config: &GenerationConfig,
    bootstrap: &Bootstrap,
    progress: Progress,
) -> Result<GenerationScores> {
    let positions = model.config().max_position_embeddings;
    if config.max_new_tokens == 0 || config.max_new_tokens >= positions {
        let problem = format!("must be from 1 to {}: the model's context is {positions}", positions - 1);
        return Err(Error::argument("max_new_tokens", config.max_new_tokens, problem));
    }
    if config.stop.iter().any(String::is_empty) {
        return Err(Error::argument(
            "stop",
            "\"\"",
            "an empty text stops before the first token".remedy("leave it out"),
        ));
    }
    let model = &model.resident()?;
    let tokenizer = model.tokenizer()?;
    let encoder = Encoder::new(&tokenizer, config.bos, model.start_token()?)?;
    let room = positions - config.max_new_tokens;
    let mut work: Vec<(&Prompt, Vec<u32>, String)> = Vec::with_capacity(task.examples.len());
    let mut truncated = 0;
    for example in &task.examples {
        let ids = prompt_ids(&encoder, example).map_err(|problem| task.problem(example.line, problem))?;
        truncated += usize::from(ids.len() > room);
        work.push((example, ids[ids.len().saturating_sub(room)..].to_vec(), String::new()));
    }
    let stage = progress.stage(&task.name, work.len() as u64);
    let greedy = GenerateConfig::greedy(config.max_new_tokens);
    each(model, &mut work, |(_, ids, text)| {
        *text = continue_until(model, &tokenizer, std::mem::take(ids), &greedy, &config.stop)?;
        stage.inc(1)
    })?;
    let predictions: Vec<_> = work.into_iter().map(|(example, _, text)| judge(example, text)).collect();
    let share = |right: fn(&GenerationPrediction) -> bool| {
        bootstrap.score(&predictions.iter().map(|p| f64::from(u8::from(right(p)))).collect::<Vec<_>>())
    };
    let (exact_match, contains) = (share(|p| p.exact_match)?, share(|p| p.contains)?);
    Ok(GenerationScores { task: task.record(), bos: encoder.record(), exact_match, contains, truncated, predictions })
}

/// Tokens of a prompt without the white space at its end, which tokenizers join to the next word.
fn prompt_ids(encoder: &Encoder, example: &Prompt) -> Result<Vec<u32>, String> {
    let ids = encoder.encode(example.prompt.trim_end()).map_err(|error| error.to_string())?;
    if !ids.is_empty() {
        return Ok(ids);
    }
    let problem =
        "has an empty prompt, and neither the tokenizer nor config.json has a token to begin with (`bos_token`)";
    Ok(vec![encoder.start().ok_or(problem)?])
}

fn judge(example: &Prompt, text: String) -> GenerationPrediction {
    let generated = normal(&text);
    let answers: Vec<String> = example.answers.iter().map(|answer| normal(answer)).collect();
    GenerationPrediction {
        line: example.line,
        exact_match: answers.contains(&generated),
        contains: answers.iter().any(|answer| generated.contains(answer.as_str())),
        text,
    }
}

/// White space trimmed, and one space elsewhere.
fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_does_not_count_and_all_else_does() {
        let example = Prompt { line: 1, prompt: "x".into(), answers: vec!["New  York".into(), "NYC".into()] };
        let judged = |text: &str| {
            let prediction = judge(&example, text.into());
            (prediction.exact_match, prediction.contains)
        };
        assert_eq!(judged(" New York\n"), (true, true));
        assert_eq!(judged("NYC"), (true, true));
        assert_eq!(judged("It is New\nYork."), (false, true));
        assert_eq!(judged("new york"), (false, false));
        assert_eq!(judged(""), (false, false));
    }
}
