//! The report of an executed notebook: Markdown for reading, JSON for programs, and the files that cells handed over.
//!
//! The report is a pure function of the notebook and its outputs, except for the `environment` part of the JSON, where
//! everything stands that may differ from run to run. Standard error (progress) and execution counts are left out.

use super::document::{Document, Kind};
use super::session::{Outcome, Stream};
use anyhow::{Context, Result, bail};
use lacuna::notebook::mime;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Version of the JSON.
const SCHEMA: u32 = 1;

/// The key of everything that comparisons leave out. Records have one too; it moves to the top of the report.
pub(crate) const ENVIRONMENT: &str = "environment";

/// The report's files: path relative to the output directory, and bytes.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// What goes into a report.
pub(crate) struct Source<'a> {
    pub(crate) document: &'a Document,
    /// Outcomes by cell index.
    pub(crate) outcomes: &'a BTreeMap<usize, Outcome>,
    /// Seconds before the first cell.
    pub(crate) startup_seconds: f64,
}

/// The directory of extracted plots.
pub(crate) fn plots_directory(stem: &str) -> String {
    format!("{stem}_files")
}

/// Renders the report.
///
/// # Errors
/// When a cell handed over a PNG that is not base64.
pub(crate) fn render(source: &Source) -> Result<Files> {
    let mut report =
        Report { stem: &source.document.stem, markdown: String::new(), files: Files::new(), plots: 0, tables: 0 };
    let mut cells = Vec::new();
    let mut environments = Map::new();
    for (index, (kind, text)) in source.document.cells().enumerate() {
        match (kind, source.outcomes.get(&index)) {
            (Kind::Markdown, _) => report.paragraph(&text),
            (Kind::Code, Some(outcome)) => {
                report.fence("rust", &text);
                let mut cell = report.outcome(index + 1, outcome).with_context(|| format!("cell {}", index + 1))?;
                let mut environment = json!({"seconds": (outcome.seconds * 1e3).round() / 1e3});
                let records = take_environments(&mut cell);
                if !records.is_empty() {
                    environment["records"] = Value::Array(records);
                }
                cells.push(cell);
                environments.insert((index + 1).to_string(), environment);
            }
            // What was not run has no place in a report, and raw cells are for nbconvert.
            (Kind::Code, None) | (Kind::Raw, _) => {}
        }
    }
    let json = json!({
        "schema": SCHEMA,
        "notebook": format!("{}.ipynb", report.stem),
        "sha256": sources_sha256(source.document),
        "cells": cells,
        ENVIRONMENT: {
            "lacuna": env!("CARGO_PKG_VERSION"),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "threads": std::thread::available_parallelism().map_or(1, |n| n.get()),
            "startup_seconds": (source.startup_seconds * 1e3).round() / 1e3,
            "cells": environments,
        },
    });
    let mut json = serde_json::to_string_pretty(&json)?;
    json.push('\n');
    let stem = report.stem;
    report.files.insert(format!("{stem}.json"), json.into_bytes());
    let mut markdown = report.markdown.trim_end().to_owned();
    markdown.push('\n');
    report.files.insert(format!("{stem}.md"), markdown.into_bytes());
    Ok(report.files)
}

/// Takes out the parts of records that may differ from run to run, in the order in which they stand there.
fn take_environments(value: &mut Value) -> Vec<Value> {
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

    /// A fenced block; the fence is longer than any in the text.
    fn fence(&mut self, language: &str, text: &str) {
        let text = text.trim_matches('\n').trim_end();
        if text.is_empty() {
            return;
        }
        let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
        let fence = "`".repeat(longest.max(2) + 1);
        let _ = write!(self.markdown, "{fence}{language}\n{text}\n{fence}\n\n");
    }

    /// Adds one cell's outputs, and returns their JSON.
    fn outcome(&mut self, number: usize, outcome: &Outcome) -> Result<Value> {
        let stdout: String =
            outcome.text.iter().filter(|(s, _)| *s == Stream::Stdout).map(|(_, t)| t.as_str()).collect();
        let stdout = without_ansi(&stdout);
        self.fence("text", &stdout);
        let get = |mime: &str| outcome.data.get(mime);
        let plain = get(mime::PLAIN).map(|text| without_ansi(text));
        let mut cell = Map::new();
        cell.insert("cell".into(), json!(number));
        if !stdout.is_empty() {
            cell.insert("stdout".into(), json!(stdout));
        }
        let mut files = Vec::new();
        let has_plot = get(mime::SVG).is_some() || get(mime::PNG).is_some();
        match get(mime::MARKDOWN) {
            Some(text) => self.paragraph(text),
            None if has_plot => {}
            None => self.fence("text", plain.as_deref().unwrap_or_default()),
        }
        if has_plot {
            self.plots += 1;
            let base = format!("{}/plot_{}", plots_directory(self.stem), self.plots);
            let mut shown = None;
            if let Some(base64) = get(mime::PNG) {
                let name = format!("{base}.png");
                self.files.insert(name.clone(), decode_base64(base64).context("image/png is not base64")?);
                shown = Some(name);
            }
            if let Some(svg) = get(mime::SVG) {
                let name = format!("{base}.svg");
                let mut svg = svg.clone().into_bytes();
                svg.push(b'\n');
                self.files.insert(name.clone(), svg);
                files.extend(shown.replace(name));
            }
            if let Some(shown) = shown {
                let title = plain.as_deref().and_then(|text| text.lines().next()).unwrap_or("plot");
                let title: String = title.chars().filter(|c| !"[]\\".contains(*c)).collect();
                self.paragraph(&format!("![{title}]({})", link(&shown)));
                files.insert(0, shown);
            }
        }
        if let Some(csv) = get(mime::CSV) {
            self.tables += 1;
            let name = match self.tables {
                1 => format!("{}.csv", self.stem),
                n => format!("{}_{n}.csv", self.stem),
            };
            let csv = format!("{}\n", csv.trim_end_matches('\n'));
            self.files.insert(name.clone(), csv.into_bytes());
            files.push(name);
        }
        if let Some(text) = get(mime::JSON) {
            cell.insert("data".into(), serde_json::from_str(text).context("application/json is not JSON")?);
        } else if let Some(plain) = plain {
            cell.insert("text".into(), json!(plain));
        }
        if !files.is_empty() {
            cell.insert("files".into(), json!(files));
        }
        Ok(Value::Object(cell))
    }
}

/// A relative path as a Markdown link's target.
fn link(path: &str) -> String {
    path.replace('%', "%25").replace(' ', "%20").replace('(', "%28").replace(')', "%29")
}

/// Text without terminal escape sequences.
pub(crate) fn without_ansi(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            // CSI: parameters, then one letter.
            Some('[') => while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
            // OSC: up to a bell or a string terminator.
            Some(']') => {
                while let Some(c) = chars.next() {
                    if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    plain
}

/// Base64 with padding, as in RFC 4648; line breaks are allowed.
fn decode_base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut group, mut bits) = (0u32, 0);
    for c in text.trim_end().trim_end_matches('=').bytes().filter(|c| !c.is_ascii_whitespace()) {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("byte {c:#04x} does not occur in base64"),
        };
        group = group << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((group >> bits) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (encoded, plain) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9v\nYmFy\n", "foobar")] {
            assert_eq!(decode_base64(encoded).unwrap(), plain.as_bytes());
        }
        assert_eq!(decode_base64("//79").unwrap(), [0xff, 0xfe, 0xfd]);
        assert!(decode_base64("Zm9%").is_err());
    }

    #[test]
    fn escape_sequences_go() {
        assert_eq!(
            without_ansi("\u{1b}[1;31mred\u{1b}[0m \u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{7}."),
            "red link."
        );
    }

    #[test]
    fn fences_are_longer_than_those_inside() {
        let mut report = Report { stem: "s", markdown: String::new(), files: Files::new(), plots: 0, tables: 0 };
        report.fence("rust", "// ```\nlet x = 1;\n");
        assert_eq!(report.markdown, "````rust\n// ```\nlet x = 1;\n````\n\n");
    }
}
