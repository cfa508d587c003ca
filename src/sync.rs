//! Locks that outlive a panic, and a pool of threads for work that waits.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after a thread that held it has panicked: every value that is locked here is whole between two
/// statements.
pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The value of `mutex`, also after a thread that held it has panicked.
pub fn unlocked<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `work` with the index of every item and the item, on `threads` threads that each take the next one. After a failure
/// none is begun, and the flag that `work` is given is set. Results come with their indices, in the order of time.
pub(crate) fn on_threads<T: Sync, R: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(usize, &T, &AtomicBool) -> Result<R, E> + Sync,
) -> Vec<(usize, Result<R, E>)> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = work(at, item, &failed);
                    let fails = result.is_err();
                    // Before the others may fail because of this one.
                    locked(&results).push((at, result));
                    failed.fetch_or(fails, Ordering::Relaxed);
                }
            });
        }
    });
    unlocked(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_ends_the_pool() {
        let items: Vec<usize> = (0..100).collect();
        let mut results = on_threads(&items, 4, |at, &item, _| Ok::<_, ()>(at + item));
        results.sort_by_key(|&(at, _)| at);
        assert!(results.iter().map(|(_, sum)| *sum).eq((0..100).map(|at| Ok(2 * at))));
        let results = on_threads(&items, 1, |_, &item, _| if item == 3 { Err(item) } else { Ok(()) });
        assert_eq!(results.len(), 4);
        assert_eq!(results[3], (3, Err(3)));
        assert!(on_threads(&[(); 0], 4, |_, (), _| Ok::<(), ()>(())).is_empty());
    }
}
