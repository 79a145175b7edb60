//! A large store, completely mapped: its memory, its idle daemon, and how soon it serves after a stop and a kill.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::calls;
use super::daemon::{Daemon, Memory};
use super::made::{self, Lies, Made};
use super::paced;
use super::record::{Key, Recorder};
use super::room::{Room, Served, text_of, words};
use crate::fio::uri;
use crate::image::{CacheDrop, drop_caches};
use crate::options::format_size;
use crate::process::READY_WITHIN;
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "full-store";
/// Memory a TiB mapped, less that of an empty store's daemon; after each kind of start.
pub const RESIDENT: [(Stop, &str); 2] = [
    (Stop::Clean, "resident a TiB beyond an empty store, after a clean stop"),
    (Stop::Kill, "resident a TiB beyond an empty store, after kill -9"),
];
/// CPU of the idle daemon.
pub const IDLE: &str = "CPU of the idle daemon, a client connected";
/// Starts: how it was stopped, and whether the page cache was dropped.
pub const STARTS: [(&str, Stop, Cache); 4] = [
    ("first read after a clean stop", Stop::Clean, Cache::Kept),
    ("first read after a clean stop, cold", Stop::Clean, Cache::Dropped),
    ("first read after kill -9", Stop::Kill, Cache::Kept),
    ("first read after kill -9, cold", Stop::Kill, Cache::Dropped),
];
const VOLUME: &str = "full";
/// Blocks written before a stop: the store has news that no checkpoint of before knows.
const NEWS_BLOCKS: u64 = 2000;

/// How the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// By SIGTERM.
    Clean,
    /// By SIGKILL, with requests that nobody flushed.
    Kill,
}

/// Whether the page cache outlived it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// As after an end of the process alone.
    Kept,
    /// As after a boot.
    Dropped,
}

/// How a size is called in the report.
pub fn subject(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 40) {
        format!("{} TiB", bytes >> 40)
    } else {
        format!("{}iB", format_size(bytes).replace('G', " G").replace('M', " M"))
    }
}

/// Makes the store and measures all of it.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub fn run(room: &Room<'_>, recorder: &mut Recorder) -> Result<(), Trouble> {
    let store = Full::make(room)?;
    let empty = empty_memory(room)?;
    let (mut daemon, first) = store.start(room)?;
    store.put(recorder, "first read of a store just made", "s", 1, first.as_secs_f64());
    for round in 1..=room.plan.rounds {
        for (measure, stop, cache) in STARTS {
            let took;
            (daemon, took) = store.restart(room, recorder, daemon, stop, cache)?;
            store.put(recorder, measure, "s", round, took.as_secs_f64());
            // Warm starts alone: of the others the same comes out.
            if cache == Cache::Kept {
                store.put_memory(recorder, round, stop, daemon.memory()?, empty);
            }
        }
    }
    store.measure_idle(room, recorder, &daemon)?;
    calls::run(room, recorder, &daemon, VOLUME, &store.subject)?;
    paced::run(room, recorder, &daemon, (VOLUME, &store.subject), &[paced::DEEP])?;
    daemon.stop()
}

/// The memory of a daemon that has nothing to serve.
///
/// # Errors
/// It does not start or end.
pub fn empty_memory(room: &Room<'_>) -> Result<Memory, Trouble> {
    let daemon = Daemon::start(room, &room.new_image("empty"))?;
    let memory = daemon.memory()?;
    daemon.stop()?;
    Ok(memory)
}

struct Full {
    data: PathBuf,
    volume: Made,
    subject: String,
}

impl Full {
    fn make(room: &Room<'_>) -> Result<Self, Trouble> {
        let data = room.new_image("full");
        let volume = Made { name: VOLUME, bytes: room.plan.large_bytes, lies: Lies::InHead };
        let subject = subject(volume.bytes);
        eprintln!("making a store of {subject}, all of it mapped");
        made::make(&data, &[volume], made::SPARE_BYTES, room.interrupt)?;
        Ok(Self { data, volume, subject })
    }

    fn put(&self, recorder: &mut Recorder, measure: &str, unit: &'static str, round: u32, value: f64) {
        let (subject, measure) = (self.subject.clone(), measure.to_owned());
        recorder.put(Key { scenario: NAME, subject, measure, unit }, round, value);
    }

    /// Starts the daemon and reads one block; the time from the one to the other's answer.
    fn start(&self, room: &Room<'_>) -> Result<(Daemon, Duration), Trouble> {
        let begun = Instant::now();
        let daemon = Daemon::start(room, &self.data)?;
        room.read_block(&daemon.uri(VOLUME), self.volume.bytes / 2)?;
        Ok((daemon, begun.elapsed()))
    }

    fn restart(
        &self,
        room: &Room<'_>,
        recorder: &mut Recorder,
        daemon: Daemon,
        stop: Stop,
        cache: Cache,
    ) -> Result<(Daemon, Duration), Trouble> {
        let uri = daemon.uri(VOLUME);
        room.scatter(&uri, NEWS_BLOCKS)?;
        room.flush(&uri)?;
        room.scatter(&uri, NEWS_BLOCKS)?;
        match stop {
            Stop::Clean => daemon.stop()?,
            Stop::Kill => daemon.kill()?,
        }
        if cache == Cache::Dropped && drop_caches()? == CacheDrop::NotAllowed {
            recorder.note("the page cache could not be dropped (needs root): cold starts are warm".into());
        }
        self.start(room)
    }

    fn measure_idle(&self, room: &Room<'_>, recorder: &mut Recorder, daemon: &Daemon) -> Result<(), Trouble> {
        let _client = connect(room, &daemon.uri(VOLUME))?;
        daemon.settle(room)?;
        // What the last commit and its background work still do is no idleness.
        room.pause(Duration::from_secs(6))?;
        let (before, begun) = (daemon.cpu_spent()?, Instant::now());
        room.pause(Duration::from_secs(room.plan.idle_s.into()))?;
        let spent = daemon.cpu_spent()?.saturating_sub(before);
        let percent = 100.0 * spent.as_secs_f64() / begun.elapsed().as_secs_f64();
        self.put(recorder, IDLE, "%", 1, percent);
        Ok(())
    }

    fn put_memory(&self, recorder: &mut Recorder, round: u32, stop: Stop, full: Memory, empty: Memory) {
        let tib = self.volume.bytes as f64 / (1_u64 << 40) as f64;
        let beyond = (full.resident_mib - empty.resident_mib) / tib;
        let measures = RESIDENT.iter().filter(|(of, _)| *of == stop).map(|(_, measure)| (*measure, beyond));
        let others = [
            ("resident", full.resident_mib),
            ("of it anonymous", full.anonymous_mib),
            ("at its peak, while starting", full.peak_mib),
        ];
        let empty = ("resident, empty store", empty.resident_mib);
        let others = others.into_iter().chain([empty]).filter(|_| stop == Stop::Clean);
        for (measure, value) in measures.chain(others) {
            self.put(recorder, measure, "MiB", round, value);
        }
    }
}

/// A client that stays connected and asks nothing: a qemu-nbd that passes the export on, to nobody.
fn connect(room: &Room<'_>, export: &str) -> Result<Served, Trouble> {
    let socket: &Path = &room.new_short("nbd");
    let line = words(&["qemu-nbd", "-t", "-r", "-k", &text_of(socket), "-f", "raw", export]);
    let server = room.serve_within(READY_WITHIN, "qemu-nbd", line, socket)?;
    Ok(Served { uri: uri("", socket), server: Some(server) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_names() {
        assert_eq!(subject(1 << 40), "1 TiB");
        assert_eq!(subject(64 << 30), "64 GiB");
        assert_eq!(subject(512 << 20), "512 MiB");
    }
}
