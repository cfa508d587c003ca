//! `tokenizer.json` rebuilt from GGUF metadata, for byte-level BPE.

use super::metadata::Metadata;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// The tokenizer's files.
pub(super) struct TokenizerFiles {
    pub(super) tokenizer: Value,
    pub(super) tokenizer_config: Value,
    pub(super) generation_config: Value,
}

/// llama.cpp's token types that are matched in the text before BPE, and those of them that stand for no text.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Llama 3's splitting into words.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Rebuilds the tokenizer of a model with `vocab_size` embeddings.
pub(super) fn rebuild(metadata: &Metadata<'_>, vocab_size: usize) -> Result<TokenizerFiles> {
    let require = |key: &str| metadata.require(key, metadata.string(key)?);
    let model = require("tokenizer.ggml.model")?;
    if model != "gpt2" {
        let kind = if model == "llama" { " (SentencePiece)" } else { "" };
        let problem = format!(
            "its tokenizer is `{model}`{kind}, and only byte-level BPE (`gpt2`) can be rebuilt; get the model as safetensors"
        );
        return Err(metadata.error(problem));
    }
    let pre = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let byte_level =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let sequence = |first: Value, last: Value| json!({"type": "Sequence", "pretokenizers": [first, last]});
    let pre_tokenizer = match pre {
        "smollm" | "starcoder" | "refact" => {
            sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true))
        }
        "gpt-2" => byte_level(true),
        "llama-bpe" | "llama3" | "llama-v3" => {
            let split = json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false});
            sequence(split, byte_level(false))
        }
        other => {
            let problem = format!(
                "its pre-tokenizer `{other}` is not known here, so its tokens would be wrong; get the model as safetensors"
            );
            return Err(metadata.error(problem));
        }
    };

    let tokens = metadata.require("tokenizer.ggml.tokens", metadata.strings("tokenizer.ggml.tokens")?)?;
    let merges = metadata.require("tokenizer.ggml.merges", metadata.strings("tokenizer.ggml.merges")?)?;
    if tokens.is_empty() || tokens.len() > vocab_size {
        return Err(metadata.error(format!("{} tokens for {vocab_size} embeddings; the file is damaged", tokens.len())));
    }
    let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(metadata.error(format!(
            "{} token types for {} tokens; the file is damaged",
            types.len(),
            tokens.len()
        )));
    }
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    if vocab.len() != tokens.len() {
        return Err(metadata.error("two tokens of its vocabulary are equal; the file is damaged"));
    }
    let added =
        tokens.iter().zip(&types).enumerate().filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
    let added: Vec<Value> = added
        .map(|(id, (token, &kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": kind != USER_DEFINED})
        })
        .collect();

    let id = |name: &str| metadata.integer(&format!("tokenizer.ggml.{name}_token_id"));
    let token = |name: &str| -> Result<Option<(usize, &str)>> {
        let Some(id) = id(name)? else { return Ok(None) };
        let outside =
            || metadata.error(format!("its {name} token {id} is outside the vocabulary; the file is damaged"));
        Ok(Some((id, *tokens.get(id).ok_or_else(outside)?)))
    };
    let (bos, eos, unk, pad) = (token("bos")?, token("eos")?, token("unknown")?, token("padding")?);
    let add_bos = metadata.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
    let post_processor = match bos.filter(|_| add_bos) {
        None => Value::Null,
        Some((id, bos)) => json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
        }),
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            // Llama 3 takes a word that is in the vocabulary whole, whatever the merges say.
            "ignore_merges": pre.starts_with("llama"),
            "vocab": vocab,
            "merges": merges,
        },
    });
    // The library that will read it is the judge of merges and vocabulary.
    tokenizers::Tokenizer::from_bytes(tokenizer.to_string())
        .map_err(|e| Error::file(metadata.file, format!("no tokenizer can be made of its metadata ({e})")))?;

    let name = |token: Option<(usize, &str)>| token.map(|(_, name)| name.to_owned());
    let number = |token: Option<(usize, &str)>| token.map(|(id, _)| id);
    Ok(TokenizerFiles {
        tokenizer,
        tokenizer_config: json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": add_bos,
            "bos_token": name(bos),
            "eos_token": name(eos),
            "unk_token": name(unk),
            "pad_token": name(pad),
            "model_max_length": metadata.integer("llama.context_length")?,
            "clean_up_tokenization_spaces": false,
            "chat_template": metadata.string("tokenizer.chat_template")?,
        }),
        generation_config: json!({
            "bos_token_id": number(bos),
            "eos_token_id": number(eos),
            "pad_token_id": number(pad),
        }),
    })
}
