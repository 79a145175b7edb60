//! `blockd` under measurement: its process, its API and its exports.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blockd::api::client::{Client, ClientError};
use blockd::api::types::{DiffQuery, End};
use blockd::control::StoreStatus;
use tokio::runtime::Runtime;

use super::room::{Room, text_of, words};
use crate::fio::uri;
use crate::process::Server;
use crate::trouble::{OrTrouble, Trouble};

/// How long a start may take: after a crash all map records may have to be read.
const READY_WITHIN: Duration = Duration::from_secs(300);
/// How long a clean stop may take: it syncs the pool and writes the checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(120);
/// How long the background work after deletions may take.
const SETTLE_WITHIN: Duration = Duration::from_secs(300);
/// How long packing may take: many snapshots have as many sparse layers.
const PACK_WITHIN: Duration = Duration::from_secs(3600);
/// Packing counts as done when no byte was taken or given back for so long: the status has no word for it. It pauses
/// for a second at most, and its steps take a fraction of one.
const PACKED_AFTER: Duration = Duration::from_secs(8);
/// Pause between two looks at the background work.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const NEXT_LOG: &str = "start blockd by hand on such a store";

/// A running daemon. Dropping it stops it.
#[derive(Debug)]
pub struct Daemon {
    server: Server,
    client: Client,
    nbd: PathBuf,
    runtime: Runtime,
}

/// What the kernel says of a process's memory, MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// Resident now.
    pub resident_mib: f64,
    /// Of it not backed by a file.
    pub anonymous_mib: f64,
    /// The most that was ever resident.
    pub peak_mib: f64,
}

impl Daemon {
    /// Serves the store in `data`, which is made if there is none.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(room: &Room<'_>, data: &Path) -> Result<Self, Trouble> {
        let (nbd, api) = (room.new_short("nbd"), room.new_short("api"));
        let (blockd, data) = (text_of(&room.plan.blockd), text_of(data));
        let (nbd_text, api_text) = (text_of(&nbd), text_of(&api));
        // The size of a pool that does not exist yet.
        let line = [&blockd, "serve", "--data", &data, "--pool-size", "1GiB"];
        let line = [line.as_slice(), &["--nbd-unix", &nbd_text, "--socket", &api_text]].concat();
        let server = room.serve_within(READY_WITHIN, "blockd", words(&line), &nbd)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.or_trouble(|| "talk to blockd".into(), "raise the limits (ulimit -a)")?;
        Ok(Self { server, client: Client::new(api), nbd, runtime })
    }

    /// Where clients find a volume or snapshot.
    pub fn uri(&self, export: &str) -> String {
        uri(export, &self.nbd)
    }

    fn ask<T>(&self, what: &str, answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, Trouble> {
        self.runtime.block_on(answer).or_trouble(|| format!("{what} of blockd"), NEXT_LOG)
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// The daemon refuses; here and below.
    pub fn create_volume(&self, name: &str, bytes: u64) -> Result<(), Trouble> {
        self.ask("ask for a volume", self.client.create_volume(name, bytes))
    }

    /// Takes a snapshot and says how long the call took.
    ///
    /// # Errors
    /// As above.
    pub fn snapshot(&self, volume: &str, name: &str) -> Result<Duration, Trouble> {
        let names = [format!("{volume}@{name}")];
        let begun = Instant::now();
        self.ask("ask for a snapshot", self.client.create_snapshots(&names))?;
        Ok(begun.elapsed())
    }

    /// Deletes a snapshot; what that leaves to do goes on in the background.
    ///
    /// # Errors
    /// As above.
    pub fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), Trouble> {
        let name = format!("{volume}@{name}");
        self.ask("ask to delete a snapshot", self.client.delete_snapshot(&name))
    }

    /// The store as it is now.
    ///
    /// # Errors
    /// As above.
    pub fn store_status(&self) -> Result<StoreStatus, Trouble> {
        self.ask("ask for the status", self.client.status()).map(|status| status.store)
    }

    /// Deletes a volume with its snapshots, and waits for the work that this leaves.
    ///
    /// # Errors
    /// As above.
    pub fn delete_volume(&self, room: &Room<'_>, volume: &str) -> Result<(), Trouble> {
        self.delete_snapshots(room, volume, "")?;
        self.ask("ask to delete a volume", self.client.delete_volume(volume))?;
        self.settle(room)
    }

    /// Deletes the snapshots of a volume whose names begin so, and waits for the work that this leaves.
    ///
    /// # Errors
    /// As above.
    pub fn delete_snapshots(&self, room: &Room<'_>, volume: &str, prefix: &str) -> Result<(), Trouble> {
        let all = self.ask("ask for the snapshots", self.client.snapshots(Some(volume)))?;
        for snapshot in all.iter().filter(|snapshot| snapshot.name.starts_with(prefix)) {
            self.delete_snapshot(volume, &snapshot.name)?;
        }
        self.settle(room)
    }

    /// Waits until nothing is left to reclaim.
    ///
    /// # Errors
    /// There is no end of it, or somebody asked to stop.
    pub fn settle(&self, room: &Room<'_>) -> Result<(), Trouble> {
        let until = Instant::now() + SETTLE_WITHIN;
        loop {
            let store = self.store_status()?;
            if has_settled(&store) {
                return Ok(());
            }
            if Instant::now() > until {
                let why = format!("{} layers still to reclaim", store.layers_to_reclaim);
                return Err(Trouble::new("wait for blockd's background work", why, NEXT_LOG));
            }
            room.pause(LOOK_EVERY)?;
        }
    }

    /// Waits until the sparse layers of snapshots are packed; says how long that took.
    ///
    /// # Errors
    /// There is no end of it, or somebody asked to stop.
    pub fn wait_until_packed(&self, room: &Room<'_>) -> Result<Duration, Trouble> {
        let begun = Instant::now();
        let (mut used, mut changed) = (self.store_status()?.used_bytes, begun);
        while !(changed.elapsed() >= PACKED_AFTER && has_settled(&self.store_status()?)) {
            if begun.elapsed() > PACK_WITHIN {
                return Err(Trouble::new("wait until blockd has packed", "there is no end of it", NEXT_LOG));
            }
            room.pause(LOOK_EVERY)?;
            let now = self.store_status()?.used_bytes;
            if now != used {
                (used, changed) = (now, Instant::now());
            }
        }
        Ok(changed - begun)
    }

    /// Waits for packing if less than a third of the pool is free.
    ///
    /// # Errors
    /// As above.
    pub fn make_room(&self, room: &Room<'_>) -> Result<(), Trouble> {
        let store = self.store_status()?;
        let free = store.pool_bytes.saturating_sub(store.used_bytes);
        if free >= store.pool_bytes / 3 { Ok(()) } else { self.wait_until_packed(room).map(drop) }
    }

    /// The extents in which two snapshots of a volume differ: how many bytes, and how long the call took.
    ///
    /// # Errors
    /// As above, or the answer has no count.
    pub fn diff(&self, volume: &str, from: &str, to: &str) -> Result<(u64, Duration), Trouble> {
        let query = DiffQuery { from: Some(format!("{volume}@{from}")), to: format!("{volume}@{to}") };
        let begun = Instant::now();
        let End { bytes, .. } = self.ask("ask for a diff", self.client.diff(&query, drop))?;
        let missing = || Trouble::new("ask for a diff of blockd", "no count in its answer", NEXT_LOG);
        Ok((bytes.ok_or_else(missing)?, begun.elapsed()))
    }

    /// CPU time spent so far.
    ///
    /// # Errors
    /// The daemon is gone.
    pub fn cpu_spent(&self) -> Result<Duration, Trouble> {
        self.server.cpu_spent()
    }

    /// Its memory now.
    ///
    /// # Errors
    /// The daemon is gone.
    pub fn memory(&self) -> Result<Memory, Trouble> {
        let path = format!("/proc/{}/status", self.server.pid()?);
        let status = fs::read_to_string(&path).or_trouble(|| format!("read {path}"), NEXT_LOG)?;
        parse_memory(&status).ok_or_else(|| Trouble::new(format!("read {path}"), "no VmRSS in it", NEXT_LOG))
    }

    /// Stops it as a service manager would.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(self) -> Result<(), Trouble> {
        self.server.stop_cleanly(STOP_WITHIN)
    }

    /// Kills it.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(self) -> Result<(), Trouble> {
        self.server.kill()
    }
}

/// Whether nothing is left to reclaim.
pub fn has_settled(store: &StoreStatus) -> bool {
    store.layers_to_reclaim == 0 && store.pending_free_bytes == 0
}

fn parse_memory(status: &str) -> Option<Memory> {
    let mib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kib| kib / 1024.0)
    };
    Some(Memory { resident_mib: mib("VmRSS")?, anonymous_mib: mib("RssAnon")?, peak_mib: mib("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_status() {
        let status = "Name:\tblockd\nVmHWM:\t  4096 kB\nVmRSS:\t  2048 kB\nRssAnon:\t     512 kB\n";
        let memory = Memory { resident_mib: 2.0, anonymous_mib: 0.5, peak_mib: 4.0 };
        assert_eq!(parse_memory(status), Some(memory));
        assert_eq!(parse_memory("Name:\tx\n"), None);
    }
}
