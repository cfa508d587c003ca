//! A second thread beside the one that waits for a cell: it ends what the cell does when the user interrupts or time is up,
//! and sees at once when the process that runs cells has died.

use super::processes::{self, end};
use super::session::Session;
use lacuna::progress::check_interrupt;
use lacuna::sync::locked;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The interval at which the thread looks.
const EVERY: Duration = Duration::from_millis(20);

/// A cell that neither compiles nor says that it runs may have closed its standard error.
const PATIENCE: Duration = Duration::from_secs(10);

/// The watching thread; it ends when this is dropped.
pub(super) struct Watch {
    shared: Arc<Shared>,
}

/// The action of the watch on a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ended {
    /// Its time was up.
    pub(super) timed_out: bool,
    /// The phase of the cell that was ended.
    pub(super) what: Option<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its compilation: variables of earlier cells are still there.
    Compilation,
    /// The process that runs cells, and all variables with it.
    Process,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    cell: Mutex<Cell>,
}

#[derive(Default)]
struct Cell {
    is_there: bool,
    deadline: Option<Instant>,
    interrupted: bool,
    /// Since when it should be no more.
    unwanted: Option<Instant>,
    ended: Ended,
}

impl Watch {
    /// Watches the session's process, whichever it is at a time: evcxr starts another one after a death.
    pub(super) fn new(session: &Session) -> Self {
        let shared = Arc::new(Shared::default());
        let (theirs, process, runs) = (shared.clone(), session.process(), session.runs());
        std::thread::spawn(move || {
            let mut gone = None;
            while !theirs.over.load(Ordering::Relaxed) {
                let mut child = locked(&process);
                let is_dead = matches!(child.try_wait(), Ok(Some(_)));
                if is_dead {
                    // Its successor has nothing to run yet.
                    runs.store(false, Ordering::Relaxed);
                    if gone != Some(child.id()) {
                        gone = Some(child.id());
                        end(&mut child);
                    }
                } else if theirs.lock().look(&mut child, &runs) {
                    gone = Some(child.id());
                }
                drop(child);
                std::thread::sleep(EVERY);
            }
        });
        Watch { shared }
    }

    /// A cell begins; it may take `limit`.
    pub(super) fn begin(&self, limit: Option<Duration>) {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        *self.shared.lock() = Cell { is_there: true, deadline, ..Cell::default() };
    }

    /// Ends the cell, if there is one.
    pub(super) fn interrupt(&self) {
        self.shared.lock().interrupted = true;
    }

    /// The cell is over; what was done about it.
    pub(super) fn end(&self) -> Ended {
        std::mem::take(&mut *self.shared.lock()).ended
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Cell> {
        locked(&self.cell)
    }
}

impl Cell {
    /// Ends what the cell does, if it should; says whether that was the process.
    fn look(&mut self, child: &mut Child, runs: &AtomicBool) -> bool {
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if !self.is_there || !(late || self.interrupted || check_interrupt().is_err()) {
            return false;
        }
        self.ended.timed_out |= late;
        let unwanted = *self.unwanted.get_or_insert_with(Instant::now);
        if self.ended.what == Some(Phase::Process) {
            return false;
        }
        // One compilation may follow another, and the process them: so it is looked at again until the cell is over.
        if !runs.load(Ordering::Relaxed) {
            if processes::end_compilation() {
                self.ended.what = Some(Phase::Compilation);
                self.unwanted = None;
                return false;
            }
            if unwanted.elapsed() < PATIENCE {
                return false;
            }
        }
        self.ended.what = Some(Phase::Process);
        end(child);
        true
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}
