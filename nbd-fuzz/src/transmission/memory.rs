//! Memory as a disk, by another hand: requests of one connection, one after another.

use fixtures::nbd::codec::{Reply, command, flag};

use super::law::{Law, changes};
use super::stream::Asked;
use crate::zeroes::Zeroes;
use crate::{Verdict, ensure};

/// The unit of memory's allocation.
pub const CHUNK_BYTES: usize = 64 << 10;
/// What is told of a range that is not allocated: a hole, and zero.
const NOTHING_THERE: u64 = 3;

/// See the module.
#[derive(Debug)]
pub struct Memory {
    content: Zeroes,
    allocated: Vec<bool>,
}

impl Memory {
    /// So many zeroes.
    pub fn new(bytes: u64) -> Self {
        let bytes = bytes as usize;
        Self { content: Zeroes::new(bytes), allocated: vec![false; bytes.div_ceil(CHUNK_BYTES)] }
    }

    /// Carries a request out and compares the reply.
    ///
    /// # Errors
    /// It is not the only right one.
    pub fn judge(&mut self, asked: &Asked, payload: &[u8], law: &Law, reply: &Reply) -> Verdict {
        let refused = |error: &u32| format!("{asked:x?} was refused: {error}");
        let data = reply.result.as_deref().map_err(refused)?;
        let (offset, length) = (asked.offset as usize, law.length as usize);
        self.apply(asked, offset, length, payload);
        let read = asked.number == command::READ;
        let right = if read { data == &self.content[offset..offset + length] } else { data.is_empty() };
        ensure(right, || format!("other bytes for {asked:x?}"))?;
        if read && asked.flags & flag::DF != 0 && length > 0 {
            ensure((reply.content_chunks, reply.holes) == (1, 0), || format!("{asked:x?} in pieces"))?;
        }
        self.judge_status(asked, law, reply)
    }

    fn judge_status(&self, asked: &Asked, law: &Law, reply: &Reply) -> Verdict {
        if asked.number != command::BLOCK_STATUS {
            return Ok(());
        }
        let told = self.status(asked.offset as usize, law.length as usize, asked.flags & flag::REQ_ONE != 0);
        let numbers: Vec<u32> = reply.status.iter().map(|status| status.context).collect();
        ensure(numbers == law.contexts, || format!("contexts {numbers:?}, not {:?}", law.contexts))?;
        let right = reply.status.iter().all(|status| status.extents == told);
        ensure(right, || format!("{:?} instead of {told:?}", reply.status))
    }

    fn status(&self, offset: usize, length: usize, one: bool) -> Vec<(u64, u64)> {
        let mut told: Vec<(u64, u64)> = Vec::new();
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let next = ((at / CHUNK_BYTES + 1) * CHUNK_BYTES).min(end);
            let flags = if self.allocated[at / CHUNK_BYTES] { 0 } else { NOTHING_THERE };
            match told.last_mut() {
                Some((bytes, same)) if *same == flags => *bytes += (next - at) as u64,
                Some(_) if one => break,
                _ => told.push(((next - at) as u64, flags)),
            }
            at = next;
        }
        told
    }

    fn apply(&mut self, asked: &Asked, offset: usize, length: usize, payload: &[u8]) {
        if !changes(asked.number) || length == 0 {
            return;
        }
        let keeps = asked.number == command::WRITE || asked.flags & flag::NO_HOLE != 0;
        for (chunk, allocated) in self.allocated.iter_mut().enumerate() {
            let (start, end) = (chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
            if keeps && offset < end && start < offset + length {
                *allocated = true;
            } else if !keeps && offset <= start && end <= offset + length {
                *allocated = false;
            }
        }
        let range = &mut self.content[offset..offset + length];
        if asked.number == command::WRITE { range.copy_from_slice(payload) } else { range.fill(0) }
    }
}
