//! The daemon, stopped and started again: with its checkpoint, with a damaged one, and with none.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blockd::cli::nbd_client::{NbdClient, Reply, Request};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::mpsc;

const VOLUME_BYTES: u64 = 4 << 20;
const PIECE: u32 = 64 << 10;

struct Daemon {
    dir: TempDir,
    child: Option<Child>,
}

impl Daemon {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn checkpoint(&self) -> PathBuf {
        self.path("data/checkpoint")
    }

    fn start(&mut self) {
        let log = File::create(self.path("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockd"));
        command.arg("serve").arg("--data").arg(self.path("data")).args(["--pool-size", "64M"]);
        command.arg("--recent-dir").arg(self.path("memory"));
        command.arg("--socket").arg(self.path("api")).arg("--nbd-unix").arg(self.path("nbd"));
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        while !answers(&self.path("api")) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    fn end(&mut self, signal: Signal) -> bool {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap().success()
    }

    fn blockctl(&self, words: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
        command.arg("--socket").arg(self.path("api")).args(words.split(' '));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn offline(&self, tool: &str, more: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockd"));
        let output = command.arg(tool).arg(self.path("data")).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn content(&self, export: &str) -> Vec<u8> {
        let pieces = (0..VOLUME_BYTES).step_by(PIECE as usize);
        let requests = pieces.map(|offset| Request::Read { offset, length: PIECE }).collect();
        let mut content = vec![0; VOLUME_BYTES as usize];
        for reply in run(&self.path("nbd"), export, requests) {
            if let Reply::Data { offset, data } = reply {
                content[offset as usize..][..data.len()].copy_from_slice(&data);
            }
        }
        content
    }

    fn write(&self, export: &str, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut requests: Vec<Request> = Vec::new();
        for _ in 0..40 {
            let blocks = rng.u64(1..12);
            let offset = rng.u64(..VOLUME_BYTES / 4096 - blocks) * 4096;
            requests.push(Request::Write { offset, data: vec![rng.u8(1..); blocks as usize * 4096] });
        }
        requests.push(Request::Flush);
        run(&self.path("nbd"), export, requests);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn answers(socket: &Path) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
    command.arg("--socket").arg(socket).arg("status").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

fn run(socket: &Path, export: &str, requests: Vec<Request>) -> Vec<Reply> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = NbdClient::connect(socket, export).await.unwrap();
        let (sender, receiver) = mpsc::channel(requests.len());
        for request in requests {
            sender.send(request).await.unwrap();
        }
        drop(sender);
        let mut replies = Vec::new();
        let keep = |reply| {
            replies.push(reply);
            Ok(())
        };
        client.run(receiver, keep).await.unwrap();
        client.disconnect().await.unwrap();
        replies
    })
}

#[test]
fn a_start_finds_the_same_with_its_checkpoint_with_a_damaged_one_and_with_none() {
    let mut daemon = Daemon { dir: tempfile::tempdir().unwrap(), child: None };
    daemon.start();
    daemon.blockctl("volume create web --size 4M");
    daemon.write("web", 1);
    daemon.blockctl("snapshot create web@one");
    daemon.write("web", 2);
    let (web, one) = (daemon.content("web"), daemon.content("web@one"));
    assert!(web != one && web.iter().any(|byte| *byte != 0));
    let check = |daemon: &Daemon, log: &str| {
        assert!(daemon.log().contains(log), "{log}: {}", daemon.log());
        assert!(!daemon.checkpoint().exists(), "commits follow that it does not know");
        assert!(daemon.content("web") == web && daemon.content("web@one") == one);
    };
    assert!(daemon.end(Signal::TERM));
    assert!(daemon.offline("fsck", &[]).contains("clean"));
    let shown = daemon.offline("inspect", &["checkpoint"]);
    assert!(shown.contains("\"present\"") && shown.contains("\"maps\":1"), "{shown}");

    daemon.start();
    check(&daemon, "started from the checkpoint");
    assert!(daemon.end(Signal::TERM));
    let mut bytes = std::fs::read(daemon.checkpoint()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(daemon.checkpoint(), bytes).unwrap();
    assert!(daemon.offline("fsck", &[]).contains("note: the checkpoint will not be used"));

    daemon.start();
    check(&daemon, "the checkpoint is not used");
    assert!(!daemon.end(Signal::KILL));
    assert!(daemon.offline("inspect", &["checkpoint"]).contains("missing"));

    daemon.start();
    check(&daemon, "no checkpoint");
    // What is freed and written from here on is found by the next start, too.
    daemon.write("web", 3);
    let last = daemon.content("web");
    assert!(daemon.end(Signal::TERM));
    daemon.start();
    assert!(daemon.log().contains("started from the checkpoint") && daemon.content("web") == last);
}
