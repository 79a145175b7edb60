//! The hash of a snapshot of which no value is recorded, beside `b3sum --num-threads 1` over a file with the same bytes.
//!
//! The hash is asked for right after the snapshot was taken: nothing has hashed it in the background before. Volume and
//! file are in the page cache, and nothing is dirty. Both must say the same.

use std::fs::File;
use std::path::Path;

use super::content::{Layout, Plain};
use super::first_copy::{SPEED, VOLUME};
use super::host::Host;
use super::meter::{Cost, measure};
use super::wire::Wire;
use super::{Bench, CPU, MIB, WALL};
use crate::plan::{find_in_path, target_dir};
use crate::store::room::text_of;
use crate::trouble::{OrTrouble, Trouble};

/// Name of the step.
pub const NAME: &str = "hashing";
/// Ours.
pub const SUBJECT: &str = "blockctl snapshot hash";
const B3SUM: &str = "b3sum --num-threads 1";
const CRATE: &str = "the crate blake3, one thread";
/// Our speed by the other's, by the clock.
pub const RATIO: &str = "speed, times";
/// The same by processor time.
pub const CPU_RATIO: &str = "speed by processor time, times";
const NEXT: &str = "report it, with this text";

/// Measures all rounds.
///
/// # Errors
/// Something failed, the hashes differ, or somebody asked to stop.
pub fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    let wire = Wire::new(bench.room, bench.recorder)?;
    let b3sum = find_b3sum();
    if b3sum.is_none() {
        bench.recorder.note(format!("no b3sum: {CRATE} is measured instead"));
    }
    let other = if b3sum.is_some() { B3SUM } else { CRATE };
    for round in 1..=bench.plan.runs {
        one(bench, &wire, b3sum.as_deref(), other, round)?;
    }
    // Slower is more seconds: the other's by ours.
    bench.put_ratios(NAME, (SUBJECT, RATIO), (other, WALL), (SUBJECT, WALL));
    bench.put_ratios(NAME, (SUBJECT, CPU_RATIO), (other, CPU), (SUBJECT, CPU));
    Ok(())
}

fn one(
    bench: &mut Bench<'_>,
    wire: &Wire,
    b3sum: Option<&str>,
    other: &str,
    round: u32,
) -> Result<(), Trouble> {
    let (room, bytes) = (bench.room, bench.plan.bytes);
    let (layout, path) = (Layout::contiguous(bytes), room.new_image("raw"));
    let host = Host::start(bench, wire, "A", bytes * 2)?;
    layout.fill(&mut host.create_volume(room, VOLUME, bytes)?, round.into(), room.interrupt)?;
    layout.fill(&mut Plain::open(&path)?, round.into(), room.interrupt)?;
    bench.settle()?;
    let snapshot = format!("{VOLUME}@s");
    host.ctl(room, &["snapshot", "create", &snapshot])?;
    let (ours, cost) = measure(wire, || host.ctl(room, &["snapshot", "hash", &snapshot]))?;
    put(bench, SUBJECT, round, &cost);
    let (theirs, cost) = measure(wire, || match b3sum {
        Some(b3sum) => room.run(&[b3sum, "--num-threads", "1", &text_of(&path)]),
        None => hash_file(&path),
    })?;
    put(bench, other, round, &cost);
    std::fs::remove_file(&path).or_trouble(|| format!("remove {}", path.display()), "remove it")?;
    host.end()?;
    let [ours, theirs] = [&ours, &theirs].map(|said| hash_in(said));
    if ours == theirs {
        return Ok(());
    }
    Err(Trouble::new("hash a snapshot", format!("it is {ours}, and {theirs} by {other}"), NEXT))
}

/// The hash in what a program has said: the first word of the last line, for progress comes before.
fn hash_in(said: &str) -> &str {
    said.lines().last().and_then(|line| line.split_whitespace().next()).unwrap_or_default()
}

fn put(bench: &mut Bench<'_>, subject: &str, round: u32, cost: &Cost) {
    bench.put(NAME, subject, WALL, round, cost.wall.as_secs_f64());
    bench.put(NAME, subject, SPEED, round, bench.plan.bytes as f64 / MIB / cost.wall.as_secs_f64());
    bench.put(NAME, subject, CPU, round, cost.cpu.as_secs_f64());
}

/// In `PATH`, or where `cargo install --root` with cargo's target directory puts tools.
pub(crate) fn find_b3sum() -> Option<String> {
    let own = target_dir().join("tools/bin/b3sum");
    let found = find_in_path("b3sum").or_else(|| own.is_file().then_some(own));
    found.map(|path| text_of(&path))
}

fn hash_file(path: &Path) -> Result<String, Trouble> {
    let what = || format!("hash {}", path.display());
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).or_trouble(what, NEXT)?;
    hasher.update_reader(file).or_trouble(what, NEXT)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_comes_after_progress() {
        assert_eq!(hash_in("hashing\nab12  v@s\n"), "ab12");
        assert_eq!(hash_in("ab12  a file\n"), "ab12");
        assert_eq!(hash_in(""), "");
    }
}
