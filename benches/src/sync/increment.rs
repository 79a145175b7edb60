//! What it costs to bring a copy up to date after 1 % of the blocks were changed at random.
//!
//! Ours first, then the peers that work on files, then btrfs: side by side in one run, but not in turns, for the copies
//! of all of them would take four times the space. Rounds are compared with rounds of the same number.

use super::content::{BLOCK, Layout};
use super::first_copy::{VOLUME, filled_pair};
use super::host::{Pair, TARGET};
use super::meter::measure;
use super::wire::Wire;
use super::{Bench, CPU, CPU_SOURCE, CPU_TARGET, OURS, WALL, btrfs, files};
use crate::trouble::Trouble;

/// Name of the step.
pub const NAME: &str = "increment";
/// What the run says of itself, by what was changed.
pub const TOLD_X: &str = "told / changed";
/// A peer's time by ours.
pub const TIMES: &str = "times blockd's";
/// The same of processor time, which other work on the machine changes less.
pub const CPU_TIMES: &str = "processor, times blockd's";
/// Seed of the first round's changes, apart from that of the content.
const SEED: u64 = 1000;

/// Measures peers of one kind.
type Peer = fn(&mut Bench<'_>, &Wire) -> Result<(), Trouble>;

/// Measures ours and all peers that are there.
///
/// # Errors
/// Ours failed, or somebody asked to stop; what fails of peers is on record.
pub fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    let wire = Wire::new(bench.room, bench.recorder)?;
    ours(bench, &wire)?;
    let peers: [(&str, Peer); 2] = [(files::SUBJECT, files::run), (btrfs::SUBJECT, btrfs::run)];
    for (subject, peer) in peers {
        if let Err(trouble) = peer(bench, &wire) {
            bench.room.interrupt.check()?;
            bench.recorder.fail(NAME, subject, &trouble);
        }
    }
    for peer in [files::ALL.as_slice(), &[btrfs::SUBJECT]].concat() {
        bench.put_ratios(NAME, (peer, TIMES), (peer, WALL), (OURS, WALL));
        bench.put_ratios(NAME, (peer, CPU_TIMES), (peer, CPU), (OURS, CPU));
    }
    Ok(())
}

/// Where the blocks of a round's changes come from.
pub(super) fn seed(round: u32) -> u64 {
    SEED + u64::from(round)
}

fn ours(bench: &mut Bench<'_>, wire: &Wire) -> Result<(), Trouble> {
    let pair = filled_pair(bench, wire, 1)?;
    pair.sync(bench.room, VOLUME)?;
    for round in 1..=bench.plan.runs {
        let layout = Layout::contiguous(bench.plan.bytes);
        one(bench, wire, &pair, (NAME, OURS, VOLUME), layout, round)?;
    }
    // What is there is read again and compared with its hashes; the root was compared in each run.
    pair.target.ctl(bench.room, &["replica", "verify", VOLUME])?;
    pair.end()
}

/// Changes blocks of a volume and brings them to the target.
///
/// # Errors
/// It fails, tells of other changes than were made, or somebody asked to stop.
pub(super) fn one(
    bench: &mut Bench<'_>,
    wire: &Wire,
    pair: &Pair,
    (step, subject, volume): (&'static str, &str, &str),
    layout: Layout,
    round: u32,
) -> Result<(), Trouble> {
    let (room, changes) = (bench.room, bench.plan.changes());
    layout.change(&mut pair.source.open(volume)?, changes, seed(round), room.interrupt)?;
    bench.settle()?;
    let cpu = || Ok::<_, Trouble>([pair.source.cpu_spent()?, pair.target.cpu_spent()?]);
    let before = cpu()?;
    let ((), cost) = measure(wire, || pair.sync(room, volume))?;
    let after = cpu()?;
    let (told, changed) = (pair.told(room, volume)?, changes * BLOCK);
    if told.changed != changed {
        let why = format!("{} bytes differ, {changed} were written", told.changed);
        return Err(Trouble::new(format!("sync {volume} to {TARGET}"), why, "report it, with this text"));
    }
    bench.put_cost(step, subject, round, &cost, Some(changed));
    bench.put(step, subject, TOLD_X, round, told.sent as f64 / changed as f64);
    for (measure, end) in [(CPU_SOURCE, 0), (CPU_TARGET, 1)] {
        bench.put(step, subject, measure, round, after[end].saturating_sub(before[end]).as_secs_f64());
    }
    Ok(())
}
