//! A diagnosis of a checkpoint for a user whose command failed to load it: all oddities, and all obstacles to commands,
//! at once.

use crate::checkpoint::{Checkpoint, HeadersOnly, Source, float_dtype};
use crate::error::{Error, Result};
use crate::experts::ExpertLayout;
use crate::model::{Model, ModelConfig, MoeFamily};
use crate::progress::Progress;
use candle_core::{DType, Device};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; every command does its work.
    Note,
    /// Some command fails.
    Problem,
}

/// Something odd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity.
    pub severity: Severity,
    /// The subject: `weights`, `config`, `tokenizer`, `generation`, `experts`.
    pub about: &'static str,
    /// The finding and its remedy, in a sentence or two.
    pub text: String,
}

/// The findings of [`examine`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Examination {
    /// The directory's name, or `owner/name` of a model from a hub; as given where nothing could be opened.
    pub model: String,
    /// Commit of a model from a hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// `model_type` of its config.
    pub family: Option<String>,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements of all tensors.
    pub parameters: u64,
    /// True if the values were read, and not headers alone.
    pub values: bool,
    /// In the order in which they were found.
    pub findings: Vec<Finding>,
}

impl Examination {
    fn add(&mut self, severity: Severity, about: &'static str, text: impl std::fmt::Display) {
        self.findings.push(Finding { severity, about, text: text.to_string() });
    }

    /// Returns whether no command fails for anything that was found.
    pub fn is_healthy(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Note)
    }
}

/// Reads `spec`, a directory or `owner/name[@revision]` on a hub, as all commands do: files and headers, `config.json`, every
/// tensor that the model needs, tokenizer, generation settings, mixtures of experts; and with `values` every number of the
/// weights. Holds one tensor.
///
/// # Errors
/// [`Error::Interrupted`]; whatever else is wrong is a finding.
pub fn examine(spec: &str, values: bool, progress: Progress) -> Result<Examination> {
    let mut found = Examination { model: spec.to_owned(), ..Examination::default() };
    if HeadersOnly::is_at(Path::new(spec)) {
        match HeadersOnly::open(spec) {
            Ok(headers) => {
                found.tensors = headers.index().len();
                found.add(
                    Severity::Note,
                    "weights",
                    "only headers are here, enough for `lacuna inspect` and for plans",
                );
            }
            Err(error) => found.add(Severity::Problem, "weights", stopped(error)?),
        }
        return Ok(found);
    }
    // Notes are findings, not lines before them.
    let opened = match Path::new(spec).exists() {
        true => Checkpoint::open(spec),
        false => {
            crate::checkpoint::Hub::from_env().and_then(|hub| hub.download(spec, progress)).and_then(Checkpoint::open)
        }
    };
    let checkpoint = match opened {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            found.add(Severity::Problem, "weights", stopped(error)?);
            return Ok(found);
        }
    };
    found.model = checkpoint.name().to_owned();
    found.revision = checkpoint.revision().map(str::to_owned);
    found.tensors = checkpoint.tensors().count();
    found.parameters = checkpoint.parameters();
    for note in checkpoint.notes() {
        found.add(Severity::Note, "weights", note);
    }
    let config = examine_model(&mut found, &checkpoint)?;
    examine_tokens(&mut found, &checkpoint, config.as_ref())?;
    if values {
        examine_values(&mut found, &checkpoint, progress)?;
    }
    Ok(found)
}

/// The message of an error that is a finding.
fn stopped(error: Error) -> Result<String> {
    match error {
        Error::Interrupted => Err(error),
        error => Ok(error.to_string()),
    }
}

/// Config, names, shapes and types.
fn examine_model(found: &mut Examination, checkpoint: &Checkpoint) -> Result<Option<ModelConfig>> {
    let json = match checkpoint.config() {
        Ok(json) => json,
        Err(error) => {
            found.add(Severity::Problem, "config", stopped(error)?);
            return Ok(None);
        }
    };
    found.family = json.get("model_type").and_then(Value::as_str).map(str::to_owned);
    if found.family.as_deref().and_then(MoeFamily::find).is_some()
        && let Err(error) = ExpertLayout::find(checkpoint)
    {
        found.add(Severity::Problem, "experts", stopped(error)?);
    }
    let config = match ModelConfig::from_json(&checkpoint.dir().join("config.json"), &json) {
        Ok(config) => config,
        Err(error) => {
            // What the weights are tells more than what the config calls for.
            match checkpoint.check_plain(&json) {
                Err(quantised) => found.add(Severity::Problem, "weights", stopped(quantised)?),
                Ok(()) => found.add(Severity::Problem, "config", stopped(error)?),
            }
            return Ok(None);
        }
    };
    let needed = config.tensors();
    match Model::open(checkpoint, DType::F32, &Device::Cpu) {
        Err(error) => {
            let missing = needed.iter().filter(|(name, _)| !checkpoint.contains(name)).count();
            let all = match missing {
                0 | 1 => String::new(),
                missing => format!(" ({missing} of {} tensors that the model needs are missing)", needed.len()),
            };
            found.add(Severity::Problem, "weights", stopped(error)? + &all);
        }
        Ok(model) => model.notes().into_iter().for_each(|note| found.add(Severity::Note, "weights", note)),
    }
    Ok(Some(config))
}

/// Tokenizer and the tokens that mean something to generation.
fn examine_tokens(found: &mut Examination, checkpoint: &Checkpoint, config: Option<&ModelConfig>) -> Result<()> {
    let rows = config.map_or(usize::MAX, |config| config.vocab_size);
    let path = checkpoint.dir().join("tokenizer.json");
    if path.symlink_metadata().is_err() {
        let others = ["tokenizer.model", "vocab.json", "tekken.json", "spiece.model"];
        let other = others.into_iter().find(|name| checkpoint.dir().join(name).exists());
        let text = match other {
            Some(other) => format!(
                "there is {other} and no tokenizer.json, so that texts cannot be read, only windows of token ids; write it \
                 with transformers: `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`"
            ),
            None => {
                "there is no tokenizer.json, so that texts cannot be read, only windows of token ids; copy it from the \
                     model's repository"
                    .into()
            }
        };
        found.add(Severity::Note, "tokenizer", text);
    } else {
        match crate::text::Tokenizer::open(checkpoint.dir()) {
            Err(error) => found.add(Severity::Problem, "tokenizer", stopped(error)?),
            Ok(tokenizer) if tokenizer.vocab_size() > rows => {
                let text = format!(
                    "it has {} tokens, and the embedding {rows} rows: texts with the last ones fail; is it another model's \
                     tokenizer?",
                    tokenizer.vocab_size()
                );
                found.add(Severity::Problem, "tokenizer", text);
            }
            Ok(_) => {}
        }
    }
    match checkpoint.generation_config() {
        Err(error) => found.add(Severity::Problem, "generation", stopped(error)?),
        Ok(_) if config.is_none() => {}
        Ok(_) => {
            let Ok(model) = Model::open(checkpoint, DType::F32, &Device::Cpu) else { return Ok(()) };
            match model.end_tokens() {
                Err(error) => found.add(Severity::Problem, "generation", stopped(error)?),
                Ok(ends) if ends.is_empty() => {
                    let text = "no `eos_token_id` is set, so that generation ends at its longest only";
                    found.add(Severity::Note, "generation", text);
                }
                Ok(ends) => {
                    if let Some(end) = ends.iter().find(|&&end| end as usize >= rows) {
                        let text =
                            format!("`eos_token_id` {end} is beyond the {rows} rows of the embedding and never comes");
                        found.add(Severity::Note, "generation", text);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Numbers that no weight can have.
fn examine_values(found: &mut Examination, checkpoint: &Checkpoint, progress: Progress) -> Result<()> {
    /// More of the same tell nothing new.
    const MOST: usize = 5;
    let stage = progress.stage("examine", checkpoint.bytes());
    let mut damaged = 0;
    for info in checkpoint.tensors() {
        if let Some(dtype) = float_dtype(info.dtype)
            && let Err(error) = checkpoint.load_finite(&info.name, dtype, &Device::Cpu)
        {
            damaged += 1;
            let text = stopped(error)?;
            if damaged <= MOST {
                found.add(Severity::Problem, "weights", text);
            }
        }
        stage.inc(info.bytes())?;
    }
    if damaged > MOST {
        found.add(Severity::Problem, "weights", format!("{} more tensors are like these", damaged - MOST));
    }
    found.values = true;
    Ok(())
}
