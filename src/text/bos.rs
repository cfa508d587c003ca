//! The rule for special tokens of the tokenizer in front of a text, such as the one for its beginning.

use super::Tokenizer;
use crate::error::{Error, Remedy, Result};
use serde::{Deserialize, Serialize};

/// The rule for a token for the beginning (BOS) of the texts of tasks and prompts. Perplexity windows never get one:
/// the papers' codes cut them out of one stream of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bos {
    /// The tokens that the post-processor of `tokenizer.json` adds, as transformers and lm-evaluation-harness have it:
    /// a BOS for Llama, Mistral and Mixtral, nothing for Qwen and GPT-2. A text that already begins with the token gets
    /// no second one.
    #[default]
    Auto,
    /// The same tokens, or the model's start token where the post-processor puts none in front.
    Yes,
    /// No tokens.
    No,
}

crate::error::named!(Bos, "bos", Auto => "auto", Yes => "yes", No => "no");

/// The rule that was asked for, and the tokens that it gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BosRecord {
    /// As asked.
    pub asked: Bos,
    /// Ids that stood in front of a text.
    pub tokens: Vec<u32>,
}

/// A tokenizer with the decision made.
#[derive(Clone, Debug)]
pub(crate) struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    asked: Bos,
    /// The token that stands for the beginning of a text where there is nothing else, and its text.
    start: Option<(u32, String)>,
    /// Ids in front of a text.
    front: Vec<u32>,
    /// True if `front` comes from the post-processor.
    processed: bool,
}

impl<'t> Encoder<'t> {
    /// `start` is the model's start token by its `config.json`; the tokenizer's own is preferred, as the harness does.
    pub(crate) fn new(tokenizer: &'t Tokenizer, asked: Bos, start: Option<u32>) -> Result<Self> {
        let start = tokenizer.start_token()?.or(start);
        let start = start.map(|id| (id, tokenizer.text_of(id)));
        let front = if asked == Bos::No { Vec::new() } else { tokenizer.front()? };
        let processed = !front.is_empty() || asked == Bos::Auto;
        let front = match (asked, &start) {
            (Bos::Yes, None) if front.is_empty() => {
                let problem = "neither the tokenizer nor config.json has a token for the beginning of a text"
                    .remedy("leave it out");
                return Err(Error::argument("bos", "yes", problem));
            }
            (Bos::Yes, Some((id, _))) if front.is_empty() => vec![*id],
            _ => front,
        };
        Ok(Encoder { tokenizer, asked, start, front, processed })
    }

    /// The id of the token for the beginning of a text.
    pub(crate) fn start(&self) -> Option<u32> {
        self.start.as_ref().map(|(id, _)| *id)
    }

    /// Token ids of `text`, with what belongs in front.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // A text that was written with its BOS.
        let begun = self.start.as_ref().is_some_and(|(_, bos)| !bos.is_empty() && text.starts_with(bos.as_str()));
        if self.asked == Bos::No || begun {
            return self.tokenizer.encode(text);
        }
        if self.processed {
            return self.tokenizer.encode_processed(text);
        }
        Ok([self.front.clone(), self.tokenizer.encode(text)?].concat())
    }

    /// Token ids of `text` and nothing else.
    pub(crate) fn plain(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text)
    }

    pub(crate) fn record(&self) -> BosRecord {
        BosRecord { asked: self.asked, tokens: self.front.clone() }
    }
}
