//! A real store in this process, behind a real API and a real NBD socket: for what only the store's own commands can do.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use blockd::api::server::{self, bind};
use blockd::config::{Config, Settings, load};
use blockd::control::replication::Replication;
use blockd::control::{Answer, Control, ControlError};
use blockd::daemon::{Backend, Opening};
use blockd::events::Events;
use blockd::host::Host;
use blockd::nbd_door::NbdDoor;
use blockd::service::{Engine, NbdAddresses, Service};
use fixtures::nbd::client::Client;
use nbd_server::server::Listener;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::place::{Outcome, outcome};

/// See the module.
pub(crate) struct Within {
    engine: Arc<dyn Engine>,
    config: Config,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    own: TempDir,
    _run: TempDir,
}

impl Within {
    pub(crate) fn start() -> Self {
        let own = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        // Near the root: a checkout may lie deeper than a socket's address can tell.
        let run = tempfile::tempdir().unwrap();
        let settings = Settings {
            data: Some(own.path().join("data")),
            socket: Some(run.path().join("control")),
            nbd_unix: Some(run.path().join("nbd")),
            recent_dir: Some(run.path().join("memory")),
            pool_size: Some("1G".parse().unwrap()),
            ..Settings::default()
        };
        let config = load(settings, None).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let serving = config.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(&serving, &ready, stopped));
        });
        let engine = is_ready.recv().unwrap();
        Self { engine, config, stop: Some(stop), thread: Some(thread), own, _run: run }
    }

    /// What the transfer asks of the store.
    pub(crate) fn ask(&self, command: Replication) -> Result<Answer, ControlError> {
        let (sender, receiver) = oneshot::channel();
        self.engine.submit(Control::Replication(command), sender);
        receiver.blocking_recv().unwrap()
    }

    /// `blockctl` with these words.
    pub(crate) fn ctl(&self, words: &str) -> Outcome {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
        command.arg("--socket").arg(&self.config.socket).args(words.split(' ')).stdin(Stdio::null());
        outcome(&command.output().unwrap())
    }

    /// `blockctl` that must succeed.
    pub(crate) fn ok(&self, words: &str) -> String {
        let (code, stdout, stderr) = self.ctl(words);
        assert_eq!(code, 0, "blockctl {words}: {stdout}{stderr}");
        stdout
    }

    /// A client of an export.
    pub(crate) fn client(&self, export: &str) -> Client {
        Client::connect(&self.config.nbd_unix, export.as_bytes())
            .unwrap_or_else(|error| panic!("{export}: {error}"))
    }

    /// Whether somebody can open it.
    pub(crate) fn can_open(&self, export: &str) -> bool {
        Client::connect(&self.config.nbd_unix, export.as_bytes()).is_ok()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.own.path().join("data")
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        // Dropped, it stops the thread as well as a message would.
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "it did not end well");
    }
}

/// Until it is to stop.
async fn serve(config: &Config, ready: &mpsc::Sender<Arc<dyn Engine>>, stopped: oneshot::Receiver<()>) {
    let (api, _api_file) = bind(&config.socket, None).unwrap().into_parts();
    let (nbd, _nbd_file) = bind(&config.nbd_unix, None).unwrap().into_parts();
    nbd.set_nonblocking(true).unwrap();
    let nbd = vec![Listener::Unix(tokio::net::UnixListener::from_std(nbd).unwrap())];
    let events = Events::default();
    let host =
        Host::start(Opening { config, events: events.clone(), nbd, door: NbdDoor::in_clear() }).unwrap();
    let unix = Some(config.nbd_unix.display().to_string());
    let service = Service::new(host.engine(), events, NbdAddresses { unix, ..NbdAddresses::default() });
    let api = server::start(vec![api], service, None, 8).unwrap();
    ready.send(host.engine()).unwrap();
    // Also when the test has failed and dropped its end.
    drop(stopped.await);
    api.stop().await;
    host.stop().await.unwrap();
}
