//! A host: a data directory, the daemon that serves it, and `blockctl` with an archive in its environment.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fixtures::nbd::client::Client;
use fixtures::process::{ChildGuard, ProcessError, wait_until};
use tempfile::TempDir;

use crate::server::{KEY_ID, SECRET};

/// How long a daemon may take to start, and how long to stop.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(10);

/// Exit code, standard output, standard error.
pub(crate) type Outcome = (i32, String, String);

/// Where an archive is, and its key.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) endpoint: String,
    pub(crate) key: PathBuf,
}

/// See the module. Dropped, it is stopped, and must end well.
pub(crate) struct Host {
    own: TempDir,
    run: TempDir,
    child: ChildGuard,
}

impl Host {
    pub(crate) fn start() -> Self {
        Self::with_pool("2G")
    }

    pub(crate) fn with_pool(size: &str) -> Self {
        let own = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        // Near the root: a checkout may lie deeper than a socket's address can tell.
        let run = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_archive-tests-blockd"));
        command.arg("serve").arg("--data").arg(own.path().join("data")).args(["--pool-size", size]);
        command.arg("--nbd-unix").arg(run.path().join("nbd")).arg("--socket").arg(run.path().join("control"));
        command.args(["--recent-dir", "none"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(run.path().join("log")).unwrap());
        let mut host = Self { own, run, child: ChildGuard::spawn(&mut command).unwrap() };
        let started = wait_until("the daemon's start", START, || {
            if let Some(status) = host.child.try_status()? {
                panic!("it does not start: {status}\n{}", host.log());
            }
            Ok::<_, ProcessError>(host.log().contains("daemon_started").then_some(()))
        });
        started.unwrap();
        host
    }

    fn log(&self) -> String {
        fs::read_to_string(self.run.path().join("log")).unwrap_or_default()
    }

    /// Room for other files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.own.path().join(name)
    }

    /// `blockctl` with these words.
    pub(crate) fn command(&self, target: &Target, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_archive-tests-blockctl"));
        command
            .arg("--socket")
            .arg(self.run.path().join("control"))
            .args(words.split(' '))
            .stdin(Stdio::null());
        command.env("BLOCKD_ARCHIVE", &target.url).env("BLOCKD_ARCHIVE_KEY", &target.key);
        command.env("AWS_ENDPOINT_URL", &target.endpoint).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
        for variable in
            ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"]
        {
            command.env_remove(variable);
        }
        command
    }

    pub(crate) fn run(&self, target: &Target, words: &str) -> Outcome {
        outcome(&self.command(target, words).output().unwrap())
    }

    /// What must succeed.
    pub(crate) fn ok(&self, target: &Target, words: &str) -> String {
        let (code, stdout, stderr) = self.run(target, words);
        assert_eq!(code, 0, "blockctl {words}: {stdout}{stderr}");
        stdout
    }

    /// What must end with this exit code; all that was said.
    pub(crate) fn not_ok(&self, target: &Target, words: &str, expected: i32) -> String {
        let (code, stdout, stderr) = self.run(target, words);
        assert_eq!(code, expected, "blockctl {words}: {stdout}{stderr}");
        format!("{stdout}{stderr}")
    }

    /// What a push says of itself.
    pub(crate) fn push(&self, target: &Target, name: &str) -> serde_json::Value {
        last_object(&self.ok(target, &format!("archive push {name} -o jsonl")))
    }

    /// A volume with these ranges written: offset, length, seed.
    pub(crate) fn fill(&self, volume: &str, ranges: &[(u64, usize, u64)]) {
        let mut client = Client::connect(&self.run.path().join("nbd"), volume.as_bytes()).unwrap();
        for &(offset, length, seed) in ranges {
            for (piece, bytes) in noise(seed, length).chunks(1 << 20).enumerate() {
                client.write(offset + (piece << 20) as u64, bytes).unwrap();
            }
        }
        client.flush().unwrap();
        client.leave().unwrap();
    }

    /// The names of all volumes.
    pub(crate) fn volumes(&self, target: &Target) -> Vec<String> {
        let list = last_object(&self.ok(target, "volume list -o json"));
        list["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|volume| volume["name"].as_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) fn hash(&self, target: &Target, snapshot: &str) -> String {
        let object = last_object(&self.ok(target, &format!("snapshot hash {snapshot} -o json")));
        object["hash"].as_str().unwrap().to_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
            return;
        }
        let status = self.child.terminate(STOP).unwrap();
        let log = self.log();
        assert!(status.code() == Some(0) && !log.contains("panicked"), "{status}\n{log}");
    }
}

pub(crate) fn outcome(output: &Output) -> Outcome {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

pub(crate) fn last_object(text: &str) -> serde_json::Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// Bytes that cannot be compressed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// All files below a directory.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
