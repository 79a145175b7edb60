//! A ring, and the table of operations that the kernel may still be working on.
//!
//! **The ownership argument.** Every operation moves its buffers into [`InFlight::ops`] before its address
//! is given to the kernel, and they leave the table only with the completion that carries the table's
//! key. There is no other way out: no cancel that returns early, no drop. A table that is dropped with
//! operations in flight leaks their buffers on purpose ([`Drop`]).
//!
//! What the kernel reads besides buffers (`msghdr`, `iovec`s) lives in a boxed [`super::message::Message`] in
//! the same table entry.

use std::io;
use std::mem::ManuallyDrop;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, squeue};
use slab::Slab;

/// An operation, with all that it lends to the kernel.
pub(super) trait Lent {
    /// Whether the kernel may touch memory of it.
    fn lends_memory(&self) -> bool;
}

/// See the module.
pub(super) struct InFlight<O: Lent> {
    ring: IoUring,
    ops: ManuallyDrop<Slab<O>>,
}

impl<O: Lent> InFlight<O> {
    /// Nothing in flight yet. One thread uses the ring: this one.
    ///
    /// # Errors
    /// The kernel refuses the ring (too old, disabled, or out of memory).
    pub(super) fn new(submission_entries: u32, completion_entries: u32) -> io::Result<Self> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completion_entries)
            .build(submission_entries)?;
        Ok(Self { ring, ops: ManuallyDrop::new(Slab::new()) })
    }

    /// For registrations.
    pub(super) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// Puts an operation into the table, then its entry into the submission queue. `prepare` sees the
    /// operation where the table has it.
    ///
    /// # Safety
    /// Every address in the entry points into memory that the operation owns and that stays where it is when the
    /// operation is moved (the table grows), or is null; and [`Lent::lends_memory`] says so. Descriptors are
    /// registered with this ring, or outlive it.
    pub(super) unsafe fn push(&mut self, op: O, prepare: impl FnOnce(&mut O) -> squeue::Entry) {
        let key = self.ops.insert(op);
        let entry = prepare(&mut self.ops[key]).user_data(key as u64);
        while self.ring.submission().is_full() {
            // Rare: a turn with more operations than entries. Nothing is lost by submitting early.
            if let Err(error) = self.ring.submit() {
                tracing::trace!(%error, "submission queue full");
            }
        }
        // SAFETY: the addresses are good as long as the entry is in the table: the caller's part. It leaves the table
        // only in `take_ended`, after the kernel has posted the completion with this key; `Drop` leaks what is left.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue had room");
    }

    /// Hands queued operations to the kernel without waiting.
    ///
    /// # Errors
    /// The kernel refuses to be entered.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        tolerate(self.ring.submit())
    }

    /// Submits and waits for a completion, or until `timeout`.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match timeout {
            None => tolerate(self.ring.submit_and_wait(1)),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                tolerate(self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec)))
            }
        }
    }

    /// Gives back every operation that has ended, with the kernel's result.
    pub(super) fn take_ended(&mut self, mut ended: impl FnMut(O, i32)) {
        for entry in self.ring.completion() {
            let key = usize::try_from(entry.user_data()).expect("a key of our table");
            ended(self.ops.remove(key), entry.result());
        }
    }

    /// Something has ended, or the kernel has work for us that will end something. No system call.
    pub(super) fn has_work(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Operations that the kernel has not given back.
    pub(super) fn len(&self) -> usize {
        self.ops.len()
    }
}

/// Being interrupted, timing out and a full completion queue are not errors of the ring: the loop comes
/// back after it has taken what has ended.
fn tolerate(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
        Ok(_) => Ok(()),
    }
}

impl<O: Lent> Drop for InFlight<O> {
    fn drop(&mut self) {
        let lent = self.ops.iter().filter(|(_, op)| op.lends_memory()).count();
        if lent == 0 {
            // SAFETY: dropped once, here; nothing uses the table afterwards. The kernel uses none of its memory: no
            // operation that lends any is left.
            unsafe { ManuallyDrop::drop(&mut self.ops) }
        } else {
            // The kernel may still write to these buffers: they are leaked, never freed early.
            tracing::warn!(operations = lent, "ring dropped with operations in flight");
        }
    }
}
