//! Progress of long work, and the way to stop it.
//!
//! A bar on a terminal; plain lines, at most one every few seconds, elsewhere (a log, a notebook cell).

use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Asks all running work to stop at its next step; it then fails with [`Error::Interrupted`]. Safe in a signal handler.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Fails with [`Error::Interrupted`] once [`interrupt`] was called.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Where progress goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Nowhere.
    #[default]
    Hidden,
    /// To standard error: a bar on a terminal, throttled lines elsewhere.
    Stderr,
}

/// No line is printed before this, nor sooner after another.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
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
        let lines = (self == Progress::Stderr && bar.is_none()).then(|| Mutex::new(Instant::now()));
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
    lines: Option<Mutex<Instant>>,
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
            let mut done = self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *done += n;
            *done
        };
        if let Some(bar) = &self.bar {
            bar.set_message(message());
            bar.set_position(done);
        } else if let Some(last) = &self.lines {
            let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if last.elapsed() >= LINE_EVERY {
                *last = Instant::now();
                let elapsed = self.started.elapsed().as_secs_f64();
                let eta = elapsed * self.total.saturating_sub(done) as f64 / done.max(1) as f64;
                let line =
                    format!("{} {done}/{} in {elapsed:.0} s, {eta:.0} s to go {}", self.name, self.total, message());
                // A closed stderr is no reason to lose the work.
                let _ = writeln!(std::io::stderr(), "{}", line.trim_end());
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
