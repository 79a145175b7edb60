//! A QEMU of a move: what it is told, and what it says, in the order in which it said it.
//!
//! Events of QEMU are only a cause to ask: what is passed on is always an answer, so that nothing overtakes anything.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::agent::{Lent, News, VmHandle};
use crate::cutover::event::{DestinationQemu, SourceQemu};
use crate::error::Error;
use crate::qmp::Client;
use crate::qmp::types::{MigrationStatus, RunState};

/// Between two attempts to reach a monitor.
const LEND_PAUSE: Duration = Duration::from_millis(200);
/// After a deed that was refused.
const DEED_PAUSE: Duration = Duration::from_millis(200);

/// What a QEMU says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// What the machine does.
    pub(super) state: RunState,
    /// Where its migration stands.
    pub(super) migration: MigrationStatus,
}

/// Asks.
pub(super) async fn ask(client: &Client) -> Result<Said, Error> {
    let status = client.query_status().await?;
    let migration = client.query_migrate().await?.status.unwrap_or(MigrationStatus::None);
    Ok(Said { state: status.status, migration })
}

/// As the cutover's source understands it.
pub(super) fn of_source(said: Said) -> SourceQemu {
    match (said.state, said.migration) {
        (RunState::Shutdown, _) => SourceQemu::Shutdown,
        (RunState::GuestPanicked, _) => SourceQemu::Panicked,
        (_, MigrationStatus::PreSwitchover) => SourceQemu::PreSwitchover,
        (_, MigrationStatus::Device | MigrationStatus::Cancelling) => SourceQemu::Device,
        (RunState::Running, MigrationStatus::Setup | MigrationStatus::Active) => SourceQemu::Precopy,
        (RunState::Running, _) => SourceQemu::Running,
        (_, MigrationStatus::Completed) => SourceQemu::Completed,
        // Stopped a moment ago, and not yet at the point where it waits.
        (_, MigrationStatus::Setup | MigrationStatus::Active) => SourceQemu::Precopy,
        _ => SourceQemu::Paused,
    }
}

/// As the cutover's destination understands it.
pub(super) fn of_destination(said: Said) -> DestinationQemu {
    match said.state {
        RunState::Running | RunState::Suspended => DestinationQemu::Running,
        RunState::Shutdown => DestinationQemu::Shutdown,
        RunState::GuestPanicked => DestinationQemu::Panicked,
        RunState::Inmigrate | RunState::Prelaunch => DestinationQemu::Incoming,
        _ if said.migration == MigrationStatus::Completed => DestinationQemu::Loaded,
        RunState::IoError => DestinationQemu::Paused,
        _ if matches!(said.migration, MigrationStatus::None | MigrationStatus::Failed) => {
            DestinationQemu::Paused
        }
        _ => DestinationQemu::Incoming,
    }
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It says so.
    Said(Said),
    /// There is none.
    Gone,
    /// It is there and does not answer.
    Mute,
}

/// What a watcher is told to do, besides looking whenever QEMU tells anything.
pub(super) enum Order {
    /// Look.
    Look,
    /// Do something with the monitor, then look.
    Do(Deed),
}

/// Something to do with a monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// `migrate-continue`.
    Continue,
    /// `migrate_cancel`.
    Cancel,
    /// `yank`.
    Yank,
    /// `cont`.
    Cont,
}

/// Orders that wait for one QEMU.
const ORDERS_MAX: usize = 64;

/// Watches the QEMU of a VM until the receiver of what it sees is gone.
pub(super) fn watch(vm: VmHandle, seen: mpsc::Sender<Look>) -> mpsc::Sender<Order> {
    let (orders, queue) = mpsc::channel(ORDERS_MAX);
    tokio::spawn(Watcher { vm, seen, queue }.run());
    orders
}

struct Watcher {
    vm: VmHandle,
    seen: mpsc::Sender<Look>,
    queue: mpsc::Receiver<Order>,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let lent = match self.lend().await {
                Some(lent) => lent,
                None => return,
            };
            if !self.follow(lent).await {
                return;
            }
        }
    }

    /// Its monitor, when it has one; `None`: nobody looks any more.
    async fn lend(&mut self) -> Option<Lent> {
        loop {
            if let Ok(lent) = self.vm.lend().await {
                return Some(lent);
            }
            tokio::select! {
                order = self.queue.recv() => {
                    order?;
                    let look = if self.vm.view().process.is_none() { Look::Gone } else { Look::Mute };
                    self.seen.send(look).await.ok()?;
                }
                () = sleep(LEND_PAUSE) => {}
                () = self.seen.closed() => return None,
            }
        }
    }

    /// As long as the monitor answers; false: nobody looks any more.
    async fn follow(&mut self, mut lent: Lent) -> bool {
        if !self.look(&lent.client).await {
            return false;
        }
        loop {
            tokio::select! {
                biased;
                news = lent.news.recv() => match news {
                    Some(News::Event(event)) if is_about_this(&event.name) => {
                        if !self.look(&lent.client).await {
                            return false;
                        }
                    }
                    Some(News::Event(_)) => {}
                    Some(News::Ended(why)) => {
                        tracing::debug!(why, "a QEMU of a move has ended");
                        return self.seen.send(Look::Gone).await.is_ok();
                    }
                    Some(News::Lost(_)) | None => return self.seen.send(Look::Mute).await.is_ok(),
                },
                order = self.queue.recv() => match order {
                    None => return false,
                    Some(Order::Look) => {
                        if !self.look(&lent.client).await {
                            return false;
                        }
                    }
                    Some(Order::Do(deed)) => {
                        if let Err(error) = carry_out(&lent.client, deed).await {
                            tracing::warn!(?deed, %error, "QEMU does not do it");
                            // It would be told again as soon as it was seen that it has not.
                            sleep(DEED_PAUSE).await;
                        }
                        if !self.look(&lent.client).await {
                            return false;
                        }
                    }
                },
                () = self.seen.closed() => return false,
            }
        }
    }

    async fn look(&self, client: &Client) -> bool {
        let look = match ask(client).await {
            Ok(said) => Look::Said(said),
            Err(_) if self.vm.view().process.is_none() => Look::Gone,
            Err(error) => {
                tracing::debug!(%error, "a QEMU of a move does not answer");
                Look::Mute
            }
        };
        self.seen.send(look).await.is_ok()
    }
}

/// Only what changes how a move stands: a guest may make QEMU tell much else.
fn is_about_this(event: &str) -> bool {
    matches!(event, "MIGRATION" | "STOP" | "RESUME" | "SHUTDOWN" | "GUEST_PANICKED" | "BLOCK_IO_ERROR")
}

async fn carry_out(client: &Client, deed: Deed) -> Result<(), Error> {
    match deed {
        Deed::Continue => client.migrate_continue().await?,
        Deed::Cancel => client.migrate_cancel().await?,
        Deed::Yank => client.yank_migration().await?,
        Deed::Cont => client.cont().await?,
    }
    Ok(())
}
