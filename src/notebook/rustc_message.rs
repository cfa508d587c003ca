//! Messages of rustc, as `--error-format=json` writes them.

use serde::{Deserialize, Serialize};

/// A message, with its notes and suggestions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Diagnostic {
    pub(super) message: String,
    #[serde(default)]
    pub(super) code: Option<Code>,
    pub(super) level: String,
    #[serde(default)]
    pub(super) spans: Vec<Span>,
    #[serde(default)]
    pub(super) children: Vec<Diagnostic>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Code {
    pub(super) code: String,
}

/// A place in the generated file; lines and columns count from 1, columns characters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Span {
    pub(super) file_name: String,
    pub(super) line_start: usize,
    pub(super) line_end: usize,
    pub(super) column_start: usize,
    pub(super) column_end: usize,
    pub(super) is_primary: bool,
    #[serde(default)]
    pub(super) label: Option<String>,
    #[serde(default)]
    pub(super) suggested_replacement: Option<String>,
    #[serde(default)]
    pub(super) expansion: Option<Box<Expansion>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Expansion {
    pub(super) span: Span,
}

impl Span {
    /// A place in one line that a message is about.
    pub(super) fn primary(line: usize, column_start: usize, column_end: usize) -> Self {
        Span {
            file_name: "src/lib.rs".to_owned(),
            line_start: line,
            line_end: line,
            column_start,
            column_end,
            is_primary: true,
            label: None,
            suggested_replacement: None,
            expansion: None,
        }
    }
}

impl Diagnostic {
    /// The diagnostics in what rustc wrote.
    pub(super) fn all(stderr: &str) -> Vec<Self> {
        stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub(super) fn is_error(&self) -> bool {
        self.level.starts_with("error")
    }
}
