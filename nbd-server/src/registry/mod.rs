//! The book of connections: who is there, what each has done, and what each export has served.
//!
//! ```text
//!  accept ─► Share (a client's part of the places) ─► Entry ─► live ──end──► a log line, totals of the export
//!                                                       │
//!  engine ─► Meter, without a lock ◄────────────────────┘ ◄── whoever lists, counts or scrapes
//! ```
//!
//! The lock is taken when a client comes, leaves or is looked at, never for a request.

mod meter;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::client::{Client, quoted};
use crate::transmission::CloseReason;

pub use meter::{BUCKETS_US, Class, Counts, Latency, Meter};

/// Whose connections are counted together: an identity, or an address where nobody has to prove who he is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// As a certificate names it.
    Identity(String),
    /// Without a certificate.
    Address(IpAddr),
}

/// Whoever keeps the exports, told of what happens to their connections.
pub trait Watcher: Send + Sync {
    /// Under which name what was done on an export is counted: several may be one.
    fn counted_as<'a>(&self, export: &'a str) -> &'a str {
        export
    }
    /// A connection to that export is over.
    fn left(&self, _export: &str) {}
}

/// Counts each export by itself.
struct Nobody;

impl Watcher for Nobody {}

/// See the module. Clones are handles to the same.
#[derive(Clone)]
pub struct Registry {
    book: Arc<Mutex<Book>>,
    watcher: Arc<dyn Watcher>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::watched(Arc::new(Nobody))
    }
}

#[derive(Default)]
struct Book {
    last: u64,
    /// By number: in the order of their coming.
    live: BTreeMap<u64, Arc<Card>>,
    /// What connections that have ended did, by export.
    ended: BTreeMap<String, Counts>,
    shares: BTreeMap<Holder, u32>,
}

/// What is known of a connection.
#[derive(Debug)]
struct Card {
    client: Client,
    export: String,
    read_only: bool,
    since: SystemTime,
    started: Instant,
    meter: Arc<Meter>,
}

/// A connection in transmission, as it is shown.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Counted from 1 since the start.
    pub number: u64,
    /// Who it is.
    pub client: Client,
    /// The export it chose.
    pub export: String,
    /// Whether it may only read.
    pub read_only: bool,
    /// When it came.
    pub since: SystemTime,
    /// What it has done so far.
    pub counts: Counts,
}

impl Registry {
    /// An empty book.
    #[must_use]
    pub fn watched(watcher: Arc<dyn Watcher>) -> Self {
        Self { book: Arc::default(), watcher }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Whoever panicked with the lock held has left nothing half done: each change is one insertion or removal.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection of that holder, who may have `most` at once; `None`: it has them.
    #[must_use]
    pub fn share(&self, holder: Holder, most: u32) -> Option<Share> {
        let mut book = self.book();
        let held = book.shares.get(&holder).copied().unwrap_or(0);
        if held >= most {
            return None;
        }
        book.shares.insert(holder.clone(), held + 1);
        Some(Share { registry: self.clone(), holder })
    }

    /// Enters a client that goes into transmission on `export`.
    #[expect(clippy::disallowed_methods, reason = "for people: when it came, and how long it stayed")]
    pub fn enter(&self, client: Client, export: &str, read_only: bool) -> Entry {
        let meter = Arc::<Meter>::default();
        let (since, started) = (SystemTime::now(), Instant::now());
        let card = Card { client, export: export.to_owned(), read_only, since, started, meter };
        let mut book = self.book();
        book.last += 1;
        let number = book.last;
        let card = Arc::new(card);
        book.live.insert(number, Arc::clone(&card));
        drop(book);
        Entry { registry: self.clone(), number, card, reason: "ABANDONED" }
    }

    /// The cards of who is in transmission. What is read of them is read without the lock: reactors wait for it.
    fn cards(&self) -> Vec<(u64, Arc<Card>)> {
        self.book().live.iter().map(|(&number, card)| (number, Arc::clone(card))).collect()
    }

    /// How many are connected under that name of an export.
    #[must_use]
    pub fn count(&self, export: &str) -> u64 {
        self.book().live.values().filter(|card| card.export == export).count() as u64
    }

    /// Who is in transmission, in the order of coming.
    #[must_use]
    pub fn connected(&self) -> Vec<Connected> {
        let shown = |(number, card): (u64, Arc<Card>)| Connected {
            number,
            client: card.client.clone(),
            export: card.export.clone(),
            read_only: card.read_only,
            since: card.since,
            counts: card.meter.counts(),
        };
        self.cards().into_iter().map(shown).collect()
    }

    /// What each export has served, and how many are connected to it now: those that anybody has opened and that were
    /// not forgotten.
    #[must_use]
    pub fn exports(&self) -> BTreeMap<String, (Counts, u64)> {
        let book = self.book();
        let ended = book.ended.iter().map(|(name, counts)| (name.clone(), (counts.clone(), 0)));
        let mut exports: BTreeMap<String, (Counts, u64)> = ended.collect();
        let live: Vec<Arc<Card>> = book.live.values().cloned().collect();
        drop(book);
        for card in live {
            let name = self.watcher.counted_as(&card.export).to_owned();
            let (counts, connected) = exports.entry(name).or_default();
            counts.add(&card.meter.counts());
            *connected += 1;
        }
        exports
    }

    /// Forgets what exports have served that do not exist any more: a book of all names that ever were would grow for
    /// ever.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.book().ended.retain(|export, _| exists(export));
    }

    fn leave(&self, number: u64, card: &Card) {
        let mut book = self.book();
        book.live.remove(&number);
        let name = self.watcher.counted_as(&card.export).to_owned();
        book.ended.entry(name).or_default().add(&card.meter.counts());
        drop(book);
        self.watcher.left(&card.export);
    }
}

/// One of the places of a holder; given back when dropped.
pub struct Share {
    registry: Registry,
    holder: Holder,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut book = self.registry.book();
        match book.shares.get_mut(&self.holder) {
            Some(held) if *held > 1 => *held -= 1,
            _ => drop(book.shares.remove(&self.holder)),
        }
    }
}

/// A connection's line in the book; dropped, it is over: told in the log and added to the export's totals.
pub struct Entry {
    registry: Registry,
    number: u64,
    card: Arc<Card>,
    reason: &'static str,
}

impl Entry {
    /// Where the connection counts what it does.
    #[must_use]
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.card.meter)
    }

    /// Why it is over.
    pub fn ended(&mut self, reason: CloseReason) {
        self.reason = reason.code();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.leave(self.number, &self.card);
        let Card { client, export, meter, started, .. } = &*self.card;
        let counts = meter.counts();
        let stayed: Duration = started.elapsed();
        tracing::info!(
            peer = client.place(),
            identity = client.identity.as_deref().map_or_else(|| "-".to_owned(), quoted),
            export = quoted(export),
            reason = self.reason,
            seconds = stayed.as_secs(),
            requests = counts.requests(),
            errors = counts.errors,
            read_bytes = counts.read_bytes,
            written_bytes = counts.written_bytes,
            "connection ended"
        );
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("number", &self.number)
            .field("card", &self.card)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Nanos;

    #[test]
    fn a_holder_gets_its_places_back_and_takes_none_of_another() {
        let registry = Registry::default();
        let holder = |name: &str| Holder::Identity(name.to_owned());
        let held: Vec<Share> = (0..2).filter_map(|_| registry.share(holder("a"), 2)).collect();
        assert_eq!(held.len(), 2);
        assert!(registry.share(holder("a"), 2).is_none());
        assert!(registry.share(holder("b"), 2).is_some());
        assert!(registry.share(Holder::Address(IpAddr::from([10, 0, 0, 1])), 1).is_some());
        drop(held);
        assert!(registry.share(holder("a"), 1).is_some());
        assert!(registry.book().shares.is_empty(), "nobody is remembered who holds nothing");
    }

    #[test]
    fn who_has_left_is_in_the_totals_and_not_in_the_list() {
        let registry = Registry::default();
        let mut first = registry.enter(Client::unix(), "web", false);
        let second = registry.enter(Client::unix(), "web", true);
        first.meter().answered(Class::Read, Nanos(0), Nanos(3000), Ok(4096));
        second.meter().answered(Class::Write, Nanos(0), Nanos(0), Ok(512));
        second.meter().answered(Class::Write, Nanos(0), Nanos(0), Err(()));
        assert_eq!(registry.connected().iter().map(|one| one.number).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((registry.count("web"), registry.count("we")), (2, 0));
        first.ended(CloseReason::Left);
        drop(first);
        assert_eq!(registry.connected().len(), 1);
        let (counts, connected) = &registry.exports()["web"];
        assert_eq!((counts.read_bytes, counts.written_bytes, counts.errors, *connected), (4096, 512, 1, 1));
        assert_eq!(counts.requests(), 3);
        registry.retain(|_| false);
        assert_eq!(registry.exports()["web"].0.requests(), 2, "of who is there");
        drop(second);
        registry.retain(|export| export != "web");
        assert!(registry.exports().is_empty());
    }
}
