//! Several notebooks at once. A session changes its process's environment and directory, so each notebook gets a process
//! of its own: this program again, with one notebook.

use super::screen::say;
use anyhow::{Context, Result};
use lacuna::progress::check_interrupt;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// The outcome of a run; the documentation of `lacuna notebook run` lists the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Success = 0,
    CellFailed = 1,
    Unreadable = 2,
    KernelDied = 3,
    Differs = 4,
    Timeout = 5,
    /// No session could be started, or a file could not be written.
    Failed = 6,
    Interrupted = 130,
}

impl Status {
    /// The status behind an exit code; a process that a signal ended has none.
    pub(super) fn of(code: Option<i32>) -> Self {
        use Status::*;
        let all = [Success, CellFailed, Unreadable, KernelDied, Differs, Timeout, Failed, Interrupted];
        all.into_iter().find(|status| code == Some(*status as i32)).unwrap_or(Failed)
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

/// Options of a run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The directory of reports; `None` for `reports/` beside `notebooks/`.
    pub(crate) out: Option<PathBuf>,
    /// Compare with the reports that are there instead of writing them.
    pub(crate) check: bool,
    /// `name=value`, each.
    pub(crate) parameters: Vec<String>,
    /// A JSON object of parameters.
    pub(crate) parameters_file: Option<PathBuf>,
    /// Longest time for a cell, its compilation included.
    pub(crate) timeout: Option<Duration>,
    /// Cells before this one, counted from 1, keep the outputs of the last run.
    pub(crate) from_cell: Option<usize>,
    /// Go on after a cell that fails.
    pub(crate) allow_errors: bool,
    /// Write an HTML report too.
    pub(crate) html: bool,
    /// Leave the code of cells out of the reports that people read.
    pub(crate) no_input: bool,
    /// Notebooks at a time.
    pub(crate) jobs: usize,
}

impl Options {
    /// The arguments that say the same, but for the jobs.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| arguments.extend([OsString::from(name), value]);
        if let Some(out) = &self.out {
            option("--out", out.into());
        }
        for parameter in &self.parameters {
            option("--parameter", parameter.into());
        }
        if let Some(file) = &self.parameters_file {
            option("--params", file.into());
        }
        if let Some(timeout) = self.timeout {
            option("--timeout", timeout.as_secs_f64().to_string().into());
        }
        if let Some(from) = self.from_cell {
            option("--from-cell", from.to_string().into());
        }
        let flags = [
            ("--check", self.check),
            ("--allow-errors", self.allow_errors),
            ("--html", self.html),
            ("--no-input", self.no_input),
        ];
        arguments.extend(flags.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name.into()));
        arguments
    }
}

struct Job {
    index: usize,
    child: Child,
    reader: std::thread::JoinHandle<()>,
}

/// Runs the notebooks, `options.jobs` at a time, their lines marked with their names. After one that fails none is
/// started; the status is that of the first, in the order given, that did not succeed.
///
/// # Errors
/// Fails when a process cannot be started.
pub(super) fn run(notebooks: &[PathBuf], options: &Options) -> Result<Status> {
    let width = notebooks.iter().map(|path| name(path).chars().count()).max().unwrap_or(0);
    let mut waiting = notebooks.iter().enumerate();
    let (mut running, mut ended): (Vec<Job>, Vec<(usize, Status)>) = (Vec::new(), Vec::new());
    let mut stopped = false;
    loop {
        let may_start = |ended: &[(usize, Status)]| {
            ended.iter().all(|(_, status)| matches!(status, Status::Success | Status::Differs))
        };
        while running.len() < options.jobs && !stopped && may_start(&ended) {
            let Some((index, path)) = waiting.next() else { break };
            running.push(start(index, path, width, options)?);
        }
        if running.is_empty() {
            break;
        }
        if check_interrupt().is_err() && !stopped {
            stopped = true;
            for job in &running {
                // SAFETY: kill only sends a signal, to a process of ours that has not been waited for.
                unsafe { libc::kill(job.child.id() as i32, libc::SIGINT) };
            }
        }
        let mut still = Vec::new();
        for mut job in running {
            match job.child.try_wait().context("cannot wait for a notebook's process")? {
                None => still.push(job),
                Some(code) => {
                    // It reads to the end, so that no line is lost.
                    let _ = job.reader.join();
                    ended.push((job.index, Status::of(code.code())));
                }
            }
        }
        running = still;
        std::thread::sleep(Duration::from_millis(20));
    }
    ended.sort_by_key(|(index, _)| *index);
    if stopped {
        return Ok(Status::Interrupted);
    }
    let worst = ended.iter().map(|(_, status)| *status).find(|status| *status != Status::Success);
    Ok(worst.unwrap_or(Status::Success))
}

fn start(index: usize, path: &Path, width: usize, options: &Options) -> Result<Job> {
    let executable = std::env::current_exe().context("cannot find this program's own path")?;
    let mut command = Command::new(executable);
    command.args(["notebook", "run"]).args(options.arguments()).arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // Results do not depend on it.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        command.env("RAYON_NUM_THREADS", (cores / options.jobs).max(1).to_string());
    }
    end_with_parent(&mut command);
    let mut child = command.spawn().context("cannot start a process for a notebook")?;
    let stderr = child.stderr.take().context("a notebook's process has no standard error")?;
    let prefix = format!("{:width$} | ", name(path));
    let reader = std::thread::spawn(move || {
        let mut reader = BufReader::new(stderr);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            say(&format!("{prefix}{}", String::from_utf8_lossy(&line).trim_end_matches('\n')));
            line.clear();
        }
    });
    Ok(Job { index, child, reader })
}

/// A notebook must not run on when this process was killed. A Ctrl-C lets it take its lock away.
fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        let parent = std::process::id();
        let bind = move || {
            // SAFETY: prctl only sets a flag of the new process.
            if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGINT) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // It may have been killed just before.
            if std::os::unix::process::parent_id() != parent {
                return Err(std::io::Error::from(std::io::ErrorKind::Interrupted));
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
        unsafe { std::os::unix::process::CommandExt::pre_exec(command, bind) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
