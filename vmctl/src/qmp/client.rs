//! The connection: greeting, commands, events.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::QmpError;
use super::codec::LineCodec;
use super::pending::Pending;
use super::text::shown;
use super::types::{Event, GreetingLine, Version};

/// Ordinary commands with QEMU at once. Its own queue has eight places, and a full one stops it from reading: an
/// out-of-band command, the only way out of a hanging migration, would not be seen any more.
const IN_BAND_MAX: usize = 6;
/// Out-of-band commands with QEMU at once.
const OUT_OF_BAND_MAX: usize = 4;
/// Commands on their way to the socket.
const WRITES_MAX: usize = IN_BAND_MAX + OUT_OF_BAND_MAX;
/// Events that wait for our attention.
const EVENTS_MAX: usize = 256;
/// Longest event that is believed to be one; with [`EVENTS_MAX`] the bound on their memory.
const EVENT_BYTES_MAX: usize = 64 << 10;
/// Bytes received at once.
const READ_BYTES: usize = 16 << 10;

/// How patient a client is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For greeting and negotiation together.
    pub greeting: Duration,
    /// For each command.
    pub command: Duration,
}

impl Default for Limits {
    /// Commands wait for more than QEMU's reconnect-delay: while a disk's server is away, the monitor is blocked.
    fn default() -> Self {
        Self { greeting: Duration::from_secs(3), command: Duration::from_secs(15) }
    }
}

/// What QEMU said first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// QEMU's version.
    pub version: Version,
    /// What its packager calls it; escaped.
    pub package: String,
    /// Whether out-of-band commands work, and are turned on.
    pub oob: bool,
    /// The process behind the socket, as the kernel knows it.
    pub pid: Option<i32>,
}

/// A new connection.
#[derive(Debug)]
pub struct Connection {
    /// For commands.
    pub client: Client,
    /// What QEMU tells by itself; whoever takes it must keep up.
    pub events: Events,
    /// What QEMU said first.
    pub greeting: Greeting,
}

/// Sends commands; clones share one connection, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    pending: Arc<Pending>,
    write: mpsc::Sender<Vec<u8>>,
    in_band: Arc<Semaphore>,
    out_of_band: Arc<Semaphore>,
    oob: bool,
    command_time_max: Duration,
    tasks: [AbortHandle; 2],
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("closed", &self.pending.closed()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pending.close("nobody needs it any more");
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// What QEMU tells by itself, in order and without gaps.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Event>,
    pending: PendingHandle,
}

struct PendingHandle(Arc<Pending>);

impl std::fmt::Debug for PendingHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}

impl Events {
    /// The next event. May be dropped and asked again: nothing is lost.
    ///
    /// # Errors
    /// [`QmpError::Closed`], when all events that came before the end have been taken. Nothing is ever left out: who
    /// does not keep up finds the connection closed.
    pub async fn next(&mut self) -> Result<Event, QmpError> {
        match self.queue.recv().await {
            Some(event) => Ok(event),
            None => {
                Err(QmpError::Closed(self.pending.0.closed().unwrap_or_else(|| "it was closed".to_owned())))
            }
        }
    }
}

impl Client {
    /// Connects, reads the greeting, and leaves the negotiation mode; out-of-band commands are turned on where QEMU
    /// offers them.
    ///
    /// # Errors
    /// Nobody listens, or what answers is no QEMU, or it serves another client: a monitor has one at a time.
    pub async fn connect(path: &Path, limits: Limits) -> Result<Connection, QmpError> {
        let deadline = Instant::now() + limits.greeting;
        let connecting = timeout_at(deadline, UnixStream::connect(path));
        let late = || QmpError::Late { command: "the greeting", after: limits.greeting };
        let stream =
            connecting.await.map_err(|_| late())?.map_err(|error| QmpError::unreachable(path, &error))?;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (mut read, write) = stream.into_split();
        let mut codec = LineCodec::default();
        let greeting = timeout_at(deadline, read_greeting(&mut read, &mut codec, pid));
        let greeting = greeting.await.map_err(|_| {
            QmpError::Closed("no greeting: it serves another client, or is stuck".to_owned())
        })??;
        let (client, events) = start(read, write, codec, greeting.oob, limits.command);
        let enable: &[&str] = if greeting.oob { &["oob"] } else { &[] };
        let negotiated = client.run::<Value>("qmp_capabilities", json!({ "enable": enable }));
        timeout_at(deadline, negotiated).await.map_err(|_| late())??;
        Ok(Connection { client, events, greeting })
    }

    /// Runs a command with the usual patience.
    ///
    /// # Errors
    /// See [`QmpError`], here and for all commands.
    pub async fn run<T: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        self.run_within(self.inner.command_time_max, command, arguments).await
    }

    /// Runs a command whose answer may take `time_max`.
    ///
    /// # Errors
    /// See [`QmpError`]. After `Late` QEMU may still carry it out.
    pub async fn run_within<T: DeserializeOwned>(
        &self,
        time_max: Duration,
        command: &'static str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        self.send(time_max, "execute", command, arguments).await
    }

    /// Runs a command that overtakes those that hang; where QEMU has no such thing, as an ordinary one.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn run_out_of_band<T: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let how = if self.inner.oob { "exec-oob" } else { "execute" };
        self.send(self.inner.command_time_max, how, command, arguments).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        time_max: Duration,
        how: &'static str,
        command: &'static str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let exchange = self.exchange(how, command, arguments);
        let outcome = tokio::time::timeout(time_max, exchange).await;
        let value = outcome.map_err(|_| QmpError::Late { command, after: time_max })??;
        serde_json::from_value(value)
            .map_err(|error| QmpError::Answer { command, reason: shown(&error.to_string()) })
    }

    async fn exchange(&self, how: &str, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let inner = &self.inner;
        let queue = if how == "exec-oob" { &inner.out_of_band } else { &inner.in_band };
        let closed =
            || QmpError::Closed(inner.pending.closed().unwrap_or_else(|| "it was closed".to_owned()));
        let place = Arc::clone(queue).acquire_owned().await.map_err(|_| closed())?;
        let (id, outcome) = inner.pending.add(command, place)?;
        let mut line = json!({ how: command, "arguments": arguments, "id": id }).to_string().into_bytes();
        line.push(b'\n');
        inner.write.send(line).await.map_err(|_| closed())?;
        outcome.await.map_err(|_| closed())?
    }

    /// Why the connection ended, if it did.
    pub fn closed(&self) -> Option<String> {
        self.inner.pending.closed()
    }
}

fn start(
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    codec: LineCodec,
    oob: bool,
    command_time_max: Duration,
) -> (Client, Events) {
    let pending = Arc::new(Pending::default());
    let (lines, queue) = mpsc::channel(WRITES_MAX);
    let writer = tokio::spawn(write_lines(write, queue, Arc::clone(&pending))).abort_handle();
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let reading = read_lines(read, codec, sender, Arc::clone(&pending));
    let writing = writer.clone();
    let shared = Arc::clone(&pending);
    let reader = tokio::spawn(async move {
        shared.close(&reading.await);
        // QEMU serves one client at a time: both halves must go, so that the next one is greeted.
        writing.abort();
    });
    let events = Events { queue: events, pending: PendingHandle(Arc::clone(&pending)) };
    let inner = Inner {
        pending,
        write: lines,
        in_band: Arc::new(Semaphore::new(IN_BAND_MAX)),
        out_of_band: Arc::new(Semaphore::new(OUT_OF_BAND_MAX)),
        oob,
        command_time_max,
        tasks: [reader.abort_handle(), writer],
    };
    (Client { inner: Arc::new(inner) }, events)
}

async fn read_greeting(
    read: &mut OwnedReadHalf,
    codec: &mut LineCodec,
    pid: Option<i32>,
) -> Result<Greeting, QmpError> {
    let closed = |reason: String| QmpError::Closed(reason);
    let object = loop {
        if let Some(object) = codec.next_object().map_err(|error| closed(error.to_string()))? {
            break object;
        }
        receive(read, codec).await.map_err(closed)?;
    };
    let line: GreetingLine = serde_json::from_value(Value::Object(object))
        .map_err(|error| closed(format!("it is no QEMU: {}", shown(&error.to_string()))))?;
    let oob = line.qmp.capabilities.iter().any(|capability| capability == "oob");
    Ok(Greeting { version: line.qmp.version.qemu, package: shown(&line.qmp.version.package), oob, pid })
}

async fn receive(read: &mut OwnedReadHalf, codec: &mut LineCodec) -> Result<(), String> {
    let mut buffer = [0; READ_BYTES];
    match read.read(&mut buffer).await {
        Ok(0) => Err("QEMU closed it".to_owned()),
        Ok(count) => {
            codec.push(&buffer[..count]);
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Reads until the end; returns why it came.
async fn read_lines(
    mut read: OwnedReadHalf,
    mut codec: LineCodec,
    events: mpsc::Sender<Event>,
    pending: Arc<Pending>,
) -> String {
    loop {
        match codec.next_object() {
            Ok(Some(object)) => {
                if let Err(reason) = sort(object, &events, &pending) {
                    return reason;
                }
            }
            Ok(None) => {
                if let Err(reason) = receive(&mut read, &mut codec).await {
                    return reason;
                }
            }
            Err(error) => return error.to_string(),
        }
    }
}

fn sort(object: Map<String, Value>, events: &mpsc::Sender<Event>, pending: &Pending) -> Result<(), String> {
    if !object.contains_key("event") {
        return pending.answer(object);
    }
    let value = Value::Object(object);
    if value.to_string().len() > EVENT_BYTES_MAX {
        return Err("an event of more than 64 KiB".to_owned());
    }
    let event =
        serde_json::from_value(value).map_err(|error| format!("no event: {}", shown(&error.to_string())))?;
    match events.try_send(event) {
        Ok(()) => Ok(()),
        Err(mpsc::error::TrySendError::Full(_)) => Err(format!("more than {EVENTS_MAX} events wait for us")),
        // Whoever does not want events has dropped them.
        Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
    }
}

async fn write_lines(mut write: OwnedWriteHalf, mut lines: mpsc::Receiver<Vec<u8>>, pending: Arc<Pending>) {
    while let Some(line) = lines.recv().await {
        if let Err(error) = write.write_all(&line).await {
            return pending.close(&error.to_string());
        }
    }
}
