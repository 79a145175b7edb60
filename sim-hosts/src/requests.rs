//! Requests of clients to a simulated host.

use nbd_server::disk::ExportIndex;
use nbd_server::export::{Command, Extent, Payload, Request, RequestId};
use nbd_server::wire::Errno;

use crate::host::{Host, STEPS_MAX, with_io};

impl Host {
    /// The export of that name, if clients see one.
    pub fn find_export(&self, name: &str) -> Option<ExportIndex> {
        self.store.exports().find(|(_, served)| served.info().name == name).map(|(index, _)| index)
    }

    /// The door of that name (`VOLUME:EPOCH`), if it can be found.
    pub fn find_door(&self, name: &str) -> Option<ExportIndex> {
        self.store.doors().find(|(_, info)| info.name == name).map(|(index, _)| index)
    }

    /// A request begins; [`Self::reply`] has what comes of it.
    pub fn begin(&mut self, export: ExportIndex, offset: u64, length: u64, command: Command) -> RequestId {
        self.requests += 1;
        let id = RequestId { connection: 0, index: self.requests };
        let length = u32::try_from(length).expect("a short request");
        let request = Request { id, offset, length, command };
        with_io!(self, |store, io| store.start(export, request, io));
        id
    }

    /// As [`Self::begin`], a write of whole bytes; `fua`: answered when it is durable.
    pub fn begin_write(&mut self, export: ExportIndex, offset: u64, bytes: &[u8], fua: bool) -> RequestId {
        let mut buf = self.buffers.take(bytes.len());
        buf.copy_from_slice(bytes);
        self.begin(export, offset, bytes.len() as u64, Command::Write { buf, fua })
    }

    /// The reply, if it has come.
    pub fn reply(&mut self, id: RequestId) -> Option<Result<Payload, Errno>> {
        self.replied();
        let at = self.replies.iter().position(|reply| reply.id == id)?;
        Some(self.replies.swap_remove(at).outcome)
    }

    /// A request, and its reply.
    ///
    /// # Errors
    /// What the store answers.
    pub fn request(
        &mut self,
        export: ExportIndex,
        offset: u64,
        length: u64,
        command: Command,
    ) -> Result<Payload, Errno> {
        let id = self.begin(export, offset, length, command);
        self.wait(id)
    }

    /// Until a request is answered.
    fn wait(&mut self, id: RequestId) -> Result<Payload, Errno> {
        for _ in 0..STEPS_MAX {
            if let Some(outcome) = self.reply(id) {
                return outcome;
            }
            self.step();
        }
        panic!("a request is never answered");
    }

    /// Writes to a volume that is served by its name.
    ///
    /// # Errors
    /// What the store answers.
    pub fn write(&mut self, volume: &str, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let export = self.find_export(volume).expect("it is served");
        let id = self.begin_write(export, offset, bytes, false);
        self.wait(id).map(drop)
    }

    /// Trims a range of a volume that is served by its name.
    ///
    /// # Errors
    /// What the store answers.
    pub fn zero(&mut self, volume: &str, offset: u64, length: u64) -> Result<(), Errno> {
        let export = self.find_export(volume).expect("it is served");
        self.request(export, offset, length, Command::Trim { fua: false }).map(drop)
    }

    /// Everything that an export shows, as its clients read it.
    pub fn read(&mut self, name: &str, size: u64) -> Vec<u8> {
        let export = self.find_export(name).unwrap_or_else(|| panic!("{name} is not served"));
        self.read_export(export, size).unwrap_or_else(|error| panic!("{name} cannot be read: {error:?}"))
    }

    /// Everything that an export shows, of which the index is known.
    ///
    /// # Errors
    /// What the store answers.
    pub fn read_export(&mut self, export: ExportIndex, size: u64) -> Result<Vec<u8>, Errno> {
        let mut all = Vec::new();
        for offset in (0..size).step_by(1 << 20) {
            let length = (size - offset).min(1 << 20);
            let buf = self.buffers.take(usize::try_from(length).expect("a small volume"));
            match self.request(export, offset, length, Command::Read { buf, holes: false })? {
                Payload::Data(buf) => all.extend_from_slice(&buf),
                Payload::Extents(extents) => extents.iter().for_each(|extent| add(&mut all, extent)),
                other => panic!("a read is answered with {other:?}"),
            }
        }
        Ok(all)
    }
}

fn add(all: &mut Vec<u8>, extent: &Extent) {
    match extent {
        Extent::Data(buf) => all.extend_from_slice(buf),
        Extent::Hole(bytes) => all.resize(all.len() + *bytes as usize, 0),
    }
}
