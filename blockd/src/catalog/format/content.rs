//! Changes as bytes, one after the other: what the logs beside RocksDB hold (docs/on-disk-format.md, "The recent log").

use super::keys::KeyRange;
use super::{Change, RawSink};

/// Takes changes to keys as bytes.
struct Content<'a>(&'a mut Vec<u8>);

impl Content<'_> {
    fn part(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("a key or a record");
        self.0.extend(length.to_be_bytes());
        self.0.extend(bytes);
    }
}

impl RawSink for Content<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.push(op::PUT);
        self.part(key);
        self.part(value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.push(op::DELETE);
        self.part(key);
    }

    fn delete_range(&mut self, range: KeyRange) {
        self.0.push(op::DELETE_RANGE);
        self.part(&range.start);
        self.part(&range.end);
    }
}

/// First bytes of a change.
mod op {
    pub(super) const PUT: u8 = 1;
    pub(super) const DELETE: u8 = 2;
    pub(super) const DELETE_RANGE: u8 = 3;
}

/// Adds changes.
pub fn push(bytes: &mut Vec<u8>, changes: &[Change]) {
    changes.iter().for_each(|change| change.encode(&mut Content(bytes)));
}

/// The changes that bytes with a good checksum hold, added to `changes`.
///
/// # Errors
/// What does not decode was not written by us.
pub fn decode(mut content: &[u8], changes: &mut Vec<Change>) -> Result<(), &'static str> {
    const FOREIGN: &str = "it holds a change that is none";
    while let Some((&op, rest)) = content.split_first() {
        content = rest;
        let first = part(&mut content).ok_or(FOREIGN)?;
        let change = match op {
            op::PUT => Change::put(first, part(&mut content).ok_or(FOREIGN)?),
            op::DELETE => Change::delete(first),
            op::DELETE_RANGE => {
                Change::delete_range(&(first.to_vec()..part(&mut content).ok_or(FOREIGN)?.to_vec()))
            }
            _ => return Err(FOREIGN),
        };
        changes.push(change.map_err(|_| FOREIGN)?);
    }
    Ok(())
}

fn part<'a>(content: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = content.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *content = rest;
    Some(part)
}
