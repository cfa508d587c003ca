//! Runs a notebook from top to bottom without Jupyter, and leaves its report.

use super::compare;
use super::document::{CellKind, Document, RAISES, SKIP, write_file};
use super::export::{self, gallery};
use super::jobs;
pub(crate) use super::jobs::{Options, Status};
use super::lock::Lock;
use super::outcome::{CellError, ErrorKind, Outcome};
use super::output::{bounded, without_ansi};
use super::parameters::Overrides;
use super::rust_literal::is_name;
use super::screen::{Name, Names, Screen, say};
use super::session::{Audience, Session};
use super::stored;
use super::watch::{Phase, Watch};
use super::written::refuse_foreign;
use anyhow::{Context, Result, bail};
use lacuna::progress::check_interrupt;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The tag of a cell whose outputs may differ: `--check` runs it, and compares none of them.
const NO_CHECK: &str = "no-check";

/// Runs the notebooks, each in a session of its own, and stops at the first that does not succeed (with `check`, goes on
/// to the next one after differences).
///
/// # Errors
/// Fails when a session cannot be started or a file cannot be written. Errors of a notebook itself are a [`Status`],
/// and have been printed to standard error.
pub(crate) fn run(notebooks: &[PathBuf], options: &Options) -> Result<Status> {
    // All are read before the first runs: a misspelt name should not cost the time of the others.
    let runs = match Run::all(notebooks, options) {
        Ok(runs) => runs,
        Err(error) => {
            say(&format!("error: {error:#}"));
            return Ok(Status::Unreadable);
        }
    };
    if options.jobs > 1 && runs.len() > 1 {
        return jobs::run(notebooks, options);
    }
    let mut status = Status::Success;
    for run in runs {
        let lock = if options.check { Ok(None) } else { Lock::take(&run.out, &run.document.stem).map(Some) };
        let _lock = match lock {
            Ok(lock) => lock,
            Err(error) => {
                say(&format!("error: {}: {error:#}", run.shown));
                return Ok(Status::Unreadable);
            }
        };
        match run.execute()? {
            Status::Success => {}
            Status::Differs => status = Status::Differs,
            other => return Ok(other),
        }
    }
    Ok(status)
}

/// One notebook, ready to run.
struct Run<'a> {
    path: PathBuf,
    /// The path as the user wrote it.
    shown: String,
    document: Document,
    parameters: Map<String, Value>,
    out: PathBuf,
    options: &'a Options,
    /// Outcomes that stand in the place of those of this run.
    stored: BTreeMap<usize, Outcome>,
    outcomes: BTreeMap<usize, Outcome>,
}

/// The outcome of a cell, as far as the run is concerned.
enum Verdict {
    Fine,
    /// The rest can run all the same.
    Failed,
    /// The process is gone, or the user wants no more.
    Over(Status),
}

impl<'a> Run<'a> {
    fn all(notebooks: &[PathBuf], options: &'a Options) -> Result<Vec<Self>> {
        let overrides = Overrides::new(&options.parameters, options.parameters_file.as_deref())?;
        let (mut runs, mut reports) = (Vec::new(), BTreeSet::new());
        for path in notebooks {
            let run = Self::new(path, &overrides, options)?;
            if !reports.insert(run.out.join(&run.document.stem)) {
                bail!("{}: another notebook has the same report; run them with different --out", run.shown);
            }
            runs.push(run);
        }
        Ok(runs)
    }

    fn new(path: &Path, overrides: &Overrides, options: &'a Options) -> Result<Self> {
        let mut document = Document::read(path)?;
        let shown = path.display().to_string();
        let parameters = overrides.apply(&mut document).with_context(|| shown.clone())?;
        let path = std::path::absolute(path)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        // notebooks/ and reports/ stand side by side; elsewhere reports/ is below the notebook.
        let beside = match directory.file_name() {
            Some(name) if name == "notebooks" => directory.parent().unwrap_or(directory),
            _ => directory,
        };
        let out = match &options.out {
            Some(out) => std::path::absolute(out)?,
            None => beside.join("reports"),
        };
        let executed = out.join(format!("{}.ipynb", document.stem));
        if fs::canonicalize(&executed).is_ok_and(|executed| fs::canonicalize(&path).is_ok_and(|path| path == executed))
        {
            bail!("{shown}: the executed notebook would take its place; choose another --out");
        }
        if !options.check {
            let ends = ["ipynb", "md", "json", "html"].into_iter().filter(|end| *end != "html" || options.html);
            let names: Vec<String> = ends.map(|end| format!("{}.{end}", document.stem)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            refuse_foreign(&out, &document.stem, &names).with_context(|| shown.clone())?;
        }
        let stored = match options.from_cell {
            Some(from) => stored::outcomes(&executed, &document, from).with_context(|| shown.clone())?,
            None if options.check => stored::outcomes_of_tagged(&executed, &document, NO_CHECK),
            None => BTreeMap::new(),
        };
        Ok(Run { path, shown, document, parameters, out, options, stored, outcomes: BTreeMap::new() })
    }

    fn execute(mut self) -> Result<Status> {
        // Paths in a notebook are relative to it, as under Jupyter.
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        std::env::set_current_dir(directory).with_context(|| format!("cannot enter {}", directory.display()))?;
        for repair in &self.document.repairs {
            say(&format!("{}: {repair}", self.shown));
        }
        let code = self.code();
        let screen = Arc::new(Screen::new(&self.shown, code.len()));
        let started = Instant::now();
        screen.starting();
        let session = Session::start(Audience::looking({
            let screen = screen.clone();
            move |live| screen.live(live)
        }));
        if check_interrupt().is_err() {
            return Ok(Status::Interrupted);
        }
        let mut session = session?;
        let startup_seconds = started.elapsed().as_secs_f64();
        let watch = Watch::new(&session);
        let mut status = Status::Success;
        for (count, (index, name, source)) in (1..).zip(&code) {
            screen.begin(count, name);
            let (outcome, verdict) = self.cell(*index, name, source, &mut session, &watch, &screen);
            let how = match self.stored.get(index) {
                Some(_) if !self.options.check => "output of the last run".to_owned(),
                _ => format!("{:.1} s", outcome.times.seconds()),
            };
            screen.end(count, name, &how);
            self.document.set_outcome(*index, count as i32, &outcome);
            self.outcomes.insert(*index, outcome);
            if !self.options.check {
                let executed = self.out.join(format!("{}.ipynb", self.document.stem));
                write_file(&executed, &self.document.executed()?)?;
            }
            match verdict {
                Verdict::Fine => {}
                Verdict::Failed => status = Status::CellFailed,
                Verdict::Over(why) => {
                    screen.finish();
                    if why == Status::Interrupted {
                        let done = self.outcomes.len();
                        say(&format!("{}: interrupted after {done} of {} cells", self.shown, code.len()));
                    }
                    return Ok(why);
                }
            }
        }
        screen.finish();
        match self.report(startup_seconds, started.elapsed())? {
            Status::Success => Ok(status),
            other => Ok(other),
        }
    }

    /// The code cells to run: index, name and source.
    fn code(&self) -> Vec<(usize, Name, String)> {
        let (mut names, mut code) = (Names::new(), Vec::new());
        for (index, (kind, source)) in self.document.cells().enumerate() {
            match kind {
                CellKind::Markdown => names.pass(source),
                CellKind::Code if self.document.tag_of(index, &SKIP).is_none() => {
                    code.push((index, names.of(index + 1, source), source.to_owned()));
                }
                CellKind::Code | CellKind::Raw => {}
            }
        }
        code
    }

    /// Runs one cell, and says what is wrong with how it ended.
    fn cell(
        &self,
        index: usize,
        name: &Name,
        source: &str,
        session: &mut Session,
        watch: &Watch,
        screen: &Screen,
    ) -> (Outcome, Verdict) {
        // It shows a value that is stored, and defines nothing that a later cell could need.
        if let Some(stored) = self.stored.get(&index)
            && !self.options.check
            && stored.has_value()
            && is_name(source)
        {
            return (stored.clone(), Verdict::Fine);
        }
        watch.begin(self.options.timeout);
        let mut outcome = session.run(source);
        let ended = watch.end();
        let compiling = if ended.what == Some(Phase::Compilation) { ", while it was compiled" } else { "" };
        if ended.timed_out {
            let seconds = self.options.timeout.unwrap_or_default().as_secs_f64();
            let message = format!("ended after {seconds} s, the --timeout of a cell{compiling}");
            outcome.error = Some(CellError { kind: ErrorKind::Timeout, message });
        } else if check_interrupt().is_err() && outcome.error.is_some() {
            let message = format!("interrupted{compiling}");
            outcome.error = Some(CellError { kind: ErrorKind::Interrupted, message });
        }
        if let Some(error) = &mut outcome.error {
            error.message = bounded(&error.message);
        }
        let may_fail = self.document.has_tag(index, RAISES);
        let what = match &outcome.error {
            _ if check_interrupt().is_err() => return (outcome, Verdict::Over(Status::Interrupted)),
            None => "",
            Some(CellError { kind: ErrorKind::Died, .. }) => "ended the process that runs cells",
            Some(CellError { kind: ErrorKind::Timeout, .. }) => "took too long",
            Some(CellError { kind: ErrorKind::Interrupted, .. }) => "was interrupted",
            Some(_) if may_fail => "",
            Some(CellError { kind: ErrorKind::Compile, .. }) => "does not compile",
            Some(CellError { kind: ErrorKind::Panic, .. }) => "panicked",
            Some(CellError { kind: ErrorKind::Error, .. }) => "returned an error",
        };
        let verdict = match &outcome.error {
            _ if what.is_empty() => Verdict::Fine,
            Some(CellError { kind: ErrorKind::Died, .. }) => Verdict::Over(Status::KernelDied),
            Some(CellError { kind: ErrorKind::Timeout, .. }) => Verdict::Over(Status::Timeout),
            _ if self.options.allow_errors => Verdict::Failed,
            _ => Verdict::Over(Status::CellFailed),
        };
        if !what.is_empty() {
            let message = outcome.error.as_ref().map_or("", |error| error.message.as_str());
            screen.say(&self.complaint(index, name, source, what, message));
        }
        match self.stored.get(&index) {
            Some(stored) if matches!(verdict, Verdict::Fine) => (stored.clone(), verdict),
            _ => (outcome, verdict),
        }
    }

    /// An error message with the cell, its title and the reason of its failure.
    fn complaint(&self, index: usize, name: &Name, source: &str, what: &str, message: &str) -> String {
        let id = self.document.id(index);
        let mut text = format!("error: {}: cell {} (id {id}) {what}", self.shown, name.number);
        if !name.title.is_empty() {
            text.push_str(&format!(": {}", name.title));
        }
        text.push('\n');
        const LINES: usize = 12;
        for (number, line) in (1..).zip(source.lines()).take(LINES) {
            text.push_str(&format!("  {number:>3} | {line}\n"));
        }
        if source.lines().count() > LINES {
            text.push_str("      | ...\n");
        }
        text.push_str(&without_ansi(message));
        text.truncate(text.trim_end().len());
        text
    }

    fn report(&self, startup_seconds: f64, elapsed: Duration) -> Result<Status> {
        let stem = &self.document.stem;
        let source = export::ReportSource {
            document: &self.document,
            outcomes: &self.outcomes,
            parameters: &self.parameters,
            startup_seconds,
            directory: self.path.parent().unwrap_or(Path::new("/")),
            out: &self.out,
            html: self.options.html,
            no_input: self.options.no_input,
        };
        let mut files = export::render(&source).with_context(|| self.shown.clone())?;
        if self.options.check {
            files.insert(format!("{stem}.ipynb"), self.document.executed()?);
            gallery::add(&mut files, &self.out);
            let differences = compare::differences(&files, &self.out, stem);
            if differences.is_empty() {
                say(&format!("{}: {} is what a fresh run gives", self.shown, self.out.display()));
                return Ok(Status::Success);
            }
            say(&format!("error: {}: a fresh run gives another report\n{}", self.shown, differences.trim_end()));
            return Ok(Status::Differs);
        }
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        refuse_foreign(&self.out, stem, &names).with_context(|| self.shown.clone())?;
        // As long as the report's JSON names them.
        for name in compare::stale(&files, &self.out, stem) {
            let path = self.out.join(name);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        // First the JSON: it says of the others whose they are.
        let (json, others): (Vec<_>, Vec<_>) = files.iter().partition(|(name, _)| name.ends_with(".json"));
        for (name, bytes) in json.into_iter().chain(others) {
            write_file(&self.out.join(name), bytes)?;
        }
        gallery::write(&self.out)?;
        let cells = self.outcomes.len();
        let report = self.out.join(format!("{stem}.md"));
        say(&format!("{}: {cells} cells in {:.1} s; {}", self.shown, elapsed.as_secs_f64(), report.display()));
        Ok(Status::Success)
    }
}
