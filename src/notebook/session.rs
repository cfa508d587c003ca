//! One evcxr session without Jupyter: cells in, outputs and errors out.

use super::cell_source::{FIRST, GUARD};
use super::diagnostics::{self, Compilation, Places};
use super::environment::{self, Slot};
use super::events::{Event, How, Message, Panic};
use super::outcome::{CellError, ErrorKind, Live, Outcome, Times};
use super::output::{self, Bundle, Output, Printed, Stream};
use super::processes;
use anyhow::{Context, Result, anyhow};
use evcxr::{CommandContext, CompilationError, EvalCallbacks, EvalContext};
use lacuna::display::mime;
use lacuna::sync::locked;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for what has been written already and only has to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Who watches a session.
pub(crate) struct Audience {
    pub(crate) on_live: Box<dyn Fn(Live<'_>) + Send + Sync>,
    /// Answers a question of a cell: its prompt, and whether the answer is secret. `None` where nobody can.
    pub(crate) on_question: Box<Answers>,
}

type Answers = dyn Fn(&str, bool) -> Option<String> + Send + Sync;

impl Audience {
    /// Nobody, or somebody who only looks.
    pub(crate) fn looking(on_live: impl Fn(Live<'_>) + Send + Sync + 'static) -> Self {
        Audience { on_live: Box::new(on_live), on_question: Box::new(|_, _| None) }
    }
}

/// A running session. Cells see what earlier cells defined.
pub(crate) struct Session {
    context: CommandContext,
    shared: Arc<Shared>,
    audience: Arc<Audience>,
    /// Returns whether there are events that were not looked at yet.
    is_behind: Box<dyn Fn() -> bool>,
    slot: Slot,
    /// The number of the last cell.
    number: u64,
    /// Variables that cells have given away.
    moved: BTreeSet<String>,
}

/// Reports about the cell from the process that runs cells, filled by a thread.
struct Shared {
    told: Mutex<Told>,
    changed: Condvar,
    runs: Arc<AtomicBool>,
    /// Compilations of the cell.
    compilations: PathBuf,
}

#[derive(Default)]
struct Told {
    source: String,
    printed: Printed,
    /// The index of the value that may be that of the last expression, and whether it has been seen already.
    value: Option<(usize, bool)>,
    begun: Option<Instant>,
    /// The cell that has ended.
    ended: Option<(Option<u64>, How, Instant)>,
    /// Panics of the thread that runs cells.
    panics: Vec<Panic>,
    failed: Option<(Vec<String>, u32)>,
    questions: Vec<(String, bool)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Told> {
        locked(&self.told)
    }

    /// Takes a line of the process's real standard error.
    fn take(&self, line: &str, audience: &Audience) {
        let Some(Message { cell, event }) = Message::parse(line) else {
            // The system's loader, or a runtime without a choice.
            return self.text(Stream::Stderr, &format!("{line}\n"), audience);
        };
        let mut told = self.lock();
        match event {
            Event::Begins => {
                told.begun = Some(Instant::now());
                self.runs.store(true, Ordering::Relaxed);
            }
            Event::Text { stream, text } => {
                drop(told);
                self.text(stream, &text, audience);
            }
            Event::Progress { line } => {
                drop(told);
                (audience.on_live)(Live::Progress(&line));
            }
            Event::Shows { bundle, is_value } => {
                // Only the last one is the cell's value.
                told.see_value(audience);
                told.value = None;
                let mut bundle: Bundle = bundle.into_iter().collect();
                if let Some(plain) = bundle.get_mut(mime::PLAIN) {
                    *plain = output::bounded(plain);
                }
                // A last expression like `println!(..)` has nothing to show.
                if bundle.len() == 1 && bundle.get(mime::PLAIN).is_some_and(|text| text == "()") {
                    return;
                }
                let place = told.printed.show(bundle);
                told.value = Some((place, false));
                if !is_value {
                    told.see_value(audience);
                    told.value = None;
                }
            }
            Event::Panic(panic) if panic.is_cell => told.panics.push(panic),
            Event::Panic(panic) => {
                let text = self.panic_text(&panic, &told.source);
                drop(told);
                self.text(Stream::Stderr, &text, audience);
            }
            Event::Failed { chain, line } => told.failed = Some((chain, line)),
            Event::Asks { prompt, is_secret } => told.questions.push((prompt, is_secret)),
            Event::Ends { how } => told.ended = Some((cell, how, Instant::now())),
        }
        self.changed.notify_all();
    }

    fn text(&self, stream: Stream, text: &str, audience: &Audience) {
        let shown = {
            let mut told = self.lock();
            told.see_value(audience);
            told.printed.push(stream, text)
        };
        // What the report leaves out is not shown either: a terminal would take minutes for it.
        if shown > 0 {
            (audience.on_live)(Live::Text(stream, &text[..shown]));
        }
    }

    /// The text of a panic that does not end the cell.
    fn panic_text(&self, panic: &Panic, source: &str) -> String {
        let place = self.place(&panic.file, panic.line, source);
        let mut text = format!("thread '{}' panicked:\n{}\n{place}", panic.thread, panic.message);
        text.extend(panic.backtrace.as_deref());
        text
    }

    /// The line of the cell that stands in a line of the generated file, or the place in another file.
    fn place(&self, file: &str, line: u32, source: &str) -> String {
        if !file.ends_with("src/lib.rs") || file.starts_with('/') {
            return if file.is_empty() { String::new() } else { format!("  in {file}, line {line}\n") };
        }
        let compilations = Compilation::all(&self.compilations);
        let Some(last) = compilations.last() else { return String::new() };
        match Places::new(&last.source, source, GUARD).line(line as usize) {
            Some((number, text)) => format!("  line {number} | {text}\n"),
            None => match last.source.lines().nth((line as usize).saturating_sub(1)).map(str::trim) {
                Some(text) if !text.is_empty() => format!("  an earlier cell | {text}\n"),
                _ => String::new(),
            },
        }
    }
}

impl Told {
    /// Shows the value that could be the last, because something follows it.
    fn see_value(&mut self, audience: &Audience) {
        if let Some((place, is_seen @ false)) = &mut self.value {
            *is_seen = true;
            if let Some(bundle) = self.printed.shown(*place) {
                (audience.on_live)(Live::Display(bundle));
            }
        }
    }
}

impl Session {
    /// Starts evcxr and gives it lacuna; `audience` sees what cells print while they run. Takes seconds.
    ///
    /// Changes this process's environment, so call it before other threads read that.
    pub(crate) fn start(audience: Audience) -> Result<Self> {
        let slot = environment::enter()?;
        let started = EvalContext::with_subprocess_command(Command::new(&slot.build.executable));
        let (context, outputs) = started.map_err(|error| anyhow!("{error}")).context("cannot start evcxr")?;
        let context = CommandContext::with_eval_context(context);
        let shared = Arc::new(Shared {
            told: Mutex::default(),
            changed: Condvar::new(),
            runs: Arc::default(),
            compilations: slot.path.join(diagnostics::FILE),
        });
        let audience = Arc::new(audience);
        let is_behind = {
            let events = outputs.stderr.clone();
            Box::new(move || !events.is_empty())
        };
        let (theirs, looking) = (shared.clone(), audience.clone());
        std::thread::spawn(move || {
            for line in outputs.stderr {
                theirs.take(&line, &looking);
            }
        });
        // Nothing comes here, as text goes the other way; but evcxr waits until it is read.
        std::thread::spawn(move || outputs.stdout.into_iter().for_each(drop));
        let mut session = Session { context, shared, audience, is_behind, slot, number: 0, moved: BTreeSet::new() };
        session.introduce()?;
        Ok(session)
    }

    /// Makes lacuna known to evcxr.
    fn introduce(&mut self) -> Result<()> {
        let first = format!("{}\n{FIRST}", self.slot.preamble);
        self.clear_compilations();
        let result = self.context.execute(&first);
        result.map_err(|error| anyhow!("{}", self.describe(&error, &first, usize::MAX, 0)))?;
        Ok(())
    }

    /// The process that runs cells, to stop it from another thread.
    pub(crate) fn process(&self) -> Arc<Mutex<Child>> {
        self.context.process_handle()
    }

    /// A flag that is true once the cell is compiled and runs.
    pub(super) fn runs(&self) -> Arc<AtomicBool> {
        self.shared.runs.clone()
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

    /// The variables that cells have defined.
    fn variables(&self) -> BTreeSet<String> {
        self.context.variables_and_types().map(|(name, _)| name.to_owned()).filter(|name| name != GUARD).collect()
    }

    fn clear_compilations(&self) {
        // One that stays there tells of an earlier cell, whose lines are not found in this one.
        let _ = fs::remove_file(&self.shared.compilations);
    }

    /// Runs one cell to its end.
    pub(crate) fn run(&mut self, source: &str) -> Outcome {
        let started = Instant::now();
        if source.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with("//")) {
            return Outcome::default();
        }
        self.number += 1;
        *self.shared.lock() = Told { source: source.to_owned(), ..Told::default() };
        self.clear_compilations();
        self.shared.runs.store(false, Ordering::Relaxed);
        let before = self.variables();
        let process = self.process().lock().map(|process| process.id()).ok();
        let (result, guard_line, offset) = match self.clear(source) {
            Ok(offset) => {
                let rest: String = source.split_inclusive('\n').skip(offset).collect();
                let (guarded, guard_line) = with_guard(&without_time(&rest), self.number);
                (self.execute(&guarded), guard_line, offset)
            }
            Err(error) => (Err(error), usize::MAX, 0),
        };
        let ended = self.arrival(result.is_ok());
        let compiled = self.shared.lock().begun.unwrap_or_else(Instant::now);
        let mut error = match &result {
            Ok(_) => self.failure(ended),
            Err(error) => {
                let kind = match error {
                    evcxr::Error::SubprocessTerminated(_) => ErrorKind::Died,
                    _ => ErrorKind::Compile,
                };
                if kind == ErrorKind::Died {
                    process.into_iter().for_each(processes::end_started);
                }
                Some(CellError { kind, message: self.describe(error, source, guard_line, offset) })
            }
        };
        let after = self.variables();
        let lost: Vec<&String> = before.difference(&after).collect();
        if let Some(error) = error.as_mut().filter(|error| matches!(error.kind, ErrorKind::Panic | ErrorKind::Error))
            && !lost.is_empty()
        {
            let names: Vec<String> = lost.iter().map(|name| format!("`{name}`")).collect();
            let (are, them) = if lost.len() == 1 { ("is", "it") } else { ("are", "them") };
            let names = names.join(", ");
            let _ = write!(
                error.message,
                "\n{names} {are} gone, moved by this cell; run the cell again that defines {them}"
            );
        }
        self.moved.extend(lost.into_iter().cloned());
        self.moved.retain(|name| !after.contains(name));
        let mut told = std::mem::take(&mut *self.shared.lock());
        let mut outputs = told.printed.take();
        let value = told.value.take();
        if let Some((place, _)) = value
            && let Some(output) = outputs.get_mut(place)
            && let Output::Display(bundle) = output
        {
            *output = Output::Result(std::mem::take(bundle));
        }
        if let Ok(evaluated) = result {
            // Those of commands, such as `:vars`; code tells its values itself.
            let mut bundle: Bundle = evaluated.content_by_mime_type.into_iter().collect();
            bundle.iter_mut().for_each(|(mime, text)| *text = output::bounded(&without_guard(mime, text)));
            bundle.retain(|_, text| !text.is_empty());
            if !bundle.is_empty() {
                let of_commands = if outputs.is_empty() { Output::Result(bundle) } else { Output::Display(bundle) };
                outputs.insert(0, of_commands);
            }
        }
        let times = Times {
            compile_seconds: compiled.saturating_duration_since(started).as_secs_f64(),
            run_seconds: compiled.elapsed().as_secs_f64(),
        };
        if is_timed(source) {
            let text = format!("compile {:.2} s, run {:.2} s\n", times.compile_seconds, times.run_seconds);
            (self.audience.on_live)(Live::Text(Stream::Stderr, &text));
            outputs.push(Output::Text(Stream::Stderr, text));
        }
        Outcome { outputs, error, times, is_value_seen: value.is_some_and(|(_, is_seen)| is_seen) }
    }

    fn execute(&mut self, code: &str) -> Result<evcxr::EvalOutputs, evcxr::Error> {
        let (shared, audience) = (self.shared.clone(), self.audience.clone());
        self.context.execute_with_callbacks(
            code,
            &mut EvalCallbacks {
                input_reader: &|_| {
                    let waiting = |told: &mut Told| told.questions.is_empty();
                    let guard = shared.lock();
                    let arrived = shared.changed.wait_timeout_while(guard, ARRIVAL, waiting);
                    let question = arrived.unwrap_or_else(PoisonError::into_inner).0.questions.pop();
                    let answer = question.and_then(|(prompt, is_secret)| (audience.on_question)(&prompt, is_secret));
                    serde_json::to_string(&answer).unwrap_or_else(|_| "null".to_owned())
                },
            },
        )
    }

    /// Runs the commands up to the last `:clear` among those in front, and gives back what that takes away: lacuna itself. Returns the
    /// number of lines that are done.
    fn clear(&mut self, source: &str) -> Result<usize, evcxr::Error> {
        let front = source.lines().take_while(stays_in_front);
        let Some(last) = front.enumerate().filter(|(_, line)| line.trim() == ":clear").map(|(at, _)| at).last() else {
            return Ok(0);
        };
        let commands: String = source.split_inclusive('\n').take(last + 1).collect();
        self.context.execute(&commands)?;
        self.introduce().map_err(|error| evcxr::Error::from(format!("{error:#}")))?;
        Ok(last + 1)
    }

    /// Waits until everything has arrived that the cell printed, and how it ended.
    fn arrival(&mut self, has_run: bool) -> Option<(Option<u64>, How)> {
        if has_run {
            let guard = self.shared.lock();
            let waiting = |told: &mut Told| told.ended.is_none();
            let arrived = self.shared.changed.wait_timeout_while(guard, ARRIVAL, waiting);
            return arrived.unwrap_or_else(PoisonError::into_inner).0.ended.map(|(cell, how, _)| (cell, how));
        }
        // All that the process wrote before it ended is in the queue.
        let deadline = Instant::now() + ARRIVAL;
        while (self.is_behind)() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(10));
        None
    }

    /// The reason why a cell that was compiled did not succeed, if it did not.
    fn failure(&mut self, ended: Option<(Option<u64>, How)>) -> Option<CellError> {
        let Some((_, how)) = ended.filter(|(cell, _)| *cell == Some(self.number)) else {
            return Some(self.out_of_step(ended.and_then(|(cell, _)| cell)));
        };
        let mut told = self.shared.lock();
        let (mut panics, failed) = (std::mem::take(&mut told.panics), told.failed.take());
        let mut backtrace = None;
        let error = match how {
            How::Panicked => {
                let panic = panics.pop();
                backtrace = panic.as_ref().and_then(|panic| panic.backtrace.clone());
                let message = match &panic {
                    Some(panic) => {
                        let place = self.shared.place(&panic.file, panic.line, &told.source);
                        format!("{}\n{place}", panic.message)
                    }
                    None => "panicked".to_owned(),
                };
                Some(CellError { kind: ErrorKind::Panic, message: message.trim_end().to_owned() })
            }
            How::Early => failed.map(|(chain, line)| {
                let place = self.shared.place("src/lib.rs", line, &told.source);
                let message = format!("{}\n{place}", chain.join("\ncaused by: "));
                CellError { kind: ErrorKind::Error, message: message.trim_end().to_owned() }
            }),
            How::Finished => None,
        };
        // Those that the cell has caught.
        let mut texts: Vec<String> = panics.iter().map(|panic| self.shared.panic_text(panic, &told.source)).collect();
        drop(told);
        texts.extend(backtrace);
        for text in texts {
            self.shared.text(Stream::Stderr, &text, &self.audience);
        }
        error
    }

    /// Ends the process that gave the answer of another cell, or none: whatever it says next could be wrong.
    fn out_of_step(&mut self, answered: Option<u64>) -> CellError {
        if let Ok(mut process) = self.process().lock() {
            processes::end(&mut process);
        }
        let restarted = self.restart();
        let answer = answered.map_or_else(|| "no answer".to_owned(), |cell| format!("the answer of cell {cell}"));
        let mut message = format!(
            "the process that runs cells gave {answer} to cell {} of this session, so it was ended; what the cell printed may be \
             incomplete",
            self.number
        );
        if let Err(error) = restarted {
            let _ = write!(message, ". No other could be started: {error:#}");
        }
        CellError { kind: ErrorKind::Died, message }
    }

    /// evcxr's error as text, with lines of the cell as the reader sees them.
    fn describe(&self, error: &evcxr::Error, source: &str, guard_line: usize, offset: usize) -> String {
        let evcxr::Error::CompilationErrors(errors) = error else { return error.to_string() };
        // The others are those of commands. In the place of some of rustc's evcxr puts its own, which say less.
        let are_of_rustc = errors.iter().any(|error| error.json.is_object() || error.message().contains(BORROWS));
        if are_of_rustc {
            let compilations = Compilation::all(&self.shared.compilations);
            if let Some(text) = diagnostics::failure(&compilations, source, GUARD, &self.moved) {
                return text;
            }
        }
        describe(errors, source, guard_line, offset)
    }
}

/// Returns whether the line must stay before the guard: commands (`:dep`), shell lines, comments and inner attributes.
fn stays_in_front(line: &&str) -> bool {
    let line = line.trim_start();
    let is_documentation = line.starts_with("///") && !line.starts_with("////");
    !is_documentation && (line.is_empty() || [":", "!", "//", "#!["].iter().any(|start| line.starts_with(start)))
}

/// The kernel's own command among those in front: the cell says its times.
const TIME: &str = ":time";

fn is_timed(source: &str) -> bool {
    source.lines().take_while(stays_in_front).any(|line| line.trim() == TIME)
}

/// The cell without the command that evcxr does not know; its lines keep their numbers.
fn without_time(source: &str) -> String {
    let front = source.lines().take_while(stays_in_front).count();
    let lines = source.split_inclusive('\n').enumerate();
    lines.map(|(at, line)| if at < front && line.trim() == TIME { "//\n" } else { line }).collect()
}

/// The cell with the guard of cell `number` before its first statement, and the guard's line, counted from 1.
fn with_guard(source: &str, number: u64) -> (String, usize) {
    let front = source.lines().take_while(stays_in_front).count();
    let mut guarded = String::new();
    for line in source.lines().take(front) {
        guarded.push_str(line);
        guarded.push('\n');
    }
    const RUNTIME: &str = "::lacuna::display::runtime";
    let _ = writeln!(guarded, "let {GUARD}: {RUNTIME}::Running = {RUNTIME}::begin({number});");
    let rest: Vec<&str> = source.lines().skip(front).collect();
    guarded.push_str(&rest.join("\n"));
    (guarded, front + 1)
}

/// The output of a command without the guard, which is a variable as any other for evcxr; lines of text in a fixed order.
fn without_guard(mime: &str, text: &str) -> String {
    if !text.contains(GUARD) {
        return text.to_owned();
    }
    match mime {
        mime::HTML => text.split_inclusive("<tr>").filter(|row| !row.contains(GUARD)).collect(),
        _ => {
            let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(GUARD)).collect();
            lines.sort_unstable();
            lines.join("\n")
        }
    }
}

/// Part of evcxr's message about a variable that borrows from another, which a later cell could drop.
const BORROWS: &str = "contains a reference with a non-static lifetime";

/// Errors that evcxr makes itself.
fn describe(errors: &[CompilationError], source: &str, guard_line: usize, offset: usize) -> String {
    let mut text = String::new();
    // evcxr puts rustc's warnings beside its own errors, those of other cells too.
    for error in errors.iter().filter(|error| error.json["level"] != "warning") {
        let code = error.code().map(|code| format!("[{code}]")).unwrap_or_default();
        let message = error.message();
        let borrows = message.split_once(BORROWS).map(|(before, _)| before);
        match borrows.and_then(|before| before.split('`').nth(1)) {
            Some(variable) => {
                let _ = writeln!(text, "error: the variable `{variable}` borrows, and no variable of a cell can");
            }
            None => {
                let _ = writeln!(text, "error{code}: {message}");
            }
        }
        for message in error.spanned_messages() {
            let Some(span) = message.span else { continue };
            let line = if span.start_line > guard_line { span.start_line - 1 } else { span.start_line };
            let number = line + offset;
            let Some(line) = source.lines().nth(number.saturating_sub(1)) else { continue };
            let start = span.start_column.saturating_sub(1);
            let is_one_line = span.end_line == span.start_line;
            let end = if is_one_line { span.end_column.saturating_sub(1) } else { line.chars().count() };
            let marks = "^".repeat(end.saturating_sub(start).max(1));
            let margin = format!("  line {number}");
            let _ = writeln!(text, "{margin} | {line}\n{} | {}{marks}", " ".repeat(margin.len()), " ".repeat(start));
        }
        if borrows.is_some() {
            text.push_str("  help: make it own what it holds (`.to_owned()`, `.clone()`), or put `{ }` around the code that needs it\n");
        } else if let Some(hint) = error.evcxr_extra_hint() {
            let _ = writeln!(text, "  note: {hint}");
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_goes_behind_what_must_be_first() {
        let (code, line) = with_guard(":dep rand = \"0.9\"\n// why\n#![allow(unused)]\nlet x = 1;\nx", 7);
        assert_eq!(line, 4);
        let guard =
            "let lacuna_cell_started: ::lacuna::display::runtime::Running = ::lacuna::display::runtime::begin(7);";
        assert_eq!(code, format!(":dep rand = \"0.9\"\n// why\n#![allow(unused)]\n{guard}\nlet x = 1;\nx"));
        assert_eq!(with_guard("1 + 1", 7).0, format!("{guard}\n1 + 1"));
        assert_eq!(with_guard("/// Doc.\nfn f() {}", 7).0, format!("{guard}\n/// Doc.\nfn f() {{}}"));
    }

    #[test]
    fn a_cell_that_is_timed_keeps_its_lines() {
        let source = "// a\n :time\n:dep x = \"1\"\nlet a = 1;\n:time";
        assert!(is_timed(source) && !is_timed("let a = 1;\n:time"));
        assert_eq!(without_time(source), "// a\n//\n:dep x = \"1\"\nlet a = 1;\n:time");
    }

    #[test]
    fn the_guard_is_no_variable_of_the_reader() {
        let text = "lacuna_cell_started: ::lacuna::display::runtime::Running\nb: i32\na: u8\n";
        assert_eq!(without_guard(mime::PLAIN, text), "a: u8\nb: i32");
        let html = "<table><tr><th>Variable</th><tr><td>lacuna_cell_started</td><td>x</td><tr><td>a</td><td>u8</td><tr></table>";
        assert_eq!(
            without_guard(mime::HTML, html),
            "<table><tr><th>Variable</th><tr><td>a</td><td>u8</td><tr></table>"
        );
    }
}
