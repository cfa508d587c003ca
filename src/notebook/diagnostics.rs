//! rustc's messages about a cell, at the places where the reader sees the code.
//!
//! evcxr compiles a cell inside a generated file, and takes errors that it finds in its own lines for its own; so the wrapper
//! around rustc keeps what rustc said, with the file, and it is told from here.

use super::cell_source::is_function;
use super::rustc_message::{Diagnostic, Span};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

/// The file in a slot that holds the compilations of its last cell.
pub(super) const FILE: &str = "compilations.jsonl";

/// One call of rustc for a cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Compilation {
    /// The generated file.
    pub(super) source: String,
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Compilation {
    /// Adds the compilation to those of the cell.
    pub(super) fn keep(&self, file: &Path) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let open = File::options().create(true).append(true).open(file);
        open.and_then(|mut file| file.write_all(&line)).with_context(|| format!("cannot write {}", file.display()))
    }

    /// The compilations that a file holds; none if there is no such file.
    pub(super) fn all(file: &Path) -> Vec<Self> {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// The diagnostics of the cell in the last compilation that failed: errors, then warnings. `None` if none failed.
/// `moved` are variables whose values earlier cells have moved away.
pub(super) fn failure(
    compilations: &[Compilation],
    cell: &str,
    guard: &str,
    moved: &BTreeSet<String>,
) -> Option<String> {
    let failed = compilations.iter().rev().find(|one| one.diagnostics.iter().any(Diagnostic::is_error))?;
    let places = Places::new(&failed.source, cell, guard);
    let mut told: Vec<String> = Vec::new();
    for is_error in [true, false] {
        for diagnostic in failed.diagnostics.iter().filter(|one| one.is_error() == is_error) {
            let is_summary = ["aborting due to", "For more information", "Some errors have"]
                .iter()
                .any(|s| diagnostic.message.starts_with(s));
            let is_of_cell =
                diagnostic.spans.iter().filter(|span| span.is_primary).any(|span| places.of(span).is_some());
            if is_summary || !is_error && (diagnostic.level != "warning" || !is_of_cell) {
                continue;
            }
            let text = told_of(diagnostic, &places, moved);
            if !told.contains(&text) {
                told.push(text);
            }
        }
    }
    // Errors in generated code follow from those in the cell.
    let has_place = |text: &String| text.contains("\n  line ");
    if told.iter().any(has_place) {
        told.retain(has_place);
    }
    Some(told.join("\n"))
}

fn told_of(diagnostic: &Diagnostic, places: &Places, moved: &BTreeSet<String>) -> String {
    let code = diagnostic.code.as_ref().map(|code| format!("[{}]", code.code)).unwrap_or_default();
    let mut text = format!("{}{code}: {}\n", diagnostic.level, plain(&diagnostic.message));
    tell_spans(&mut text, &diagnostic.spans, places);
    for child in &diagnostic.children {
        tell_child(&mut text, child, places);
    }
    let code = diagnostic.code.as_ref().map_or("", |code| code.code.as_str());
    let name = diagnostic.message.split('`').nth(1).unwrap_or_default();
    if code == "E0425" && moved.contains(name) {
        let _ = writeln!(text, "  note: an earlier cell gave `{name}` away; run the cell again that defines it");
    }
    if code == "E0277" && diagnostic.message.contains("EvcxrUserCodeError") {
        text.push_str("  note: `?` in a cell takes every error that implements `Display`\n");
    }
    if let Some(name) = kept_variable(diagnostic, places) {
        let _ = writeln!(
            text,
            "  note: `{name}` is kept for later cells, so it must own what it holds: clone it, make a `String` of a `&str`, or put the \
             code in braces if no later cell needs `{name}`"
        );
    }
    text.truncate(text.trim_end().len());
    text
}

/// Says the places of a message: those in the cell, or else those in earlier cells.
fn tell_spans(text: &mut String, spans: &[Span], places: &Places) {
    let mut placed: Vec<(Place, &Span)> = spans.iter().filter_map(|span| Some((places.of(span)?, span))).collect();
    placed.sort_by_key(|(place, span)| (!span.is_primary, place.line, place.column));
    for (place, span) in &placed {
        let Some(line) = places.cell.get(place.line) else { continue };
        let number = place.line + 1;
        // A span of several lines is marked to the end of its first.
        let rest = line.chars().count().saturating_sub(place.column);
        let width = if place.width == usize::MAX { rest } else { place.width };
        let marks = if span.is_primary { "^" } else { "-" }.repeat(width.max(1));
        let margin = format!("  line {number}");
        // Tabs keep their width.
        let indent: String = line.chars().take(place.column).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let label = plain(span.label.as_deref().unwrap_or_default());
        let _ = writeln!(text, "{margin} | {line}");
        let marked = format!("{} | {indent}{marks} {label}", " ".repeat(margin.len()));
        let _ = writeln!(text, "{}", marked.trim_end());
    }
    for span in spans.iter().filter(|span| places.of(span).is_none()) {
        let Some(line) = places.earlier(span) else { continue };
        let label = plain(span.label.as_deref().unwrap_or_default());
        let _ = writeln!(text, "{}", format!("  an earlier cell | {}  {label}", line.trim()).trim_end());
    }
}

fn tell_child(text: &mut String, child: &Diagnostic, places: &Places) {
    const OURS: [&str; 4] = ["evcxr", "Evcxr", "lacuna_cell", "lacuna::display::runtime"];
    let mut message = plain(&child.message);
    if OURS.iter().any(|name| message.contains(name)) || message.contains("RUST_BACKTRACE") {
        return;
    }
    if let Some((_, rest)) = message.split_once("use `cargo add ")
        && let Some((name, _)) = rest.split_once('`')
    {
        message = format!("if `{name}` is a crate, add it in the first line of a cell: `:dep {name} = \"*\"`");
    }
    // Where nobody can look.
    if message.ends_with("here")
        && child.spans.iter().all(|span| places.of(span).is_none() && places.earlier(span).is_none())
    {
        return;
    }
    let replacements: Vec<&Span> = child.spans.iter().filter(|span| span.suggested_replacement.is_some()).collect();
    let first_line = message.lines().next().unwrap_or_default().to_owned();
    let _ = writeln!(text, "  {}: {first_line}", child.level);
    for line in message.lines().skip(1) {
        let _ = writeln!(text, "    {line}");
    }
    if replacements.is_empty() {
        let mut places_told = String::new();
        tell_spans(&mut places_told, &child.spans, places);
        for line in places_told.lines() {
            let _ = writeln!(text, "  {line}");
        }
        return;
    }
    for suggestion in suggestions(&replacements, places) {
        let _ = writeln!(text, "          {suggestion}");
    }
}

/// The lines that a suggestion leads to: several pieces of one change, or several alternatives for one place.
fn suggestions(replacements: &[&Span], places: &Places) -> Vec<String> {
    let start = |span: &Span| (span.line_start, span.column_start);
    let are_alternatives = replacements.windows(2).all(|pair| start(pair[0]) == start(pair[1]));
    let new = |span: &Span| span.suggested_replacement.clone().unwrap_or_default();
    if are_alternatives && replacements.iter().all(|span| places.of(span).is_none() || new(span).ends_with('\n')) {
        // New lines, such as imports.
        let lines: BTreeSet<String> = replacements.iter().map(|span| new(span).trim().to_owned()).collect();
        return lines.into_iter().filter(|line| !line.is_empty()).collect();
    }
    let groups: Vec<Vec<&Span>> = match are_alternatives {
        true => replacements.iter().map(|span| vec![*span]).collect(),
        false => vec![replacements.to_vec()],
    };
    let mut told = Vec::new();
    for group in groups {
        let lines: BTreeSet<usize> = group.iter().map(|span| span.line_start).collect();
        for number in lines {
            let Some(line) = number.checked_sub(1).and_then(|at| places.generated.get(at)) else { continue };
            let mut characters: Vec<char> = line.chars().collect();
            let mut pieces: Vec<&&Span> = group.iter().filter(|span| span.line_start == number).collect();
            pieces.sort_by_key(|span| std::cmp::Reverse(span.column_start));
            for piece in pieces {
                let from = piece.column_start.saturating_sub(1).min(characters.len());
                let to = match piece.line_end == number {
                    true => piece.column_end.saturating_sub(1).clamp(from, characters.len()),
                    false => characters.len(),
                };
                characters.splice(from..to, new(piece).chars());
            }
            let changed: String = characters.into_iter().collect();
            // A suggestion within generated code helps nobody.
            if !["evcxr", "lacuna_cell"].iter().any(|name| changed.contains(name)) {
                told.push(changed.trim().to_owned());
            }
        }
    }
    told
}

/// The variable that evcxr was to keep where the error is, if the error is in generated code.
fn kept_variable<'a>(diagnostic: &Diagnostic, places: &Places<'a>) -> Option<&'a str> {
    const LIFETIMES: [&str; 7] = ["E0597", "E0521", "E0716", "E0505", "E0373", "E0310", "E0515"];
    let code = diagnostic.code.as_ref().map_or("", |code| code.code.as_str());
    if !LIFETIMES.contains(&code) {
        return None;
    }
    diagnostic.spans.iter().find_map(|span| {
        let line = places.generated.get(span.line_start.checked_sub(1)?)?;
        let stored = line.split_once("(stringify!(").map(|(_, rest)| rest);
        let analysed = line.strip_prefix("evcxr_variable_store(");
        let (name, _) = stored.or(analysed)?.split_once(')')?;
        Some(name)
    })
}

/// A message without names of generated code.
fn plain(message: &str) -> String {
    message
        .replace("`evcxr_variable_store`", "the end of the cell")
        .replace("EvcxrUserCodeError", "CellError")
        .replace("std::result::Result<(), CellError>", "Result<(), CellError>")
}

/// The place of a span in the cell: line and column count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    /// In characters; `usize::MAX` for what goes on in the next line.
    width: usize,
}

/// A map from lines of the generated file to lines of the cell. evcxr copies each statement as it is, but puts it on a
/// line of its own, and items to the top of the file.
pub(super) struct Places<'a> {
    generated: Vec<&'a str>,
    cell: Vec<&'a str>,
    /// For each generated line, the line of the cell and its beginning there, in characters.
    lines: Vec<Option<(usize, usize)>>,
    /// The line of the generated file in which the cell's statements begin.
    statements: usize,
}

impl<'a> Places<'a> {
    /// `guard` is the name of the variable that stands before the cell's first statement.
    pub(super) fn new(source: &'a str, cell: &'a str, guard: &str) -> Self {
        let generated: Vec<&str> = source.lines().collect();
        let cell: Vec<&str> = cell.lines().collect();
        let statements = generated.iter().position(|line| line.starts_with(&format!("let {guard}: "))).unwrap_or(0);
        let mut lines: Vec<Option<(usize, usize)>> = vec![None; generated.len()];
        // The statements come in their order, each behind the last.
        let mut from = (0, 0);
        for at in statements + 1..generated.len() {
            let text = generated[at].trim();
            if text.starts_with("evcxr_variable_store") {
                break;
            }
            if text.is_empty() || is_generated(text) {
                continue;
            }
            if let Some(found) = find(&cell, text, from) {
                lines[at] = Some(found);
                from = (found.0, found.1 + text.chars().count());
            }
        }
        // Items stand before them, between those of other cells; the cell's are together as they were.
        let taken: BTreeSet<usize> = lines.iter().flatten().map(|(line, _)| *line).collect();
        let end = generated.iter().position(|line| is_function(line) || line.contains("struct EvcxrUserCodeError"));
        let end = end.unwrap_or(statements).min(statements.max(1));
        let mut at = 0;
        while at < end {
            let text = generated[at].trim();
            let longest = (0..cell.len())
                .filter(|line| !taken.contains(line) && !text.is_empty() && cell[*line].contains(text))
                .map(|line| {
                    let same = generated[at..end].iter().zip(&cell[line..]).take_while(|(a, b)| a.trim() == b.trim());
                    (same.count().max(1), line)
                })
                .max_by_key(|(count, line)| (*count, std::cmp::Reverse(*line)));
            let Some((count, line)) = longest else {
                at += 1;
                continue;
            };
            for offset in 0..count {
                let text = generated[at + offset].trim();
                if let Some(byte) = cell[line + offset].find(text).filter(|_| !text.is_empty()) {
                    lines[at + offset] = Some((line + offset, cell[line + offset][..byte].chars().count()));
                }
            }
            at += count;
        }
        Places { generated, cell, lines, statements }
    }

    /// The line of the cell, from 1, and its text, for a line of the generated file, from 1.
    pub(super) fn line(&self, generated: usize) -> Option<(usize, &'a str)> {
        let (line, _) = (*self.lines.get(generated.checked_sub(1)?)?)?;
        Some((line + 1, self.cell.get(line)?))
    }

    /// The place in the cell of a span, or of the call of the macro that it comes from.
    fn of(&self, span: &Span) -> Option<Place> {
        let found = (|| {
            if !span.file_name.ends_with("lib.rs") || span.file_name.starts_with('/') {
                return None;
            }
            let at = span.line_start.checked_sub(1)?;
            let text = self.generated.get(at)?;
            // The value of the cell, as evcxr puts it between parentheses.
            if self.lines.get(at)?.is_none() && text.ends_with("&(") {
                let (line, column) = (*self.lines.get(at + 1)?)?;
                return Some(Place { line, column, width: usize::MAX });
            }
            let (line, begins) = (*self.lines.get(at)?)?;
            let indent = text.chars().take_while(|c| c.is_whitespace()).count();
            let column = (span.column_start.saturating_sub(1) + begins).saturating_sub(indent);
            let is_one_line = span.line_start == span.line_end;
            let width = if is_one_line { span.column_end.saturating_sub(span.column_start) } else { usize::MAX };
            Some(Place { line, column, width })
        })();
        found.or_else(|| self.of(&span.expansion.as_ref()?.span))
    }

    /// The line of an earlier cell's item that a span is in.
    fn earlier(&self, span: &Span) -> Option<&'a str> {
        if !span.file_name.ends_with("lib.rs") || span.file_name.starts_with('/') || span.line_start >= self.statements
        {
            return None;
        }
        let line = *self.generated.get(span.line_start.checked_sub(1)?)?;
        (!is_generated(line) && !line.trim().is_empty()).then_some(line)
    }
}

/// Finds the text in the cell, at or behind `from`: there, or at the beginning of a later line, as items and commands
/// between statements have been taken out.
fn find(cell: &[&str], text: &str, from: (usize, usize)) -> Option<(usize, usize)> {
    let line = cell.get(from.0)?;
    let start = line.char_indices().nth(from.1).map_or(line.len(), |(at, _)| at);
    let blank = line[start..].len() - line[start..].trim_start().len();
    if line[start + blank..].starts_with(text) {
        return Some((from.0, line[..start + blank].chars().count()));
    }
    let first = if from.1 == 0 { from.0 } else { from.0 + 1 };
    let found = cell.iter().enumerate().skip(first).find(|(_, line)| line.trim_start().starts_with(text));
    found.map(|(number, line)| (number, line.chars().take_while(|c| c.is_whitespace()).count()))
}

/// Returns whether a line is evcxr's or the kernel's.
fn is_generated(line: &str) -> bool {
    ["evcxr_", "EvcxrUserCodeError", "lacuna_cell", "::lacuna::display::runtime"].iter().any(|name| line.contains(name))
}

#[cfg(test)]
mod tests {
    use super::super::rustc_message::Code;
    use super::*;

    const GUARD: &str = "lacuna_cell_started";

    const SOURCE: &str = "#![allow(unused)]\nfn old(x: u8) {}\nfn new(y: u8) {\n    y.ö();\n}\nstruct EvcxrUserCodeError {}\n\
        pub extern \"C-unwind\" fn run_user_code_3(\nlet lacuna_cell_started: T = begin(7);\nlet a = 1;\nlet b = a;\n  \n(\nfoo(a)\n\
        ).evcxr_display();\nevcxr_variable_store.put_variable::<&str>(stringify!(a), a);\n";
    const CELL: &str = "fn new(y: u8) {\n    y.ö();\n}\nlet a = 1; let b = a;\n  foo(a)";

    fn span(line: usize, columns: (usize, usize), label: &str) -> Span {
        Span { label: Some(label.into()), ..Span::primary(line, columns.0, columns.1) }
    }

    fn diagnostic(level: &str, code: &str, message: &str, spans: Vec<Span>, children: Vec<Diagnostic>) -> Diagnostic {
        let code = (!code.is_empty()).then(|| Code { code: code.into() });
        Diagnostic { message: message.into(), code, level: level.into(), spans, children }
    }

    fn told(diagnostics: Vec<Diagnostic>) -> String {
        let compilation = Compilation { source: SOURCE.into(), diagnostics };
        failure(&[compilation], CELL, GUARD, &BTreeSet::from(["lab".to_owned()])).unwrap()
    }

    #[test]
    fn places_are_those_of_the_cell() {
        let places = Places::new(SOURCE, CELL, GUARD);
        let of = |line, from, to| {
            places.of(&span(line, (from, to), "")).map(|place| (place.line, place.column, place.width))
        };
        assert_eq!(of(4, 7, 8), Some((1, 6, 1)), "in an item");
        assert_eq!(of(9, 5, 6), Some((3, 4, 1)), "a first statement");
        assert_eq!(of(10, 9, 10), Some((3, 19, 1)), "a second statement of the line");
        assert_eq!(of(13, 5, 6), Some((4, 6, 1)), "without its indentation");
        assert_eq!(of(2, 1, 3), None);
        assert_eq!(places.earlier(&span(2, (1, 3), "")), Some("fn old(x: u8) {}"));
        assert_eq!(of(15, 1, 3), None);
        assert_eq!(places.line(13), Some((5, "  foo(a)")));
    }

    #[test]
    fn messages_have_places_notes_and_suggestions() {
        let mut import = span(1, (1, 1), "");
        import.suggested_replacement = Some("use std::time::Instant;\n".into());
        let mut renamed = span(13, (1, 4), "");
        renamed.suggested_replacement = Some("fop".into());
        let text = told(vec![
            diagnostic("warning", "unused_macros", "unused macro", vec![span(2, (1, 3), "")], vec![]),
            diagnostic("warning", "unused_mut", "not mutable", vec![span(9, (5, 6), "")], vec![]),
            diagnostic(
                "error",
                "E0425",
                "cannot find function `foo`",
                vec![span(13, (1, 4), "not found"), Span { is_primary: false, ..span(2, (1, 3), "defined here") }],
                vec![
                    diagnostic("help", "", "consider importing", vec![import], vec![]),
                    diagnostic("help", "", "similar name", vec![renamed], vec![]),
                    diagnostic("help", "", "the trait `EvcxrDisplay` is evcxr's", vec![], vec![]),
                    diagnostic(
                        "help",
                        "",
                        "to link it, use `cargo add rand` to add it to your `Cargo.toml`",
                        vec![],
                        vec![],
                    ),
                ],
            ),
            diagnostic("error", "", "aborting due to 1 previous error", vec![], vec![]),
            diagnostic("error", "E0308", "in generated code", vec![span(15, (1, 2), "")], vec![]),
        ]);
        let expected = "error[E0425]: cannot find function `foo`\n  line 5 |   foo(a)\n         |   ^^^ not found\n  an earlier cell | fn \
                        old(x: u8) {}  defined here\n  help: consider importing\n          use std::time::Instant;\n  help: similar \
                        name\n          fop(a)\n  help: if `rand` is a crate, add it in the first line of a cell: `:dep rand = \
                        \"*\"`\nwarning[unused_mut]: not mutable\n  line 4 | let a = 1; let b = a;\n         |     ^";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_has_no_place_says_why() {
        let text =
            told(vec![diagnostic("error", "E0521", "borrowed data escapes", vec![span(15, (40, 41), "")], vec![])]);
        assert!(text.starts_with("error[E0521]: borrowed data escapes\n  note: `a` is kept for later cells"), "{text}");
        let text = told(vec![diagnostic(
            "error",
            "E0425",
            "cannot find value `lab` in this scope",
            vec![span(13, (5, 6), "")],
            vec![],
        )]);
        assert!(text.contains("an earlier cell gave `lab` away"), "{text}");
        assert!(failure(&[], CELL, GUARD, &BTreeSet::new()).is_none());
    }
}
