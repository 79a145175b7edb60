//! A blockd and an agent in a directory of their own; everything that was started ends with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fixtures::guest::{GuestRoot, GuestSpec, Kernel, default_cache};
use fixtures::process::{ChildGuard, ProcessError, wait_for_file, wait_for_socket, wait_until};
use serde_json::Value;
use tempfile::TempDir;

/// How long a guest may take to its script, and anything else to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) blockd: Option<ChildGuard>,
    pub(crate) agent: Option<ChildGuard>,
}

/// What a command has said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// The three lines, with the word in the middle one.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, why: &str) {
        assert_eq!(self.code, code, "{self:?}");
        let lines: Vec<&str> = self.err.lines().collect();
        assert_eq!(lines.len(), 3, "{self:?}");
        assert!(
            lines[0].starts_with("error: ")
                && lines[1].starts_with("why:   ")
                && lines[2].starts_with("next:  ")
        );
        assert!(lines[1].contains(why), "{why:?} in {self:?}");
    }

    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
}

pub(crate) fn blockd_program(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_vmctl")).with_file_name("blockd");
    let blockd = std::env::var_os("BLOCKD_BIN").map_or(beside, PathBuf::from);
    assert!(
        blockd.exists(),
        "{} is missing: cargo build -p blockd --bins, or set BLOCKD_BIN",
        blockd.display()
    );
    blockd.with_file_name(name)
}

impl Rig {
    pub(crate) fn new() -> Self {
        let mut rig = Self { dir: tempfile::tempdir().unwrap(), blockd: None, agent: None };
        rig.start_blockd();
        rig.start_agent();
        rig
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn start_blockd(&mut self) {
        let mut command = Command::new(blockd_program("blockd"));
        command.arg("serve").arg("--data").arg(self.path("store")).arg("--socket").arg(self.path("blockd"));
        command.arg("--nbd-unix").arg(self.path("nbd")).arg("--recent-dir").arg(self.path("recent"));
        command.args(["--pool-size", "256M"]);
        let mut guard = self.spawn(&mut command, "blockd.log");
        wait_for_socket(&self.path("blockd"), &mut guard, PATIENCE).unwrap();
        self.blockd = Some(guard);
    }

    pub(crate) fn agent_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command.arg("agent").arg("--socket").arg(self.path("agent"));
        for (flag, name) in
            [("--data", "data"), ("--run", "run"), ("--blockd-socket", "blockd"), ("--nbd-socket", "nbd")]
        {
            command.arg(flag).arg(self.path(name));
        }
        command.args(["--accel", "tcg", "--reconnect-delay-s", "2", "--log", "vmctl=debug"]);
        command
    }

    pub(crate) fn start_agent(&mut self) {
        let mut guard = self.spawn(&mut self.agent_command(), "agent.log");
        wait_for_socket(&self.path("agent"), &mut guard, PATIENCE).unwrap();
        // Bound later than the first.
        wait_for_file(&self.path("run/peer.sock"), PATIENCE).unwrap();
        self.agent = Some(guard);
    }

    /// As a crash does.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill().unwrap();
    }

    pub(crate) fn kill_blockd(&mut self) {
        self.blockd.take().unwrap().kill().unwrap();
    }

    fn spawn(&self, command: &mut Command, log: &str) -> ChildGuard {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path(log)).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        ChildGuard::spawn(command).unwrap()
    }

    pub(crate) fn vmctl(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        said(command.arg("--socket").arg(self.path("agent")).args(arguments).output().unwrap())
    }

    pub(crate) fn blockctl(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(blockd_program("blockctl"));
        said(command.arg("--socket").arg(self.path("blockd")).args(arguments).output().unwrap())
    }

    /// A definition in a file.
    pub(crate) fn file(&self, text: &str) -> String {
        let file = self.path("vm.toml");
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    /// A VM with that script, on that volume.
    pub(crate) fn define_guest(&self, name: &str, script: &str) {
        let kernel = Kernel::fetch(&default_cache()).unwrap();
        let initramfs = self.path(&format!("{name}.initramfs"));
        let spec = GuestSpec { script: script.into(), root: GuestRoot::Memory, ..GuestSpec::default() };
        spec.build_initramfs(&kernel, &initramfs).unwrap();
        self.blockctl(&["volume", "create", name, "--size", "32M"]).ok();
        let file = self.file(&format!(
            "name = \"{name}\"\nmemory = \"256MiB\"\n[boot]\nkernel = {:?}\ninitrd = {initramfs:?}\n\
             append = \"console=ttyS0 quiet mitigations=off\"\n[[disk]]\nvolume = \"{name}\"\n[[nic]]\n",
            kernel.image
        ));
        self.vmctl(&["vm", "define", &file]).ok();
    }

    pub(crate) fn show(&self, name: &str) -> Value {
        serde_json::from_str(&self.vmctl(&["vm", "show", name, "-o", "json"]).ok()).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_state(&self, name: &str, state: &str) -> Value {
        let what = format!("{name} to be {state}");
        let found = wait_until(&what, PATIENCE, || {
            let vm = self.show(name);
            Ok::<_, ProcessError>((vm["state"] == state).then_some(vm))
        });
        found.unwrap_or_else(|error| panic!("{error}: {}\n{}", self.show(name), self.log()))
    }

    pub(crate) fn console(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(&format!("data/log/{name}.console"))).unwrap_or_default())
            .into_owned()
    }

    #[track_caller]
    pub(crate) fn wait_console(&self, name: &str, marker: &str) {
        let found = wait_until(marker, PATIENCE, || {
            Ok::<_, ProcessError>(self.console(name).contains(marker).then_some(()))
        });
        found.unwrap_or_else(|error| panic!("{error}: {}\n{}", self.console(name), self.log()));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn kill(pid: i64) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

impl Drop for Rig {
    /// QEMUs outlive their agent, so they are looked for; only those whose command line names this directory.
    fn drop(&mut self) {
        drop(self.agent.take());
        let ours = self.dir.path().display().to_string();
        for entry in fs::read_dir(self.path("run/vm")).into_iter().flatten().flatten() {
            let Ok(pid) = fs::read_to_string(entry.path().join("pid")) else { continue };
            let words = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
            if String::from_utf8_lossy(&words).contains(&ours) {
                kill(pid.trim().parse().unwrap());
            }
        }
    }
}
