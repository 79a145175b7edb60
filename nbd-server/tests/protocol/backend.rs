//! A backend of one's own behind real clients: exports that come and go and share what they have, threads
//! that work for it, its own time, and a stop that waits for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use fixtures::nbd::client::{Client, ClientError, reply_type};
use fixtures::nbd::codec::{command, errno};
use nbd_server::client::Client as Who;
use nbd_server::connection::Nanos;
use nbd_server::disk::{DiskDone, ExportIndex};
use nbd_server::export::{Backend, Command, ExportInfo, Io, Payload, Request, RequestId};
use nbd_server::handshake::{Directory, ExportAddress};
use nbd_server::reactor::{ReactorSpec, Waker};
use nbd_server::server::{Server, ServerConfig};
use nbd_server::wire::Errno;

use crate::harness::{TestServer, eventually, pause};

const SIZE_BYTES: u64 = 1 << 20;

/// What the test, the directory and the backend share.
#[derive(Default)]
struct Counter {
    orders: Mutex<Vec<Order>>,
    shelf: Mutex<BTreeMap<String, u32>>,
    journal: Mutex<Vec<String>>,
    ticks: AtomicU64,
    /// Replies that are on record.
    recorded: AtomicU64,
    /// The backend has something to finish.
    busy: AtomicBool,
}

/// What a thread leaves for the backend before it wakes it.
enum Order {
    Open(u32, u8),
    Close(u32),
    /// All flushes that wait are durable.
    Committed,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counter {
    fn order(&self, order: Order, waker: &Waker) {
        lock(&self.orders).push(order);
        waker.wake();
    }

    fn list(&self, name: &str, index: u32) {
        lock(&self.shelf).insert(name.to_owned(), index);
    }

    fn note(&self, line: String) {
        lock(&self.journal).push(line);
    }

    fn noted(&self, line: &str) -> usize {
        lock(&self.journal).iter().filter(|noted| *noted == line).count()
    }
}

impl Directory for Counter {
    fn list(&self, _client: &Who) -> Vec<ExportInfo> {
        lock(&self.shelf).keys().map(|name| ExportInfo::new(name, SIZE_BYTES)).collect()
    }

    fn find(&self, _client: &Who, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        let name = std::str::from_utf8(name).ok()?;
        let index = ExportIndex(*lock(&self.shelf).get(name)?);
        Some((ExportAddress { reactor: 0, index }, ExportInfo::new(name, SIZE_BYTES)))
    }
}

/// Exports are full of one byte each; flushes of all of them wait for one commit.
struct Shop {
    counter: Arc<Counter>,
    open: BTreeMap<ExportIndex, u8>,
    flushes: Vec<RequestId>,
    replies: u64,
    period: Option<Duration>,
    next: Nanos,
}

impl Backend for Shop {
    fn connected(&mut self, export: ExportIndex, _io: &mut Io<'_>) {
        self.counter.note(format!("connected {}", export.0));
    }

    fn disconnected(&mut self, export: ExportIndex, _io: &mut Io<'_>) {
        self.counter.note(format!("disconnected {}", export.0));
    }

    fn start(&mut self, export: ExportIndex, request: Request, io: &mut Io<'_>) {
        self.replies += u64::from(!matches!(request.command, Command::Flush));
        match (self.open.get(&export), request.command) {
            (None, _) => io.reply(request.id, Err(Errno::Io)),
            (Some(&byte), Command::Read { mut buf, .. }) => {
                buf.fill(byte);
                io.reply(request.id, Ok(Payload::Data(buf)));
            }
            (_, Command::Flush) => {
                self.flushes.push(request.id);
                self.counter.note("flush".into());
            }
            _ => io.reply(request.id, Ok(Payload::None)),
        }
    }

    fn disk_done(&mut self, _owner: ExportIndex, done: DiskDone, _io: &mut Io<'_>) {
        panic!("a shop has no disk, yet {:?} ended", done.op);
    }

    fn woken(&mut self, io: &mut Io<'_>) {
        self.counter.note("woken".into());
        for order in lock(&self.counter.orders).drain(..) {
            match order {
                Order::Open(index, byte) => drop(self.open.insert(ExportIndex(index), byte)),
                Order::Close(index) => drop(self.open.remove(&ExportIndex(index))),
                Order::Committed => {
                    for id in self.flushes.drain(..) {
                        io.reply(id, Ok(Payload::None));
                    }
                }
            }
        }
    }

    fn before_replies(&mut self) {
        self.counter.recorded.store(self.replies, Ordering::SeqCst);
    }

    fn tick(&mut self, now: Nanos, _io: &mut Io<'_>) -> Option<Nanos> {
        self.counter.ticks.fetch_add(1, Ordering::Relaxed);
        let period = self.period?;
        if now >= self.next {
            self.next = now.after(period);
            self.counter.note("period".into());
        }
        Some(self.next)
    }

    fn begin_stop(&mut self, _io: &mut Io<'_>) {
        self.counter.note("stop".into());
    }

    fn quiescent(&self) -> bool {
        !self.counter.busy.load(Ordering::Acquire)
    }
}

/// A server of a shop without exports, and what wakes it.
fn shop(period: Option<Duration>) -> (TestServer, Arc<Counter>, Waker) {
    let counter = Arc::new(Counter::default());
    let (tell, told) = mpsc::channel();
    let shared = Arc::clone(&counter);
    let server = TestServer::start_with(move || {
        let counter = Arc::clone(&shared);
        let build = move || Shop {
            counter,
            open: BTreeMap::new(),
            flushes: Vec::new(),
            replies: 0,
            period,
            next: Nanos::default(),
        };
        let spec = ReactorSpec { files: Vec::new(), build: Box::new(move |_, _, _| Box::new(build())) };
        let server = Server::start_with(vec![spec], shared, ServerConfig::default()).expect("it starts");
        tell.send(server.wakers().remove(0)).expect("the test waits");
        server
    });
    let waker = told.recv().expect("the server stands");
    (server, counter, waker)
}

fn is_refused(server: &TestServer, name: &str) -> bool {
    let client = Client::connect(server.socket(), name.as_bytes());
    matches!(client, Err(ClientError::Refused(reply_type::ERR_UNKNOWN)))
}

#[test]
fn exports_come_and_go_while_the_server_runs() {
    let (server, counter, waker) = shop(None);
    assert!(is_refused(&server, "late"));
    for round in 0..50 {
        // A client that finds the name finds the export behind it, however close the two follow each other.
        let name = format!("late {round}");
        counter.order(Order::Open(round, 7), &waker);
        counter.list(&name, round);
        assert_eq!(server.client_of(&name).read(0, 512).unwrap(), [7; 512]);
    }
    let mut client = server.client_of("late 3");
    counter.order(Order::Close(3), &waker);
    lock(&counter.shelf).remove("late 3");
    assert!(is_refused(&server, "late 3"));
    eventually("the backend has closed it", || {
        client.call(0, command::READ, 0, 512).unwrap() == Err(errno::EIO)
    });
    client.leave().unwrap();
    eventually("all are gone", || counter.noted("disconnected 3") == 2);
    assert_eq!(counter.noted("connected 3"), 2);
}

/// A client never sees a reply that the backend was not told of before it was sent.
#[test]
fn replies_are_on_record_before_they_are_sent() {
    let (server, counter, waker) = shop(None);
    counter.order(Order::Open(0, 7), &waker);
    counter.list("v", 0);
    let (mut first, mut second) = (server.client_of("v"), server.client_of("v"));
    for round in 1..=200 {
        assert_eq!(first.read(0, 512).unwrap(), [7; 512]);
        second.write(0, &[1; 512]).unwrap();
        assert!(counter.recorded.load(Ordering::SeqCst) >= 2 * round, "round {round}");
    }
}

/// The directory may name what the backend has never heard of: the backend says what becomes of the client.
#[test]
fn a_client_of_an_unknown_export_is_the_backends() {
    let (server, counter, _waker) = shop(None);
    counter.list("ghost", 77);
    let mut client = server.client_of("ghost");
    assert_eq!(client.call(0, command::READ, 0, 512).unwrap(), Err(errno::EIO));
    client.leave().unwrap();
    assert_eq!(counter.noted("connected 77"), 1);
}

#[test]
fn another_thread_ends_requests_of_several_exports() {
    let (server, counter, waker) = shop(None);
    for (index, name) in [(0, "a"), (1, "b")] {
        counter.order(Order::Open(index, 1), &waker);
        counter.list(name, index);
    }
    let mut clients: Vec<Client> = ["a", "b", "a"].map(|name| server.client_of(name)).into();
    let cookies: Vec<u64> =
        clients.iter_mut().map(|client| client.submit(0, command::FLUSH, 0, 0).unwrap()).collect();
    eventually("all flushes wait", || counter.noted("flush") == 3);
    let worker = std::thread::spawn(move || counter.order(Order::Committed, &waker));
    for (client, cookie) in clients.iter_mut().zip(cookies) {
        assert!(client.reply_to(cookie).unwrap().result.is_ok());
    }
    worker.join().unwrap();
}

/// However often, and from wherever: the backend is told, and not once for each.
#[test]
fn wakes_are_gathered_and_none_is_lost() {
    const WAKES: u32 = 20_000;
    let (server, counter, waker) = shop(None);
    let threads: Vec<_> = (0..2)
        .map(|thread| {
            let (counter, waker) = (Arc::clone(&counter), waker.clone());
            std::thread::spawn(move || {
                for number in 0..WAKES {
                    counter.order(Order::Open(2 * number + thread, 1), &waker);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    eventually("every order is taken", || lock(&counter.orders).is_empty());
    assert!(counter.noted("woken") <= 2 * WAKES as usize);
    drop(server);
    waker.wake();
}

#[test]
fn a_backend_is_called_when_it_asked_to_be() {
    const PERIOD: Duration = Duration::from_millis(10);
    #[expect(clippy::disallowed_methods, reason = "the time that a real server takes is what is looked at")]
    let began = Instant::now();
    let (_server, counter, _waker) = shop(Some(PERIOD));
    eventually("ten periods without a client", || counter.noted("period") >= 10);
    assert!(began.elapsed() >= 9 * PERIOD, "not before its time");
}

#[test]
fn a_backend_that_wants_nothing_is_left_alone() {
    let (_server, counter, waker) = shop(None);
    waker.wake();
    eventually("it was told", || counter.noted("woken") == 1);
    let ticks = || counter.ticks.load(Ordering::Relaxed);
    eventually("one tick at the start, one with the wake", || ticks() >= 2);
    pause(Duration::from_millis(100));
    assert!(ticks() <= 4, "{} ticks, and nothing has happened", ticks());
}

#[test]
fn a_stop_waits_for_the_backend() {
    const WORK: Duration = Duration::from_millis(400);
    let (mut server, counter, waker) = shop(None);
    counter.busy.store(true, Ordering::Release);
    server.begin_stop();
    eventually("the backend knows", || counter.noted("stop") == 1);
    let worker = std::thread::spawn(move || {
        pause(WORK);
        counter.busy.store(false, Ordering::Release);
        waker.wake();
    });
    let stopped = server.wait_stopped();
    assert!(stopped.took >= WORK && stopped.took < Duration::from_secs(4), "{:?}", stopped.took);
    worker.join().unwrap();
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let (mut server, counter, _waker) = shop(None);
    counter.busy.store(true, Ordering::Release);
    server.begin_stop();
    assert!(server.wait_stopped().took < Duration::from_secs(5));
}
