//! The display of a run on standard error: a bar on a terminal, a line per cell elsewhere.

use super::outcome::Live;
use super::output::{Stream, without_ansi};
use indicatif::{ProgressBar, ProgressStyle};
use lacuna::progress::Transcript;
use lacuna::sync::locked;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

/// Standard error may be closed; that is no reason to stop.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The progress of one notebook.
pub(super) struct Screen {
    notebook: String,
    cells: usize,
    bar: Option<ProgressBar>,
    /// The beginning of a line on the cell's standard error.
    begun: Mutex<String>,
}

/// A cell as it is called on screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Its place among all cells, from 1.
    pub(super) number: usize,
    /// A title for people; may be empty.
    pub(super) title: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cell {}", self.number)?;
        if self.title.is_empty() { Ok(()) } else { write!(f, " ({})", self.title) }
    }
}

impl Screen {
    pub(super) fn new(notebook: &str, cells: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:20}] {pos}/{len} {elapsed} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(cells as u64).with_style(style).with_prefix(notebook.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Screen { notebook: notebook.to_owned(), cells, bar, begun: Mutex::default() }
    }

    pub(super) fn starting(&self) {
        match &self.bar {
            Some(bar) => bar.set_message("starting evcxr"),
            None => say(&format!("{}: starting evcxr", self.notebook)),
        }
    }

    pub(super) fn begin(&self, count: usize, name: &Name) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(count as u64 - 1);
                bar.set_message(name.to_string());
            }
            // Something must be seen before a cell that takes an hour.
            None if count == 1 => say(&format!("{}: running {} cells", self.notebook, self.cells)),
            None => {}
        }
    }

    /// The text that the running cell prints.
    pub(super) fn live(&self, live: Live<'_>) {
        match live {
            Live::Progress(line) => {
                if self.bar.is_some() || !Transcript::is_passing(line) {
                    self.line(Transcript::line(line).unwrap_or(line));
                }
            }
            Live::Text(Stream::Stderr, text) => {
                let mut begun = locked(&self.begun);
                begun.push_str(text);
                while let Some(end) = begun.find('\n') {
                    let line: String = begun.drain(..=end).collect();
                    self.line(line.trim_end_matches(['\n', '\r']));
                }
            }
            // It is in the report.
            Live::Text(Stream::Stdout, _) | Live::Display(_) => {}
        }
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(without_ansi(line)),
            None => say(&format!("    {line}")),
        }
    }

    /// The cell is over, as `how` says: a time, `kept`.
    pub(super) fn end(&self, count: usize, name: &Name, how: &str) {
        let begun = std::mem::take(&mut *locked(&self.begun));
        if !begun.is_empty() {
            self.line(&begun);
        }
        match &self.bar {
            Some(bar) => bar.set_position(count as u64),
            None => say(&format!("{}: {count}/{} {name}: {how}", self.notebook, self.cells)),
        }
    }

    /// Says something above the bar.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Names of code cells: the comment in their first line, or else the heading above them.
pub(super) struct Names {
    heading: String,
}

impl Names {
    pub(super) fn new() -> Self {
        Names { heading: String::new() }
    }

    /// Goes past a Markdown cell.
    pub(super) fn pass(&mut self, markdown: &str) {
        let mut fenced = false;
        for line in markdown.lines() {
            fenced ^= line.trim_start().starts_with("```");
            let heading = line.trim_start_matches('#');
            if !fenced && heading.len() < line.len() && heading.starts_with(' ') {
                self.heading = short(heading);
            }
        }
    }

    /// The name of a code cell.
    pub(super) fn of(&self, number: usize, source: &str) -> Name {
        let first = source.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let comment = first.strip_prefix("//").map(|text| short(text.trim_start_matches(['/', '!'])));
        Name { number, title: comment.filter(|text| !text.is_empty()).unwrap_or_else(|| self.heading.clone()) }
    }
}

/// At most 40 characters of a line.
fn short(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_called_by_comment_or_heading() {
        let mut names = Names::new();
        assert_eq!(names.of(1, "let x = 1;").to_string(), "cell 1");
        names.pass("# Title\n\ntext\n\n```sh\n# no heading\n```\n## Prune at every level\n#hashtag");
        assert_eq!(names.of(3, "\nlet x = 1; // why").to_string(), "cell 3 (Prune at every level)");
        assert_eq!(names.of(4, "// Two of four.\nlet x = 1;").to_string(), "cell 4 (Two of four)");
        assert_eq!(names.of(5, "//\nx").title, "Prune at every level");
        assert_eq!(names.of(6, &format!("// {}", "é".repeat(80))).title.chars().count(), 41);
    }
}
