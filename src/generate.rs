//! Text that a model continues, to be read beside its perplexity.

use crate::error::{Error, Remedy, Result};
use crate::model::{KvCache, Model, Wanted};
use crate::progress::check_interrupt;
use crate::text::{Bos, BosRecord, Encoder, Tokenizer};
use candle_core::Device;
use candle_transformers::generation::{LogitsProcessor, Sampling};
use serde::Serialize;

/// Settings of generation; the names are those of Hugging Face's `generate`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GenerateConfig {
    /// Tokens to add at most; generation ends earlier at an `eos_token_id` of
    /// `generation_config.json`, or of `config.json` where that has none.
    pub max_new_tokens: usize,
    /// 0 takes the most likely token; above, logits are divided by it and a token is drawn.
    pub temperature: f64,
    /// Draws from the smallest set of tokens with this total probability; in `(0, 1]`.
    pub top_p: f64,
    /// Seed of the draws, which candle-transformers' `LogitsProcessor` makes: the same on every machine.
    pub seed: u64,
}

impl GenerateConfig {
    /// The most likely token each time.
    pub fn greedy(max_new_tokens: usize) -> Self {
        GenerateConfig { max_new_tokens, temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// The continuation of `prompt`, without the prompt. The tokenizer's post-processor decides about a BOS ([`Bos::Auto`]).
///
/// # Errors
/// As [`generate_after`].
pub fn generate(model: &Model, prompt: &str, config: &GenerateConfig) -> Result<String> {
    generate_after(model, prompt, Bos::Auto, config).map(|(continuation, _)| continuation)
}

/// The continuation of `prompt`, without the prompt, and what stood in front of that. Where something does, the prompt may be
/// empty.
///
/// # Errors
/// [`Error::Argument`] for an empty prompt, settings outside their range, or a prompt and continuation longer than the
/// model's context.
pub fn generate_after(model: &Model, prompt: &str, bos: Bos, config: &GenerateConfig) -> Result<(String, BosRecord)> {
    if !(config.temperature >= 0.0 && config.temperature.is_finite()) {
        return Err(Error::argument("temperature", config.temperature, "must be a number from 0"));
    }
    if !(config.top_p > 0.0 && config.top_p <= 1.0) {
        return Err(Error::argument("top_p", config.top_p, "must be above 0 and at most 1"));
    }
    let tokenizer = model.tokenizer()?;
    let encoder = Encoder::new(&tokenizer, bos, model.start_token()?)?;
    let ids = encoder.encode(prompt)?;
    if ids.is_empty() {
        return Err(Error::argument(
            "prompt",
            "\"\"",
            "generation needs at least one token to begin with".remedy("write one, or say `--bos yes`"),
        ));
    }
    Ok((continue_until(model, &tokenizer, ids, config, &[])?, encoder.record()))
}

/// The continuation of the tokens `ids`, of which there is at least one, up to the first of the texts `stop`.
pub(crate) fn continue_until(
    model: &Model,
    tokenizer: &Tokenizer,
    mut ids: Vec<u32>,
    config: &GenerateConfig,
    stop: &[String],
) -> Result<String> {
    let prompt_len = ids.len();
    let longest = prompt_len + config.max_new_tokens;
    if longest > model.config().max_position_embeddings {
        let problem = format!(
            "with a prompt of {prompt_len} tokens that exceeds the model's context of {}",
            model.config().max_position_embeddings
        );
        return Err(Error::argument("max_new_tokens", config.max_new_tokens, problem));
    }
    let rope = model.rope(longest);
    let layers = (0..model.layers()).map(|i| model.layer(i)).collect::<Result<Vec<_>>>()?;
    let head = model.head()?;
    let ends = model.end_tokens()?;
    let mut caches = vec![KvCache::default(); layers.len()];
    let mut sampler = sampler(config);
    let mut next = ids.clone();
    for _ in 0..config.max_new_tokens {
        check_interrupt()?;
        let mut x = model.embed(&[next])?.remove(0); // (1, new tokens, hidden)
        for (layer, cache) in layers.iter().zip(&mut caches) {
            if let Some(y) = layer.run(model.config(), &rope, &x, Some(cache), &mut (), Wanted::Output)? {
                x = y;
            }
        }
        let last = x.narrow(1, x.dims()[1] - 1, 1)?.squeeze(0)?;
        let logits = head.logits(&last)?.to_device(&Device::Cpu)?.flatten_all()?;
        let id = sampler.sample(&logits).map_err(Error::compute("choosing a token by its probability"))?;
        if ends.contains(&id) {
            break;
        }
        ids.push(id);
        next = vec![id];
        if !stop.is_empty() {
            // A stop may be spread over tokens, or be part of one.
            let text = tokenizer.decode(&ids[prompt_len..])?;
            if let Some(end) = stop.iter().filter_map(|stop| text.find(stop)).min() {
                return Ok(text[..end].to_owned());
            }
        }
    }
    tokenizer.decode(&ids[prompt_len..])
}

/// candle-transformers' sampler with these settings.
fn sampler(config: &GenerateConfig) -> LogitsProcessor {
    let &GenerateConfig { temperature, top_p, seed, .. } = config;
    let sampling = if temperature == 0.0 { Sampling::ArgMax } else { Sampling::TopP { p: top_p, temperature } };
    LogitsProcessor::from_sampling(seed, sampling)
}
