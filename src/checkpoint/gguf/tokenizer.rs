//! `tokenizer.json` rebuilt from GGUF metadata: byte-level BPE and SentencePiece.

use super::metadata::Metadata;
use super::sentencepiece;
use crate::error::{Error, Remedy, Result};
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

/// Qwen2's, which takes digits one by one.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Rebuilds the tokenizer of a model with `vocab_size` embeddings.
pub(super) fn rebuild(metadata: &Metadata<'_>, vocab_size: usize) -> Result<TokenizerFiles> {
    let require = |key: &str| metadata.require(key, metadata.string(key)?);
    let model = require("tokenizer.ggml.model")?;
    let pieces = model == "llama";
    if !pieces && model != "gpt2" {
        let problem = format!(
            "its tokenizer is `{model}`, and only byte-level BPE (`gpt2`) and SentencePiece's BPE (`llama`) can be \
             rebuilt"
        )
        .remedy("get the model as safetensors");
        return Err(metadata.error(problem));
    }
    let pre = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let byte_level =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let sequence = |first: Value, last: Value| json!({"type": "Sequence", "pretokenizers": [first, last]});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let pre_tokenizer = match pre {
        _ if pieces => Value::Null,
        "smollm" | "starcoder" | "refact" => {
            sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true))
        }
        "gpt-2" => byte_level(true),
        "llama-bpe" | "llama3" | "llama-v3" => sequence(split(LLAMA3), byte_level(false)),
        "qwen2" => sequence(split(QWEN2), byte_level(false)),
        other => {
            let problem = format!("its pre-tokenizer `{other}` is not known here, so its tokens would be wrong")
                .remedy("get the model as safetensors");
            return Err(metadata.error(problem));
        }
    };

    let tokens = metadata.require("tokenizer.ggml.tokens", metadata.strings("tokenizer.ggml.tokens")?)?;
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
    // SentencePiece models begin a text unless they say otherwise.
    let add_bos = metadata.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(pieces);
    let add_eos = metadata.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let post_processor = post_processor(bos.filter(|_| add_bos), eos.filter(|_| add_eos));
    let (normalizer, decoder, model) = if pieces {
        sentencepiece::parts(metadata, &tokens, &types, vocab)?
    } else {
        let merges = metadata.require("tokenizer.ggml.merges", metadata.strings("tokenizer.ggml.merges")?)?;
        let normalizer = if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null };
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let model = json!({
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
        });
        (normalizer, decoder, model)
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
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
            "add_eos_token": add_eos,
            "bos_token": name(bos),
            "eos_token": name(eos),
            "unk_token": name(unk),
            "pad_token": name(pad),
            "model_max_length": metadata.integer(&format!("{}.context_length", require("general.architecture")?))?,
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

/// The post-processor, which puts the tokens that begin and end a text around it.
fn post_processor(bos: Option<(usize, &str)>, eos: Option<(usize, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |token: Option<(usize, &str)>, part: u32| {
        token.map(|(_, name)| json!({"SpecialToken": {"id": name, "type_id": part}}))
    };
    let around = |sequence: &str, part: u32| {
        let text = json!({"Sequence": {"id": sequence, "type_id": part}});
        special(bos, part).into_iter().chain([text]).chain(special(eos, part)).collect::<Vec<_>>()
    };
    let pair = [around("A", 0), around("B", 1)].concat();
    let mut tokens = Map::new();
    for (id, name) in [bos, eos].into_iter().flatten() {
        tokens.insert(name.to_owned(), json!({"id": name, "ids": [id], "tokens": [name]}));
    }
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}
