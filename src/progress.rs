//! Progress of long work, and the way to stop it.
//!
//! A bar on a terminal, which is gone at the end. In a log what was printed stays; so work that is done within seconds prints
//! nothing, other work a few lines, which come at growing intervals, and one in the end that says what it was, of how many
//! steps, and how long it took. In a cell the lines are marked, and the kernel shows them in one place ([`Transcript`]).

use crate::error::{Error, Result};
use crate::sync::locked;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Time between two looks at whether the user has asked to stop.
pub(crate) const POLL: Duration = Duration::from_millis(100);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Asks all running work to stop at its next step; it then fails with [`Error::Interrupted`]. Safe in a signal handler.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Fails with [`Error::Interrupted`] once [`interrupt`] was called.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// The next value that another thread sends, or `None` when the thread has ended. Work that waits for something outside runs
/// on a thread of its own, so that Ctrl-C need not wait for it.
///
/// # Errors
/// [`Error::Interrupted`].
pub(crate) fn wait<T>(receiver: &Receiver<T>) -> Result<Option<T>> {
    loop {
        check_interrupt()?;
        match receiver.recv_timeout(POLL) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// The destination of progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Nowhere.
    #[default]
    Hidden,
    /// To standard error: a bar on a terminal, throttled lines elsewhere.
    Stderr,
}

/// The times at which lines are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    /// Stages that end sooner print nothing.
    first: Duration,
    /// The next line comes this much later,
    every: Duration,
    /// or this part of the time that has passed, if that is more.
    share: u32,
    marked: bool,
}

/// For what stays: an hour prints some fifteen lines.
const LINES: Pace = Pace { first: Duration::from_secs(3), every: Duration::from_secs(5), share: 2, marked: false };

/// For what is replaced by the next one.
const MARKED: Pace =
    Pace { first: Duration::from_secs(1), every: Duration::from_millis(500), share: u32::MAX, marked: true };

impl Pace {
    /// The pace of this process: if it runs cells, the variable says that the program that reads its output understands
    /// marks.
    fn of_process() -> Pace {
        if std::env::var_os("LACUNA_MARK_PROGRESS").is_some() { MARKED } else { LINES }
    }

    /// The time at which the line after the one at `elapsed` is due.
    fn next(self, elapsed: Duration) -> Duration {
        elapsed + self.every.max(elapsed / self.share)
    }

    fn print(self, mark: char, line: &str) {
        let line = line.trim_end();
        // A closed stderr is no reason to lose the work.
        let _ = if self.marked {
            writeln!(std::io::stderr(), "{MARK}{mark} {line}")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
    }
}

/// Begins a line of progress in a cell; a character for what kind of line it is follows.
const MARK: &str = "\u{1}lacuna: progress ";
/// A line that the next one replaces.
const PASSING: char = '~';
/// The summary of a stage.
const FINAL: char = '=';

/// The progress of a cell so far: the summaries of stages that are done, and one line of those that are running.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    summaries: Vec<String>,
    running: Option<String>,
}

impl Transcript {
    /// Recognises a line of progress that a cell printed to standard error and that is not meant to be kept; returns it
    /// without its mark.
    pub fn line(line: &str) -> Option<&str> {
        line.strip_prefix(MARK)?.get(2..)
    }

    /// Returns whether it is a line of progress that the next one replaces, twice a second.
    pub fn is_passing(line: &str) -> bool {
        line.strip_prefix(MARK).is_some_and(|rest| rest.starts_with(PASSING))
    }

    /// Takes a line that a cell printed to standard error; whether it was one of progress.
    pub fn add(&mut self, line: &str) -> bool {
        let Some(text) = Self::line(line) else { return false };
        if line[MARK.len()..].starts_with(FINAL) {
            self.summaries.push(text.to_owned());
            self.running = None;
        } else {
            self.running = Some(text.to_owned());
        }
        true
    }

    /// All lines.
    pub fn text(&self) -> String {
        self.summaries.iter().chain(&self.running).map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

impl Progress {
    /// Says what the user should know before the work begins, a line each.
    pub fn notes(self, notes: &[String]) {
        if self == Progress::Stderr {
            // A closed stderr is no reason to lose the work.
            notes.iter().for_each(|note| drop(writeln!(std::io::stderr(), "note: {note}")));
        }
    }

    /// Begins a stage of `total` steps, called `name` on screen.
    pub fn stage(self, name: &str, total: u64) -> Stage {
        let bar = match self {
            Progress::Stderr if std::io::stderr().is_terminal() => {
                let style =
                    ProgressStyle::with_template("{prefix:24} {wide_bar} {pos}/{len} {elapsed} (eta {eta}) {msg}")
                        .unwrap_or_else(|_| ProgressStyle::default_bar());
                Some(ProgressBar::new(total).with_style(style).with_prefix(name.to_owned()))
            }
            _ => None,
        };
        let lines = (self == Progress::Stderr && bar.is_none()).then(|| {
            let pace = Pace::of_process();
            (pace, Mutex::new(pace.first))
        });
        Stage { name: name.to_owned(), total, done: Mutex::new(0), started: Instant::now(), bar, lines }
    }
}

/// A running stage; it ends when dropped.
#[derive(Debug)]
pub struct Stage {
    name: String,
    total: u64,
    done: Mutex<u64>,
    started: Instant,
    bar: Option<ProgressBar>,
    /// The time from the start at which the next line is due.
    lines: Option<(Pace, Mutex<Duration>)>,
}

impl Stage {
    /// Reports `n` more steps done.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user asked to stop.
    pub fn inc(&self, n: u64) -> Result<()> {
        self.inc_with(n, String::new)
    }

    /// Says something that the user should know, once and in a line of its own.
    pub fn note(&self, text: impl std::fmt::Display) {
        match (&self.bar, &self.lines) {
            (Some(bar), _) => bar.println(format!("{}: {text}", self.name)),
            // A closed stderr is no reason to lose the work.
            (None, Some(_)) => drop(writeln!(std::io::stderr(), "{}: {text}", self.name)),
            (None, None) => {}
        }
    }

    /// Like [`Stage::inc`], with a message (a loss, a rate) that is built only when it is shown.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user asked to stop.
    pub fn inc_with(&self, n: u64, message: impl FnOnce() -> String) -> Result<()> {
        check_interrupt()?;
        let done = {
            let mut done = locked(&self.done);
            *done += n;
            *done
        };
        if let Some(bar) = &self.bar {
            bar.set_message(message());
            bar.set_position(done);
        } else if let Some((pace, due)) = &self.lines {
            let elapsed = self.started.elapsed();
            let mut due = locked(due);
            // The end has a line of its own.
            if elapsed >= *due && done < self.total {
                *due = pace.next(elapsed);
                let elapsed = elapsed.as_secs_f64();
                let eta = elapsed * self.total.saturating_sub(done) as f64 / done.max(1) as f64;
                let (name, total) = (&self.name, self.total);
                let line = format!("{name} {done}/{total} in {elapsed:.0} s, {eta:.0} s to go {}", message());
                pace.print(PASSING, &line);
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let (done, elapsed) = (*locked(&self.done), self.started.elapsed());
        match (&self.bar, &self.lines) {
            (Some(bar), _) => bar.finish_and_clear(),
            (None, Some((pace, _))) if elapsed >= pace.first && done > 0 => {
                let count = if done < self.total { format!("{done}/{}", self.total) } else { done.to_string() };
                pace.print(FINAL, &format!("{}: {count} in {:.1} s", self.name, elapsed.as_secs_f64()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_prints_few_lines() {
        let lines = |seconds: u64| {
            let due = std::iter::successors(Some(LINES.first), |due| Some(LINES.next(*due)));
            due.take_while(|due| *due <= Duration::from_secs(seconds)).count()
        };
        assert_eq!([2, 3, 10, 60, 3600, 36_000].map(lines), [0, 1, 2, 6, 16, 22]);
    }

    #[test]
    fn a_transcript_keeps_summaries_and_one_running_line() {
        let mut transcript = Transcript::default();
        assert!(!transcript.add("cannot read x") && transcript.text().is_empty());
        for (mark, line, text) in [
            (PASSING, "calibrate 1/9", "calibrate 1/9"),
            (PASSING, "calibrate 8/9", "calibrate 8/9"),
            (FINAL, "calibrate: 9 in 2.0 s", "calibrate: 9 in 2.0 s"),
            (PASSING, "forward 1/2", "calibrate: 9 in 2.0 s\nforward 1/2"),
        ] {
            assert!(transcript.add(&format!("{MARK}{mark} {line}")));
            assert_eq!(transcript.text(), text);
        }
        assert_eq!(Transcript::line(&format!("{MARK}~ a b")), Some("a b"));
    }
}
