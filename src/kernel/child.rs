//! The process that loads and runs compiled cells.
//!
//! evcxr reads its standard output line by line and looks for marker lines. A cell that prints text without a newline
//! at its end would put a marker into the middle of a line, and evcxr would wait for ever. So standard output goes
//! through a thread that gives each marker a line of its own.

use super::environment;
use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set by evcxr for the child that runs cells.
const IS_RUNTIME: &str = "EVCXR_IS_RUNTIME";

/// Printed to standard error by the first statement of each cell: it is compiled, and runs.
pub(super) const BEGIN_OF_CELL: &str = "\u{1}lacuna: cell begins";

/// Printed to standard output and standard error after each cell, so that the runner knows when it has read everything
/// that the cell printed; once [`MARK_ENDS`] has run, because evcxr waits at its start until its outputs are read.
pub(super) const END_OF_CELL: &str = "\u{1}lacuna: end of cell";

/// What tells on standard error that a cell, and not a thread that it started, has panicked.
pub(super) const PANICKED: &str = "\u{1}lacuna: panicked";

/// A statement for the first cell of a session that wants to see [`END_OF_CELL`].
pub(super) const MARK_ENDS: &str = "unsafe { std::env::set_var(\"LACUNA_MARK_ENDS\", \"1\") };";
/// The variable that it sets, for a process that takes its place.
pub(super) const MARK_ENDS_SET: &str = "LACUNA_MARK_ENDS";

const COMPLETE: &str = "EVCXR_EXECUTION_COMPLETE";
const END_OF_CONTENT: &str = "EVCXR_END_CONTENT";
/// Whole lines that evcxr waits for, and beginnings of lines with something behind them.
const PANIC: &str = "EVCXR_PANIC_NOTIFICATION";
const MARKERS: [&str; 3] = [COMPLETE, PANIC, "EVCXR_ERROR_OCCURRED"];
const PREFIXES: [&str; 2] = ["EVCXR_BEGIN_CONTENT ", "EVCXR_VARIABLE_CHANGED_TYPE:"];

/// The thread has forwarded everything.
static DRAINED: AtomicBool = AtomicBool::new(false);

pub(super) fn is_child() -> bool {
    env::var_os(IS_RUNTIME).is_some()
}

/// Makes the process ready to run cells; evcxr's own loop follows.
pub(super) fn prepare() {
    // SAFETY: the process has one thread so far.
    unsafe {
        // evcxr asks for backtraces; those of a cell show evcxr, not the cell. Who wants one says so.
        match env::var_os(environment::BACKTRACE) {
            Some(value) => env::set_var("RUST_BACKTRACE", value),
            None => env::remove_var("RUST_BACKTRACE"),
        }
        // What a cell starts (cargo, lacuna) is no part of this session.
        for name in environment::PRIVATE {
            env::remove_var(name);
        }
    }
    // A group of its own, so that the runner can end what a cell has started together with it.
    // SAFETY: setpgid only moves this process.
    unsafe { libc::setpgid(0, 0) };
    #[cfg(target_os = "linux")]
    // A cell must not run on when the kernel was killed. The parent is its main thread.
    // SAFETY: prctl only sets a flag of this process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
    };
    // Without the thread everything but text without a newline still works.
    let _ = redirect();
}

/// Puts a pipe and a thread between this process's standard output and the real one.
fn redirect() -> io::Result<()> {
    let real = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (reader, writer) = io::pipe()?;
    // SAFETY: both descriptors are open; the copy stays open for the life of the process.
    if unsafe { libc::dup2(writer.as_raw_fd(), libc::STDOUT_FILENO) } < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(writer);
    std::thread::Builder::new().name("stdout".into()).spawn(move || {
        let _ = forward(reader, real);
        DRAINED.store(true, Ordering::Release);
    })?;
    // SAFETY: `at_exit` is a plain function that touches a descriptor and an atomic.
    unsafe { libc::atexit(at_exit) };
    Ok(())
}

/// A cell may call `exit`: what it printed before must still arrive.
extern "C" fn at_exit() {
    // SAFETY: closing the only writing end in this process lets the thread see the end of the pipe.
    unsafe { libc::close(libc::STDOUT_FILENO) };
    // A process that the cell started may still hold the pipe, so do not wait for ever.
    let deadline = Instant::now() + Duration::from_millis(500);
    while !DRAINED.load(Ordering::Acquire) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn forward(reader: PipeReader, mut real: File) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut filter = Filter { in_content: false };
    let mut first = true;
    while reader.read_until(b'\n', &mut line)? > 0 {
        if std::mem::take(&mut first) {
            // evcxr's loop runs, so it has read the variable; a `lacuna` that a cell starts must not see it.
            // SAFETY: the main thread waits for this thread's output; std's own reads of the environment are locked.
            unsafe { env::remove_var(IS_RUNTIME) };
        }
        let (text, marker) = filter.split(&line);
        if !text.is_empty() {
            real.write_all(text)?;
            if !text.ends_with(b"\n") {
                real.write_all(b"\n")?;
            }
        }
        let is_marked = env::var_os(MARK_ENDS_SET).is_some();
        if marker.starts_with(PANIC.as_bytes()) && is_marked {
            let _ = writeln!(io::stderr(), "{PANICKED}");
        }
        if marker.starts_with(COMPLETE.as_bytes()) && is_marked {
            let _ = writeln!(io::stderr(), "{END_OF_CELL}");
            writeln!(real, "{END_OF_CELL}")?;
        }
        real.write_all(marker)?;
        line.clear();
    }
    Ok(())
}

struct Filter {
    in_content: bool,
}

impl Filter {
    /// Splits a line into what the cell printed and evcxr's marker, either of which may be empty.
    fn split<'a>(&mut self, line: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        // A panic while a value is being shown ends its content early.
        if self.in_content && !bare.ends_with(PANIC.as_bytes()) {
            self.in_content = bare != END_OF_CONTENT.as_bytes();
            return (line, &[]);
        }
        self.in_content = false;
        if let Some(marker) = MARKERS.iter().find(|marker| bare.ends_with(marker.as_bytes())) {
            return line.split_at(bare.len() - marker.len());
        }
        let starts = PREFIXES.iter().filter_map(|prefix| find(bare, prefix.as_bytes()));
        if let Some(start) = starts.min() {
            self.in_content = bare[start..].starts_with(PREFIXES[0].as_bytes());
            return line.split_at(start);
        }
        (line, &[])
    }
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_get_their_own_line() {
        let mut filter = Filter { in_content: false };
        assert_eq!(filter.split(b"plain\n"), (&b"plain\n"[..], &b""[..]));
        assert_eq!(filter.split(b"EVCXR_EXECUTION_COMPLETE\n"), (&b""[..], &b"EVCXR_EXECUTION_COMPLETE\n"[..]));
        assert_eq!(filter.split(b"42EVCXR_EXECUTION_COMPLETE\n"), (&b"42"[..], &b"EVCXR_EXECUTION_COMPLETE\n"[..]));
        assert_eq!(
            filter.split(b"aEVCXR_BEGIN_CONTENT text/plain\n"),
            (&b"a"[..], &b"EVCXR_BEGIN_CONTENT text/plain\n"[..])
        );
        // Content is the cell's own business up to its end.
        assert_eq!(filter.split(b"x EVCXR_EXECUTION_COMPLETE\n"), (&b"x EVCXR_EXECUTION_COMPLETE\n"[..], &b""[..]));
        assert_eq!(filter.split(b"EVCXR_END_CONTENT\n"), (&b"EVCXR_END_CONTENT\n"[..], &b""[..]));
        assert_eq!(filter.split(b"EVCXR_PANIC_NOTIFICATION\n").1, b"EVCXR_PANIC_NOTIFICATION\n");
    }
}
