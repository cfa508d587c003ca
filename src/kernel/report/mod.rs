//! The report of an executed notebook: Markdown for reading, JSON for programs, HTML for mailing around, and the files that
//! cells handed over.
//!
//! The report is a pure function of the notebook and its outputs, except for the `environment` part of the JSON, where
//! everything stands that may differ from run to run. Standard error (progress) and execution counts are left out.

pub(super) mod gallery;
mod html;
mod links;
mod model;
mod text;

pub(crate) use html::is_ours as is_our_html;
pub(crate) use text::without_ansi;

use super::document::{Document, Kind};
use super::output::{Bundle, Output, Stream};
use super::runner::SKIP;
use super::session::Outcome;
use anyhow::{Context, Result};
use lacuna::notebook::mime;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// The key of everything that comparisons leave out. Records have one too; it moves to the end of the report.
pub(crate) const ENVIRONMENT: &str = "environment";

/// The report's files: path relative to the output directory, and bytes.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// What goes into a report.
pub(crate) struct Source<'a> {
    pub(crate) document: &'a Document,
    /// Outcomes by cell index.
    pub(crate) outcomes: &'a BTreeMap<usize, Outcome>,
    /// Those that were set from outside.
    pub(crate) parameters: &'a Map<String, Value>,
    /// Seconds before the first cell.
    pub(crate) startup_seconds: f64,
    /// Where the notebook is: what its text shows and links is meant from there.
    pub(crate) directory: &'a Path,
    /// Where the report goes.
    pub(crate) out: &'a Path,
    /// Whether to write HTML.
    pub(crate) html: bool,
}

/// The directory of extracted plots.
pub(crate) fn plots_directory(stem: &str) -> String {
    format!("{stem}_files")
}

/// Renders the report.
///
/// # Errors
/// When a cell handed over a PNG that is not base64, or JSON that is none.
pub(crate) fn render(source: &Source) -> Result<Files> {
    let stem = source.document.stem.as_str();
    let mut report = Report { stem, markdown: String::new(), files: Files::new(), plots: 0, tables: 0 };
    let (mut cells, mut environments) = (Vec::new(), BTreeMap::new());
    for (index, (kind, text)) in source.document.cells().enumerate() {
        let number = index + 1;
        match (kind, source.outcomes.get(&index)) {
            (Kind::Markdown, _) => report.paragraph(&links::moved(&text, source.directory, source.out)),
            (Kind::Code, Some(outcome)) => {
                report.source(&text, source.document.is_collapsed(index));
                let mut cell = report.outcome(number, outcome).with_context(|| format!("cell {number}"))?;
                let records = cell.take_environments();
                environments.insert(number, model::CellEnvironment { seconds: milliseconds(outcome.seconds), records });
                cells.push(cell);
            }
            (Kind::Code, None) if source.document.has_tag(index, SKIP) => {
                report.source(&text, source.document.is_collapsed(index));
                report.paragraph("*This cell was not run: it is tagged `skip`.*");
                cells.push(model::Cell { cell: number, skipped: true, ..model::Cell::default() });
            }
            // What was not run has no place in a report, and raw cells are for nbconvert.
            (Kind::Code, None) | (Kind::Raw, _) => {}
        }
    }
    let json = model::Report {
        schema: model::SCHEMA,
        notebook: format!("{stem}.ipynb"),
        sha256: sources_sha256(source.document),
        parameters: source.parameters.clone(),
        cells,
        environment: model::Environment {
            lacuna: env!("CARGO_PKG_VERSION").to_owned(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            startup_seconds: milliseconds(source.startup_seconds),
            cells: environments,
        },
    };
    let Report { mut markdown, mut files, .. } = report;
    files.insert(format!("{stem}.json"), (serde_json::to_string_pretty(&json)? + "\n").into_bytes());
    markdown.truncate(markdown.trim_end().len());
    markdown.push('\n');
    if source.html {
        let page = html::page(&markdown, stem, &files, source.out);
        files.insert(html::name(stem), page.into_bytes());
    }
    files.insert(format!("{stem}.md"), markdown.into_bytes());
    Ok(files)
}

fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// Takes out the parts of records that may differ from run to run, in the order in which they stand there.
pub(crate) fn take_environments(value: &mut Value) -> Vec<Value> {
    match value {
        Value::Object(fields) => {
            let mut taken: Vec<Value> = fields.shift_remove(ENVIRONMENT).into_iter().collect();
            taken.extend(fields.values_mut().flat_map(take_environments));
            taken
        }
        Value::Array(items) => items.iter_mut().flat_map(take_environments).collect(),
        _ => Vec::new(),
    }
}

/// A hash of what the notebook says, whichever way its file is formatted.
fn sources_sha256(document: &Document) -> String {
    let mut hash = Sha256::new();
    for (kind, text) in document.cells() {
        hash.update([kind as u8]);
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(&text);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Report<'a> {
    stem: &'a str,
    markdown: String,
    files: Files,
    plots: usize,
    tables: usize,
}

impl Report<'_> {
    fn paragraph(&mut self, text: &str) {
        let text = text.trim();
        if !text.is_empty() {
            self.markdown.push_str(text);
            self.markdown.push_str("\n\n");
        }
    }

    fn fence(&mut self, language: &str, text: &str) {
        self.markdown.push_str(&text::fence(language, text));
    }

    /// A cell's code; collapsed, as in Jupyter, if it is so there.
    fn source(&mut self, code: &str, is_collapsed: bool) {
        if is_collapsed {
            self.paragraph("<details>\n<summary>Code</summary>");
        }
        self.fence("rust", code);
        if is_collapsed {
            self.paragraph("</details>");
        }
    }

    /// Adds one cell's outputs in their order, and returns their JSON.
    fn outcome(&mut self, number: usize, outcome: &Outcome) -> Result<model::Cell> {
        let (mut parts, mut text) = (Vec::new(), String::new());
        for output in &outcome.outputs {
            match output {
                Output::Text(Stream::Stdout, part) => text.push_str(part),
                // Standard error is not in the report, and does not part what is.
                Output::Text(Stream::Stderr, _) => {}
                Output::Display(bundle) | Output::Result(bundle) => {
                    parts.extend(self.printed(&std::mem::take(&mut text)));
                    parts.push(self.value(bundle)?);
                }
            }
        }
        parts.extend(self.printed(&text));
        let mut cell = model::Cell { cell: number, ..model::Cell::default() };
        let stdout: String = parts.iter().filter_map(|part| part.stdout.as_deref()).collect();
        cell.stdout = Some(stdout).filter(|text| !text.is_empty());
        if let Some(error) = &outcome.error {
            let (kind, message) = (error.kind.name().to_owned(), without_ansi(&error.message));
            self.fence("text", &format!("{kind}: {message}"));
            cell.error = Some(model::Failure { kind, message });
        }
        cell.files = parts.iter().flat_map(|part| part.files.iter().cloned()).collect();
        let mut values = parts.iter().filter(|part| part.stdout.is_none());
        match (values.next(), values.next()) {
            (Some(value), None) => (cell.data, cell.text) = (value.data.clone(), value.text.clone()),
            (Some(_), Some(_)) => {
                // The last one is the cell's value.
                if let Some(value) = parts.iter().rfind(|part| part.stdout.is_none()) {
                    (cell.data, cell.text) = (value.data.clone(), value.text.clone());
                }
                cell.outputs = parts;
            }
            (None, _) => {}
        }
        Ok(cell)
    }

    /// Adds what a cell printed between two values; nothing for an empty text.
    fn printed(&mut self, text: &str) -> Option<model::Output> {
        let text = without_ansi(text);
        self.fence("text", &text);
        (!text.is_empty()).then(|| model::Output { stdout: Some(text), ..model::Output::default() })
    }

    /// Adds a value.
    fn value(&mut self, bundle: &Bundle) -> Result<model::Output> {
        let mut value = model::Output::default();
        let get = |mime: &str| bundle.get(mime);
        let plain = get(mime::PLAIN).map(|text| without_ansi(text));
        let has_plot = get(mime::SVG).is_some() || get(mime::PNG).is_some();
        match get(mime::MARKDOWN) {
            Some(text) => self.paragraph(text),
            None if has_plot => {}
            None => self.fence("text", plain.as_deref().unwrap_or_default()),
        }
        if has_plot {
            value.files.extend(self.plot(plain.as_deref(), get(mime::SVG), get(mime::PNG))?);
        }
        if let Some(csv) = get(mime::CSV) {
            self.tables += 1;
            let name = match self.tables {
                1 => format!("{}.csv", self.stem),
                n => format!("{}_{n}.csv", self.stem),
            };
            let csv = format!("{}\n", csv.trim_end_matches('\n'));
            self.files.insert(name.clone(), csv.into_bytes());
            value.files.push(name);
        }
        match get(mime::JSON) {
            Some(text) => value.data = Some(serde_json::from_str(text).context("application/json is not JSON")?),
            None => value.text = plain,
        }
        Ok(value)
    }

    /// Saves a plot in the forms that there are, shows the best of them, and returns their names, that one first.
    fn plot(&mut self, plain: Option<&str>, svg: Option<&String>, png: Option<&String>) -> Result<Vec<String>> {
        self.plots += 1;
        let base = format!("{}/plot_{}", plots_directory(self.stem), self.plots);
        let mut names = Vec::new();
        if let Some(svg) = svg {
            names.push(format!("{base}.svg"));
            self.files.insert(format!("{base}.svg"), format!("{svg}\n").into_bytes());
        }
        if let Some(base64) = png {
            let bytes = text::decode_base64(base64).context("image/png is not base64")?;
            names.push(format!("{base}.png"));
            self.files.insert(format!("{base}.png"), bytes);
        }
        if let Some(shown) = names.first() {
            let title = plain.and_then(|text| text.lines().next()).unwrap_or("plot");
            let title: String = title.chars().filter(|c| !"[]\\".contains(*c)).collect();
            self.paragraph(&format!("![{title}]({})", text::link(shown)));
        }
        Ok(names)
    }
}
