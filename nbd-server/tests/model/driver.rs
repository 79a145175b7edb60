//! Drives the server through its bytes, and tells the reference what was asked and answered.

use std::collections::BTreeMap;
use std::ops::Range;

use fixtures::nbd::codec::{self, Asked, Decoder, Expected, Reply, Status, command, errno, flag};
use fixtures::nbd::tls::MemoryClient;
use fixtures::sim::{ConnectionId, Fault, SimDisk, SimHost};
use nbd_server::connection::Limits;
use nbd_server::disk::{ExportIndex, FileId};
use nbd_server::engine::Negotiated;
use nbd_server::export::ExportInfo;
use nbd_server::file_export::{FileExport, FileGeometry};
use nbd_server::status::{Chosen, ContextKey};
use nbd_server::transmission::Rules;

use crate::reference::{BLOCK_CELLS, CELL_BYTES, Reference, Stamp, fill};

/// Size of the disk in cells: 16 blocks.
pub(crate) const CELLS: usize = 16 * BLOCK_CELLS;
const SIZE_BYTES: usize = CELLS * CELL_BYTES;
const CONNECTIONS: usize = 3;
/// The number of the only context, the allocation.
const CONTEXT: u32 = 1;

#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) transfer_align: u32,
    pub(crate) zero_align: u32,
    pub(crate) structured: bool,
    /// The first client speaks TLS, in this version.
    pub(crate) tls: Option<Tls>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    Version12,
    Version13,
}

/// `whole`: the range is widened to whole 4 KiB blocks.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Read {
        connection: usize,
        at: usize,
        cells: usize,
        whole: bool,
    },
    Write {
        connection: usize,
        at: usize,
        cells: usize,
        whole: bool,
        fua: bool,
    },
    Zero {
        connection: usize,
        at: usize,
        cells: usize,
        fua: bool,
        no_hole: bool,
        fast: bool,
    },
    Trim {
        connection: usize,
        at: usize,
        cells: usize,
        fua: bool,
    },
    Cache {
        connection: usize,
        at: usize,
        cells: usize,
    },
    Status {
        connection: usize,
        at: usize,
        cells: usize,
        one: bool,
    },
    Flush {
        connection: usize,
    },
    Deliver {
        connection: usize,
        bytes: usize,
    },
    /// Of the client that speaks TLS, if it can.
    RenewKeys,
    Disk,
    Drain {
        connection: usize,
        bytes: usize,
    },
    Fault(u8),
    FillUp {
        room: usize,
    },
    Heal,
    Disconnect {
        connection: usize,
    },
    Settle,
    PowerCut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read { offset: u64, length: u32 },
    Change { fua: bool, fast: bool },
    Flush,
    Cache,
    Status { length: u32, one: bool },
}

struct InFlight {
    kind: Kind,
    /// Faults that had struck when it was issued: an error is only legal if one has since.
    faults: u64,
    /// A sync had failed before it was issued: it may not succeed if it promises durability.
    after_failed_sync: bool,
}

struct Client {
    id: ConnectionId,
    decoder: Decoder,
    in_flight: BTreeMap<u64, InFlight>,
    tls: Option<MemoryClient>,
}

/// See the module.
pub(crate) struct Driver {
    setup: Setup,
    host: Option<SimHost>,
    clients: Vec<Client>,
    reference: Reference,
    next_cookie: u64,
}

fn info() -> ExportInfo {
    ExportInfo { fast_zero: true, ..ExportInfo::new("model", SIZE_BYTES as u64) }
}

fn start(setup: &Setup, disk: SimDisk) -> (SimHost, Vec<Client>) {
    let geometry = FileGeometry {
        size: SIZE_BYTES as u64,
        transfer_align: setup.transfer_align,
        zero_align: setup.zero_align,
    };
    let export = FileExport::new(FileId(0), geometry);
    // Small limits, so that requests are held back in most cases.
    let limits =
        Limits { requests_max: 8, payload_bytes_max: 64 << 10, receive_bytes: 4096, ..Limits::default() };
    let mut host = SimHost::new(Box::new(export), disk, limits);
    let clients = (0..CONNECTIONS).map(|number| connect(&mut host, setup, number)).collect();
    (host, clients)
}

fn connect(host: &mut SimHost, setup: &Setup, number: usize) -> Client {
    let mut rules = Rules::new(info(), setup.structured);
    if setup.structured {
        rules.contexts = [Chosen { id: CONTEXT, key: ContextKey::ALLOCATION }].into();
    }
    let ends = setup.tls.filter(|_| number == 0).map(|tls| MemoryClient::pair(tls == Tls::Version12));
    let (tls, session) = ends.unzip();
    let id = host.connect_as(Negotiated { session, ..Negotiated::new(ExportIndex(0), rules) });
    Client { id, decoder: Decoder::new(setup.structured), in_flight: BTreeMap::new(), tls }
}

impl Driver {
    pub(crate) fn new(setup: Setup) -> Self {
        let disk = SimDisk::new(SIZE_BYTES, setup.transfer_align as usize, setup.seed);
        let (host, clients) = start(&setup, disk);
        let reference = Reference::new(CELLS);
        Self { setup, host: Some(host), clients, reference, next_cookie: 1 }
    }

    fn host(&mut self) -> &mut SimHost {
        self.host.as_mut().expect("a host runs between two cuts")
    }

    pub(crate) fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Read { connection, at, cells, whole } => self.read(connection, range(at, cells, whole)),
            Action::Write { connection, at, cells, whole, fua } => {
                self.write(connection, range(at, cells, whole), fua);
            }
            Action::Zero { connection, at, cells, fua, no_hole, fast } => {
                let flags = bit(fua, flag::FUA) | bit(no_hole, flag::NO_HOLE) | bit(fast, flag::FAST_ZERO);
                self.zero(connection, command::WRITE_ZEROES, range(at, cells, false), flags);
            }
            Action::Trim { connection, at, cells, fua } => {
                self.zero(connection, command::TRIM, range(at, cells, false), bit(fua, flag::FUA));
            }
            Action::Cache { connection, at, cells } => {
                let cells = range(at, cells, false);
                self.send(connection, 0, command::CACHE, &cells, Kind::Cache, &[]);
            }
            Action::Status { connection, at, cells, one } => {
                self.status(connection, range(at, cells, false), one);
            }
            Action::Flush { connection } => {
                let cookie = self.send(connection, 0, command::FLUSH, &(0..0), Kind::Flush, &[]);
                self.reference.issue_flush(cookie);
            }
            Action::Deliver { connection, bytes } => {
                let id = self.clients[connection].id;
                self.host().deliver(id, bytes);
            }
            Action::RenewKeys => self.renew_keys(),
            Action::Disk => {
                self.host().disk_step();
            }
            Action::Drain { connection, bytes } => return self.drain(connection, bytes).map(|_| ()),
            Action::Fault(number) => self.inject(number),
            Action::FillUp { room } => self.host().disk.fill_up_to(room),
            Action::Heal => self.host().disk.heal(),
            Action::Disconnect { connection } => return self.disconnect(connection),
            Action::Settle => return self.settle(),
            Action::PowerCut => return self.power_cut(),
        }
        Ok(())
    }

    fn renew_keys(&mut self) {
        let client = &mut self.clients[0];
        if let (Some(tls), Some(Tls::Version13)) = (&mut client.tls, self.setup.tls) {
            let (id, asked) = (client.id, tls.renew_keys());
            self.host().client_sends(id, &asked);
        }
    }

    fn inject(&mut self, number: u8) {
        let faults = [
            Fault::Short,
            Fault::ReadError,
            Fault::WriteError,
            Fault::SyncError,
            Fault::NoSpace,
            Fault::NoZeroing,
        ];
        self.host().disk.inject(faults[usize::from(number) % faults.len()]);
    }

    fn send(
        &mut self,
        to: usize,
        flags: u16,
        command: u16,
        cells: &Range<usize>,
        kind: Kind,
        payload: &[u8],
    ) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let (offset, length) = bytes_of(cells);
        let disk = &self.host().disk;
        let (faults, after_failed_sync) = (disk.faults_hit(), disk.syncs_failed() > 0);
        let request = InFlight { kind, faults, after_failed_sync };
        let client = &mut self.clients[to];
        client.in_flight.insert(cookie, request);
        let id = client.id;
        let header = codec::request(flags, command, cookie, offset, length);
        for piece in [&header[..], payload] {
            match &mut self.clients[to].tls {
                Some(tls) => {
                    let sealed = tls.seal(piece);
                    self.host().client_sends(id, &sealed);
                }
                None => self.host().client_sends(id, piece),
            }
        }
        cookie
    }

    fn read(&mut self, from: usize, cells: Range<usize>) {
        let (offset, length) = bytes_of(&cells);
        let cookie = self.send(from, 0, command::READ, &cells, Kind::Read { offset, length }, &[]);
        self.reference.issue_read(cookie, cells);
    }

    /// Who has not agreed on structured replies has no contexts, and does not ask.
    fn status(&mut self, from: usize, cells: Range<usize>, one: bool) {
        if self.setup.structured {
            let length = bytes_of(&cells).1;
            let kind = Kind::Status { length, one };
            let cookie = self.send(from, bit(one, flag::REQ_ONE), command::BLOCK_STATUS, &cells, kind, &[]);
            self.reference.issue_read(cookie, cells);
        }
    }

    fn write(&mut self, to: usize, cells: Range<usize>, fua: bool) {
        let stamp: Stamp = self.next_cookie;
        let payload = fill(stamp).repeat(cells.len());
        let kind = Kind::Change { fua, fast: false };
        let cookie = self.send(to, bit(fua, flag::FUA), command::WRITE, &cells, kind, &payload);
        self.reference.issue_change(cookie, cells, stamp);
    }

    fn zero(&mut self, to: usize, command: u16, cells: Range<usize>, flags: u16) {
        let kind = Kind::Change { fua: flags & flag::FUA != 0, fast: flags & flag::FAST_ZERO != 0 };
        let cookie = self.send(to, flags, command, &cells, kind, &[]);
        self.reference.issue_change(cookie, cells, 0);
    }

    /// Takes replies; tells how many bytes came.
    fn drain(&mut self, from: usize, bytes: usize) -> Result<usize, String> {
        let id = self.clients[from].id;
        let received = self.host().drain(id, bytes);
        let client = &mut self.clients[from];
        match &mut client.tls {
            Some(tls) => client.decoder.feed(&tls.receive(&received).map_err(|error| error.to_string())?),
            None => client.decoder.feed(&received),
        }
        loop {
            let client = &mut self.clients[from];
            let in_flight = &client.in_flight;
            let expect = |cookie| {
                in_flight.get(&cookie).map(|request| match request.kind {
                    Kind::Read { offset, length } => {
                        Expected { read: Some((offset, length)), ..Expected::default() }
                    }
                    Kind::Status { length, one } => {
                        let status = Asked { length: u64::from(length), one, contexts: 1 };
                        Expected { status: Some(status), ..Expected::default() }
                    }
                    _ => Expected::default(),
                })
            };
            let Some(reply) = client.decoder.next(expect)? else { return Ok(received.len()) };
            let request = client.in_flight.remove(&reply.cookie).ok_or("a reply came twice")?;
            self.answered(&request, &reply)?;
        }
    }

    fn answered(&mut self, request: &InFlight, reply: &Reply) -> Result<(), String> {
        let Reply { cookie, ref result, ref status, .. } = *reply;
        if let Err(error) = result {
            self.check_error(request, *error)?;
        }
        let promises = matches!(request.kind, Kind::Flush | Kind::Change { fua: true, .. });
        if promises && request.after_failed_sync && result.is_ok() {
            return Err(format!("D6: request {cookie} succeeded after a failed sync"));
        }
        let ok = result.is_ok();
        match request.kind {
            Kind::Read { .. } => self.reference.read_done(cookie, result.as_deref().ok())?,
            Kind::Change { fua, .. } => self.reference.change_done(cookie, ok, fua),
            Kind::Flush => self.reference.flush_done(cookie, ok),
            Kind::Cache => {}
            Kind::Status { .. } => {
                let extents = status.first().map_or(&[][..], |Status { extents, .. }| extents);
                self.reference.status_done(cookie, extents)?;
            }
        }
        Ok(())
    }

    /// D8: an error has a fault as its cause, and is one that such a request may get.
    fn check_error(&mut self, request: &InFlight, error: u32) -> Result<(), String> {
        let struck = self.host().disk.faults_hit() > request.faults || request.after_failed_sync;
        let kind_fits = match (request.kind, error) {
            (Kind::Read { .. } | Kind::Flush | Kind::Change { .. }, errno::EIO) => true,
            (Kind::Change { .. }, errno::ENOSPC) => true,
            (Kind::Change { fast, .. }, errno::ENOTSUP) => {
                return if fast { Ok(()) } else { Err("ENOTSUP unasked".into()) };
            }
            _ => false,
        };
        if struck && kind_fits {
            Ok(())
        } else {
            Err(format!("D8: {:?} got error {error}, struck {struck}", request.kind))
        }
    }

    /// The client goes; what it had in flight may or may not have happened.
    fn disconnect(&mut self, connection: usize) -> Result<(), String> {
        let id = self.clients[connection].id;
        self.host().client_closes(id);
        for _ in 0..10_000 {
            if self.host().closed(id).is_some() {
                break;
            }
            self.host().disk_step();
        }
        if self.host().closed(id).is_none() {
            return Err("D7: a vanished client's connection was never closed".into());
        }
        let setup = self.setup.clone();
        let client = connect(self.host(), &setup, connection);
        let gone = std::mem::replace(&mut self.clients[connection], client);
        self.forget(gone);
        Ok(())
    }

    fn forget(&mut self, client: Client) {
        for (cookie, request) in client.in_flight {
            match request.kind {
                Kind::Read { .. } | Kind::Status { .. } => {
                    self.reference.read_done(cookie, None).unwrap_or(());
                }
                Kind::Change { .. } => self.reference.change_done(cookie, false, false),
                Kind::Flush => self.reference.flush_done(cookie, false),
                Kind::Cache => {}
            }
        }
    }

    /// Runs until nothing moves any more; then everything must have been answered.
    fn settle(&mut self) -> Result<(), String> {
        loop {
            let mut moved = false;
            for connection in 0..CONNECTIONS {
                let id = self.clients[connection].id;
                moved |= self.host().deliver(id, usize::MAX) > 0;
                moved |= self.drain(connection, usize::MAX)? > 0;
            }
            while self.host().disk_step() {
                moved = true;
            }
            if !moved {
                break;
            }
        }
        let left: Vec<u64> =
            self.clients.iter().flat_map(|client| client.in_flight.keys().copied()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("requests {left:?} were never answered")) }
    }

    fn power_cut(&mut self) -> Result<(), String> {
        let disk = self.host.take().ok_or("no host")?.power_cut();
        self.reference.power_cut(&disk.contents())?;
        let (host, clients) = start(&self.setup, disk);
        self.host = Some(host);
        self.clients = clients;
        Ok(())
    }

    /// Everything is answered, a last look at all cells, a last flush, a last cut.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        self.host().disk.heal();
        self.settle()?;
        self.read(0, 0..CELLS);
        self.act(Action::Flush { connection: 1 })?;
        self.settle()?;
        self.power_cut()
    }
}

fn range(at: usize, cells: usize, whole: bool) -> Range<usize> {
    let end = (at + cells).min(CELLS);
    if !whole {
        return at..end;
    }
    let start = at / BLOCK_CELLS * BLOCK_CELLS;
    start..end.next_multiple_of(BLOCK_CELLS)
}

fn bytes_of(cells: &Range<usize>) -> (u64, u32) {
    ((cells.start * CELL_BYTES) as u64, u32::try_from(cells.len() * CELL_BYTES).expect("a small disk"))
}

fn bit(on: bool, flag: u16) -> u16 {
    if on { flag } else { 0 }
}
