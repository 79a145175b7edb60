//! Eight volumes, each with a light writer and a job of its own every second: how old their copies get.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::content::{BLOCK, Layout, Sink};
use super::host::{Pair, TARGET};
use super::wire::Wire;
use super::{Bench, OURS};
use crate::store::record::Key;
use crate::trouble::Trouble;

/// Name of the step.
pub const NAME: &str = "schedule";
/// The longest lag that `job list` has reported.
pub const LONGEST: &str = "longest lag, s";
/// How many runs a job has ended, by the seconds that were watched.
pub const RUNS: &str = "runs a second and job";
/// The median of all looks at all jobs.
pub const MEDIAN: &str = "lag, s";
/// Processor time by time.
pub const BUSY: &str = "% of one processor";
/// The jobs together.
pub const SUBJECT: &str = "8 jobs, every 1s";
const JOBS: u32 = 8;
/// Pause between two writes of a writer: five a second, without a flush, as a quiet guest does.
const WRITE_EVERY: Duration = Duration::from_millis(200);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Until each job has a point, and then until those that came late have caught up.
const POINTS_WITHIN: Duration = Duration::from_secs(120);
const CATCH_UP: Duration = Duration::from_secs(5);

/// Watches the jobs.
///
/// # Errors
/// Something failed, a job among it, or somebody asked to stop.
pub fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    let wire = Wire::new(bench.room, bench.recorder)?;
    let bytes = bench.plan.scheduled_bytes;
    let pair = Pair::start(bench, &wire, bytes * u64::from(JOBS) * 4)?;
    let mut volumes = Vec::new();
    for (name, seed) in (1..=JOBS).map(|number| (format!("v{number}"), number)) {
        let mut volume = pair.source.create_volume(bench.room, &name, bytes)?;
        Layout::contiguous(bytes).fill(&mut volume, seed.into(), bench.room.interrupt)?;
        volumes.push((name, volume));
    }
    bench.settle()?;
    for (name, _) in &volumes {
        pair.source.ctl(bench.room, &["sync", name, "--to", TARGET, "--every", "1s"])?;
    }
    let done = AtomicBool::new(false);
    let is_done = &done;
    let watched = thread::scope(|scope| {
        let writers: Vec<_> = (0..)
            .zip(&mut volumes)
            .map(|(seed, (_, volume))| scope.spawn(move || write(volume, bytes, seed, is_done)))
            .collect();
        let watched = watch(bench, &pair);
        done.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))?;
        watched
    })?;
    put(bench, &watched);
    pair.end()
}

/// Writes until it is told to stop.
fn write(volume: &mut dyn Sink, bytes: u64, seed: u64, done: &AtomicBool) -> Result<(), Trouble> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut data = [0; BLOCK as usize];
    while !done.load(Ordering::Relaxed) {
        random.fill(&mut data);
        volume.put(random.u64(0..bytes / BLOCK) * BLOCK, &data)?;
        thread::sleep(WRITE_EVERY);
    }
    Ok(())
}

/// One look at all jobs.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    /// The lag of each job that has a point, seconds.
    lags: Vec<f64>,
    /// Runs so far, of all jobs.
    runs: u64,
    failed: u64,
}

struct Watched {
    lags: Vec<f64>,
    longest: f64,
    runs_a_second: f64,
    /// Processor time by time, of the source and the target.
    busy: [f64; 2],
}

fn watch(bench: &Bench<'_>, pair: &Pair) -> Result<Watched, Trouble> {
    let until = Instant::now() + POINTS_WITHIN;
    while look(bench, pair)?.lags.len() < JOBS as usize {
        if Instant::now() > until {
            return Err(Trouble::new(
                "bring each job to its first point",
                "it takes too long",
                "look at blockd's log",
            ));
        }
        bench.room.pause(SAMPLE_EVERY)?;
    }
    bench.room.pause(CATCH_UP)?;
    let cpu = || Ok::<_, Trouble>([pair.source.cpu_spent()?, pair.target.cpu_spent()?]);
    let (first, before, begun) = (look(bench, pair)?, cpu()?, Instant::now());
    let (mut last, mut lags) = (first.clone(), Vec::new());
    while begun.elapsed() < bench.plan.watch {
        bench.room.pause(SAMPLE_EVERY)?;
        last = look(bench, pair)?;
        lags.extend_from_slice(&last.lags);
    }
    let (after, seconds) = (cpu()?, begun.elapsed().as_secs_f64());
    if last.failed > first.failed {
        let why = format!("{} runs failed", last.failed - first.failed);
        return Err(Trouble::new("run jobs every second", why, "look at blockd's log"));
    }
    let busy = [0, 1].map(|end| (after[end].saturating_sub(before[end])).as_secs_f64() / seconds * 100.0);
    let longest = lags.iter().copied().fold(0.0, f64::max);
    let runs_a_second = (last.runs - first.runs) as f64 / seconds / f64::from(JOBS);
    Ok(Watched { lags, longest, runs_a_second, busy })
}

fn look(bench: &Bench<'_>, pair: &Pair) -> Result<Sample, Trouble> {
    let listed = pair.source.json(bench.room, &["job", "list"])?;
    sample(&listed).ok_or_else(|| Trouble::new("list jobs", "the list is not as expected", "report it"))
}

fn sample(listed: &Value) -> Option<Sample> {
    let mut sample = Sample { lags: Vec::new(), runs: 0, failed: 0 };
    for target in listed["jobs"].as_array()?.iter().filter_map(|job| job["targets"].as_array()).flatten() {
        sample.lags.extend(target["lag_ms"].as_u64().map(|ms| ms as f64 / 1000.0));
        sample.runs += target["totals"]["runs"].as_u64()?;
        sample.failed += target["totals"]["failed"].as_u64()?;
    }
    Some(sample)
}

fn put(bench: &mut Bench<'_>, watched: &Watched) {
    let subject = SUBJECT;
    bench.put(NAME, subject, LONGEST, 1, watched.longest);
    let key = Key { scenario: NAME, subject: subject.into(), measure: MEDIAN.into(), unit: "s" };
    bench.recorder.put_all(key, &watched.lags);
    bench.put(NAME, subject, RUNS, 1, watched.runs_a_second);
    for (end, busy) in ["source", "target"].into_iter().zip(watched.busy) {
        bench.put(NAME, &format!("{OURS}, {end}"), BUSY, 1, busy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_job_without_a_point_has_no_lag() {
        let target = |lag: Value| json!({ "to": "B", "lag_ms": lag, "totals": { "runs": 3, "failed": 1 } });
        let listed =
            json!({ "jobs": [{ "targets": [target(json!(1500))] }, { "targets": [target(Value::Null)] }] });
        assert_eq!(sample(&listed), Some(Sample { lags: vec![1.5], runs: 6, failed: 2 }));
        assert_eq!(sample(&json!({ "jobs": [{ "targets": [{ "lag_ms": 1 }] }] })), None);
    }
}
