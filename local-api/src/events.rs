//! What happened lately: a ring of events, numbered, for `GET /v1/events`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Events kept; older ones are forgotten.
pub const EVENTS_KEPT_MAX: usize = 4096;
/// Events in one answer.
pub const EVENTS_PAGE_MAX: usize = 500;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1 since the daemon started, without gaps.
    pub sequence: u64,
    /// Milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// What kind, for programs: `volume_created`, `vm_crashed` …
    pub kind: String,
    /// The volume, snapshot, VM or other thing that it is about; empty: the daemon as a whole.
    pub subject: String,
    /// For people, one line.
    pub message: String,
}

/// Some events, and where the next ones begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsPage {
    /// When the daemon started counting; another value means that the numbers began anew.
    pub started_ms: u64,
    /// Oldest first.
    pub events: Vec<Event>,
    /// Ask for events after this one next.
    pub next_after: u64,
    /// Events after the one asked for that are forgotten already.
    pub lost: u64,
}

/// A shared ring of events; clones are handles to the same one.
#[derive(Clone)]
pub struct Events {
    ring: Arc<Mutex<Ring>>,
    /// Followers wait for it to change.
    head: Arc<watch::Sender<Head>>,
    started_ms: u64,
}

#[derive(Clone, Copy, Default)]
struct Head {
    /// The newest number.
    newest: u64,
    /// Nobody is to wait any more.
    closed: bool,
}

#[derive(Default)]
struct Ring {
    kept: VecDeque<Event>,
    newest: u64,
}

impl Default for Events {
    fn default() -> Self {
        let head = Arc::new(watch::Sender::new(Head::default()));
        Self { ring: Arc::default(), head, started_ms: now_ms() }
    }
}

impl Events {
    /// Tells of something, here and in the log.
    pub fn record(&self, kind: &str, subject: impl Into<String>, message: impl Into<String>) {
        let (subject, message) = (subject.into(), message.into());
        tracing::info!(kind, subject, message, "event");
        let mut ring = self.lock();
        ring.newest += 1;
        let event =
            Event { sequence: ring.newest, time_ms: now_ms(), kind: kind.to_owned(), subject, message };
        if ring.kept.len() == EVENTS_KEPT_MAX {
            ring.kept.pop_front();
        }
        ring.kept.push_back(event);
        // While the lock is held: numbers reach the followers in order.
        self.head.send_modify(|head| head.newest = ring.newest);
    }

    /// When the daemon started counting.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// At most [`EVENTS_PAGE_MAX`] events after the one numbered `after`.
    pub fn after(&self, after: u64) -> EventsPage {
        let ring = self.lock();
        // A number from before a restart lies ahead of ours: begin anew.
        let after = if after > ring.newest { 0 } else { after };
        let oldest = ring.kept.front().map_or(1, |event| event.sequence);
        let newer = ring.kept.iter().filter(|event| event.sequence > after);
        let events: Vec<Event> = newer.take(EVENTS_PAGE_MAX).cloned().collect();
        let next_after = events.last().map_or(after, |event| event.sequence);
        EventsPage { started_ms: self.started_ms, events, next_after, lost: oldest.saturating_sub(after + 1) }
    }

    /// As [`Events::after`], but waits for one if there is none yet; an empty page when the time is up.
    pub async fn wait_after(&self, after: u64, time_max: Duration) -> EventsPage {
        let mut head = self.head.subscribe();
        let changed = head.wait_for(|head| head.newest != after || head.closed);
        match tokio::time::timeout(time_max, changed).await {
            Ok(_) | Err(_) => self.after(after),
        }
    }

    /// Lets nobody wait any more: the daemon is stopping.
    pub fn close(&self) {
        self.head.send_modify(|head| head.closed = true);
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // A panic elsewhere leaves the ring whole: every change of it is one push.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970, UTC.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_counted() {
        let events = Events::default();
        let kept = EVENTS_KEPT_MAX as u64;
        for _ in 0..kept + 10 {
            events.record("test", "web", "something");
        }
        let page = events.after(0);
        assert_eq!((page.lost, page.events[0].sequence), (10, 11));
        assert_eq!(page.events.len(), EVENTS_PAGE_MAX);
        assert_eq!(events.after(page.next_after).events[0].sequence, page.next_after + 1);
        let last = events.after(kept + 10);
        assert!(last.events.is_empty() && last.lost == 0 && last.next_after == kept + 10);
    }

    #[test]
    fn a_number_from_before_a_restart_begins_anew() {
        let events = Events::default();
        events.record("test", "", "first");
        assert_eq!(events.after(99).events[0].sequence, 1);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let events = Events::default();
        let waiting = events.clone();
        let waiter = tokio::spawn(async move { waiting.wait_after(0, Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        events.record("test", "", "first");
        assert_eq!(waiter.await.unwrap().events.len(), 1);
        assert!(events.wait_after(1, Duration::ZERO).await.events.is_empty());
        let waiting = events.clone();
        let waiter = tokio::spawn(async move { waiting.wait_after(1, Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        events.close();
        assert!(waiter.await.unwrap().events.is_empty());
    }
}
