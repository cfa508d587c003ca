//! Runs a notebook from top to bottom without Jupyter, and leaves its report.

use super::compare;
use super::document::{Document, Kind, write_file};
use super::report;
use super::session::{ErrorKind, Outcome, Session, Stream};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use lacuna::progress::{Transcript, check_interrupt};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How a run ended; the documentation of `lacuna notebook run` lists the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Success = 0,
    CellFailed = 1,
    Unreadable = 2,
    KernelDied = 3,
    Differs = 4,
    Interrupted = 130,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

/// What to do with the notebooks.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where reports go; `None` for `reports/` beside `notebooks/`.
    pub(crate) out: Option<PathBuf>,
    /// Compare with the reports that are there instead of writing them.
    pub(crate) check: bool,
}

/// Runs the notebooks one after another, each in a session of its own, and stops at the first that does not succeed
/// (with `check`, goes on to the next one after differences).
///
/// # Errors
/// When a session cannot be started or a file cannot be written. What a notebook does wrong is a [`Status`], and has
/// been said on standard error.
pub(crate) fn run(notebooks: &[PathBuf], options: &Options) -> Result<Status> {
    // All are read before the first runs: a misspelt name should not cost the time of the others.
    let mut documents = Vec::new();
    for path in notebooks {
        match Document::read(path) {
            Ok(document) => documents.push((std::path::absolute(path)?, path.as_path(), document)),
            Err(error) => {
                say(&format!("error: {error:#}"));
                return Ok(Status::Unreadable);
            }
        }
    }
    let options = Options { out: options.out.as_deref().map(std::path::absolute).transpose()?, ..*options };
    let mut status = Status::Success;
    for (absolute, shown, document) in documents {
        let run = Run::new(absolute, shown.display().to_string(), document, &options);
        match run.execute()? {
            Status::Success => {}
            Status::Differs => status = Status::Differs,
            other => return Ok(other),
        }
    }
    Ok(status)
}

/// Standard error may be closed; that is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

struct Run {
    path: PathBuf,
    /// The path as the user wrote it.
    shown: String,
    document: Document,
    out: PathBuf,
    check: bool,
    outcomes: BTreeMap<usize, Outcome>,
}

impl Run {
    fn new(path: PathBuf, shown: String, document: Document, options: &Options) -> Self {
        let directory = path.parent().unwrap_or(Path::new("/"));
        // notebooks/ and reports/ stand side by side; elsewhere reports/ is below the notebook.
        let beside = match directory.file_name() {
            Some(name) if name == "notebooks" => directory.parent().unwrap_or(directory),
            _ => directory,
        };
        let out = options.out.clone().unwrap_or_else(|| beside.join("reports"));
        Run { path, shown, document, out, check: options.check, outcomes: BTreeMap::new() }
    }

    fn execute(mut self) -> Result<Status> {
        // Paths in a notebook are relative to it, as under Jupyter.
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        std::env::set_current_dir(directory).with_context(|| format!("cannot enter {}", directory.display()))?;
        let code: Vec<(usize, String)> = (0..)
            .zip(self.document.cells())
            .filter(|(_, (kind, _))| *kind == Kind::Code)
            .map(|(index, (_, source))| (index, source))
            .collect();
        let screen = Arc::new(Screen::new(&self.shown, code.len()));
        let started = Instant::now();
        screen.starting();
        let session = Session::start(Box::new({
            let screen = screen.clone();
            move |stream, line| screen.line(stream, line)
        }));
        if check_interrupt().is_err() {
            return Ok(Status::Interrupted);
        }
        let mut session = session?;
        let startup_seconds = started.elapsed().as_secs_f64();
        let _watch = Watch::new(&session);
        let mut status = Status::Success;
        for (count, (index, source)) in (1..).zip(&code) {
            screen.begin(count, index + 1);
            let outcome = session.run(source);
            screen.end(count, index + 1, &outcome);
            self.document.set_outcome(*index, count as i32, &outcome)?;
            let error = outcome.error.clone();
            self.outcomes.insert(*index, outcome);
            if !self.check {
                self.document.write(&self.out.join(format!("{}.ipynb", self.document.stem)))?;
            }
            if check_interrupt().is_err() {
                status = Status::Interrupted;
                break;
            }
            if let Some(error) = error {
                screen.finish();
                say(&self.complaint(*index, source, error.kind, &error.message));
                status = if error.kind == ErrorKind::Died { Status::KernelDied } else { Status::CellFailed };
                break;
            }
        }
        screen.finish();
        match status {
            Status::Success => self.report(startup_seconds, started.elapsed()),
            Status::Interrupted => {
                say(&format!("{}: interrupted after {} of {} cells", self.shown, self.outcomes.len(), code.len()));
                Ok(status)
            }
            status => Ok(status),
        }
    }

    /// Which cell, what is in it, and why it failed.
    fn complaint(&self, index: usize, source: &str, kind: ErrorKind, message: &str) -> String {
        let what = match kind {
            ErrorKind::Compile => "does not compile",
            ErrorKind::Panic => "panicked",
            ErrorKind::Error => "returned an error",
            ErrorKind::Died => "ended the process that runs cells",
        };
        let mut text = format!("error: {}: cell {} (id {}) {what}\n", self.shown, index + 1, self.document.id(index));
        const LINES: usize = 12;
        for (number, line) in (1..).zip(source.lines()).take(LINES) {
            text.push_str(&format!("  {number:>3} | {line}\n"));
        }
        if source.lines().count() > LINES {
            text.push_str("      | ...\n");
        }
        text.push_str(&report::without_ansi(message));
        text
    }

    fn report(&self, startup_seconds: f64, elapsed: Duration) -> Result<Status> {
        let stem = &self.document.stem;
        let source = report::Source { document: &self.document, outcomes: &self.outcomes, startup_seconds };
        let files = report::render(&source).with_context(|| self.shown.clone())?;
        if self.check {
            let differences = compare::differences(&files, &self.out, stem);
            if differences.is_empty() {
                say(&format!("{}: {} is what a fresh run gives", self.shown, self.out.display()));
                return Ok(Status::Success);
            }
            say(&format!("error: {}: a fresh run gives another report\n{}", self.shown, differences.trim_end()));
            return Ok(Status::Differs);
        }
        for (name, bytes) in &files {
            write_file(&self.out.join(name), bytes)?;
        }
        for name in compare::stale(&files, &self.out, stem) {
            let path = self.out.join(name);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let cells = self.outcomes.len();
        let report = self.out.join(format!("{stem}.md"));
        say(&format!("{}: {cells} cells in {:.1} s; {}", self.shown, elapsed.as_secs_f64(), report.display()));
        Ok(Status::Success)
    }
}

/// Stops the running cell when the user interrupts.
struct Watch {
    over: Arc<AtomicBool>,
}

impl Watch {
    fn new(session: &Session) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (process, flag) = (session.process(), over.clone());
        std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                if check_interrupt().is_err() {
                    let mut process = process.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    // It may have ended by itself, from the same Ctrl-C.
                    let _ = process.kill();
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Watch { over }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Progress: a bar with the running cell's last line on a terminal, a line per cell elsewhere.
struct Screen {
    notebook: String,
    cells: usize,
    bar: Option<ProgressBar>,
}

impl Screen {
    fn new(notebook: &str, cells: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:20}] {pos}/{len} {elapsed} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(cells as u64).with_style(style).with_prefix(notebook.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Screen { notebook: notebook.to_owned(), cells, bar }
    }

    fn starting(&self) {
        match &self.bar {
            Some(bar) => bar.set_message("starting evcxr"),
            None => say(&format!("{}: starting evcxr", self.notebook)),
        }
    }

    fn begin(&self, count: usize, number: usize) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(count as u64 - 1);
                bar.set_message(format!("cell {number}"));
            }
            // Something must be seen before a cell that takes an hour.
            None if count == 1 => say(&format!("{}: running {} cells", self.notebook, self.cells)),
            None => {}
        }
    }

    fn line(&self, stream: Stream, line: &str) {
        if self.bar.is_none() && Transcript::is_passing(line) {
            return;
        }
        let line = Transcript::line(line).unwrap_or(line);
        match (&self.bar, stream) {
            (Some(bar), Stream::Stderr) => bar.set_message(report::without_ansi(line)),
            (None, Stream::Stderr) => say(&format!("    {line}")),
            // What it prints is in the report.
            (_, Stream::Stdout) => {}
        }
    }

    fn end(&self, count: usize, number: usize, outcome: &Outcome) {
        match &self.bar {
            Some(bar) => bar.set_position(count as u64),
            None => say(&format!("{}: {count}/{} cell {number}: {:.1} s", self.notebook, self.cells, outcome.seconds)),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
