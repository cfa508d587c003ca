//! Whole commands, measured from outside.

mod median;

pub(crate) use median::median;

use std::process::{Command, Stdio};
use std::time::Instant;

pub(crate) struct Run {
    pub(crate) seconds: f64,
    pub(crate) peak_rss_mb: f64,
}

/// Runs a command to its end, from nothing to the saved checkpoint.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it, and tells its peak memory")]
pub(crate) fn measure(command: &mut Command) -> Run {
    let started = Instant::now();
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts");
    let mut status = 0;
    // SAFETY: plain out-parameters of a system call; the child is waited for here and nowhere else.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::wait4(child.id() as i32, &mut status, 0, &mut usage), child.id() as i32, "wait4");
        usage
    };
    assert_eq!(status, 0, "{command:?} failed");
    Run { seconds: started.elapsed().as_secs_f64(), peak_rss_mb: usage.ru_maxrss as f64 / 1024.0 }
}
