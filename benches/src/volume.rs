//! The volume of our daemon that takes part beside the servers: every block written, no snapshot.
//!
//! Its store is made once and stays; the daemon is started for each measurement, as all servers are. The pool is
//! written before the volume is, so that its file does not grow: one that recycles its clusters does not either.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::interrupt::Interrupt;
use crate::options::format_size;
use crate::plan::Plan;
use crate::servers::{DiskKind, VOLUME};
use crate::store::daemon::Daemon;
use crate::store::made;
use crate::store::room::Room;
use crate::trouble::Trouble;

/// How long the daemon may take to serve: after a crash all map records may have to be read.
pub const READY_WITHIN: Duration = Duration::from_secs(300);
/// How long it may take to end: it syncs the pool and writes the checkpoint.
pub const STOP_WITHIN: Duration = Duration::from_secs(120);
/// Room in the pool for the store's own needs, as a part of the volume.
const SPARE_PART: u64 = 8;

/// A store with its volume; removed with this value.
#[derive(Debug)]
pub struct WholeVolume<'a> {
    room: Room<'a>,
    store: PathBuf,
}

impl<'a> WholeVolume<'a> {
    /// Makes the store and writes the volume, if any server of the plan serves it.
    ///
    /// # Errors
    /// No space, or the daemon fails.
    pub fn make(plan: &'a Plan, interrupt: &'a Interrupt) -> Result<Option<Self>, Trouble> {
        if !plan.servers.iter().any(|server| server.disk() == DiskKind::Volume) {
            return Ok(None);
        }
        let bytes = plan.volume.image_bytes;
        eprintln!("writing a volume of {}", format_size(bytes));
        let room = Room::new(&plan.volume, interrupt)?;
        let store = room.new_image("store");
        made::make(&store, &[], bytes + bytes / SPARE_PART, interrupt)?;
        let made = Self { room, store };
        made.with_daemon(|daemon| daemon.create_volume(VOLUME, bytes))?;
        made.fill()?;
        Ok(Some(made))
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The file with all data.
    pub fn pool(&self) -> PathBuf {
        self.store.join("pool-0")
    }

    /// Writes every block, as a client does.
    ///
    /// # Errors
    /// The daemon or fio fails.
    pub fn fill(&self) -> Result<(), Trouble> {
        self.with_daemon(|daemon| self.room.fio().fill(&daemon.uri(VOLUME)))
    }

    /// Does something with the daemon running, and brings it to rest.
    fn with_daemon(&self, work: impl FnOnce(&Daemon) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let daemon = Daemon::start(&self.room, &self.store)?;
        work(&daemon)?;
        daemon.stop()
    }
}
