//! Text to token windows: documents, tokenizers, calibration and evaluation windows, n-gram baselines.
//!
//! The kind of a text argument is decided by its content, not its name; it may be compressed with gzip or zstd:
//! - JSON lines, as C4 has them, a JSON list, or a parquet table: documents, each a row with its text in the field `text`;
//! - the same, or `{"input_ids": [[...], ...]}`, of token ids, a row a window, `[[1, 2, ...], ...]` or in the field `input_ids`;
//!   two programs given this file see the very same tokens;
//! - anything else: documents with a line of their own, `<|endoftext|>`, between them; without such a line the whole file is
//!   one document.
//!
//! Text is UTF-8, with or without a byte order mark; in plain text the ends of lines may be those of Windows.

mod bos;
mod input;
mod ngram;
mod parquet;
mod windows;

pub(crate) use bos::Encoder;
pub use bos::{Bos, BosRecord};
pub use input::TextFile;
pub(crate) use input::{Input, Rows, read, read_text};
pub use ngram::{NgramPerplexity, ngram_perplexity};
pub use windows::{Consecutive, Sampling, Windows};

use crate::error::{Error, Remedy, Result};
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// The separator of documents: on a line of its own in a text file, and in the token stream that models train on.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The documents of a text file, without white space around them; empty ones are left out.
///
/// # Errors
/// As [`TextFile::read`], and for a file of token ids.
pub fn documents(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    match TextFile::read(path, false)?.content {
        input::Content::Documents(documents) => Ok(documents),
        input::Content::Windows(_) => {
            Err(Error::file(path, "holds windows of token ids".remedy("text is wanted here")))
        }
    }
}

/// Lower-case extension; empty when there is none.
fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// A tokenizer in Hugging Face's `tokenizer.json` format. [`Tokenizer::encode`] adds no token of its own accord (no BOS), and
/// neither do the windows of perplexity and calibration, as in the papers' codes; tasks and prompts do, as [`Bos`] says.
/// Special tokens written in a text are recognised.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    path: PathBuf,
}

crate::debug::one_line!(rich Tokenizer, |tokenizer| {
    format!("Tokenizer({}: {} tokens)", tokenizer.path.display(), tokenizer.vocab_size())
});

impl Tokenizer {
    /// Reads `tokenizer.json` of a model's directory; a path to the file itself will do too.
    ///
    /// # Errors
    /// Fails when the file is missing or is no tokenizer.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = if dir.is_file() { dir.to_path_buf() } else { dir.join("tokenizer.json") };
        if let Some(problem) = crate::checkpoint::dangling(&path) {
            return Err(Error::file(&path, problem));
        }
        if !path.exists() {
            return Err(Error::file(
                &path,
                "there is no tokenizer".remedy(
                    "copy `tokenizer.json` from the model's repository, or give windows of token ids (.json) in place \
                     of text",
                ),
            ));
        }
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        if let Some(what) = crate::files::stranger(&bytes) {
            return Err(Error::file(&path, what));
        }
        let inner = Inner::from_bytes(bytes).map_err(|error| {
            Error::file(&path, format!("is no tokenizer.json ({error})").remedy("download it again"))
        })?;
        Ok(Tokenizer { inner: plain(inner, &path)?, path })
    }

    /// Trains a byte-level BPE of exactly `vocab` tokens, the first of them [`END_OF_TEXT`]. The same documents give the
    /// same tokenizer on any number of threads.
    ///
    /// # Errors
    /// Fails when `vocab` cannot hold the 256 bytes and the special token, or the documents have too few pairs to
    /// merge.
    pub fn train_bpe(documents: &[String], vocab: usize) -> Result<Self> {
        if vocab < 257 {
            return Err(Error::argument("vocab", vocab, "a byte-level BPE needs at least 257 tokens"));
        }
        let training =
            |error: tokenizers::Error| Error::argument("vocab", vocab, format!("BPE training failed: {error}"));
        // Prefix space and offsets play no part here; the regular expression is GPT-2's.
        let level = ByteLevel::new(false, false, true);
        let mut inner = Inner::new(ModelWrapper::BPE(BPE::default()));
        inner.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
        let mut trainer = TrainerWrapper::from(
            BpeTrainer::builder()
                .show_progress(false)
                .vocab_size(vocab)
                .min_frequency(2)
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
                .build(),
        );
        inner.train(&mut trainer, documents.iter().map(String::as_str)).map_err(training)?;
        let got = inner.get_vocab_size(true);
        if got != vocab {
            return Err(Error::argument(
                "vocab",
                vocab,
                format!("the text has pairs for {got} tokens only").remedy("ask for fewer"),
            ));
        }
        Ok(Tokenizer { inner, path: PathBuf::from("tokenizer.json") })
    }

    /// Token ids of `text`.
    ///
    /// # Errors
    /// Fails when the tokenizer has no token for some part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| self.problem("encode", &error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of `text` with what the post-processor adds, as transformers gives them: a BOS, for many models.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_processed(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(|error| self.problem("encode", &error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens that the post-processor puts in front of a text.
    fn front(&self) -> Result<Vec<u32>> {
        // Any text shows it that has a token; a vocabulary of words may lack this one.
        let plain = self.encode("a").unwrap_or_default();
        if plain.is_empty() {
            return self.encode_processed("");
        }
        let processed = self.encode_processed("a")?;
        let at = processed.windows(plain.len()).position(|ids| ids == plain).unwrap_or(0);
        Ok(processed[..at].to_vec())
    }

    /// The token for the beginning of a text, else the one for its end, as `tokenizer_config.json` or, of older models,
    /// `special_tokens_map.json` beside the tokenizer names them.
    fn start_token(&self) -> Result<Option<u32>> {
        let Some(dir) = self.path.parent() else { return Ok(None) };
        let mut fields = Vec::new();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = dir.join(name);
            if path.is_file() {
                let value: serde_json::Value = serde_json::from_str(&read_text(&path)?).map_err(|error| {
                    let remedy = "copy it from the model's repository again, or remove it";
                    Error::file(&path, format!("is not JSON (line {})", error.line()).remedy(remedy))
                })?;
                fields.push(value);
            }
        }
        let named = |key: &str| {
            fields.iter().filter_map(|fields| fields.get(key)).find_map(|token| {
                token.as_str().or_else(|| token.get("content")?.as_str()).and_then(|token| self.id(token))
            })
        };
        Ok(named("bos_token").or_else(|| named("eos_token")))
    }

    /// The text of a token, special or not; empty for an id that the tokenizer does not have.
    fn text_of(&self, id: u32) -> String {
        self.inner.decode(&[id], false).unwrap_or_default()
    }

    /// Token ids of each text, worked out in parallel.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_documents(&self, documents: &[String]) -> Result<Vec<Vec<u32>>> {
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let encodings =
            self.inner.encode_batch_fast(documents, false).map_err(|error| self.problem("encode", &error))?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// Fails when the tokenizer's decoder refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|error| self.problem("decode", &error))
    }

    /// Number of tokens, the added ones included: one more than the largest id, but for gaps.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token by its exact content, as [`END_OF_TEXT`].
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The `tokenizer.json` that [`Tokenizer::open`] and Hugging Face's libraries read.
    ///
    /// # Errors
    /// Fails when a component cannot be serialised.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|error| self.problem("serialise", &error))
    }

    /// Writes [`Tokenizer::to_json`] to `path`, replacing what stood there only once all of it is on disk.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_whole(path.as_ref(), self.to_json()?.as_bytes())
    }

    fn problem(&self, doing: &str, error: &tokenizers::Error) -> Error {
        Error::file(&self.path, format!("cannot {doing}: {error}"))
    }
}

/// Truncation and padding are settings of one use of a tokenizer that some repositories leave in the file; windows need
/// whole documents.
fn plain(mut inner: Inner, path: &Path) -> Result<Inner> {
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| Error::file(path, error))?;
    Ok(inner)
}

/// Writes a file beside its place, then renames it there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file =
        tempfile::Builder::new().prefix(".lacuna-").tempfile_in(parent).map_err(Error::io("write in", parent))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.as_file().sync_all().map_err(Error::io("write", path))?;
    // A temporary file is private to its owner; what it becomes is not.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let permissions = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(permissions).map_err(Error::io("set permissions of", path))?;
    }
    file.persist(path).map_err(|error| Error::Io { action: "write", path: path.to_path_buf(), source: error.error })?;
    Ok(())
}
