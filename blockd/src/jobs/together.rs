//! Runs of one job to several targets that begin together: one cut, read once.

use tokio::sync::{Mutex, MutexGuard};

use super::clock::Now;

/// A run that begins later cuts a snapshot of its own: what it brings should not be old.
const CUT_SHARED_MS_MAX: u64 = 5_000;

/// What they share.
#[derive(Debug)]
pub struct Together {
    /// Of this start of the daemon.
    id: u64,
    targets: usize,
    cut: Mutex<Option<Cut>>,
}

/// A snapshot that one of them has cut.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Its name, in each volume.
    pub snapshot: String,
    /// Just before.
    pub at: Now,
}

impl Cut {
    /// Whether another run may bring it, too.
    pub fn is_fresh(&self, now: Now) -> bool {
        now.since(self.at) <= CUT_SHARED_MS_MAX
    }
}

impl Together {
    /// For runs to so many targets.
    pub fn new(id: u64, targets: usize) -> Self {
        Self { id, targets, cut: Mutex::new(None) }
    }

    /// Which of them: what they share beyond this goes by it. `None`: there is one run only.
    pub fn id(&self) -> Option<u64> {
        (self.targets > 1).then_some(self.id)
    }

    /// The cut, if there is one; whoever holds it may make one, and the others wait.
    pub async fn cut(&self) -> MutexGuard<'_, Option<Cut>> {
        self.cut.lock().await
    }
}
