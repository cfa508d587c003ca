//! The processes that this one has started, to end a compilation: evcxr starts cargo, and does not say which it is.

use super::built::PROGRAM;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Child;
use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

/// A process of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    parent: u32,
    /// Its program, without directories.
    name: String,
}

/// Ends all that this process has started (cargo and what that has started, a shell's command), but for copies of this
/// program, which run cells. Says whether there was something.
pub(super) fn end_compilation() -> bool {
    let found = started(std::process::id(), &all());
    for id in &found {
        let id = *id as i32;
        // SAFETY: kill only sends a signal, to processes that this one has started. What stands in for rustc leads a
        // group, in which the linker is, too; the others lead none, and then nothing happens.
        unsafe {
            libc::kill(-id, libc::SIGKILL);
            libc::kill(id, libc::SIGKILL);
        }
    }
    !found.is_empty()
}

/// The processes that `own` has started, parents first: those that could start more.
fn started(own: u32, all: &[Process]) -> Vec<u32> {
    let Some(name) = all.iter().find(|process| process.id == own).map(|process| process.name.as_str()) else {
        return Vec::new();
    };
    let children =
        all.iter().filter(|process| process.parent == own && process.name != name && process.name != PROGRAM);
    let mut found: Vec<u32> = children.map(|process| process.id).collect();
    let mut seen: BTreeSet<u32> = found.iter().copied().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        found.extend(all.iter().filter(|p| p.parent == parent && seen.insert(p.id)).map(|process| process.id));
    }
    found
}

/// All processes that have not ended, as far as the system shows them.
fn all() -> Vec<Process> {
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, ProcessRefreshKind::nothing().without_tasks());
    let alive = system.processes().values().filter(|process| process.status() != ProcessStatus::Zombie);
    let process = |process: &sysinfo::Process| Process {
        id: process.pid().as_u32(),
        parent: process.parent().map_or(0, Pid::as_u32),
        name: process.name().to_string_lossy().into_owned(),
    };
    alive.map(process).collect()
}

/// Ends the process and what it has started.
pub(super) fn end(child: &mut Child) {
    // It may have ended by itself, from the same Ctrl-C.
    let _ = child.kill();
    end_started(child.id());
}

/// Ends what a process that ran cells has started, by that process's id; it may be gone itself.
pub(super) fn end_started(id: u32) {
    // SAFETY: kill only sends a signal. The process made a group of its own, whose number stays taken as long as a member
    // lives; without one, nothing happens.
    unsafe { libc::kill(-(id as i32), libc::SIGKILL) };
}

/// Returns whether `path` names the program `name`, with or without an extension.
pub(super) fn is_program(path: &OsStr, name: &str) -> bool {
    Path::new(path).file_stem() == Some(OsStr::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_no_compilation() {
        let process = |id, parent, name: &str| Process { id, parent, name: name.into() };
        let all = [
            process(9, 5, "rustc"),
            process(2, 1, "lacuna"),
            process(3, 2, "lacuna"),
            process(4, 3, "sleep"),
            process(5, 8, "lacuna"),
            process(7, 2, "sh"),
            process(8, 2, "cargo"),
            process(10, 9, "ld"),
            process(11, 1, "cargo"),
        ];
        assert_eq!(started(2, &all), [7, 8, 5, 9, 10]);
        assert_eq!(started(99, &all), [0; 0]);
    }

    #[test]
    fn own_process_is_among_all() {
        let own = std::process::id();
        let all = all();
        let process = all.iter().find(|process| process.id == own).expect("the own process is shown");
        assert_eq!(process.parent, std::os::unix::process::parent_id());
    }
}
