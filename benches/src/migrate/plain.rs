//! The peer: the same guest with image files, moved by QEMU alone.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fixtures::cutover::{CopyMode, GuestFiles, Pace, Plain, PlainMove, PlainMoved, PlainParts, Script};

use super::{Bench, Moved, failed};
use crate::sync::content::{self, Layout};
use crate::trouble::{OrTrouble, Trouble};

/// How long a move may take where nothing holds it back.
const TIME_MAX: Duration = Duration::from_secs(600);
const NEXT: &str = "choose another place with --dir, or a smaller --disk";

/// Two places for the disk, and a guest now and then.
pub(super) struct Peers {
    parts: PlainParts,
    images: [PathBuf; 2],
    at: usize,
    bytes: u64,
    guest: Option<Plain>,
}

/// What may differ between moves.
pub(super) struct How {
    pub(super) tuned: bool,
    pub(super) live: bool,
    pub(super) copy_mode: CopyMode,
    pub(super) pace: Option<Arc<Pace>>,
    pub(super) time_max: Duration,
}

impl How {
    /// While the guest runs, over a network that nothing holds back.
    pub(super) fn live(tuned: bool) -> Self {
        Self { tuned, live: true, copy_mode: CopyMode::WriteBlocking, pace: None, time_max: TIME_MAX }
    }
}

impl Peers {
    /// The disk is written, and there is no guest yet. `load`: as the guest's command line has it; `enter`: how QEMU's command
    /// line begins.
    pub(super) fn start(
        bench: &Bench<'_>,
        bytes: u64,
        load: &str,
        enter: Vec<String>,
    ) -> Result<Self, Trouble> {
        let run = bench.room.new_short("plain");
        fs::create_dir(&run).or_trouble(|| "make a directory".into(), NEXT)?;
        let files = GuestFiles::make(bench.kernel, &run, Script::Load)
            .map_err(|error| failed("pack a guest", &error))?;
        let parts = PlainParts { files, accel: bench.accel, append: load.to_owned(), run, enter };
        let images = [(); 2].map(|()| bench.room.new_image("raw"));
        let mut image = content::Plain::open(&images[0])?;
        Layout::contiguous(bytes).fill(&mut image, 1, bench.room.interrupt)?;
        Ok(Self { parts, images, at: 0, bytes, guest: None })
    }

    /// Boots the guest where its disk is, and waits until it is at work.
    pub(super) fn boot(&mut self) -> Result<(), Trouble> {
        let booted = Plain::boot(self.parts.clone(), &self.images[self.at]);
        self.guest = Some(booted.map_err(|error| failed("boot a guest of plain QEMU", &error))?);
        Ok(())
    }

    /// Moves the guest to an image that has nothing yet. `None`: it did not come to its end in time.
    pub(super) fn migrate(&mut self, how: &How) -> Result<Option<Moved>, Trouble> {
        let to = &self.images[1 - self.at];
        let made = File::create(to).and_then(|file| file.set_len(self.bytes));
        made.or_trouble(|| format!("make {}", to.display()), NEXT)?;
        let How { tuned, live, copy_mode, pace, time_max } = how;
        let (pace, time_max) = (pace.clone(), *time_max);
        let how = PlainMove { tuned: *tuned, live: *live, copy_mode: *copy_mode, pace, time_max };
        let guest =
            self.guest.as_mut().ok_or_else(|| Trouble::new("move a guest", "none runs", "report it"))?;
        let moved = guest.migrate(to, &how).map_err(|error| failed("move a guest by plain QEMU", &error))?;
        let Some(PlainMoved { silence, usual, whole, memory_bytes, .. }) = moved else { return Ok(None) };
        self.at = 1 - self.at;
        let [silence_ms, usual_ms] = [silence, usual].map(|time| time.as_secs_f64() * 1e3);
        let wall_s = whole.as_secs_f64();
        Ok(Some(Moved { silence_ms, usual_ms, wall_s, memory: memory_bytes, told: None }))
    }

    /// Bytes that the guest has written here.
    pub(super) fn written(&mut self) -> Result<u64, Trouble> {
        let guest =
            self.guest.as_mut().ok_or_else(|| Trouble::new("ask a guest", "none runs", "report it"))?;
        guest.written().map_err(|error| failed("ask QEMU what was written", &error))
    }

    /// Ends the guest.
    pub(super) fn halt(&mut self) -> Result<(), Trouble> {
        let ended = self.guest.take().map_or(Ok(()), Plain::stop);
        ended.map_err(|error| failed("end a guest of plain QEMU", &error))
    }
}
