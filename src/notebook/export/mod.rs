//! The report of an executed notebook: Markdown for reading, JSON for programs, HTML for mailing around, and the files that
//! cells handed over.
//!
//! The report is a pure function of the notebook and its outputs, except for the `environment` part of the JSON, where
//! everything stands that may differ from run to run. Standard error (progress) and execution counts are left out.

mod closed;
pub(super) mod gallery;
mod html;
mod links;
mod math;
mod model;
mod shown;
mod text;

pub(crate) use html::is_ours as is_our_html;
pub(crate) use shown::is_extension;

use super::document::SKIP;
use super::document::{CellKind, Document};
use super::outcome::Outcome;
use super::output::{Bundle, Output, Stream, without_ansi};
use anyhow::Result;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use lacuna::display::mime;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// The key of everything that comparisons leave out. Records have one too; it moves to the end of the report.
pub(crate) const ENVIRONMENT: &str = "environment";

/// The report's files: path relative to the output directory, and bytes.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// The contents of a report, and its options.
pub(crate) struct ReportSource<'a> {
    pub(crate) document: &'a Document,
    /// Outcomes by cell index.
    pub(crate) outcomes: &'a BTreeMap<usize, Outcome>,
    /// Parameters that were set from outside.
    pub(crate) parameters: &'a Map<String, Value>,
    /// Seconds before the first cell.
    pub(crate) startup_seconds: f64,
    /// The directory of the notebook: links and pictures of its text are relative to it.
    pub(crate) directory: &'a Path,
    /// The directory of the report.
    pub(crate) out: &'a Path,
    /// True to write HTML.
    pub(crate) html: bool,
    /// True to leave the code of cells out of the files for people.
    pub(crate) no_input: bool,
}

/// The directory of extracted plots.
pub(crate) fn plots_directory(stem: &str) -> String {
    format!("{stem}_files")
}

/// The visibility of a part of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Open,
    /// On a click.
    Folded,
    Not,
}

/// The parts of a cell that a report shows. The tags are those of Jupyter Book and nbconvert, which some write with an
/// underscore.
struct View {
    cell: Shown,
    input: Shown,
    output: Shown,
}

impl View {
    fn of(source: &ReportSource, index: usize) -> View {
        let has = |tags: &[&'static str]| source.document.tag_of(index, tags).is_some();
        let shown = |remove: &[&'static str], hide: &[&'static str]| match (has(remove), has(hide)) {
            (true, _) => Shown::Not,
            (false, true) => Shown::Folded,
            (false, false) => Shown::Open,
        };
        let is_text = source.document.cells().nth(index).is_some_and(|(kind, _)| kind == CellKind::Markdown);
        let cell = shown(&["remove-cell", "remove_cell"], &["hide-cell", "hide_cell"]);
        if is_text {
            return View { cell, input: cell, output: cell };
        }
        let mut input = shown(&["remove-input", "remove_input"], &["hide-input", "hide_input"]);
        if input == Shown::Open && source.document.is_collapsed(index) {
            input = Shown::Folded;
        }
        if source.no_input {
            input = Shown::Not;
        }
        View { cell, input, output: shown(&["remove-output", "remove_output"], &["hide-output", "hide_output"]) }
    }
}

/// Renders the report.
///
/// # Errors
/// Fails when there is no memory for its JSON.
pub(crate) fn render(source: &ReportSource) -> Result<Files> {
    let stem = source.document.stem.as_str();
    let mut report = Report { stem, ..Report::default() };
    let (mut cells, mut environments) = (Vec::new(), BTreeMap::new());
    for (index, (kind, text)) in source.document.cells().enumerate() {
        let number = index + 1;
        let view = View::of(source, index);
        match (kind, source.outcomes.get(&index)) {
            (CellKind::Markdown, _) => {
                let attached = report.attachments(source.document.attachments(index));
                let text = closed::closed(&links::moved(text, source.directory, source.out, &attached));
                report.shown(view.input, "Text", |report| report.paragraph(&text));
            }
            (CellKind::Code, Some(outcome)) => {
                report.shown(view.cell, "Cell", |report| {
                    report.shown(view.input, "Code", |report| report.fence("rust", text));
                    let mut cell = report.shown(view.output, "Output", |report| report.outcome(number, outcome));
                    let records = cell.take_environments();
                    let environment = model::CellEnvironment {
                        seconds: milliseconds(outcome.times.seconds()),
                        compile_seconds: milliseconds(outcome.times.compile_seconds),
                        run_seconds: milliseconds(outcome.times.run_seconds),
                        records,
                    };
                    environments.insert(number, environment);
                    cells.push(cell);
                });
            }
            (CellKind::Code, None) if let Some(tag) = source.document.tag_of(index, &SKIP) => {
                report.shown(view.cell, "Cell", |report| {
                    report.shown(view.input, "Code", |report| report.fence("rust", text));
                    report.paragraph(&format!("*This cell was not run: it is tagged `{tag}`.*"));
                });
                cells.push(model::Cell { cell: number, skipped: true, ..model::Cell::default() });
            }
            // What was not run has no place in a report, and raw cells are for nbconvert.
            (CellKind::Code, None) | (CellKind::Raw, _) => {}
        }
    }
    let json = model::Report {
        schema: model::SCHEMA,
        notebook: format!("{stem}.ipynb"),
        sha256: sources_sha256(source.document),
        parameters: source.parameters.clone(),
        cells,
        attachments: report.attached,
        environment: model::Environment {
            lacuna: env!("CARGO_PKG_VERSION").to_owned(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            startup_seconds: milliseconds(source.startup_seconds),
            cells: environments,
        },
    };
    let Report { mut markdown, page, mut files, .. } = report;
    files.insert(format!("{stem}.json"), (serde_json::to_string_pretty(&json)? + "\n").into_bytes());
    markdown.truncate(markdown.trim_end().len());
    markdown.push('\n');
    if source.html {
        let page = html::page(&page, stem, &files, source.out);
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
        hash.update(text);
    }
    hex::encode(hash.finalize())
}

#[derive(Default)]
struct Report<'a> {
    stem: &'a str,
    /// For GitHub.
    markdown: String,
    /// The Markdown of the web page, which can show more.
    page: String,
    files: Files,
    plots: usize,
    tables: usize,
    /// Values that are files, but no pictures.
    values: usize,
    /// Names of the files of pasted pictures.
    attached: Vec<String>,
}

impl Report<'_> {
    fn push(&mut self, text: &str) {
        self.markdown.push_str(text);
        self.page.push_str(text);
    }

    fn paragraph(&mut self, text: &str) {
        self.differing(text, text);
    }

    /// A paragraph that is another one on the page.
    fn differing(&mut self, markdown: &str, page: &str) {
        for (into, text) in [(&mut self.markdown, markdown.trim()), (&mut self.page, page.trim())] {
            if !text.is_empty() {
                into.push_str(text);
                into.push_str("\n\n");
            }
        }
    }

    fn fence(&mut self, language: &str, text: &str) {
        self.push(&text::fence(language, text));
    }

    /// Adds what `add` adds; folded away, as in Jupyter, or not at all, if it is to be so.
    fn shown<T>(&mut self, how: Shown, title: &str, add: impl FnOnce(&mut Self) -> T) -> T {
        let before = (self.markdown.len(), self.page.len());
        if how == Shown::Folded {
            self.paragraph(&format!("<details>\n<summary>{title}</summary>"));
        }
        let begin = (self.markdown.len(), self.page.len());
        let added = add(self);
        if how == Shown::Not || begin == (self.markdown.len(), self.page.len()) {
            self.markdown.truncate(before.0);
            self.page.truncate(before.1);
        } else if how == Shown::Folded {
            self.paragraph("</details>");
        }
        added
    }

    /// Saves the pictures that were pasted into a cell, and returns their files by name.
    fn attachments(&mut self, pasted: &Map<String, Value>) -> links::Attached {
        let mut attached = links::Attached::new();
        for (name, data) in pasted {
            let picture =
                shown::PICTURES.iter().find_map(|(mime, extension)| Some((*extension, mime, data.get(*mime)?)));
            let Some((extension, mime, content)) = picture else { continue };
            let content = super::document::text(content);
            let bytes = match *mime == mime::SVG && content.trim_start().starts_with('<') {
                true => Some(content.into_bytes()),
                false => text::decode_base64(&content).ok(),
            };
            let Some(bytes) = bytes else { continue };
            let file = format!("{}/attached_{}.{extension}", plots_directory(self.stem), self.attached.len() + 1);
            self.files.insert(file.clone(), bytes);
            self.attached.push(file.clone());
            attached.insert(name.clone(), file);
        }
        attached
    }

    /// Adds one cell's outputs in their order, and returns their JSON.
    fn outcome(&mut self, number: usize, outcome: &Outcome) -> model::Cell {
        let (mut parts, mut text) = (Vec::new(), String::new());
        for output in &outcome.outputs {
            match output {
                Output::Text(Stream::Stdout, part) => text.push_str(part),
                // Standard error is not in the report, and does not part what is.
                Output::Text(Stream::Stderr, _) => {}
                Output::Display(bundle) | Output::Result(bundle) => {
                    parts.extend(self.printed(&std::mem::take(&mut text)));
                    parts.push(self.value(bundle));
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
            (Some(value), None) => {
                (cell.data, cell.text) = (value.data.clone(), value.text.clone());
                cell.other = value.other.clone();
            }
            (Some(_), Some(_)) => {
                // The last one is the cell's value.
                if let Some(value) = parts.iter().rfind(|part| part.stdout.is_none()) {
                    (cell.data, cell.text) = (value.data.clone(), value.text.clone());
                }
                cell.outputs = parts;
            }
            (None, _) => {}
        }
        cell
    }

    /// Adds what a cell printed between two values; nothing for an empty text.
    fn printed(&mut self, text: &str) -> Option<model::Output> {
        let text = text::on_terminal(text);
        self.fence("text", &text);
        (!text.is_empty()).then(|| model::Output { stdout: Some(text), ..model::Output::default() })
    }

    /// Adds a value in the best form that there is. What a report cannot show is said in it, and stands in the JSON.
    fn value(&mut self, bundle: &Bundle) -> model::Output {
        let mut value = model::Output::default();
        let get = |mime: &str| bundle.get(mime);
        let plain = get(mime::PLAIN).map(|text| text::on_terminal(text));
        let pictures = self.pictures(bundle, &mut value);
        let html =
            shown::html(bundle).filter(|html| !plain.as_ref().is_some_and(|plain| shown::is_as_plain(html, plain)));
        match (get(mime::MARKDOWN), get(shown::LATEX)) {
            (Some(text), _) => self.paragraph(&closed::closed(text)),
            (None, _) if !pictures.is_empty() => {}
            (None, Some(latex)) => self.paragraph(&in_dollars(latex)),
            (None, None) if let Some(html) = html => self.html(html, plain.as_deref(), &mut value),
            (None, None) => self.fence("text", plain.as_deref().unwrap_or_default()),
        }
        if let Some(shown) = pictures.first() {
            let title = plain.as_deref().and_then(|text| text.lines().next()).unwrap_or("plot");
            let title: String = title.chars().filter(|c| !"[]\\".contains(*c)).collect();
            self.paragraph(&format!("![{title}]({})", text::link(shown)));
        }
        self.kept(bundle, &mut value);
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
        let data = get(mime::JSON).map(|text| serde_json::from_str::<Value>(text));
        let text = || plain.or_else(|| get(mime::MARKDOWN).or_else(|| get(shown::LATEX)).cloned());
        match data {
            Some(Ok(data)) => value.data = Some(data),
            Some(Err(error)) => {
                self.paragraph(&format!("*The value's `{}` is no JSON ({error}), and is left out.*", mime::JSON));
                value.text = text();
            }
            None => value.text = text(),
        }
        self.others(bundle, html.is_some(), &mut value);
        value
    }

    /// Saves a plot or a picture in the forms that there are, and returns their names, the one to be shown first.
    fn pictures(&mut self, bundle: &Bundle, value: &mut model::Output) -> Vec<String> {
        let base = format!("{}/plot_{}", plots_directory(self.stem), self.plots + 1);
        let mut names: Vec<String> = Vec::new();
        for (mime, extension) in shown::PICTURES {
            let Some(content) = bundle.get(mime) else { continue };
            let name = format!("{base}.{extension}");
            let bytes = match mime {
                mime::SVG => format!("{content}\n").into_bytes(),
                mime => match text::decode_base64(content) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        self.paragraph(&format!("*The value's `{mime}` is no base64 ({error}), and is left out.*"));
                        continue;
                    }
                },
            };
            if self.files.insert(name.clone(), bytes).is_none() {
                names.push(name);
            }
        }
        self.plots += usize::from(!names.is_empty());
        value.files.extend(names.iter().cloned());
        names
    }

    /// Shows HTML: in a frame on the page; as text, with a link to it, where there are no frames.
    fn html(&mut self, html: &str, plain: Option<&str>, value: &mut model::Output) {
        self.values += 1;
        let name = format!("{}/value_{}.html", plots_directory(self.stem), self.values);
        let stand_in = plain.map_or_else(|| shown::text_of_html(html), str::to_owned);
        let note = format!("*The value is HTML, and here stands its text: [the value itself]({}).*", text::link(&name));
        let markdown = format!("{}{note}", text::fence("text", &stand_in));
        self.differing(&markdown, &shown::frame(html));
        self.files.insert(name.clone(), format!("{}\n", html.trim_end_matches('\n')).into_bytes());
        value.files.push(name);
    }

    /// Saves sounds, films and documents as files.
    fn kept(&mut self, bundle: &Bundle, value: &mut model::Output) {
        for (mime, extension, player) in shown::KEPT {
            let Some(content) = bundle.get(mime) else { continue };
            let bytes = match text::decode_base64(content) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.paragraph(&format!("*The value's `{mime}` is no base64 ({error}), and is left out.*"));
                    continue;
                }
            };
            self.values += 1;
            let name = format!("{}/value_{}.{extension}", plots_directory(self.stem), self.values);
            let uri = format!("data:{mime};base64,{}", BASE64_STANDARD.encode(&bytes));
            let page = match player {
                Some(player) => format!("<p><{player} controls src=\"{uri}\"></{player}></p>"),
                None => format!("<p><a download=\"value.{extension}\" href=\"{uri}\">The value as {mime}</a></p>"),
            };
            self.differing(&format!("[The value as `{mime}`]({})", text::link(&name)), &page);
            self.files.insert(name.clone(), bytes);
            value.files.push(name);
        }
    }

    /// Puts representations that have no other place into the JSON, and says so in a line.
    fn others(&mut self, bundle: &Bundle, is_html: bool, value: &mut model::Output) {
        let mut names = Vec::new();
        for (name, content) in bundle {
            let is_data = name.ends_with("+json");
            if name == mime::HTML && is_html {
                value.other.insert(name.clone(), Value::from(content.as_str()));
            } else if name != mime::HTML && name != shown::LATEX && !shown::has_place(name) {
                let data = if is_data { serde_json::from_str(content).ok() } else { None };
                value.other.insert(name.clone(), data.unwrap_or_else(|| Value::from(content.as_str())));
                names.push(format!("`{}`", name.replace(['`', '\n', '\r'], " ")));
            }
        }
        if !names.is_empty() {
            let json = text::link(&format!("{}.json", self.stem));
            let names = names.join(", ");
            self.paragraph(&format!(
                "*The value is also {names}, which a report does not draw; it stands in [the JSON]({json}).*"
            ));
        }
    }
}

/// A formula of Jupyter as one of Markdown.
fn in_dollars(latex: &str) -> String {
    let latex = latex.trim();
    // Between dollars a blank line ends the formula.
    let lines: Vec<&str> = latex.lines().filter(|line| !line.trim().is_empty()).collect();
    let latex = lines.join("\n");
    match latex.starts_with('$') && latex.ends_with('$') && latex.len() > 1 {
        true => latex,
        false => format!("$$\n{latex}\n$$"),
    }
}
