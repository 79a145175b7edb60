//! Exports for a while: another name for a volume or a snapshot, which ends by itself.
//!
//! ```text
//!  create ─► open ──enter, for one use──► used ──its client leaves──┐
//!             │                            │                        ▼
//!             └──time is up, creator gone, removed, target gone──► ended: no name, its clients disconnected
//! ```
//! With a token the name is a secret, and whoever knows it may enter, once, whatever the rules say; without, whoever may
//! see the target may enter, as often as he likes. Nothing here outlives the daemon.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_server::disk::ExportIndex;
use nbd_server::registry::Watcher;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::exports::listed_name;
use crate::control::{ControlError, ErrorKind};

/// Temporary exports at once.
const TEMPORARY_MAX: usize = 1024;
/// Shortest and longest time that one may last.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(7 * 86_400);
/// What follows the target's name in a temporary export's. No volume's name has a colon.
const MARK: &str = ":tmp-";
/// Before a secret name.
const SECRET: &str = "token:";

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its clients may write.
    pub write: bool,
    /// Its name is a secret, for one use.
    pub token: bool,
    /// How long it lasts.
    pub ttl: Duration,
}

/// What it stands for: the listed export of that name, as long as that is this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its listed name.
    pub name: String,
    /// Its number, which is never given to another.
    pub index: ExportIndex,
}

/// A temporary export, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemporaryExport {
    /// How it is called in lists, in the log and by `export remove`.
    pub name: String,
    /// The export that it stands for.
    pub of: String,
    /// Its clients may only read.
    pub read_only: bool,
    /// It has a secret name, for one use.
    pub one_use: bool,
    /// That was made of it.
    pub used: bool,
    /// Milliseconds since 1970, UTC: when it ends.
    pub expires_ms: u64,
}

/// Why a temporary export is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its time was up.
    Expired,
    /// It was for one use, and its client has left.
    UsedUp,
    /// Whoever made it has gone.
    CreatorGone,
    /// It was removed.
    Removed,
    /// What it stood for is not there any more, or is called otherwise.
    TargetGone,
}

/// What a client finds under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) label: String,
    pub(crate) target: Target,
    pub(crate) write: bool,
    /// Knowing the name was enough: no rules.
    pub(crate) by_token: bool,
}

struct Temporary {
    shown: TemporaryExport,
    target: Target,
    open_as: String,
    ended: watch::Sender<Option<Ended>>,
}

/// The table. Clones are handles to the same.
#[derive(Clone, Default)]
pub(crate) struct Temporaries(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    by_label: BTreeMap<String, Temporary>,
    /// The names that clients open them by.
    labels: HashMap<String, String>,
}

/// What its maker gets.
pub(crate) struct Made {
    pub(crate) export: TemporaryExport,
    /// What clients open: a secret, or the name.
    pub(crate) open_as: String,
    /// Tells when it is over.
    pub(crate) ended: watch::Receiver<Option<Ended>>,
}

impl Temporaries {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Whoever panicked with the lock held has left an entry whole or not there.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one. `random` becomes its secret, and its name; `now_ms`: milliseconds since 1970.
    ///
    /// # Errors
    /// `BadValue`, `Busy`.
    pub(crate) fn create(
        &self,
        target: Target,
        wanted: &Wanted,
        random: [u8; 20],
        now_ms: u64,
    ) -> Result<Made, ControlError> {
        if !(TTL_MIN..=TTL_MAX).contains(&wanted.ttl) {
            return Err(ControlError::new(ErrorKind::BadValue, "an export may last 1s to 7d"));
        }
        let (id, secret) = random.split_at(4);
        let label = format!("{}{MARK}{}", target.name, hex(id));
        let open_as = if wanted.token { format!("{SECRET}{}", hex(secret)) } else { label.clone() };
        let ttl_ms = u64::try_from(wanted.ttl.as_millis()).unwrap_or(u64::MAX);
        let shown = TemporaryExport {
            name: label.clone(),
            of: target.name.clone(),
            read_only: !wanted.write,
            one_use: wanted.token,
            used: false,
            expires_ms: now_ms.saturating_add(ttl_ms),
        };
        let (sender, ended) = watch::channel(None);
        let mut table = self.table();
        if table.by_label.len() >= TEMPORARY_MAX || table.by_label.contains_key(&label) {
            let message = format!("there are {} temporary exports already", table.by_label.len());
            return Err(ControlError::new(ErrorKind::Busy, message));
        }
        table.labels.insert(open_as.clone(), label.clone());
        let entry = Temporary { shown: shown.clone(), target, open_as: open_as.clone(), ended: sender };
        table.by_label.insert(label, entry);
        Ok(Made { export: shown, open_as, ended })
    }

    /// What a client would enter under a name.
    pub(crate) fn find(&self, name: &str) -> Option<Found> {
        let table = self.table();
        let entry = table.by_label.get(table.labels.get(name)?)?;
        (!entry.shown.one_use || !entry.shown.used).then(|| entry.found())
    }

    /// A client enters under that name: of one for one use this is the use. `false`: that was made of it before.
    pub(crate) fn take(&self, name: &str) -> bool {
        let mut table = self.table();
        let label = table.labels.get(name).cloned();
        let Some(entry) = label.and_then(|label| table.by_label.get_mut(&label)) else { return true };
        let first = !std::mem::replace(&mut entry.shown.used, true);
        first || !entry.shown.one_use
    }

    /// Whether clients that have entered there may stay; anything but a temporary export is not for us to say.
    pub(crate) fn admits(&self, export: &str) -> bool {
        !Self::is_name(export) || self.table().by_label.contains_key(export)
    }

    /// Ends one; `false` when there is none of that name.
    pub(crate) fn end(&self, label: &str, why: Ended) -> bool {
        let mut table = self.table();
        let Some(entry) = table.by_label.remove(label) else { return false };
        table.labels.remove(&entry.open_as);
        drop(table);
        tracing::info!(export = label, ?why, "temporary export ended");
        entry.ended.send_replace(Some(why));
        true
    }

    /// Ends those whose target is not there any more. `true`: there were some.
    pub(crate) fn retain(&self, is_there: impl Fn(&Target) -> bool) -> bool {
        let table = self.table();
        let gone = table.by_label.iter().filter(|(_, entry)| !is_there(&entry.target));
        let gone: Vec<String> = gone.map(|(label, _)| label.clone()).collect();
        drop(table);
        gone.iter().filter(|label| self.end(label, Ended::TargetGone)).count() > 0
    }

    /// A client has left it.
    fn left(&self, label: &str) {
        let is_used_up = self.table().by_label.get(label).is_some_and(|entry| entry.shown.one_use);
        if is_used_up {
            self.end(label, Ended::UsedUp);
        }
    }

    /// Whether it is the name of one that there is, or was.
    pub(crate) fn is_name(name: &str) -> bool {
        name.contains(MARK)
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<TemporaryExport> {
        self.table().by_label.values().map(|entry| entry.shown.clone()).collect()
    }
}

impl Watcher for Temporaries {
    fn counted_as<'a>(&self, export: &'a str) -> &'a str {
        listed_name(export)
    }

    fn left(&self, export: &str) {
        self.left(export);
    }
}

impl Temporary {
    fn found(&self) -> Found {
        Found {
            label: self.shown.name.clone(),
            target: self.target.clone(),
            write: !self.shown.read_only,
            by_token: self.shown.one_use,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { name: "web".to_owned(), index: ExportIndex(3) }
    }

    fn wanted(token: bool) -> Wanted {
        Wanted { write: false, token, ttl: Duration::from_secs(60) }
    }

    #[test]
    fn a_token_is_for_one_use_and_not_told() {
        let table = Temporaries::default();
        let made = table.create(target(), &wanted(true), [0xab; 20], 1000).unwrap();
        assert_eq!(made.open_as, format!("token:{}", "ab".repeat(16)));
        assert_eq!((made.export.name.as_str(), made.export.expires_ms), ("web:tmp-abababab", 61_000));
        assert!(table.find("web:tmp-abababab").is_none(), "the name that is shown opens nothing");
        assert!(!format!("{:?}", table.list()).contains(&"ab".repeat(5)));
        assert!(
            table.find(&made.open_as).is_some() && table.find(&made.open_as).is_some(),
            "a look is no use"
        );
        let found = table.find(&made.open_as).unwrap();
        assert!(found.by_token && !found.write && found.target == target());
        assert!(table.take(&made.open_as));
        assert!(!table.take(&made.open_as) && table.find(&made.open_as).is_none());
        assert!(table.list()[0].used && table.admits(&found.label), "its client may stay");
        assert!(table.end(&found.label, Ended::Expired) && !table.admits(&found.label));
        assert_eq!(*made.ended.borrow(), Some(Ended::Expired));
        assert!(!table.end(&found.label, Ended::Expired) && table.list().is_empty());
    }

    #[test]
    fn without_a_token_it_is_for_everybody_who_may_see_the_target() {
        let table = Temporaries::default();
        let made = table.create(target(), &Wanted { write: true, ..wanted(false) }, [1; 20], 0).unwrap();
        for _ in 0..3 {
            let found = table.find(&made.open_as).unwrap();
            assert!(!found.by_token && found.write && found.label == made.open_as);
            assert!(table.take(&made.open_as) && table.take("web"));
        }
        assert!(table.admits("web") && table.admits("web@a") && !table.admits("web:tmp-00000000"));
    }

    #[test]
    fn it_ends_with_its_target() {
        let table = Temporaries::default();
        let made = table.create(target(), &wanted(true), [1; 20], 0).unwrap();
        assert!(
            !table.retain(|target| target.index == ExportIndex(3)) && table.find(&made.open_as).is_some()
        );
        assert!(table.retain(|target| target.index == ExportIndex(4)) && table.find(&made.open_as).is_none());
        assert_eq!(*made.ended.borrow(), Some(Ended::TargetGone));
    }

    #[test]
    fn there_is_an_end_to_how_many_and_how_long() {
        let table = Temporaries::default();
        for seconds in [0, 7 * 86_400 + 1] {
            let wanted = Wanted { ttl: Duration::from_secs(seconds), ..wanted(true) };
            assert!(table.create(target(), &wanted, [0; 20], 0).is_err(), "{seconds}");
        }
        for number in 0..=TEMPORARY_MAX {
            let mut random = [0; 20];
            random[..4].copy_from_slice(&(number as u32).to_be_bytes());
            let made = table.create(target(), &wanted(true), random, 0);
            assert_eq!(made.is_ok(), number < TEMPORARY_MAX, "{number}");
        }
    }
}
