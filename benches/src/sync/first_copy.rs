//! The first copy of a whole volume over TLS, beside what bounds it: one thread's BLAKE3 in memory, and writing the same
//! bytes to the same disk.
//!
//! Both hosts are new in each round: no hash is recorded, no space in the pools was ever written.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use super::content::Layout;
use super::host::Pair;
use super::meter::measure;
use super::wire::Wire;
use super::{Bench, CPU_SOURCE, CPU_TARGET, MIB, OURS};
use crate::trouble::{OrTrouble, Trouble};

/// Name of the step.
pub const NAME: &str = "first-copy";
/// MiB of the volume a second.
pub const SPEED: &str = "MiB/s";
/// The rows of the bounds.
pub const HASH: &str = "BLAKE3, one thread, in memory";
/// See [`HASH`].
pub const RAW: &str = "raw sequential write, fsync";
/// By the slower of both, of the same round.
pub const RATIO: &str = "slower bound, times";
/// Bytes that stay in memory to be hashed and written again and again.
const BUFFER: usize = 64 << 20;
const PIECE: usize = 1 << 20;
/// Bytes that are hashed.
const HASHED: usize = 1 << 30;
pub(super) const VOLUME: &str = "v";

/// Measures all rounds.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    let wire = Wire::new(bench.room, bench.recorder)?;
    for round in 1..=bench.plan.runs {
        let raw = raw_speed(bench)?;
        let hash = hash_speed();
        let ours = copy(bench, &wire, round)?;
        bench.put(NAME, RAW, SPEED, round, raw);
        bench.put(NAME, HASH, SPEED, round, hash);
        bench.put(NAME, OURS, SPEED, round, ours);
        bench.put(NAME, OURS, RATIO, round, ours / raw.min(hash));
    }
    Ok(())
}

fn copy(bench: &mut Bench<'_>, wire: &Wire, round: u32) -> Result<f64, Trouble> {
    let pair = filled_pair(bench, wire, round.into())?;
    let cpu = || Ok::<_, Trouble>([pair.source.cpu_spent()?, pair.target.cpu_spent()?]);
    let before = cpu()?;
    let room = bench.room;
    let ((), cost) = measure(wire, || pair.sync(room, VOLUME))?;
    let after = cpu()?;
    bench.put_cost(NAME, OURS, round, &cost, Some(bench.plan.bytes));
    for (measure, end) in [(CPU_SOURCE, 0), (CPU_TARGET, 1)] {
        bench.put(NAME, OURS, measure, round, after[end].saturating_sub(before[end]).as_secs_f64());
    }
    pair.end()?;
    Ok(bench.plan.bytes as f64 / MIB / cost.wall.as_secs_f64())
}

/// Two new hosts; the source has a volume, all of it written.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub(super) fn filled_pair(bench: &Bench<'_>, wire: &Wire, seed: u64) -> Result<Pair, Trouble> {
    let bytes = bench.plan.bytes;
    let pair = Pair::start(bench, wire, bytes * 4)?;
    let mut volume = pair.source.create_volume(bench.room, VOLUME, bytes)?;
    Layout::contiguous(bytes).fill(&mut volume, seed, bench.room.interrupt)?;
    bench.settle()?;
    Ok(pair)
}

/// MiB a second of one thread's BLAKE3 over memory.
fn hash_speed() -> f64 {
    let buffer = random_bytes();
    let begun = Instant::now();
    let mut hasher = blake3::Hasher::new();
    for _ in 0..HASHED / BUFFER {
        for piece in buffer.chunks(PIECE) {
            hasher.update(piece);
        }
    }
    black_box(hasher.finalize());
    HASHED as f64 / MIB / begun.elapsed().as_secs_f64()
}

/// MiB a second of as many bytes written to a new file one after the other, the fsync at the end included: what
/// `dd bs=1M conv=fsync` does.
fn raw_speed(bench: &Bench<'_>) -> Result<f64, Trouble> {
    let path = bench.room.new_image("raw");
    let what = || format!("write {}", path.display());
    let next = "choose another place with --dir, or a smaller --size";
    let buffer = random_bytes();
    bench.settle()?;
    let begun = Instant::now();
    let mut file = File::create(&path).or_trouble(what, next)?;
    for piece in buffer.chunks(PIECE).cycle().take((bench.plan.bytes as usize) / PIECE) {
        bench.room.interrupt.check()?;
        file.write_all(piece).or_trouble(what, next)?;
    }
    file.sync_all().or_trouble(what, next)?;
    let took = begun.elapsed();
    fs::remove_file(&path).or_trouble(|| format!("remove {}", path.display()), next)?;
    Ok(bench.plan.bytes as f64 / MIB / took.as_secs_f64())
}

fn random_bytes() -> Vec<u8> {
    let mut buffer = vec![0; BUFFER];
    fastrand::Rng::with_seed(1).fill(&mut buffer);
    buffer
}
