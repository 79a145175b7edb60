//! One client and its socket: what is under way in both directions.

use std::time::Duration;

use nbd_server::connection::{ReceiveOp, SendBatch};
use nbd_server::transmission::CloseReason;
use nbd_server::wire::Errno;

use crate::disk::FuzzDisk;
use crate::ensure;
use crate::transmission::ledger::{Ledger, Past};
use crate::transmission::stream::End;

/// An operation that ends, and how; or none that could.
pub(super) type Ended<T> = Option<(T, Result<usize, Errno>)>;

/// See the module.
pub struct Peer {
    /// What it has asked and heard.
    pub ledger: Ledger,
    pub(super) place: usize,
    /// Bytes that came with it.
    pub(super) leftover: usize,
    pub(super) receive: Option<ReceiveOp>,
    pub(super) send: Option<SendBatch>,
    /// The server has shut the socket down.
    pub(super) shut: bool,
    /// It sends no more.
    pub(super) leaving: bool,
    /// It is gone.
    pub(super) lost: bool,
    /// How long it was waited for.
    pub(super) waited: Duration,
    pub(super) closed: Option<CloseReason>,
}

impl Peer {
    pub(super) fn new(ledger: Ledger, place: usize, leftover: usize) -> Self {
        Self {
            ledger,
            place,
            leftover,
            receive: None,
            send: None,
            shut: false,
            leaving: false,
            lost: false,
            waited: Duration::ZERO,
            closed: None,
        }
    }

    /// Why the server has closed it, if it has.
    pub fn closed(&self) -> Option<CloseReason> {
        self.closed
    }

    /// Replies to it may be lost, by its own doing or for the time that has passed.
    pub(super) fn owes_nothing(&self) -> bool {
        self.lost || !self.waited.is_zero() || matches!(self.ledger.end(), End::Broken(_))
    }

    /// The pending receive with what has come, if it can end now.
    pub(super) fn arrive(&mut self, bytes: usize, time: u64) -> Result<Ended<ReceiveOp>, String> {
        let waiting = if self.shut || self.lost { &[] } else { self.ledger.waiting() };
        if waiting.is_empty() && !self.shut && !self.leaving {
            return Ok(None);
        }
        let Some(mut op) = self.receive.take() else { return Ok(None) };
        if self.lost && !self.shut {
            return Ok(Some((op, Err(Errno::Io))));
        }
        let (payload, chunk) = op.targets();
        let payload = payload.unwrap_or_default();
        ensure(!payload.is_empty() || !chunk.is_empty(), || "a receive without room".to_owned())?;
        let arrived = &waiting[..bytes.max(1).min(waiting.len())];
        let (first, rest) = arrived.split_at(payload.len().min(arrived.len()));
        payload[..first.len()].copy_from_slice(first);
        let second = &rest[..rest.len().min(chunk.len())];
        chunk[..second.len()].copy_from_slice(second);
        let moved = first.len() + second.len();
        self.ledger.arrive(moved, time);
        Ok(Some((op, Ok(moved))))
    }

    /// The pending send with what of it has left, if there is one.
    pub(super) fn leave(
        &mut self,
        bytes: usize,
        past: Past,
        disk: &FuzzDisk,
    ) -> Result<Ended<SendBatch>, String> {
        let Some(batch) = self.send.take() else { return Ok(None) };
        if self.shut || self.lost {
            return Ok(Some((batch, Err(Errno::Io))));
        }
        let (most, mut moved) = (bytes.max(1), 0);
        for slice in batch.slices() {
            let piece = &slice[..slice.len().min(most - moved)];
            self.ledger.hear(piece, past, disk)?;
            moved += piece.len();
        }
        Ok(Some((batch, Ok(moved))))
    }
}
