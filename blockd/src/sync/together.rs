//! One reading for several targets: batches that sessions of the same snapshot over the same base need are read,
//! hashed and packed once.
//!
//! ```text
//!  session to B ─ wants from 0 ─► read ─► kept ─► from 17 ─► read ─► kept …
//!  session to C ─ wants from 0 ──────────► taken ─► from 17 ─ waits for B's reading ─► taken …
//! ```
//!
//! Nobody waits for a slow target: the batches that are kept are few, and who comes too late reads for itself.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::reading::ReadStats;
use super::source::Read;
use crate::control::ControlError;
use crate::units::SnapshotUid;

/// Batches that are kept: twice the window, so that a target with a slower link does not lose them at once.
pub(super) const BATCHES_MAX: usize = 16;

/// Readings with the same key give the same batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// What is read.
    pub(super) snapshot: SnapshotUid,
    /// What the differences are against.
    pub(super) base: Option<SnapshotUid>,
    /// What the target may copy from: all that was offered, and the places of those that it has.
    pub(super) known: (Vec<SnapshotUid>, Vec<u16>),
    /// Data may be compressed.
    pub(super) zstd: bool,
}

/// A batch (`None`: there is nothing more), and what it took.
#[derive(Clone, Debug)]
pub(super) struct Got {
    pub(super) read: Option<Read>,
    pub(super) stats: ReadStats,
}

/// See the module. One for the runs that began together.
#[derive(Default)]
pub(super) struct SharedReads {
    state: Mutex<State>,
    /// A reading has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// The first cluster of each, and what came of it; the oldest first.
    batches: VecDeque<(Arc<Key>, u64, Got)>,
    /// Under way.
    reading: Vec<(Arc<Key>, u64)>,
}

/// Ends a reading also where it panics: the others must not wait for ever.
struct Under<'a> {
    reads: &'a SharedReads,
    key: &'a Arc<Key>,
    from: u64,
}

impl Drop for Under<'_> {
    fn drop(&mut self) {
        let is_other = |other: &(Arc<Key>, u64)| *other != (Arc::clone(self.key), self.from);
        self.reads.lock().reading.retain(is_other);
        self.reads.ended.notify_all();
    }
}

impl SharedReads {
    /// The batch that begins with that cluster: one that was kept, else what `read` gives. Whether it was kept.
    ///
    /// # Errors
    /// Those of `read`; who waited for it reads again.
    pub(super) fn batch(
        &self,
        key: &Arc<Key>,
        from: u64,
        read: impl FnOnce() -> Result<Got, ControlError>,
    ) -> Result<(Got, bool), ControlError> {
        if let Some(got) = self.take_or_begin(key, from) {
            return Ok((got, true));
        }
        let under = Under { reads: self, key, from };
        let got = read()?;
        let mut state = self.lock();
        if state.batches.len() == BATCHES_MAX {
            state.batches.pop_front();
        }
        state.batches.push_back((Arc::clone(key), from, got.clone()));
        drop(state);
        drop(under);
        Ok((got, false))
    }

    /// `None`: it is the caller's turn to read it.
    fn take_or_begin(&self, key: &Arc<Key>, from: u64) -> Option<Got> {
        let mut state = self.lock();
        loop {
            if let Some((.., got)) = state.batches.iter().find(|(of, first, _)| of == key && *first == from) {
                return Some(got.clone());
            }
            if !state.reading.iter().any(|(of, first)| of == key && *first == from) {
                state.reading.push((Arc::clone(key), from));
                return None;
            }
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is behind it is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use crate::control::ErrorKind;

    fn key(zstd: bool) -> Arc<Key> {
        Arc::new(Key { snapshot: SnapshotUid([7; 16]), base: None, known: Default::default(), zstd })
    }

    fn got(cursor: u64) -> Got {
        Got { read: Some(Read { cursor, data_bytes: 1, batch: vec![1] }), stats: ReadStats::default() }
    }

    #[test]
    fn sessions_in_step_read_once_and_one_that_is_late_reads_itself() {
        let (reads, count) = (SharedReads::default(), AtomicUsize::new(0));
        let read = |key: &Arc<Key>, from: u64| {
            let own = || {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(got(from + 1))
            };
            let (got, shared) = reads.batch(key, from, own).unwrap();
            assert_eq!(got.read.unwrap().cursor, from + 1);
            shared
        };
        let (plain, zstd) = (key(false), key(true));
        let kept = BATCHES_MAX as u64;
        for from in 0..2 * kept {
            assert!(!read(&plain, from));
            assert!(read(&plain, from), "the other session");
        }
        assert_eq!(count.load(Ordering::Relaxed), 2 * BATCHES_MAX);
        assert!(read(&plain, kept), "half of them behind");
        assert!(!read(&plain, 0), "too late");
        assert!(!read(&zstd, 2 * kept - 1), "other batches");
    }

    #[test]
    fn a_session_waits_for_the_reading_of_another_and_reads_when_that_fails() {
        let (reads, key) = (SharedReads::default(), key(false));
        let (begun, wait) = std::sync::mpsc::channel();
        let (go, told) = std::sync::mpsc::channel::<()>();
        thread::scope(|scope| {
            let (reads, key) = (&reads, &key);
            let failing = scope.spawn(move || {
                reads.batch(key, 5, || {
                    begun.send(()).unwrap();
                    told.recv().unwrap();
                    Err(ControlError::new(ErrorKind::Io, "unreadable"))
                })
            });
            wait.recv().unwrap();
            let waiting = scope.spawn(|| reads.batch(key, 5, || Ok(got(9))));
            let other = reads.batch(key, 6, || Ok(got(7))).unwrap();
            assert!(!other.1, "who needs something else does not wait");
            go.send(()).unwrap();
            assert!(failing.join().unwrap().is_err());
            let (found, shared) = waiting.join().unwrap().unwrap();
            assert_eq!((found.read.unwrap().cursor, shared), (9, false));
        });
    }

    #[test]
    fn a_reading_that_panics_holds_nobody_up() {
        let (reads, key) = (SharedReads::default(), key(false));
        let panicking = || reads.batch(&key, 0, || panic!("as the test says"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).is_err());
        assert!(!reads.batch(&key, 0, || Ok(got(1))).unwrap().1);
    }
}
