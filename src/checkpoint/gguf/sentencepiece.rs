//! `tokenizer.json` of a SentencePiece vocabulary: BPE whose merges are found again from the scores of the pieces, as
//! transformers' `generate_merges` does.

use super::metadata::Metadata;
use crate::error::{Remedy, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// llama.cpp's token types.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const BYTE: i64 = 6;

/// Normaliser, decoder and model of the pieces `tokens` with their types.
pub(super) fn parts(
    metadata: &Metadata<'_>,
    tokens: &[&str],
    types: &[i64],
    vocab: Map<String, Value>,
) -> Result<(Value, Value, Value)> {
    let key = "tokenizer.ggml.scores";
    let scores = metadata.require(key, metadata.floats(key)?)?;
    if scores.len() != tokens.len() {
        let problem = format!("{} scores for {} tokens; the file is damaged", scores.len(), tokens.len());
        return Err(metadata.error(problem));
    }
    let mut normal = types.iter().zip(&scores).filter(|(kind, _)| **kind == NORMAL).map(|(_, score)| score);
    if let Some(first) = normal.next()
        && normal.clone().count() > 0
        && normal.all(|score| score == first)
    {
        // Some conversions write -1000 for each.
        let problem = format!(
            "all pieces of its tokenizer have the score {first}, which does not tell which come first, so its tokens \
             would be wrong"
        )
        .remedy("get the model as safetensors, or convert it to GGUF from its tokenizer.model");
        return Err(metadata.error(problem));
    }
    if metadata.has("tokenizer.ggml.precompiled_charsmap") {
        let problem = "its tokenizer rewrites characters (`precompiled_charsmap`), which is not rebuilt here"
            .remedy("get the model as safetensors");
        return Err(metadata.error(problem));
    }
    let bytes = types.iter().filter(|&&kind| kind == BYTE).count();
    if bytes != 0 && bytes != 256 {
        return Err(metadata.error(format!("{bytes} tokens stand for bytes, and should be 256; the file is damaged")));
    }
    let prefix = metadata.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace =
        |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = types.iter().position(|&kind| kind == UNKNOWN).map(|id| tokens[id]);
    let merges: Vec<Value> =
        merges(tokens, types, &scores).into_iter().map(|(left, right)| json!([left, right])).collect();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": bytes == 256,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    });
    Ok((
        json!({"type": "Sequence", "normalizers": normalizers}),
        json!({"type": "Sequence", "decoders": decoders}),
        model,
    ))
}

/// Every way to put a piece together from two others, those with the highest score first.
fn merges<'a>(tokens: &[&'a str], types: &[i64], scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let normal = |id: usize| types[id] == NORMAL;
    let ids: HashMap<&str, usize> = (0..tokens.len()).filter(|&id| normal(id)).map(|id| (tokens[id], id)).collect();
    let mut found = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| normal(*id)) {
        let mut of_token: Vec<(usize, usize)> = Vec::new();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                of_token.push((left, right));
            }
        }
        of_token.sort_unstable();
        found.extend(of_token.into_iter().map(|(left, right)| (scores[id], tokens[left], tokens[right])));
    }
    let length = |text: &str| text.chars().count();
    // Python sorts by these in reverse, which keeps the order of equal ones.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(length(b.1).cmp(&length(a.1))).then(length(b.2).cmp(&length(a.2))));
    found.into_iter().map(|(_, left, right)| (left, right)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_come_by_score_and_leave_other_tokens_out() {
        let tokens = ["<unk>", "<", "unk>", "a", "b", "ab", "▁", "▁a", "▁ab", "abab"];
        let types = [2, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        let scores = [0.0, -9.0, -9.0, -9.0, -9.0, -0.0, -9.0, -1.0, -2.0, -3.0];
        let found = merges(&tokens, &types, &scores);
        assert_eq!(found, [("a", "b"), ("▁", "a"), ("▁a", "b"), ("▁", "ab"), ("ab", "ab")]);
    }
}
