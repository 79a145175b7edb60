//! What a connection has done: requests by kind and by how long they took, bytes, errors.
//!
//! One thread counts, others read. A reader may see a request's bytes before its time, never half a number.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::connection::Nanos;
use crate::wire::command;

/// Kinds of requests that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `READ`.
    Read,
    /// `WRITE`.
    Write,
    /// `FLUSH`.
    Flush,
    /// `TRIM` and `WRITE_ZEROES`.
    Zero,
    /// `CACHE`, `BLOCK_STATUS`, and what is no command.
    Other,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Zero, Self::Other];

    /// Of a command's number.
    #[must_use]
    pub fn of(number: u16) -> Self {
        match number {
            command::READ => Self::Read,
            command::WRITE => Self::Write,
            command::FLUSH => Self::Flush,
            command::TRIM | command::WRITE_ZEROES => Self::Zero,
            _ => Self::Other,
        }
    }

    /// What it is called in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Zero => "zero",
            Self::Other => "other",
        }
    }
}

/// Upper bounds of the classes of time, microseconds, each the double of the last; what took longer than the last
/// (16 s) is behind them.
pub const BUCKETS_US: [u64; 21] = {
    let mut bounds = [0; 21];
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = 16 << at;
        at += 1;
    }
    bounds
};

/// See the module.
#[derive(Debug, Default)]
pub struct Meter {
    times: [Times; Class::ALL.len()],
    errors: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Times {
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

/// Only the thread that serves the connection counts, so nothing is lost between the two halves, and no bus is locked.
fn count(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl Meter {
    /// Counts a request whose reply was handed to the socket; `result`: its bytes, read or written. Only for the thread
    /// that serves the connection.
    pub fn answered(&self, class: Class, came: Nanos, now: Nanos, result: Result<u64, ()>) {
        let us = now.0.saturating_sub(came.0) / 1000;
        let times = &self.times[class as usize];
        count(&times.buckets[bucket(us)], 1);
        count(&times.sum_us, us);
        match (class, result) {
            (Class::Read, Ok(bytes)) => count(&self.read_bytes, bytes),
            (Class::Write, Ok(bytes)) => count(&self.written_bytes, bytes),
            (_, Err(())) => count(&self.errors, 1),
            _ => {}
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            latencies: self.times.each_ref().map(|times| Latency {
                buckets: times.buckets.each_ref().map(load),
                sum_us: load(&times.sum_us),
            }),
            errors: load(&self.errors),
            read_bytes: load(&self.read_bytes),
            written_bytes: load(&self.written_bytes),
        }
    }
}

/// The first bound that is not below `us`.
fn bucket(us: u64) -> usize {
    match us {
        0..=16 => 0,
        _ => (u64::BITS - ((us - 1) >> 4).leading_zeros()).min(BUCKETS_US.len() as u32) as usize,
    }
}

/// How long requests of one kind took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many took so long: up to the bound of the same place in [`BUCKETS_US`], and more than the one before it.
    pub buckets: [u64; BUCKETS_US.len() + 1],
    /// All their times.
    pub sum_us: u64,
}

impl Latency {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By [`Class`], from when a request's last byte had come to when its reply was handed to the socket.
    pub latencies: [Latency; Class::ALL.len()],
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
}

impl Counts {
    /// Requests that were answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.latencies.iter().map(Latency::count).sum()
    }

    /// Adds what somebody else has done.
    pub fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            for (ours, theirs) in ours.buckets.iter_mut().zip(theirs.buckets) {
                *ours += theirs;
            }
            ours.sum_us += theirs.sum_us;
        }
        self.errors += other.errors;
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_below_the_first_bound_that_holds_it() {
        for us in (0..100).chain([1023, 1024, 1025, 16_777_215, 16_777_216, 16_777_217, u64::MAX]) {
            let expected = BUCKETS_US.iter().position(|&bound| us <= bound).unwrap_or(BUCKETS_US.len());
            assert_eq!(bucket(us), expected, "{us}");
        }
        assert_eq!(BUCKETS_US[20], 16_777_216);
    }

    #[test]
    fn errors_have_a_time_and_no_bytes() {
        let meter = Meter::default();
        meter.answered(Class::Read, Nanos(1_000_000), Nanos(1_040_000), Ok(512));
        meter.answered(Class::Read, Nanos(5), Nanos(3), Err(()));
        let counts = meter.counts();
        let read = &counts.latencies[Class::Read as usize];
        assert_eq!((read.buckets[0], read.buckets[2], read.sum_us), (1, 1, 40));
        assert_eq!((counts.read_bytes, counts.errors, counts.requests()), (512, 1, 2));
    }
}
