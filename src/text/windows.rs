//! Windows of tokens, `(n, seqlen)`.

use super::Tokenizer;
use super::input::{Content, TextFile};
use crate::error::{Error, Remedy, Result};
use crate::random::below;
use crate::record::TextRecord;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// Windows of equal length, from one text.
#[derive(Clone, PartialEq, Eq)]
pub struct Windows {
    /// File name of the text, without its folder.
    pub name: String,
    /// Tokens per window.
    pub seqlen: usize,
    /// Token ids, `(n, seqlen)`.
    pub ids: Vec<Vec<u32>>,
}

crate::debug::one_line!(rich Windows, |windows| {
    format!("Windows({}: {} × {} tokens)", windows.name, windows.ids.len(), windows.seqlen)
});

/// The number, length and seed of calibration windows, the field's calibration samples. The default is that of the papers
/// of Wanda and SparseGPT: 128 windows of 2048 tokens, seed 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Number of windows, the papers' `nsamples`.
    pub windows: usize,
    /// Tokens per window.
    pub seqlen: usize,
    /// Seed of the places in the text that the windows are taken from.
    pub seed: u64,
}

impl Sampling {
    /// `windows` windows of `seqlen` tokens, seed 0.
    pub fn new(windows: usize, seqlen: usize) -> Self {
        Sampling { windows, seqlen, seed: 0 }
    }

    /// The same with another seed.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Sampling { seed, ..self }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling::new(128, 2048)
    }
}

/// Windows that follow one another without overlap from the start of a text, as evaluation takes them: all of them, or the
/// first few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consecutive {
    /// Tokens per window.
    pub seqlen: usize,
    /// Number of windows; `None` takes all.
    pub windows: Option<usize>,
}

impl Consecutive {
    /// All windows of `seqlen` tokens.
    pub fn of(seqlen: usize) -> Self {
        Consecutive { seqlen, windows: None }
    }

    /// Only the first `windows` of them.
    #[must_use]
    pub fn first(self, windows: usize) -> Self {
        Consecutive { windows: Some(windows), ..self }
    }
}

impl Windows {
    /// Calibration windows, by Wanda's convention: for each window, a random document longer than `seqlen` tokens and a
    /// random place in it. The draws come from ChaCha8 seeded with `seed`, so they are the same on every platform. When
    /// no document is long enough, the places are drawn from all of them, joined by blank lines.
    ///
    /// A file of token ids gives its first `windows` rows, cut to `seqlen`; `seed` then plays no part.
    ///
    /// # Errors
    /// Fails when the text cannot be read, has fewer than `seqlen` tokens, or (not for token ids) there is no
    /// tokenizer; when `windows` is 0 or `seqlen` less than 2.
    pub fn calibration(path: impl AsRef<Path>, tokenizer: Option<&Tokenizer>, sampling: Sampling) -> Result<Self> {
        check(Some(sampling.windows), sampling.seqlen)?;
        Self::calibration_of(&TextFile::read(path, false)?, tokenizer, sampling)
    }

    /// As [`Windows::calibration`], from a file that was read.
    ///
    /// # Errors
    /// As [`Windows::calibration`].
    pub fn calibration_of(file: &TextFile, tokenizer: Option<&Tokenizer>, sampling: Sampling) -> Result<Self> {
        let Sampling { windows, seqlen, seed } = sampling;
        let path = &file.path;
        check(Some(windows), seqlen)?;
        let ids = match &file.content {
            Content::Windows(rows) => token_rows(path, rows, Some(windows), seqlen)?,
            Content::Documents(documents) => {
                let tokenizer = needed(path, tokenizer)?;
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                match draw_from_documents(documents, tokenizer, windows, seqlen, &mut rng)? {
                    Some(ids) => ids,
                    None => {
                        let tokens = tokenizer.encode(&documents.join("\n\n"))?;
                        long_enough(path, tokens.len(), seqlen)?;
                        let starts = tokens.len() - seqlen + 1;
                        (0..windows).map(|_| window(&tokens, below(&mut rng, starts), seqlen)).collect()
                    }
                }
            }
        };
        Ok(Windows { name: file_name(path), seqlen, ids })
    }

    /// Evaluation windows: the documents joined by blank lines, cut into windows that do not overlap. Tokens after the last whole window are left out.
    ///
    /// A file of token ids gives its first `windows` rows, or all, cut to `seqlen`.
    ///
    /// # Errors
    /// Fails when the text cannot be read, has fewer windows than asked for, or (not for token ids) there is no
    /// tokenizer; when `windows` is 0 or `seqlen` less than 2.
    pub fn evaluation(path: impl AsRef<Path>, tokenizer: Option<&Tokenizer>, consecutive: Consecutive) -> Result<Self> {
        check(consecutive.windows, consecutive.seqlen)?;
        Self::evaluation_of(&TextFile::read(path, false)?, tokenizer, consecutive)
    }

    /// As [`Windows::evaluation`], from a file that was read.
    ///
    /// # Errors
    /// As [`Windows::evaluation`].
    pub fn evaluation_of(file: &TextFile, tokenizer: Option<&Tokenizer>, consecutive: Consecutive) -> Result<Self> {
        let Consecutive { seqlen, windows } = consecutive;
        let path = &file.path;
        check(windows, seqlen)?;
        let ids = match &file.content {
            Content::Windows(rows) => token_rows(path, rows, windows, seqlen)?,
            Content::Documents(documents) => {
                let tokens = needed(path, tokenizer)?.encode(&documents.join("\n\n"))?;
                long_enough(path, tokens.len(), seqlen)?;
                let available = tokens.len() / seqlen;
                let windows = windows.unwrap_or(available);
                if windows > available {
                    return Err(too_few(path, available, windows, seqlen));
                }
                tokens.chunks_exact(seqlen).take(windows).map(<[u32]>::to_vec).collect()
            }
        };
        Ok(Windows { name: file_name(path), seqlen, ids })
    }

    /// Checks that a model of `vocab` tokens can read them.
    ///
    /// # Errors
    /// [`Error::Argument`] with the first id that is out of range.
    pub fn check_vocab(&self, vocab: usize) -> Result<()> {
        for (row, ids) in self.ids.iter().enumerate() {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                let problem = format!("window {row} of {} holds it, but the model has {vocab} tokens", self.name)
                    .remedy("use the model's own tokenizer");
                return Err(Error::argument("token id", id, problem));
            }
        }
        Ok(())
    }

    /// SHA-256, in hexadecimal, over the number of windows and `seqlen` (u64) and every id (u32), little-endian.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        hash.update((self.ids.len() as u64).to_le_bytes());
        hash.update((self.seqlen as u64).to_le_bytes());
        for id in self.ids.iter().flatten() {
            hash.update(id.to_le_bytes());
        }
        hex::encode(hash.finalize())
    }

    /// The windows' entry in a record.
    pub fn record(&self) -> TextRecord {
        TextRecord { name: self.name.clone(), sha256: self.sha256(), windows: self.ids.len(), seqlen: self.seqlen }
    }
}

/// Windows of documents longer than `seqlen`; `None` when no document is. Only the documents that are drawn get
/// tokenised: a window costs one document, not the corpus.
fn draw_from_documents(
    documents: &[String],
    tokenizer: &Tokenizer,
    windows: usize,
    seqlen: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Option<Vec<Vec<u32>>>> {
    // A tokenizer of bytes gives the most tokens: what has no more bytes than `seqlen` need not be tried.
    let mut candidates: Vec<usize> = (0..documents.len()).filter(|&i| documents[i].len() > seqlen).collect();
    let mut encoded: HashMap<usize, Vec<u32>> = HashMap::new();
    let mut ids = Vec::with_capacity(windows);
    while ids.len() < windows {
        if candidates.is_empty() {
            return Ok(None);
        }
        let drawn = below(rng, candidates.len());
        let document = candidates[drawn];
        let tokens = match encoded.entry(document) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(tokenizer.encode(&documents[document])?),
        };
        if tokens.len() > seqlen {
            ids.push(window(tokens, below(rng, tokens.len() - seqlen), seqlen));
        } else {
            candidates.swap_remove(drawn);
        }
    }
    Ok(Some(ids))
}

fn window(tokens: &[u32], start: usize, seqlen: usize) -> Vec<u32> {
    tokens[start..start + seqlen].to_vec()
}

/// The first `windows` of the rows of a file, cut to `seqlen`.
fn token_rows(path: &Path, rows: &[Vec<u32>], windows: Option<usize>, seqlen: usize) -> Result<Vec<Vec<u32>>> {
    let length = rows.first().map_or(0, Vec::len);
    if let Some(row) = rows.iter().position(|row| row.len() != length) {
        let problem =
            format!("row 0 has {length} tokens and row {row} has {}", rows[row].len()).remedy("all must be equal");
        return Err(Error::file(path, problem));
    }
    if length < seqlen {
        let problem = format!("its windows have {length} tokens, {seqlen} were asked for").remedy("lower --seqlen");
        return Err(Error::file(path, problem));
    }
    let windows = windows.unwrap_or(rows.len());
    if windows > rows.len() {
        return Err(too_few(path, rows.len(), windows, seqlen));
    }
    Ok(rows[..windows].iter().map(|row| row[..seqlen].to_vec()).collect())
}

fn check(windows: Option<usize>, seqlen: usize) -> Result<()> {
    if windows == Some(0) {
        return Err(Error::argument("windows", 0, "at least one is needed"));
    }
    if seqlen < 2 {
        return Err(Error::argument("seqlen", seqlen, "a window needs at least 2 tokens, one to predict from another"));
    }
    Ok(())
}

fn needed<'t>(path: &Path, tokenizer: Option<&'t Tokenizer>) -> Result<&'t Tokenizer> {
    tokenizer.ok_or_else(|| {
        Error::file(
            path,
            "is text, and the model has no tokenizer"
                .remedy("add `tokenizer.json`, or give windows of token ids (.json)"),
        )
    })
}

fn long_enough(path: &Path, available: usize, seqlen: usize) -> Result<()> {
    if available >= seqlen {
        return Ok(());
    }
    let problem =
        format!("has {available} tokens, one window needs {seqlen}").remedy("give a longer text or lower --seqlen");
    Err(Error::file(path, problem))
}

fn too_few(path: &Path, available: usize, windows: usize, seqlen: usize) -> Error {
    let problem =
        format!("has {available} windows of {seqlen} tokens, {windows} were asked for").remedy("lower --windows");
    Error::file(path, problem)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
