//! What QEMU tells, what is asked of it now and then, and its end.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::view::VmState;
use super::Owner;
use super::handle::{Lent, NEWS_MAX, News, SUBSCRIBERS_MAX};
use crate::error::{Error, Kind};
use crate::qmp::{Event, QmpError};
use crate::vm::launch::last_words;

/// First pause before a guest that stopped on an I/O error is continued; doubled each time.
pub(super) const RESUME_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest such pause.
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Between two attempts to reach a monitor.
const CONNECT_PAUSE: Duration = Duration::from_secs(2);
/// Ticks between two questions for the state, should an event have told nothing.
const ASK_TICKS: u64 = 10;

impl Owner {
    /// Applies an event, or the loss of the connection.
    pub(super) async fn follow(&mut self, event: Result<Event, QmpError>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.lose_link(&error.to_string()),
        };
        tracing::debug!(name = %self.record.definition.name, event = event.name, "QEMU tells");
        self.tell(&News::Event(event.clone()));
        match event.name.as_str() {
            "BLOCK_IO_ERROR" => self.note_io_error(&event),
            "SHUTDOWN" => self.note_shutdown(&event),
            "GUEST_PANICKED" => self.event("guest_panicked", event.text("action").unwrap_or_default()),
            "STOP" | "RESUME" | "MIGRATION" | "SUSPEND" | "WAKEUP" | "WATCHDOG" => {}
            _ => return,
        }
        self.ask_state_or_lose().await;
        self.end_after_power_off().await;
    }

    fn note_io_error(&mut self, event: &Event) {
        let device = event.text("node-name").or_else(|| event.text("device")).unwrap_or_default();
        let operation = event.text("operation").unwrap_or_default();
        let reason = event.text("reason").unwrap_or_default();
        let action = event.text("action").unwrap_or_default();
        let text = format!("{operation} on {device}: {reason}");
        if self.state != VmState::IoError {
            self.event("vm_io_error", format!("{text} (action {action})"));
        }
        self.reason = Some(text);
        self.resume_at = Instant::now() + self.resume_pause;
    }

    fn note_shutdown(&mut self, event: &Event) {
        let by_guest = event.data.get("guest").and_then(serde_json::Value::as_bool) == Some(true);
        let reason = event.text("reason").unwrap_or_default();
        let Some(live) = &mut self.live else { return };
        let said = match (by_guest, &self.stopping) {
            (true, _) => "the guest powered off".to_owned(),
            (false, Some(_)) => "it was stopped".to_owned(),
            (false, None) => format!("QEMU was told to end ({reason})"),
        };
        live.said.get_or_insert(said);
    }

    fn lose_link(&mut self, why: &str) {
        let Some(live) = &mut self.live else { return };
        live.link = None;
        live.connect_at = Instant::now();
        self.tell(&News::Lost(why.to_owned()));
        self.set_state(VmState::Unreachable, Some(why.to_owned()));
    }

    /// Asks QEMU what it does.
    pub(super) async fn ask_state(&mut self) -> Result<(), Error> {
        let status = self.client()?.query_status().await?;
        let state = VmState::of(status.status);
        let reason = match (state, &self.reason) {
            (VmState::IoError, Some(reason)) => Some(reason.clone()),
            (VmState::IoError, None) => Some("a disk failed".to_owned()),
            (VmState::Paused | VmState::Panicked, _) => Some(format!(
                "QEMU says {}",
                serde_json::to_string(&status.status).unwrap_or_default().trim_matches('"')
            )),
            _ => None,
        };
        self.set_state(state, reason);
        Ok(())
    }

    async fn ask_state_or_lose(&mut self) {
        if let Err(error) = self.ask_state().await {
            tracing::debug!(name = %self.record.definition.name, %error, "no state");
            if error.kind == Kind::Timeout {
                self.set_state(VmState::Unreachable, Some(error.to_string()));
            }
        }
    }

    /// A guest that has powered off needs no QEMU any more; who holds the VM decides that alone.
    async fn end_after_power_off(&mut self) {
        if self.state == VmState::Shutdown && !self.is_held() {
            if let Some(live) = &mut self.live {
                live.said.get_or_insert_with(|| "the guest powered off".to_owned());
            }
            self.quit().await;
        }
    }

    /// What no event tells: a monitor that can be reached again, a disk that takes writes again.
    pub(super) async fn look_again(&mut self) {
        let Some(live) = &mut self.live else { return };
        let now = Instant::now();
        if live.link.is_none() {
            if now < live.connect_at {
                return;
            }
            live.connect_at = now + CONNECT_PAUSE;
            match self.connect().await {
                Ok(()) => self.ask_state_or_lose().await,
                Err(error) => self.set_state(VmState::Unreachable, Some(error.to_string())),
            }
        } else if self.ticks.is_multiple_of(ASK_TICKS) {
            self.ask_state_or_lose().await;
        }
        self.end_after_power_off().await;
        if self.state == VmState::IoError && !self.is_held() && Instant::now() >= self.resume_at {
            self.resume_after_error().await;
        } else if self.state == VmState::Running && now > self.resume_at + RESUME_PAUSE_MAX {
            self.resume_pause = RESUME_PAUSE_MIN;
        }
    }

    /// Continues a guest when blockd says that its volumes take writes. Safe at any time: blockd decides about each
    /// write, and a guest that may not write stops again. The growing pauses are for disks that stay bad.
    async fn resume_after_error(&mut self) {
        self.resume_pause = (self.resume_pause * 2).min(RESUME_PAUSE_MAX);
        self.resume_at = Instant::now() + self.resume_pause;
        for volume in self.record.definition.volumes() {
            match self.host.blockd.volume(volume).await {
                Ok(info) if info.is_writable() => {}
                Ok(_) => return,
                Err(error) => return tracing::debug!(%volume, %error, "not yet"),
            }
        }
        let Ok(client) = self.client() else { return };
        match client.cont().await {
            Ok(()) => self.event("vm_continued", "its volumes take writes again"),
            Err(error) => tracing::info!(name = %self.record.definition.name, %error, "not continued"),
        }
        self.ask_state_or_lose().await;
    }

    /// QEMU is gone.
    pub(super) fn process_ended(&mut self) {
        let Some(live) = self.live.take() else { return };
        let said = live.said.or_else(|| self.stopping.as_ref().map(|_| "it was stopped".to_owned()));
        let (crashed, reason) = match said {
            Some(said) => (false, said),
            None => (true, self.why_crashed()),
        };
        self.tell(&News::Ended(reason.clone()));
        self.end_run(crashed, &reason);
        self.finish_stop();
    }

    /// Records that there is no QEMU any more.
    pub(super) fn end_run(&mut self, crashed: bool, reason: &str) {
        let last_end = Self::last_end(crashed, reason);
        self.note(|record| {
            record.run = None;
            record.last_end = Some(last_end);
        });
        if self.record.adopted.is_none()
            && let Err(error) = self.places.clear()
        {
            tracing::warn!(name = %self.record.definition.name, %error, "sockets of a QEMU that ended stay");
        }
        self.resume_pause = RESUME_PAUSE_MIN;
        self.event(if crashed { "vm_crashed" } else { "vm_stopped" }, reason);
        self.settle();
    }

    fn why_crashed(&self) -> String {
        let words = if self.record.adopted.is_some() { String::new() } else { last_words(&self.places) };
        if words.is_empty() {
            return "QEMU ended without a word: it was killed, or crashed".to_owned();
        }
        format!("QEMU ended; its last words: {words}")
    }

    /// Gives the monitor and news from now on.
    pub(super) fn lend(&mut self) -> Result<Lent, Error> {
        let client = self.client()?;
        let greeting =
            self.live.as_ref().and_then(|live| live.link.as_ref()).map(|link| link.greeting.clone());
        let greeting =
            greeting.ok_or_else(|| Error::one_line(Kind::Unreachable, "the monitor does not answer"))?;
        self.subscribers.retain(|subscriber| !subscriber.is_closed());
        if self.subscribers.len() >= SUBSCRIBERS_MAX {
            return Err(Error::one_line(Kind::Overloaded, "too many follow this VM already"));
        }
        let (sender, news) = mpsc::channel(NEWS_MAX);
        self.subscribers.push(sender);
        Ok(Lent { client, greeting, news })
    }

    /// Tells all who follow; one that is too slow is dropped, and finds its channel closed.
    fn tell(&mut self, news: &News) {
        self.subscribers.retain(|subscriber| subscriber.try_send(news.clone()).is_ok());
    }
}
