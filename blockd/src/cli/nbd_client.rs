//! A small NBD client over Unix sockets: fixed newstyle, structured replies where offered so that holes stay holes,
//! several requests in flight. It never believes the server: every length and offset is checked against what was
//! asked before anything is read for it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nbd_server::wire::{
    NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, RequestHeader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    chunk, command, handshake_flag, info, option, option_reply_type, transmission_flag,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// Bytes of one read or write, at most.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests in flight.
const IN_FLIGHT_MAX: usize = 16;
/// Longest path that a socket address holds.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long the whole handshake may take.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the server may be silent while requests are in flight; a flush of much data on a slow disk is silent long.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(600);
/// Longest option reply or error message that is read.
const MESSAGE_BYTES_MAX: u32 = 64 << 10;
/// Replies to one option, at most.
const OPTION_REPLIES_MAX: usize = 64;

/// Why a transfer ended.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The connection broke.
    #[error("the NBD connection failed: {0}")]
    Io(#[from] io::Error),
    /// The server said no.
    #[error("the NBD server refused {what}: {why}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its word, or the error's number.
        why: String,
    },
    /// The server does what the protocol forbids.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(&'static str),
    /// The file on our side failed.
    #[error("{0}")]
    Local(String),
}

type Result<T> = std::result::Result<T, NbdError>;

/// What to ask.
#[derive(Debug)]
pub enum Request {
    /// Read a range, at most [`REQUEST_BYTES_MAX`].
    Read {
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write; at most [`REQUEST_BYTES_MAX`].
    Write {
        /// Bytes from the start.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// Make what was answered durable.
    Flush,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// A part of a range that was read.
    Data {
        /// Bytes from the start.
        offset: u64,
        /// What it holds.
        data: Vec<u8>,
    },
    /// A part of a range that was read, all zeroes.
    Hole {
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// A range was written.
    Written {
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// What was answered before is durable.
    Flushed,
}

/// A connection to one export.
#[derive(Debug)]
pub struct NbdClient {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    size: u64,
    flags: u16,
    structured: bool,
    payload_max: u32,
    cookie: u64,
}

/// Connects to a Unix socket whatever the length of its path.
///
/// The daemon tells its socket's absolute path, also where it was given a short relative one. What exceeds a socket
/// address goes through the directory's descriptor, whose name is always short.
async fn connect_unix(socket: &Path) -> io::Result<UnixStream> {
    if socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return UnixStream::connect(socket).await;
    }
    let (Some(directory), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    UnixStream::connect(short.join(name)).await
}

impl NbdClient {
    /// Connects to an export.
    ///
    /// # Errors
    /// See [`NbdError`], here and below.
    pub async fn connect(socket: &Path, export: &str) -> Result<Self> {
        let stream = connect_unix(socket).await?;
        let (reader, writer) = stream.into_split();
        let mut client = Self {
            reader: BufReader::with_capacity(64 << 10, reader),
            writer,
            size: 0,
            flags: 0,
            structured: false,
            payload_max: REQUEST_BYTES_MAX,
            cookie: 0,
        };
        let late = |_| NbdError::Protocol("no handshake within 10 s");
        timeout(HANDSHAKE_TIME_MAX, client.negotiate(export)).await.map_err(late)??;
        Ok(client)
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether writes would be refused.
    pub fn is_read_only(&self) -> bool {
        self.flags & transmission_flag::READ_ONLY != 0
    }

    /// Bytes that one request may carry.
    pub fn request_bytes_max(&self) -> u32 {
        self.payload_max
    }

    async fn negotiate(&mut self, export: &str) -> Result<()> {
        let (magic, newstyle) = (self.reader.read_u64().await?, self.reader.read_u64().await?);
        if (magic, newstyle) != (NBD_MAGIC, OPTION_MAGIC) {
            return Err(NbdError::Protocol("it is no NBD server"));
        }
        let offered = self.reader.read_u16().await?;
        if offered & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(NbdError::Protocol("it does not know fixed newstyle negotiation"));
        }
        let ours = offered & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        self.writer.write_u32(u32::from(ours)).await?;
        self.structured = self.ask_structured().await?;
        self.go(export).await
    }

    async fn send_option(&mut self, number: u32, data: &[u8]) -> Result<()> {
        let mut message = Vec::with_capacity(16 + data.len());
        message.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        message.extend_from_slice(&number.to_be_bytes());
        let length = u32::try_from(data.len()).map_err(|_| NbdError::Protocol("a name is too long"))?;
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(data);
        Ok(self.writer.write_all(&message).await?)
    }

    async fn option_reply(&mut self, number: u32) -> Result<(u32, Vec<u8>)> {
        if self.reader.read_u64().await? != OPTION_REPLY_MAGIC || self.reader.read_u32().await? != number {
            return Err(NbdError::Protocol("a reply to no option of ours"));
        }
        let kind = self.reader.read_u32().await?;
        let length = self.reader.read_u32().await?;
        Ok((kind, read_bytes(&mut self.reader, length, MESSAGE_BYTES_MAX).await?))
    }

    async fn ask_structured(&mut self) -> Result<bool> {
        self.send_option(option::STRUCTURED_REPLY, &[]).await?;
        let (kind, _) = self.option_reply(option::STRUCTURED_REPLY).await?;
        Ok(kind == option_reply_type::ACK)
    }

    async fn go(&mut self, export: &str) -> Result<()> {
        let mut data = Vec::new();
        let length = u32::try_from(export.len()).map_err(|_| NbdError::Protocol("a name is too long"))?;
        data.extend_from_slice(&length.to_be_bytes());
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.send_option(option::GO, &data).await?;
        let mut described = false;
        for _ in 0..OPTION_REPLIES_MAX {
            match self.option_reply(option::GO).await? {
                (option_reply_type::ACK, _) if described => return Ok(()),
                (option_reply_type::ACK, _) => return Err(NbdError::Protocol("an export without a size")),
                (option_reply_type::INFO, data) => described |= self.take_info(&data)?,
                (kind, message) => return Err(refused_option(kind, &message)),
            }
        }
        Err(NbdError::Protocol("its replies to one option do not end"))
    }

    /// Takes a piece of information in; `true` if it was the export's size.
    fn take_info(&mut self, data: &[u8]) -> Result<bool> {
        let bad = || NbdError::Protocol("an information of the wrong length");
        let (kind, data) = data.split_first_chunk().ok_or_else(bad)?;
        match u16::from_be_bytes(*kind) {
            info::EXPORT => {
                let (size, flags) = data.split_first_chunk().ok_or_else(bad)?;
                self.size = u64::from_be_bytes(*size);
                self.flags = u16::from_be_bytes(flags.try_into().map_err(|_| bad())?);
                if self.size > i64::MAX as u64 {
                    return Err(NbdError::Protocol("an export of more than 8 EiB"));
                }
                Ok(true)
            }
            info::BLOCK_SIZE => {
                let (_, max) = data.split_last_chunk::<4>().ok_or_else(bad)?;
                // Our requests are whole blocks of 4 KiB, or end at the export's end.
                self.payload_max = u32::from_be_bytes(*max).clamp(4096, REQUEST_BYTES_MAX) / 4096 * 4096;
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Sends all requests, several in flight, and hands the replies over as they come, in any order. Returns when
    /// all are answered.
    pub async fn run(
        &mut self,
        requests: mpsc::Receiver<Request>,
        on_reply: impl FnMut(Reply) -> std::result::Result<(), String>,
    ) -> Result<()> {
        let room = Semaphore::new(IN_FLIGHT_MAX);
        let (announce, announced) = mpsc::unbounded_channel();
        let limits = Limits { size: self.size, request_bytes_max: self.payload_max };
        let sending = send_all(&mut self.writer, &mut self.cookie, &limits, requests, &room, announce);
        let mut receiver = Receiver {
            reader: &mut self.reader,
            structured: self.structured,
            pending: HashMap::new(),
            on_reply,
        };
        let receiving = receiver.receive_all(announced, &room);
        tokio::try_join!(sending, receiving)?;
        Ok(())
    }

    /// Makes everything that was answered durable.
    pub async fn flush(&mut self) -> Result<()> {
        if self.flags & transmission_flag::SEND_FLUSH == 0 {
            return Err(NbdError::Refused { what: "to flush", why: "it cannot".to_owned() });
        }
        let (sender, requests) = mpsc::channel(1);
        sender.try_send(Request::Flush).map_err(|_| NbdError::Protocol("no room for a request"))?;
        drop(sender);
        self.run(requests, |_| Ok(())).await
    }

    /// Says goodbye; dropping the client without it is legal, too.
    pub async fn disconnect(mut self) -> Result<()> {
        let header = RequestHeader { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 };
        Ok(self.writer.write_all(&header.to_bytes()).await?)
    }
}

fn refused_option(kind: u32, message: &[u8]) -> NbdError {
    let why = match kind {
        option_reply_type::ERR_UNKNOWN => "there is no such export".to_owned(),
        option_reply_type::ERR_SHUTDOWN => "it is stopping".to_owned(),
        _ => format!("{} (error {:#x})", String::from_utf8_lossy(message), kind),
    };
    NbdError::Refused { what: "the export", why }
}

/// Reads what a length announces, if it is allowed to.
async fn read_bytes(reader: &mut (impl AsyncRead + Unpin), length: u32, max: u32) -> Result<Vec<u8>> {
    if length > max {
        return Err(NbdError::Protocol("a message that is too long"));
    }
    let mut bytes = vec![0; length as usize];
    reader.read_exact(&mut bytes).await?;
    Ok(bytes)
}

struct Limits {
    size: u64,
    request_bytes_max: u32,
}

/// A request in flight.
#[derive(Debug)]
struct Pending {
    command: u16,
    offset: u64,
    length: u32,
    /// Ranges of a read that were answered, as they came.
    answered: Vec<(u64, u32)>,
}

async fn send_all(
    writer: &mut OwnedWriteHalf,
    cookie: &mut u64,
    limits: &Limits,
    mut requests: mpsc::Receiver<Request>,
    room: &Semaphore,
    announce: mpsc::UnboundedSender<(u64, Pending)>,
) -> Result<()> {
    while let Some(request) = requests.recv().await {
        let closed = |_| NbdError::Protocol("the transfer has ended");
        room.acquire().await.map_err(closed)?.forget();
        *cookie += 1;
        let (header, data) = to_wire(*cookie, request, limits)?;
        let RequestHeader { command, offset, .. } = header;
        let length = u32::try_from(header.length).expect("looked at against a limit of 32 bits");
        let pending = Pending { command, offset, length, answered: Vec::new() };
        // Before it is sent: the reply may be read as soon as it is.
        announce.send((*cookie, pending)).map_err(|_| NbdError::Protocol("the transfer has ended"))?;
        writer.write_all(&header.to_bytes()).await?;
        writer.write_all(&data).await?;
    }
    Ok(())
}

fn to_wire(cookie: u64, request: Request, limits: &Limits) -> Result<(RequestHeader, Vec<u8>)> {
    let (command, offset, length, data) = match request {
        Request::Read { offset, length } => (command::READ, offset, length, Vec::new()),
        Request::Write { offset, data } => {
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            (command::WRITE, offset, length, data)
        }
        Request::Flush => (command::FLUSH, 0, 0, Vec::new()),
    };
    let end = offset.checked_add(u64::from(length)).filter(|&end| end <= limits.size);
    if end.is_none() || length > limits.request_bytes_max {
        return Err(NbdError::Local(format!(
            "a request of {length} bytes at {offset} does not fit the export"
        )));
    }
    Ok((RequestHeader { flags: 0, command, cookie, offset, length: u64::from(length) }, data))
}

/// The receiving side of [`NbdClient::run`].
struct Receiver<'a, F> {
    reader: &'a mut BufReader<OwnedReadHalf>,
    structured: bool,
    pending: HashMap<u64, Pending>,
    on_reply: F,
}

impl<F: FnMut(Reply) -> std::result::Result<(), String>> Receiver<'_, F> {
    async fn receive_all(
        &mut self,
        mut announced: mpsc::UnboundedReceiver<(u64, Pending)>,
        room: &Semaphore,
    ) -> Result<()> {
        loop {
            if self.pending.is_empty() {
                let Some((cookie, pending)) = announced.recv().await else { return Ok(()) };
                self.pending.insert(cookie, pending);
            }
            let silent = |_| NbdError::Io(io::Error::new(io::ErrorKind::TimedOut, "the server is silent"));
            let magic = timeout(SILENCE_TIME_MAX, self.reader.read_u32()).await.map_err(silent)??;
            while let Ok((cookie, pending)) = announced.try_recv() {
                self.pending.insert(cookie, pending);
            }
            let received = async {
                match magic {
                    SIMPLE_REPLY_MAGIC => self.simple_reply().await.map(|()| true),
                    STRUCTURED_REPLY_MAGIC if self.structured => self.chunk().await,
                    _ => Err(NbdError::Protocol("a reply without its magic")),
                }
            };
            if timeout(SILENCE_TIME_MAX, received).await.map_err(silent)?? {
                room.add_permits(1);
            }
        }
    }

    async fn simple_reply(&mut self) -> Result<()> {
        let (error, cookie) = (self.reader.read_u32().await?, self.reader.read_u64().await?);
        let pending = self.pending.remove(&cookie).ok_or(NbdError::Protocol("a reply to nothing"))?;
        if error != 0 {
            return Err(refused_request(&pending, error));
        }
        if pending.command != command::READ {
            return self.finish(&pending);
        }
        if self.structured {
            return Err(NbdError::Protocol("a simple reply to a read"));
        }
        let data = read_bytes(self.reader, pending.length, pending.length).await?;
        self.hand_over(Reply::Data { offset: pending.offset, data })
    }

    /// Reads one chunk; `true` if it was its request's last.
    async fn chunk(&mut self) -> Result<bool> {
        let (flags, kind) = (self.reader.read_u16().await?, self.reader.read_u16().await?);
        let (cookie, length) = (self.reader.read_u64().await?, self.reader.read_u32().await?);
        let mut pending = self.pending.remove(&cookie).ok_or(NbdError::Protocol("a reply to nothing"))?;
        let done = flags & chunk::FLAG_DONE != 0;
        match kind {
            chunk::NONE if length == 0 && done => {}
            chunk::OFFSET_DATA => self.data_chunk(&mut pending, length).await?,
            chunk::OFFSET_HOLE => self.hole_chunk(&mut pending, length).await?,
            kind if kind & 1 << 15 != 0 => return Err(self.error_chunk(&pending, length).await?),
            _ => return Err(NbdError::Protocol("a chunk of an unknown kind")),
        }
        if done {
            self.finish(&pending)?;
        } else {
            self.pending.insert(cookie, pending);
        }
        Ok(done)
    }

    async fn data_chunk(&mut self, pending: &mut Pending, length: u32) -> Result<()> {
        let length = length.checked_sub(8).ok_or(NbdError::Protocol("a chunk that is too short"))?;
        let offset = self.reader.read_u64().await?;
        pending.take(offset, length)?;
        let data = read_bytes(self.reader, length, pending.length).await?;
        self.hand_over(Reply::Data { offset, data })
    }

    async fn hole_chunk(&mut self, pending: &mut Pending, length: u32) -> Result<()> {
        if length != 12 {
            return Err(NbdError::Protocol("a hole of the wrong length"));
        }
        let (offset, length) = (self.reader.read_u64().await?, self.reader.read_u32().await?);
        pending.take(offset, length)?;
        self.hand_over(Reply::Hole { offset, length })
    }

    async fn error_chunk(&mut self, pending: &Pending, length: u32) -> Result<NbdError> {
        let message = read_bytes(self.reader, length, MESSAGE_BYTES_MAX).await?;
        let number = message.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        Ok(refused_request(pending, number))
    }

    fn finish(&mut self, pending: &Pending) -> Result<()> {
        match pending.command {
            command::READ => pending.check_whole(),
            command::WRITE => {
                self.hand_over(Reply::Written { offset: pending.offset, length: pending.length })
            }
            _ => self.hand_over(Reply::Flushed),
        }
    }

    fn hand_over(&mut self, reply: Reply) -> Result<()> {
        (self.on_reply)(reply).map_err(NbdError::Local)
    }
}

impl Pending {
    /// Notes that a range of a read is answered; it must lie in what was asked.
    fn take(&mut self, offset: u64, length: u32) -> Result<()> {
        let end = offset.checked_add(u64::from(length));
        let inside =
            offset >= self.offset && end.is_some_and(|end| end <= self.offset + u64::from(self.length));
        // An empty chunk is forbidden, and would let a server send without end.
        if self.command != command::READ || !inside || length == 0 {
            return Err(NbdError::Protocol("a chunk outside of what was asked"));
        }
        if self.answered.len() >= self.length.div_ceil(512) as usize {
            return Err(NbdError::Protocol("more chunks than sectors"));
        }
        self.answered.push((offset, length));
        Ok(())
    }

    /// A read that has ended must have been answered whole, each byte once.
    fn check_whole(&self) -> Result<()> {
        let mut answered = self.answered.clone();
        answered.sort_unstable();
        let mut at = self.offset;
        for (offset, length) in answered {
            if offset != at {
                return Err(NbdError::Protocol("a read answered twice or in part"));
            }
            at += u64::from(length);
        }
        if at == self.offset + u64::from(self.length) {
            return Ok(());
        }
        Err(NbdError::Protocol("a read answered in part"))
    }
}

fn refused_request(pending: &Pending, number: u32) -> NbdError {
    let what = match pending.command {
        command::READ => "a read",
        command::WRITE => "a write",
        _ => "to flush",
    };
    // NBD's error numbers are Linux's.
    let why = i32::try_from(number)
        .map_or_else(|_| number.to_string(), |number| io::Error::from_raw_os_error(number).to_string());
    NbdError::Refused { what, why }
}
