//! The daemon's life, with an engine that stores nothing.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockd::api::client::Client;
use blockd::config::{Config, Settings, load};
use blockd::daemon::{Backend, Opening, serve};
use blockd::failure::Failure;
use blockd::service::Engine;

use crate::engine::TestEngine;
use crate::harness::outcome;

struct TestBackend {
    engine: Arc<TestEngine>,
    fails: bool,
    stopped: Arc<AtomicBool>,
}

impl Backend for TestBackend {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine) as Arc<dyn Engine>
    }

    async fn failed(&mut self) -> io::Error {
        if !self.fails {
            std::future::pending::<()>().await;
        }
        io::Error::other("the medium is gone")
    }

    fn stop(self) -> impl Future<Output = Result<(), Failure>> + Send {
        self.stopped.store(true, Ordering::Release);
        std::future::ready(Ok(()))
    }
}

fn config(dir: &Path) -> Config {
    let settings = Settings {
        data: Some(dir.join("data")),
        socket: Some(dir.join("blockd.sock")),
        nbd_unix: Some(dir.join("nbd.sock")),
        ..Settings::default()
    };
    load(settings, None).unwrap()
}

fn open(
    fails: bool,
    stopped: &Arc<AtomicBool>,
) -> impl AsyncFnOnce(Opening<'_>) -> Result<TestBackend, Failure> {
    let stopped = Arc::clone(stopped);
    async move |opening: Opening<'_>| {
        assert_eq!(opening.nbd.len(), 1);
        Ok(TestBackend { engine: Arc::default(), fails, stopped })
    }
}

async fn appears(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn it_serves_until_sigterm_and_leaves_no_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let stopped = Arc::default();
    let mut began = None;
    let ending = async {
        appears(&config.socket).await;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&config.socket), mode(&config.nbd_unix)), (0o600, 0o600));
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
        command.arg("--socket").arg(&config.socket).args(["export", "list", "-o", "json"]);
        let output = tokio::task::spawn_blocking(move || outcome(command.output().unwrap())).await.unwrap();
        assert_eq!(output.0, 0, "{}", output.2);
        // A follower of events does not hold the end up.
        let client = Client::new(&config.socket);
        let follower = tokio::spawn(async move { client.events(1, Duration::from_secs(50)).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        began = Some(Instant::now());
        // Its handler stands since before the sockets did.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        follower.await.unwrap().unwrap();
    };
    let (served, ()) = tokio::join!(serve(&config, open(false, &stopped)), ending);
    served.unwrap();
    let took = began.unwrap().elapsed();
    assert!(took < Duration::from_millis(1500), "stopping took {took:?}");
    assert!(stopped.load(Ordering::Acquire));
    assert!(!config.socket.exists() && !config.nbd_unix.exists());
}

#[tokio::test]
async fn a_store_that_fails_ends_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let stopped = Arc::default();
    let failure = serve(&config(dir.path()), open(true, &stopped)).await.unwrap_err();
    assert_eq!((failure.code, failure.why.as_str()), (1, "the medium is gone"));
    assert!(stopped.load(Ordering::Acquire), "it is stopped all the same");
}

#[tokio::test]
async fn another_daemon_on_the_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let _other = std::os::unix::net::UnixListener::bind(&config.socket).unwrap();
    let failure = serve(&config, open(false, &Arc::default())).await.unwrap_err();
    assert_eq!((failure.code, failure.why.as_str()), (4, "another server listens on it"));
    assert!(config.socket.exists());
}
