//! A file as a disk: what the disk's history allows a request to be answered with.
//!
//! A request's life is from when the server had all of it until its reply was heard. Of that time holds:
//!
//! - what a read brings, each byte of it had at some moment;
//! - what a write brings, each byte had at some moment; so had zeroes what is trimmed or zeroed;
//! - a FLUSH, or a change with FUA, has a sync of its own: begun after the request came (and after the change was made), ended
//!   well before the reply; and after a failed sync there is no success any more;
//! - an error has a fault of the disk as its cause.
//!
//! And the disk itself changes only to what somebody asks for: [`may_change`].

use fixtures::nbd::codec::{Reply, command, errno, flag};

use super::law::{Law, changes};
use super::stream::Asked;
use crate::disk::{Change, FuzzDisk};
use crate::zeroes::are_zeroes;
use crate::{Verdict, ensure};

/// The life of a request, as far as its disk can tell.
pub struct Life<'a> {
    /// The disk.
    pub disk: &'a FuzzDisk,
    /// Which of its files.
    pub file: usize,
    /// When the server had all of the request.
    pub since: u64,
}

impl Life<'_> {
    /// Compares a reply with what the disk has seen.
    ///
    /// # Errors
    /// No history of that disk allows it.
    pub fn judge(&self, asked: &Asked, payload: &[u8], law: &Law, reply: &Reply) -> Verdict {
        match &reply.result {
            Err(error) => self.judge_error(asked, *error),
            Ok(_) if law.is_nothing(asked) => Ok(()),
            Ok(data) if asked.number == command::READ => {
                ensure(self.held(asked.offset as usize, data), || {
                    format!("{asked:x?} brought what was never there")
                })
            }
            Ok(_) if asked.number == command::BLOCK_STATUS => self.judge_status(asked, law, reply),
            Ok(_) if asked.number == command::FLUSH => {
                let synced = self.disk.was_synced(self.file, self.since, self.since);
                ensure(synced, || format!("no sync for {asked:x?}"))
            }
            Ok(_) if asked.number == command::WRITE => self.judge_change(asked, payload),
            Ok(_) if changes(asked.number) => self.judge_change(asked, &vec![0; law.length as usize]),
            Ok(_) => Ok(()),
        }
    }

    fn held(&self, start: usize, bytes: &[u8]) -> bool {
        self.disk.held(self.file, start, bytes, self.since)
    }

    fn judge_change(&self, asked: &Asked, wanted: &[u8]) -> Verdict {
        let start = asked.offset as usize;
        ensure(self.held(start, wanted), || format!("{asked:x?} was not done"))?;
        if asked.flags & flag::FUA == 0 {
            return Ok(());
        }
        let done = self.disk.time_held(self.file, start, wanted, self.since);
        let durable = done.is_some_and(|done| self.disk.was_synced(self.file, done, self.since));
        ensure(durable, || format!("no sync for {asked:x?}"))
    }

    fn judge_error(&self, asked: &Asked, error: u32) -> Verdict {
        let change = changes(asked.number);
        let durable = asked.number == command::FLUSH || change && asked.flags & flag::FUA != 0;
        let failed = |since| self.disk.failed_since(self.file, error, since);
        let cause = match error {
            errno::EIO => failed(self.since) || durable && self.disk.sync_has_failed(self.file),
            errno::ENOSPC => change && failed(self.since),
            // The medium need not be asked again what it has not.
            errno::ENOTSUP => asked.flags & flag::FAST_ZERO != 0 && failed(0),
            _ => false,
        };
        ensure(cause, || format!("error {error} for {asked:x?} without a cause"))
    }

    /// What is said to be a hole has been zero.
    fn judge_status(&self, asked: &Asked, law: &Law, reply: &Reply) -> Verdict {
        let numbers: Vec<u32> = reply.status.iter().map(|status| status.context).collect();
        ensure(numbers == law.contexts, || format!("contexts {numbers:?}, not {:?}", law.contexts))?;
        let (start, end) = (asked.offset as usize, (asked.offset + law.length) as usize);
        for status in &reply.status {
            let mut at = start;
            for &(bytes, flags) in &status.extents {
                let told = || format!("{bytes} bytes with flags {flags} at {at:#x}");
                ensure(at + bytes as usize <= end && matches!(flags, 0 | 3), told)?;
                ensure(flags == 0 || self.held(at, &vec![0; bytes as usize]), told)?;
                at += bytes as usize;
            }
        }
        Ok(())
    }
}

/// Marks, with 1, the bytes of a change that this request asks for.
pub fn may_change(
    asked: &Asked,
    payload: &[u8],
    law: &Law,
    change: &Change,
    asked_for: &mut [u8],
    now: &[u8],
) {
    if !changes(asked.number) || law.refusal.is_some() {
        return;
    }
    let (start, end) = (asked.offset as usize, (asked.offset + law.length) as usize);
    let (from, to) = (start.max(change.start), end.min(change.start + change.old.len()));
    if from >= to {
        return;
    }
    let inside = from - change.start..to - change.start;
    let (now, asked_for) = (&now[inside.clone()], &mut asked_for[inside]);
    let written = (asked.number == command::WRITE).then(|| &payload[from - start..to - start]);
    if written.map_or_else(|| are_zeroes(now), |written| written == now) {
        return asked_for.fill(1);
    }
    for (at, (asked_for, now)) in asked_for.iter_mut().zip(now).enumerate() {
        *asked_for |= u8::from(*now == written.map_or(0, |written| written[at]));
    }
}
