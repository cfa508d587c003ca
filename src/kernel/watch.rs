//! A second thread beside the one that waits for a cell: it ends the process that runs cells when the user interrupts or
//! time is up, and sees at once when that process has died.

use lacuna::progress::check_interrupt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How soon the thread notices.
const EVERY: Duration = Duration::from_millis(20);

/// The watching thread; it ends when this is dropped.
pub(super) struct Watch {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    timed_out: AtomicBool,
    deadline: Mutex<Option<Instant>>,
}

impl Watch {
    /// Watches the process, whichever it is at a time: evcxr starts another one after a death.
    pub(super) fn new(process: Arc<Mutex<Child>>) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        std::thread::spawn(move || {
            let mut ended = None;
            while !theirs.over.load(Ordering::Relaxed) {
                let late = theirs.lock().is_some_and(|deadline| Instant::now() >= deadline);
                let mut child = process.lock().unwrap_or_else(PoisonError::into_inner);
                let is_dead = matches!(child.try_wait(), Ok(Some(_)));
                if ended != Some(child.id()) && (is_dead || late || check_interrupt().is_err()) {
                    if late && !is_dead {
                        theirs.timed_out.store(true, Ordering::Relaxed);
                    }
                    ended = Some(child.id());
                    end(&mut child);
                }
                drop(child);
                std::thread::sleep(EVERY);
            }
        });
        Watch { shared }
    }

    /// A cell begins; it may take `limit`.
    pub(super) fn begin(&self, limit: Option<Duration>) {
        self.shared.timed_out.store(false, Ordering::Relaxed);
        *self.shared.lock() = limit.and_then(|limit| Instant::now().checked_add(limit));
    }

    /// The cell is over; whether it was ended because its time was up.
    pub(super) fn end(&self) -> bool {
        *self.shared.lock() = None;
        self.shared.timed_out.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the process and what it has started: a grandchild that lives on holds the pipes, and evcxr would wait for it.
pub(super) fn end(child: &mut Child) {
    // It may have ended by itself, from the same Ctrl-C.
    let _ = child.kill();
    // SAFETY: kill only sends a signal. The child made a group of its own, whose number stays taken as long as a member
    // lives; without one, nothing happens.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}
