//! The metadata store's twin in memory, for simulation: the same bytes under the same keys, with power cuts and
//! damage on demand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fastrand::Rng;

use crate::catalog::format::keys::{COMMIT_KEY, KeyRange, key_text};
use crate::catalog::format::{Change, RawSink};
use crate::catalog::meta::{MetaError, MetaStore, Visit};

mod port;
#[cfg(test)]
mod tests;

pub use port::{MetaFault, SimMetaPort};

/// Batches that [`MemoryMeta::drop_last_commits`] can take back.
pub const UNDO_BATCHES_MAX: usize = 64;

/// An ordered map of records in memory, with its mark.
#[derive(Debug, Default)]
pub struct MemoryMeta {
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What each of the last batches replaced, oldest batch first.
    undo: VecDeque<Undo>,
    /// Records that fail their checksum when they are read.
    damaged: BTreeSet<Vec<u8>>,
    mark: u64,
}

/// A key and its value.
pub type RawRecord = (Vec<u8>, Vec<u8>);

/// What was there before, in the order of the changes.
type Undo = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Applies changes and notes what they replaced.
struct Applying<'a> {
    state: &'a mut State,
    undo: Undo,
}

impl RawSink for Applying<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.state.damaged.remove(key);
        let before = self.state.records.insert(key.to_vec(), value.to_vec());
        self.undo.push((key.to_vec(), before));
    }

    fn delete(&mut self, key: &[u8]) {
        self.state.damaged.remove(key);
        if let Some(before) = self.state.records.remove(key) {
            self.undo.push((key.to_vec(), Some(before)));
        }
    }

    fn delete_range(&mut self, range: KeyRange) {
        let keys: Vec<_> = self.state.records.range(range).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.delete(&key);
        }
    }
}

impl State {
    fn write(&mut self, batch: &[Change]) {
        let mut applying = Applying { state: self, undo: Undo::new() };
        for change in batch {
            change.encode(&mut applying);
        }
        let undo = applying.undo;
        if self.undo.len() == UNDO_BATCHES_MAX {
            self.undo.pop_front();
        }
        self.undo.push_back(undo);
    }

    fn undo(&mut self) -> bool {
        let Some(undo) = self.undo.pop_back() else { return false };
        for (key, before) in undo.into_iter().rev() {
            match before {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
        true
    }

    /// A record's value, if it can be read.
    fn checked<'a>(&self, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], MetaError> {
        if self.damaged.contains(key) {
            return Err(MetaError::Damaged(format!("record {} fails its checksum", key_text(key))));
        }
        Ok(value)
    }
}

impl Clone for MemoryMeta {
    fn clone(&self) -> Self {
        Self { state: Mutex::new(self.state().clone()) }
    }
}

impl MemoryMeta {
    /// An empty store, its mark at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// No code of ours panics with the lock held; a test that did may still look.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last commit that anybody was told of.
    pub fn mark(&self) -> u64 {
        self.state().mark
    }

    /// Moves the mark; never back.
    pub fn set_mark(&self, commit: u64) {
        let mut state = self.state();
        state.mark = state.mark.max(commit);
    }

    /// The number in the store's commit record; 0 without one.
    pub fn commit(&self) -> u64 {
        let state = self.state();
        let value = state.records.get(&COMMIT_KEY[..]).and_then(|value| value.as_slice().try_into().ok());
        value.map_or(0, u64::from_be_bytes)
    }

    /// All records, as they are.
    pub fn records(&self) -> Vec<RawRecord> {
        self.state().records.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Puts any bytes under any key, as no [`Change`] would.
    pub fn put_raw(&self, key: &[u8], value: &[u8]) {
        self.state().records.insert(key.to_vec(), value.to_vec());
    }

    /// Puts an older copy back: takes back the last batches, as many as asked for or remembered, but not the mark.
    /// How many were taken back.
    pub fn drop_last_commits(&self, batches: usize) -> usize {
        let mut state = self.state();
        (0..batches).take_while(|_| state.undo()).count()
    }

    /// Flips a bit of some record's value, behind the back of any checksum. The record's key; `None` if there is no
    /// value to flip.
    pub fn flip_bit(&self, rng: &mut Rng) -> Option<Vec<u8>> {
        let mut state = self.state();
        let values = state.records.values_mut().filter(|value| !value.is_empty()).count();
        let chosen = (values > 0).then(|| rng.usize(..values))?;
        let (key, value) = state.records.iter_mut().filter(|(_, value)| !value.is_empty()).nth(chosen)?;
        let bit = rng.usize(..value.len() * 8);
        value[bit / 8] ^= 1 << (bit % 8);
        Some(key.clone())
    }

    /// Makes some record fail its checksum from now on, as RocksDB's do when the medium lost a bit. The record's
    /// key; `None` if there is none.
    pub fn fail_checksum(&self, rng: &mut Rng) -> Option<Vec<u8>> {
        let mut state = self.state();
        let chosen = (!state.records.is_empty()).then(|| rng.usize(..state.records.len()))?;
        let key = state.records.keys().nth(chosen)?.clone();
        state.damaged.insert(key.clone());
        Some(key)
    }
}

impl MetaStore for MemoryMeta {
    fn write(&self, batch: &[Change]) -> Result<(), MetaError> {
        self.state().write(batch);
        Ok(())
    }

    /// The visitor must not come back to the store: it is locked.
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), MetaError> {
        // An empty range backwards would be BTreeMap's panic.
        if from >= to {
            return Ok(());
        }
        let state = self.state();
        for (key, value) in state.records.range(from.to_vec()..to.to_vec()) {
            if visit(key, state.checked(key, value)?)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        let state = self.state();
        let Some(value) = state.records.get(key) else { return Ok(None) };
        state.checked(key, value).map(|value| Some(value.to_vec()))
    }
}

/// All records of a store between two keys.
///
/// # Errors
/// See [`MetaStore::scan`].
pub fn collect(store: &dyn MetaStore, range: &KeyRange) -> Result<Vec<RawRecord>, MetaError> {
    let mut records = Vec::new();
    store.scan(&range.start, &range.end, &mut |key, value| {
        records.push((key.to_vec(), value.to_vec()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(records)
}
