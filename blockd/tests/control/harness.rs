//! A daemon's control side in a thread of the test, and `blockctl` as a program.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;

use blockd::api::server::{self, bind};
use blockd::events::Events;
use blockd::jobs::clock::SystemClock;
use blockd::jobs::files::JobFiles;
use blockd::jobs::job::Job;
use blockd::jobs::runner::{Setup, start};
use blockd::service::{NbdAddresses, Service};
use nbd_server::image::{CacheMode, ImageOptions, open_image};
use nbd_server::server::{Listener, Server, ServerConfig};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::carrier::TestCarrier;
use crate::engine::TestEngine;

/// An image file that is served as an export: name and size.
pub(crate) type Disk<'a> = (&'a str, u64);

pub(crate) struct Daemon {
    pub(crate) dir: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) engine: Arc<TestEngine>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn start(engine: TestEngine) -> Self {
        Self::with_disks(engine, &[])
    }

    /// With jobs of a configuration file.
    pub(crate) fn with_jobs(engine: TestEngine, configured: Vec<Job>) -> Self {
        Self::with(engine, &[], configured)
    }

    /// Also serves image files over NBD; `…@…` read-only.
    pub(crate) fn with_disks(engine: TestEngine, disks: &[Disk<'_>]) -> Self {
        Self::with(engine, disks, Vec::new())
    }

    fn with(engine: TestEngine, disks: &[Disk<'_>], configured: Vec<Job>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("blockd.sock");
        let engine = Arc::new(engine);
        let nbd = dir.path().join("nbd.sock");
        let disks: Vec<(String, u64)> =
            disks.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let (path, own_engine, own_dir) = (socket.clone(), Arc::clone(&engine), dir.path().to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let images = disks.iter().map(|(name, size)| {
                    let path = own_dir.join(format!("{name}.disk"));
                    let file =
                        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
                    file.unwrap().set_len(*size).unwrap();
                    let read_only = name.contains('@');
                    let name = name.clone();
                    let options = ImageOptions {
                        path,
                        name,
                        read_only,
                        cache: CacheMode::Writeback,
                        rotational: false,
                    };
                    open_image(&options).unwrap()
                });
                let images: Vec<_> = images.collect();
                // Without disks the place stays free, for a server of the test's own.
                let bind_nbd = !images.is_empty();
                let server = Server::start(images, ServerConfig::default()).unwrap();
                let place = if bind_nbd { nbd.clone() } else { own_dir.join("unused.sock") };
                let listener = tokio::net::UnixListener::bind(place).unwrap();
                let acceptor = server.acceptor();
                let accepting = tokio::spawn(async move { acceptor.serve(Listener::Unix(listener)).await });
                let addresses = NbdAddresses {
                    unix: Some(nbd.to_string_lossy().into_owned()),
                    ..NbdAddresses::default()
                };
                let carrier = Arc::new(TestCarrier(Arc::clone(&own_engine)));
                let service = Service::new(own_engine, Events::default(), addresses);
                let jobs = start(Setup {
                    files: JobFiles::new(&own_dir),
                    configured,
                    service: service.clone(),
                    carrier,
                    clock: Arc::new(SystemClock),
                });
                let service = service.with_jobs(jobs.clone(), "A");
                let (listener, file) = bind(&path, None).unwrap().into_parts();
                let api = server::start(vec![listener], service, None, 16).unwrap();
                ready.send(()).unwrap();
                // Also when the test has failed and dropped its end.
                drop(stopped.await);
                jobs.stop().await;
                api.stop().await;
                accepting.abort();
                server.stop().await.unwrap();
                drop(file);
            });
        });
        is_ready.recv().unwrap();
        Self { dir, socket, engine, stop: Some(stop), thread: Some(thread) }
    }

    /// `blockctl` with these words.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
        command.arg("--socket").arg(&self.socket).args(words.split(' ')).stdin(std::process::Stdio::null());
        command
    }

    /// Runs it: exit code, standard output, standard error.
    pub(crate) fn run(&self, words: &str) -> (i32, String, String) {
        outcome(self.command(words).output().unwrap())
    }

    /// Runs what must succeed.
    pub(crate) fn ok(&self, words: &str) -> String {
        let (code, stdout, stderr) = self.run(words);
        assert_eq!(code, 0, "blockctl {words}: {stdout}{stderr}");
        stdout
    }

    /// Sends bytes to the API's socket as they are; the whole answer.
    pub(crate) fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A reset ends the answer as the end of the stream does.
        drop(stream.read_to_end(&mut answer));
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// One request with a body, on a connection of its own.
    pub(crate) fn http(&self, method: &str, path: &str, body: &str) -> String {
        let length = body.len();
        self.raw(
            format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        )
    }
}

pub(crate) fn outcome(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Dropped, it stops the thread as well as a message would.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
