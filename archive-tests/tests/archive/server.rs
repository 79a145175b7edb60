//! s3s-fs over HTTP on loopback, in a thread of the test, with faults on request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use crate::host::Target;

pub(crate) const KEY_ID: &str = "test-key-id";
pub(crate) const SECRET: &str = "test-secret";
pub(crate) const BUCKET: &str = "vm-archive";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It is answered with this status, and nothing is done.
    Status(u16),
    /// It is done, and the answer is this status all the same.
    DoneBut(u16),
    /// The answer's body ends in the middle.
    Short,
    /// The answer comes a little later.
    Slow,
    /// It is not answered before [`Server::release`].
    Hold,
}

/// Decides about a request: method, object (after the bucket), and how many requests with that method came before.
type Rule = Box<dyn FnMut(&Method, &str, usize) -> Option<Fault> + Send>;

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) object: String,
    pub(crate) bytes: u64,
    pub(crate) status: u16,
}

#[derive(Default)]
struct State {
    rule: Option<Rule>,
    came: Vec<Method>,
    seen: Vec<Seen>,
    held: usize,
}

struct Shared {
    state: Mutex<State>,
    released: Semaphore,
}

/// See the module.
pub(crate) struct Server {
    root: TempDir,
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let root = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        let shared = Arc::new(Shared { state: Mutex::default(), released: Semaphore::new(0) });
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = accept(listener, service, own) => {}
                    // Also when the test has failed and dropped its end.
                    _ = stopped => {}
                }
            });
        });
        let address = is_ready.recv().unwrap();
        Self { root, address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// An archive in this server, below a prefix; the key's file does not exist yet.
    pub(crate) fn target(&self, prefix: &str) -> Target {
        Target {
            url: format!("s3://{BUCKET}/{prefix}"),
            endpoint: format!("http://{}", self.address),
            key: self.root.path().join("key"),
        }
    }

    /// Where the server keeps an archive's objects, as files.
    pub(crate) fn objects(&self, prefix: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(prefix)
    }

    /// From now on.
    pub(crate) fn set_rule(&self, rule: impl FnMut(&Method, &str, usize) -> Option<Fault> + Send + 'static) {
        let mut state = self.shared.state.lock().unwrap();
        state.rule = Some(Box::new(rule));
        state.came.clear();
        state.seen.clear();
    }

    /// What was answered since the rule was set; the rule is no more.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        let mut state = self.shared.state.lock().unwrap();
        state.rule = None;
        std::mem::take(&mut state.seen)
    }

    /// Requests that wait for their release, and what was answered.
    pub(crate) fn held(&self) -> (usize, Vec<Seen>) {
        let state = self.shared.state.lock().unwrap();
        (state.held, state.seen.clone())
    }

    pub(crate) fn release(&self) {
        self.shared.released.add_permits(1 << 20);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn accept(listener: TcpListener, service: S3Service, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (service, shared) = (service.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, service.clone(), Arc::clone(&shared)));
            let server = auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is what some tests want.
            drop(server.serve_connection(TokioIo::new(stream), answer).await);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    service: S3Service,
    shared: Arc<Shared>,
) -> Result<Response<s3s::Body>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let object =
        path.trim_start_matches('/').split_once('/').map_or(String::new(), |(_, object)| object.to_owned());
    let bytes = request.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    let fault = {
        let mut state = shared.state.lock().unwrap();
        let before = state.came.iter().filter(|came| **came == method).count();
        state.came.push(method.clone());
        state.rule.as_mut().and_then(|rule| rule(&method, &object, before))
    };
    match fault {
        Some(Fault::Hold) => {
            shared.state.lock().unwrap().held += 1;
            drop(shared.released.acquire().await.unwrap());
        }
        Some(Fault::Slow) => tokio::time::sleep(Duration::from_millis(20)).await,
        _ => {}
    }
    let response = match fault {
        Some(Fault::Status(status)) => {
            // A client that is still sending would see a broken connection instead.
            drop(request.into_body().collect().await);
            failed(status)
        }
        fault => {
            let done = hyper::service::Service::call(&service, request).await.unwrap();
            match fault {
                Some(Fault::DoneBut(status)) => failed(status),
                Some(Fault::Short) => cut(done).await,
                _ => done,
            }
        }
    };
    let seen = Seen { method, object, bytes: bytes.unwrap_or(0), status: response.status().as_u16() };
    shared.state.lock().unwrap().seen.push(seen);
    Ok(response)
}

fn failed(status: u16) -> Response<s3s::Body> {
    let text = "<Error><Code>Fault</Code><Message>as the test asked</Message></Error>".to_owned();
    Response::builder().status(status).body(s3s::Body::from(text)).unwrap()
}

/// Half of a body, announced as the whole.
async fn cut(response: Response<s3s::Body>) -> Response<s3s::Body> {
    let (mut head, body) = response.into_parts();
    let whole = body.collect().await.unwrap().to_bytes();
    head.headers.insert("content-length", whole.len().into());
    let half = Half(Some(whole.slice(..whole.len() / 2)));
    Response::from_parts(head, s3s::Body::http_body(half))
}

struct Half(Option<Bytes>);

impl Body for Half {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Ready(Some(Err(std::io::Error::other("cut")))),
        }
    }
}
