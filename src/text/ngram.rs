//! Baselines for a trained model: perplexity of the unigram and the bigram, on the very tokens that the model is
//! measured on.

use super::Windows;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Perplexities of the two simplest language models, fitted on a training text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NgramPerplexity {
    /// Every token by its frequency, `(count + 1) / (total + vocab)`.
    pub unigram: f64,
    /// Every token by the one before it, backed by the unigram: `(count(a, b) + strength * P(b)) / (count(a) + strength)`.
    pub bigram: f64,
    /// The prior's strength in tokens: the best for `valid` among the powers of two up to 4096.
    pub strength: f64,
}

/// Fits a unigram and a bigram model on the documents of `train`, chooses the bigram's smoothing on `valid`, and measures
/// both on `test`: the last `seqlen - 1` tokens of each window, as a model is measured.
///
/// # Errors
/// Fails when `train` is empty or an id is not below `vocab`.
pub fn ngram_perplexity(train: &[Vec<u32>], valid: &Windows, test: &Windows, vocab: usize) -> Result<NgramPerplexity> {
    let mut unigrams = vec![0u64; vocab];
    let mut contexts = vec![0u64; vocab];
    let mut bigrams: HashMap<(u32, u32), u64> = HashMap::new();
    for document in train {
        for &id in document {
            let count = unigrams.get_mut(id as usize);
            *count
                .ok_or_else(|| Error::argument("token id", id, format!("is not below the vocabulary's {vocab}")))? += 1;
        }
        for pair in document.windows(2) {
            contexts[pair[0] as usize] += 1;
            *bigrams.entry((pair[0], pair[1])).or_default() += 1;
        }
    }
    let total: u64 = unigrams.iter().sum();
    if total == 0 {
        return Err(Error::argument("train", "empty", "an n-gram model needs tokens to count"));
    }
    valid.check_vocab(vocab)?;
    test.check_vocab(vocab)?;

    let unigram = |b: u32| (unigrams[b as usize] + 1) as f64 / (total + vocab as u64) as f64;
    let bigram = |a: u32, b: u32, strength: f64| {
        let together = bigrams.get(&(a, b)).copied().unwrap_or(0) as f64;
        (together + strength * unigram(b)) / (contexts[a as usize] as f64 + strength)
    };
    let strength = (0..=12)
        .map(|power| f64::from(1u32 << power))
        .min_by(|&x, &y| {
            let of = |strength| perplexity(valid, |a, b| bigram(a, b, strength));
            of(x).total_cmp(&of(y))
        })
        .unwrap_or(1.0);
    Ok(NgramPerplexity {
        unigram: perplexity(test, |_, b| unigram(b)),
        bigram: perplexity(test, |a, b| bigram(a, b, strength)),
        strength,
    })
}

fn perplexity(windows: &Windows, probability: impl Fn(u32, u32) -> f64) -> f64 {
    let pairs = windows.ids.iter().flat_map(|ids| ids.windows(2));
    let (nll, tokens) = pairs.fold((0.0, 0u64), |(nll, n), pair| (nll - probability(pair[0], pair[1]).ln(), n + 1));
    (nll / tokens.max(1) as f64).exp()
}
