//! One evcxr session without Jupyter: cells in, outputs and errors out.

use super::child::{BEGIN_OF_CELL, END_OF_CELL, MARK_ENDS, PANICKED};
use super::environment::{self, Slot};
use super::output::{self, Bundle, Output, Printed, Stream};
use anyhow::{Context, Result, anyhow};
use evcxr::{CommandContext, CompilationError};
use lacuna::notebook::mime;
use lacuna::progress::Transcript;
use std::fmt::Write;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A variable that each cell defines first. evcxr reports a panic and a failed `?` as success, but forgets what the
/// cell defined: if the variable is missing afterwards, the cell did not come to its end. Its value tells that the cell
/// is compiled.
const GUARD: &str = "lacuna_cell_started";

/// What a cell did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// What it printed and showed, in order within each stream.
    pub(crate) outputs: Vec<Output>,
    /// Why it failed.
    pub(crate) error: Option<CellError>,
    /// Time it took, its compilation included.
    pub(crate) seconds: f64,
}

impl Outcome {
    /// All that it printed to a stream.
    pub(crate) fn text(&self, stream: Stream) -> String {
        let parts = self.outputs.iter().filter_map(|output| match output {
            Output::Text(of, text) if *of == stream => Some(text.as_str()),
            _ => None,
        });
        parts.collect()
    }

    /// Whether it has given a value.
    pub(crate) fn has_value(&self) -> bool {
        self.outputs.iter().any(|output| output.bundle().is_some())
    }
}

/// Why a cell failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CellError {
    pub(crate) kind: ErrorKind,
    /// The compiler's or the cell's own message.
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// It does not compile, or a `:command` was refused.
    Compile,
    Panic,
    /// A `?` met an error.
    Error,
    /// The process that runs cells is gone, and all variables with it.
    Died,
    /// It was ended, as it took longer than allowed.
    Timeout,
    /// The user stopped it.
    Interrupted,
}

impl ErrorKind {
    pub(crate) const ALL: [ErrorKind; 6] = [
        ErrorKind::Compile,
        ErrorKind::Panic,
        ErrorKind::Error,
        ErrorKind::Died,
        ErrorKind::Timeout,
        ErrorKind::Interrupted,
    ];

    /// A name, as in a notebook's error output.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ErrorKind::Compile => "CompileError",
            ErrorKind::Panic => "Panic",
            ErrorKind::Error => "Error",
            ErrorKind::Died => "KernelDied",
            ErrorKind::Timeout => "Timeout",
            ErrorKind::Interrupted => "Interrupted",
        }
    }
}

type OnLine = Box<dyn Fn(Stream, &str) + Send + Sync>;

/// A running session. Cells see what earlier cells defined.
pub(crate) struct Session {
    context: CommandContext,
    lines: Arc<Shared>,
    runs: Arc<AtomicBool>,
    slot: Slot,
}

/// What the cell has printed so far, filled by two threads.
#[derive(Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    printed: Printed,
    /// How often each stream said that a cell is at its end.
    ends: [usize; 2],
    panicked: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Starts evcxr and gives it lacuna; `on_line` sees what cells print while they run. Takes seconds.
    ///
    /// Changes this process's environment, so call it before other threads read that.
    pub(crate) fn start(on_line: OnLine) -> Result<Self> {
        let slot = environment::enter()?;
        let (context, outputs) =
            CommandContext::new().map_err(|error| anyhow!("{error}")).context("cannot start evcxr")?;
        let (shared, runs) = (Arc::new(Shared::default()), Arc::new(AtomicBool::new(false)));
        let on_line = Arc::new(on_line);
        for (stream, lines) in [(Stream::Stdout, outputs.stdout), (Stream::Stderr, outputs.stderr)] {
            let (shared, runs, on_line) = (shared.clone(), runs.clone(), on_line.clone());
            std::thread::spawn(move || {
                for line in lines {
                    if line == BEGIN_OF_CELL {
                        runs.store(true, Ordering::Relaxed);
                        continue;
                    }
                    if line == END_OF_CELL {
                        shared.lock().ends[stream as usize] += 1;
                        shared.changed.notify_all();
                        continue;
                    }
                    if line == PANICKED {
                        shared.lock().panicked = true;
                        continue;
                    }
                    // Progress is to be seen while it lasts, and not to be kept.
                    let is_progress = stream == Stream::Stderr && Transcript::line(&line).is_some();
                    // What the report leaves out is not shown either: a terminal would take minutes for it.
                    let is_shown = is_progress || shared.lock().printed.is_open(stream);
                    if is_shown {
                        on_line(stream, &line);
                    }
                    if !is_progress {
                        shared.lock().printed.push(stream, &line);
                    }
                }
            });
        }
        let mut session = Session { context, lines: shared, runs, slot };
        // A `?` costs each session one vain compilation, until evcxr knows that cells use it. So tell it now.
        let first = format!("{}\n{MARK_ENDS}\nOk::<(), String>(())?;", session.slot.preamble);
        session.context.execute(&first).map_err(|error| anyhow!("{}", describe(&error, &first, usize::MAX)))?;
        Ok(session)
    }

    /// The process that runs cells, to stop it from another thread.
    pub(crate) fn process(&self) -> Arc<Mutex<Child>> {
        self.context.process_handle()
    }

    /// Whether the cell is compiled, and runs.
    pub(super) fn runs(&self) -> Arc<AtomicBool> {
        self.runs.clone()
    }

    /// evcxr itself, for what is not running a cell.
    pub(crate) fn context(&mut self) -> &mut CommandContext {
        &mut self.context
    }

    /// Replaces the process that runs cells. Its variables are gone; imports, functions and types stay.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.context.execute(":restart").map_err(|error| anyhow!("{error}"))?;
        Ok(())
    }

    /// Ends the session, and keeps its slot from others.
    pub(crate) fn into_slot(self) -> Slot {
        self.slot
    }

    /// Runs one cell to its end.
    pub(crate) fn run(&mut self, source: &str) -> Outcome {
        let started = Instant::now();
        if source.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with("//")) {
            return Outcome::default();
        }
        let before = {
            let mut lines = self.lines.lock();
            lines.printed.take();
            lines.panicked = false;
            lines.ends
        };
        let (guarded, guard_line) = with_guard(source);
        self.runs.store(false, Ordering::Relaxed);
        let result = self.context.execute(&guarded);
        let finished = self.context.variables_and_types().any(|(name, _)| name == GUARD);
        // Whatever the cell printed has been written; it only has to arrive. A cell that never ran says nothing.
        let patience = if result.is_ok() { Duration::from_secs(2) } else { Duration::from_millis(20) };
        let (text, panicked) = self.wait_for_text(before, patience);
        let (data, error) = match result {
            Ok(outputs) => {
                let mut data: Bundle = outputs.content_by_mime_type.into_iter().collect();
                // A last expression like `println!(..)` has nothing to show.
                data.retain(|mime, text| mime != mime::PLAIN || text != "()");
                if let Some(plain) = data.get_mut(mime::PLAIN) {
                    *plain = output::bounded(plain);
                }
                (data, (!finished).then(|| failure(&text, panicked)))
            }
            Err(error) => {
                let kind = match &error {
                    evcxr::Error::SubprocessTerminated(_) => ErrorKind::Died,
                    _ => ErrorKind::Compile,
                };
                (Bundle::new(), Some(CellError { kind, message: describe(&error, source, guard_line) }))
            }
        };
        let text = text.into_iter().map(|(stream, text)| Output::Text(stream, text));
        let value = (!data.is_empty()).then_some(Output::Result(data));
        Outcome { outputs: text.chain(value).collect(), error, seconds: started.elapsed().as_secs_f64() }
    }

    fn wait_for_text(&self, before: [usize; 2], patience: Duration) -> (Vec<(Stream, String)>, bool) {
        let waiting = |lines: &mut Lines| lines.ends.iter().zip(before).any(|(now, before)| *now == before);
        let guard = self.lines.lock();
        let (mut lines, _) =
            self.lines.changed.wait_timeout_while(guard, patience, waiting).unwrap_or_else(PoisonError::into_inner);
        (lines.printed.take(), lines.panicked)
    }
}

/// The cell with the guard before its first statement, and the guard's line, counted from 1.
///
/// Commands (`:dep`), shell lines, comments and inner attributes must stay in front.
fn with_guard(source: &str) -> (String, usize) {
    let stays_in_front = |line: &&str| {
        let line = line.trim_start();
        line.is_empty() || [":", "!", "//", "#!["].iter().any(|start| line.starts_with(start))
    };
    let front = source.lines().take_while(stays_in_front).count();
    let mut guarded = String::new();
    for line in source.lines().take(front) {
        guarded.push_str(line);
        guarded.push('\n');
    }
    let _ = writeln!(guarded, "let {GUARD}: bool = {{ ::std::eprintln!({BEGIN_OF_CELL:?}); true }};");
    let rest: Vec<&str> = source.lines().skip(front).collect();
    guarded.push_str(&rest.join("\n"));
    (guarded, front + 1)
}

/// The reason of a cell that ended early, from what it wrote to standard error.
fn failure(text: &[(Stream, String)], panicked: bool) -> CellError {
    let stderr: String = text.iter().filter(|(s, _)| *s == Stream::Stderr).map(|(_, t)| t.as_str()).collect();
    // A thread's panic that the cell has caught looks alike.
    if panicked
        && let Some(start) = stderr.rfind("\nthread ").map(|at| at + 1).or(stderr.starts_with("thread ").then_some(0))
        && let Some((_, message)) = stderr[start..].split_once(" panicked at ")
    {
        // The place is in generated code; the message follows it.
        let message = message.split_once('\n').map_or(message, |(_, message)| message);
        let lines: Vec<&str> = message
            .lines()
            .take_while(|line| !line.starts_with("note: run with") && !line.starts_with("stack backtrace"))
            .collect();
        return CellError { kind: ErrorKind::Panic, message: lines.join("\n").trim_end().to_owned() };
    }
    let lines: Vec<&str> = stderr.lines().collect();
    // The error was printed last; what is before it may be progress.
    let message = lines[lines.len().saturating_sub(5)..].join("\n");
    CellError { kind: if panicked { ErrorKind::Panic } else { ErrorKind::Error }, message }
}

/// evcxr's error as text, with lines of the cell as the reader sees them.
fn describe(error: &evcxr::Error, source: &str, guard_line: usize) -> String {
    let evcxr::Error::CompilationErrors(errors) = error else { return error.to_string() };
    let mut text = String::new();
    for error in errors {
        let code = error.code().map(|code| format!("[{code}]")).unwrap_or_default();
        let _ = writeln!(text, "error{code}: {}", error.message());
        describe_places(&mut text, error, source, guard_line);
        for help in error.help() {
            let _ = writeln!(text, "  help: {}", help.replace("\n\n", ": ").replace('\n', " "));
        }
        if let Some(hint) = error.evcxr_extra_hint() {
            let _ = writeln!(text, "  note: {hint}");
        }
    }
    text.trim_end().to_owned()
}

fn describe_places(text: &mut String, error: &CompilationError, source: &str, guard_line: usize) {
    for message in error.spanned_messages() {
        let Some(span) = message.span else { continue };
        let number = if span.start_line > guard_line { span.start_line - 1 } else { span.start_line };
        let Some(line) = source.lines().nth(number.saturating_sub(1)) else { continue };
        let start = span.start_column.saturating_sub(1);
        let end =
            if span.end_line == span.start_line { span.end_column.saturating_sub(1) } else { line.chars().count() };
        let marks = if message.is_primary { "^" } else { "-" }.repeat(end.saturating_sub(start).max(1));
        let _ = writeln!(text, "  line {number} | {line}");
        let blank = " ".repeat(format!("  line {number}").len());
        let label = if message.label.starts_with("error: ") { "" } else { message.label.as_str() };
        let _ = writeln!(text, "{}", format!("{blank} | {}{marks} {label}", " ".repeat(start)).trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_goes_behind_what_must_be_first() {
        let (code, line) = with_guard(":dep rand = \"0.9\"\n// why\n#![allow(unused)]\nlet x = 1;\nx");
        assert_eq!(line, 4);
        let guard = r#"let lacuna_cell_started: bool = { ::std::eprintln!("\u{1}lacuna: cell begins"); true };"#;
        assert_eq!(code, format!(":dep rand = \"0.9\"\n// why\n#![allow(unused)]\n{guard}\nlet x = 1;\nx"));
        assert_eq!(with_guard("1 + 1").0, format!("{guard}\n1 + 1"));
    }

    #[test]
    fn reason_is_the_panic_or_the_last_lines() {
        let stderr = |text: &str| vec![(Stream::Stderr, text.to_owned())];
        let caught = stderr(
            "progress\n\nthread '<unnamed>' (7) panicked at src/lib.rs:9:5:\nno\nway\nnote: run with `RUST_BACKTRACE=1`\nthe reason\n",
        );
        let error = failure(&caught, true);
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Panic, "no\nway"));
        let error = failure(&caught, false);
        assert!(error.kind == ErrorKind::Error && error.message.ends_with("\nthe reason"), "{}", error.message);
        assert_eq!(failure(&stderr("cannot read x\n"), false).message, "cannot read x");
        assert_eq!(failure(&[], false).kind, ErrorKind::Error);
    }
}
