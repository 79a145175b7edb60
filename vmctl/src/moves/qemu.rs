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
        Deed::Cont => {
            // It may be told twice, where what QEMU had said before was still on its way: a guest that has run meanwhile and has
            // panicked would run on. One that stands still cannot panic between the two.
            if stands_still(client.query_status().await?.status) {
                client.cont().await?;
            }
        }
    }
    Ok(())
}

/// Whether `cont` is what it waits for.
fn stands_still(state: RunState) -> bool {
    !matches!(state, RunState::Running | RunState::GuestPanicked | RunState::Shutdown)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;
    use crate::qmp::{Connection, Limits};

    /// A monitor that says of its machine what it is told to; the commands that it got.
    async fn told(status: &'static str, deed: Deed) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let monitor = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reading, mut writing) = stream.into_split();
            let version = r#"{"qemu": {"major": 7, "minor": 2, "micro": 0}}"#;
            let greeting = format!(r#"{{"QMP": {{"version": {version}, "capabilities": []}}}}"#);
            writing.write_all(format!("{greeting}\n").as_bytes()).await.unwrap();
            let (mut lines, mut commands) = (BufReader::new(reading).lines(), Vec::new());
            while let Some(line) = lines.next_line().await.unwrap() {
                let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
                let command = asked["execute"].as_str().unwrap().to_owned();
                let answer = match command.as_str() {
                    "query-status" => serde_json::json!({ "status": status, "running": status == "running" }),
                    _ => serde_json::json!({}),
                };
                let answer = serde_json::json!({ "return": answer, "id": asked["id"] });
                writing.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
                commands.push(command);
            }
            commands
        });
        let limits = Limits { greeting: Duration::from_secs(5), command: Duration::from_secs(5) };
        let Connection { client, events, .. } = Client::connect(&socket, limits).await.unwrap();
        carry_out(&client, deed).await.unwrap();
        drop((client, events));
        monitor.await.unwrap()
    }

    #[tokio::test]
    async fn a_guest_that_has_panicked_or_ended_is_not_continued_by_what_comes_too_late() {
        for status in ["running", "guest-panicked", "shutdown"] {
            let commands = told(status, Deed::Cont).await;
            assert!(!commands.contains(&"cont".to_owned()), "{status}: {commands:?}");
        }
        for status in ["paused", "io-error", "postmigrate", "inmigrate"] {
            let commands = told(status, Deed::Cont).await;
            assert!(commands.contains(&"cont".to_owned()), "{status}: {commands:?}");
        }
    }
}
