//! What something costs: time, processor time of everything that we have started, bytes on the wire.

use std::thread;
use std::time::{Duration, Instant};

use super::wire::Wire;
use crate::cpu;
use crate::trouble::Trouble;

/// Given to a peer's processes after its end to be collected; nobody works meanwhile.
const SETTLE: Duration = Duration::from_millis(50);

/// A cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// By the clock.
    pub wall: Duration,
    /// User and system time of both ends; the kernel's own threads, which write back, are not in it.
    pub cpu: Duration,
    /// Both ways, headers included.
    pub wire_bytes: u64,
}

/// Does it, and says what it has cost.
///
/// # Errors
/// It fails, or the kernel does not say.
pub fn measure<T>(wire: &Wire, work: impl FnOnce() -> Result<T, Trouble>) -> Result<(T, Cost), Trouble> {
    let us = std::process::id();
    let (bytes, spent, begun) = (wire.bytes()?, cpu::spent_by_tree(us)?, Instant::now());
    let done = work()?;
    let wall = begun.elapsed();
    thread::sleep(SETTLE);
    let cpu = cpu::spent_by_tree(us)?.saturating_sub(spent);
    Ok((done, Cost { wall, cpu, wire_bytes: wire.bytes()?.saturating_sub(bytes) }))
}
