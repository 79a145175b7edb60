//! A volume once it is allocated, beside a plain file and the peers: the jobs of the comparison.

use std::time::Duration;

use super::disks::Disk;
use super::record::{Key, Recorder};
use super::room::{Room, Served};
use crate::fio::Aim;
use crate::jobs::{
    self, Job, RANDREAD_QD1, RANDREAD_QD64, RANDWRITE_QD1, RANDWRITE_QD64, READ_256K, WRITE_256K,
};
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "steady";
/// The disk that a volume is measured by.
pub const BASE: &str = "plain-file";
/// Key of the ratio with it.
pub const RATIO: &str = "volume / plain-file";
/// What is run: few jobs, because a volume is beside the servers' peers in all of them.
pub const JOBS: [&str; 6] =
    [RANDREAD_QD64, RANDWRITE_QD64, RANDREAD_QD1, RANDWRITE_QD1, READ_256K, WRITE_256K];

/// Runs [`JOBS`] on every disk, disk by disk within a round.
///
/// # Errors
/// Somebody asked to stop. What fails otherwise is recorded.
pub fn run(
    room: &Room<'_>,
    recorder: &mut Recorder,
    disks: &mut [Box<dyn Disk + '_>],
) -> Result<(), Trouble> {
    let mut ready: Vec<(&'static str, Served)> = Vec::new();
    for disk in disks.iter_mut() {
        match disk.whole(room) {
            Ok(served) => ready.push((disk.name(), served)),
            Err(trouble) => recorder.fail(NAME, disk.name(), &trouble),
        }
        room.interrupt.check()?;
    }
    for job in JOBS.iter().filter_map(|name| jobs::find(name)) {
        for round in 1..=room.plan.rounds {
            run_round(room, recorder, &ready, job, round)?;
        }
        let key = Key { scenario: NAME, subject: RATIO.into(), measure: job.name.into(), unit: "x" };
        recorder.put_ratios(&key, ("volume", job.name), (BASE, job.name));
    }
    drop(ready);
    disks.iter_mut().try_for_each(|disk| disk.discard(room))
}

fn run_round(
    room: &Room<'_>,
    recorder: &mut Recorder,
    ready: &[(&'static str, Served)],
    job: &Job,
    round: u32,
) -> Result<(), Trouble> {
    for (name, served) in ready {
        match measure(room, served, job) {
            Ok(iops) => {
                let (subject, measure) = ((*name).to_owned(), job.name.to_owned());
                recorder.put(Key { scenario: NAME, subject, measure, unit: "IOPS" }, round, iops);
            }
            Err(trouble) => recorder.fail(NAME, name, &trouble),
        }
        room.interrupt.check()?;
    }
    Ok(())
}

fn measure(room: &Room<'_>, served: &Served, job: &Job) -> Result<f64, Trouble> {
    room.flush(&served.uri)?;
    room.pause(Duration::from_millis(100))?;
    Ok(room.fio().run(job, Aim::Uri(&served.uri), room.plan.runtime_s)?.iops)
}
