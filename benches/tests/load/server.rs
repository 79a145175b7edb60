//! A real server in this process, with its book of what it has served.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use benches::interrupt::Interrupt;
use benches::load::{Report, Target, Times, Workload, run};
use benches::trouble::Trouble;
use nbd_server::export::ExportInfo;
use nbd_server::image::{CacheMode, Image, ImageOptions, open_image};
use nbd_server::memory_export::MemoryExport;
use nbd_server::reactor::ExportSpec;
use nbd_server::registry::{Counts, Registry};
use nbd_server::server::{Listener, Server, ServerConfig};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Bytes of each disk.
pub(crate) const DISK_BYTES: u64 = 4 << 20;
/// Long enough for some turns; nothing depends on how many.
pub(crate) const SHORT: Times =
    Times { ramp: std::time::Duration::ZERO, runtime: std::time::Duration::from_millis(30) };

/// Serves `file`, all of it written; `holes`, memory that nobody has written; and `locked`, the read-only one.
pub(crate) struct TestServer {
    dir: TempDir,
    registry: Registry,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let images = vec![file(dir.path(), "file", false), holes(), file(dir.path(), "locked", true)];
        let registry = Registry::default();
        let config = ServerConfig { registry: registry.clone(), ..ServerConfig::default() };
        let (stop, stopped) = oneshot::channel();
        let (ready, listens) = std::sync::mpsc::channel();
        let socket = dir.path().join("s");
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let server = Server::start(images, config).expect("the server starts");
                let listener = tokio::net::UnixListener::bind(socket).expect("a socket");
                let acceptor = server.acceptor();
                let accepting = tokio::spawn(async move { acceptor.serve(Listener::Unix(listener)).await });
                ready.send(()).expect("the test waits");
                stopped.await.expect("the test tells");
                server.stop().await.expect("no reactor failed");
                accepting.abort();
            });
        });
        listens.recv().expect("the server listens");
        Self { dir, registry, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn target(&self, export: &str, simple: bool) -> Target {
        Target { socket: self.dir.path().join("s"), export: export.to_owned(), simple }
    }

    pub(crate) fn load(&self, target: &Target, workload: Workload, times: Times) -> Result<Report, Trouble> {
        run(target, workload, times, &Interrupt::default())
    }

    /// What the server itself has counted so far.
    pub(crate) fn counts(&self, export: &str) -> Counts {
        self.registry.exports().remove(export).map(|(counts, _)| counts).unwrap_or_default()
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("file.img")).expect("the image")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A server that has failed is not there to be told: the join tells.
            stop.send(()).unwrap_or(());
        }
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the server panicked");
        }
    }
}

fn file(dir: &Path, name: &str, read_only: bool) -> Image {
    let path: PathBuf = dir.join(format!("{name}.img"));
    std::fs::write(&path, vec![0xA5; DISK_BYTES as usize]).expect("a new file");
    let cache = CacheMode::Writeback;
    open_image(&ImageOptions { path, name: name.into(), read_only, cache, rotational: false })
        .expect("our own file")
}

fn holes() -> Image {
    let memory = MemoryExport::new(DISK_BYTES).expect("a small export");
    let spec = ExportSpec { files: Vec::new(), build: Box::new(move |_| Box::new(memory)) };
    Image { info: ExportInfo::new("holes", DISK_BYTES), spec }
}
