//! Results of an earlier run: the outputs of an executed notebook, as if its cells had just run.

use super::document::{CellKind, DATA, Document, read_json, text};
use super::outcome::{CellError, ErrorKind, Outcome};
use super::output::{Bundle, Output, Stream};
use anyhow::{Result, bail};
use lacuna::display::mime;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Outcomes of the code cells before cell `from` (counted from 1) in the executed notebook at `path`.
///
/// # Errors
/// Fails when there is none, its cells have other code, or one of them did not run to its end.
pub(super) fn outcomes(path: &Path, document: &Document, from: usize) -> Result<BTreeMap<usize, Outcome>> {
    let cells = document.cells().count();
    if from == 0 || from > cells {
        bail!("--from-cell {from}: the notebook has cells 1 to {cells}");
    }
    if !path.is_file() {
        bail!("--from-cell {from}: no earlier run left {}; run the whole notebook first", path.display());
    }
    let raw = read_json(path)?;
    let stored = raw["cells"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut outcomes = BTreeMap::new();
    for (index, (kind, source)) in document.cells().enumerate().take(from - 1) {
        let cell = stored.get(index).unwrap_or(&Value::Null);
        let number = index + 1;
        let same_kind = match kind {
            CellKind::Code => cell["cell_type"] == "code",
            CellKind::Markdown | CellKind::Raw => cell["cell_type"] != "code",
        };
        // Text may have been edited since.
        if !same_kind || (kind == CellKind::Code && text(&cell["source"]) != source) {
            bail!("--from-cell {from}: cell {number} has changed since the last run; start there or before");
        }
        if kind != CellKind::Code || document.tag_of(index, &super::document::SKIP).is_some() {
            continue;
        }
        let outcome = outcome(cell);
        let may_fail = document.has_tag(index, super::document::RAISES);
        if cell["execution_count"].is_null() || (outcome.error.is_some() && !may_fail) {
            bail!("--from-cell {from}: the last run did not get past cell {number}; start there or before");
        }
        outcomes.insert(index, outcome);
    }
    Ok(outcomes)
}

/// Outcomes of the code cells with the tag, in the executed notebook at `path`: of those that say the same there, and have
/// run. None where there is no such notebook.
pub(super) fn outcomes_of_tagged(path: &Path, document: &Document, tag: &str) -> BTreeMap<usize, Outcome> {
    let tagged = document.tagged(tag);
    if tagged.is_empty() || !path.is_file() {
        return BTreeMap::new();
    }
    let Ok(raw) = read_json(path) else { return BTreeMap::new() };
    let stored = |index: usize| {
        let cell = &raw["cells"][index];
        let is_same = cell["cell_type"] == "code" && text(&cell["source"]) == document.source(index);
        (is_same && !cell["execution_count"].is_null()).then(|| (index, outcome(cell)))
    };
    tagged.into_iter().filter_map(stored).collect()
}

/// The outcome that a cell of an executed notebook holds.
pub(super) fn outcome(cell: &Value) -> Outcome {
    let mut outcome = Outcome::default();
    for output in cell["outputs"].as_array().into_iter().flatten() {
        match output["output_type"].as_str().unwrap_or_default() {
            "stream" => {
                let stream = if output["name"] == "stderr" { Stream::Stderr } else { Stream::Stdout };
                outcome.outputs.push(Output::Text(stream, text(&output["text"])));
            }
            "error" => {
                let named = |kind: &ErrorKind| output["ename"] == kind.name();
                let kind = ErrorKind::ALL.into_iter().find(named).unwrap_or(ErrorKind::Error);
                outcome.error = Some(CellError { kind, message: text(&output["evalue"]) });
            }
            "execute_result" => outcome.outputs.push(Output::Result(bundle(&output["data"]))),
            _ => outcome.outputs.push(Output::Display(bundle(&output["data"]))),
        }
    }
    outcome
}

/// A value as the cell gave it, before it was stored.
fn bundle(data: &Value) -> Bundle {
    let mut bundle = Bundle::new();
    for (name, content) in data.as_object().into_iter().flatten() {
        let is_structured = name.ends_with("json");
        let content = if is_structured { content.to_string() } else { text(content) };
        let name = if name == DATA { mime::JSON } else { name };
        bundle.insert(name.to_owned(), content);
    }
    bundle
}
