//! A client's requests through connection, engine and file export, without a socket.

use nbd_server::connection::{Limits, Nanos, ReceiveOp, SocketAction};
use nbd_server::disk::{ExportIndex, FileId};
use nbd_server::engine::{Engine, Negotiated};
use nbd_server::export::{ExportInfo, Separate};
use nbd_server::file_export::{FileExport, FileGeometry};
use nbd_server::reactor::buffer::Pool;
use nbd_server::transmission::Rules;
use nbd_server::wire::{RequestHeader, command};

use super::disk::MemoryDisk;

/// Bytes of a request.
const BYTES: u32 = 4096;
/// Bytes of the file.
const FILE_BYTES: u64 = 1 << 20;

/// Which way data go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// A request of a client.
pub(super) fn header(direction: Direction, cookie: u64, offset: u64) -> RequestHeader {
    let command = if direction == Direction::Read { command::READ } else { command::WRITE };
    RequestHeader { flags: 0, command, cookie, offset, length: u64::from(BYTES) }
}

/// A connection with so many requests at a time.
pub struct Serving {
    engine: Engine,
    disk: MemoryDisk,
    /// What the client sends each time.
    request: Vec<u8>,
    replies: usize,
    batch: usize,
    receive: Option<(usize, ReceiveOp)>,
    turns: u64,
}

impl Serving {
    pub(super) fn new(direction: Direction, batch: usize) -> Self {
        let geometry = FileGeometry { size: FILE_BYTES, transfer_align: 1, zero_align: 4096 };
        let export = FileExport::new(FileId(0), geometry);
        let backend = Separate::new(vec![Box::new(export)]);
        let mut engine = Engine::new(Box::new(backend), Pool::new(), Limits::default());
        let mut disk = MemoryDisk::default();
        let rules = Rules::new(ExportInfo::new("part", FILE_BYTES), true);
        engine.connect(Negotiated::new(ExportIndex(0), rules), &mut disk);
        let mut request = Vec::new();
        for at in 0..batch as u64 {
            let offset = at * 5 * u64::from(BYTES) % FILE_BYTES;
            request.extend(header(direction, at, offset).to_bytes());
            if direction == Direction::Write {
                request.resize(request.len() + BYTES as usize, 0x11);
            }
        }
        let mut serving = Self { engine, disk, request, replies: 0, batch, receive: None, turns: 0 };
        serving.act();
        serving
    }

    pub(super) fn run(&mut self, units: usize) {
        for _ in 0..units / self.batch {
            self.replies = 0;
            self.batch_of_requests();
            assert!(self.replies > 0, "nothing was answered");
        }
    }

    fn batch_of_requests(&mut self) {
        let mut sent = 0;
        while sent < self.request.len() {
            let (place, mut op) = self.receive.take().expect("the connection reads on");
            let (payload, chunk) = op.targets();
            let mut moved = 0;
            for target in [payload.unwrap_or_default(), chunk] {
                let take = target.len().min(self.request.len() - sent);
                target[..take].copy_from_slice(&self.request[sent..sent + take]);
                (sent, moved) = (sent + take, moved + take);
            }
            self.turns += 1;
            self.engine.begin_turn(Nanos(self.turns));
            self.engine.received(place, op, Ok(moved), &mut self.disk);
            self.act();
        }
    }

    /// What the reactor does in a turn: operations that have ended, then actions, until nothing is left.
    fn act(&mut self) {
        loop {
            while let Some((owner, done)) = self.disk.take_ended() {
                self.engine.disk_done(owner, done, &mut self.disk);
            }
            let Some((place, action)) = self.engine.next_action(&mut self.disk) else { break };
            match action {
                SocketAction::Receive(op) => self.receive = Some((place, op)),
                SocketAction::Send(batch) => {
                    let bytes: usize = batch.slices().map(<[u8]>::len).sum();
                    self.replies += bytes;
                    let rest = self.engine.sent(place, batch, Ok(bytes));
                    assert!(rest.is_none(), "all was sent");
                }
                SocketAction::Shutdown | SocketAction::Close(_) => unreachable!("nobody leaves"),
            }
        }
    }
}
