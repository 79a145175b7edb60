//! A rig for one test, and what tests do with it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use fixtures::cutover::{Host, Parts, Programs, Rig, Settings, Story, VOLUME_BYTES, Wanted, read_console};
use fixtures::guest::{Accel, Kernel, default_cache, probe_accel};
use fixtures::process::{ProcessError, wait_until};
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The programs lie beside each other: `cargo xtask test` builds blockd first.
fn programs() -> Programs {
    let vmctl = Path::new(env!("CARGO_BIN_EXE_vmctl"));
    let dir =
        std::env::var_os("BLOCKD_BIN_DIR").map_or_else(|| vmctl.parent().unwrap().to_owned(), PathBuf::from);
    let programs = Programs { vmctl: vmctl.to_owned(), ..Programs::in_dir(&dir) };
    assert!(
        programs.blockd.exists(),
        "{} is not built: cargo build -p blockd --bins",
        programs.blockd.display()
    );
    programs
}

/// Two hosts, and the guest defined at A.
pub(crate) fn rig() -> (Rig, TempDir) {
    rig_with(&Settings::default(), "")
}

/// The same; with what B is to be like, and more of the guest's command line.
pub(crate) fn rig_with(b: &Settings, append: &str) -> (Rig, TempDir) {
    let kernel = Kernel::fetch(&default_cache()).unwrap();
    rig_of(probe_accel(&kernel, &default_cache()).unwrap(), b, append)
}

/// The same; what runs processors is given.
pub(crate) fn rig_of(accel: Accel, b: &Settings, append: &str) -> (Rig, TempDir) {
    made(accel, &Wanted { b: b.clone(), append: append.to_owned(), ..Wanted::default() })
}

/// The same, as it is wanted.
pub(crate) fn rig_made(wanted: &Wanted) -> (Rig, TempDir) {
    let kernel = Kernel::fetch(&default_cache()).unwrap();
    made(probe_accel(&kernel, &default_cache()).unwrap(), wanted)
}

fn made(accel: Accel, wanted: &Wanted) -> (Rig, TempDir) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let kernel = Kernel::fetch(&default_cache()).unwrap();
    let parts = Parts { programs: &programs(), kernel: &kernel, accel, dir: dir.path() };
    (Rig::make(&parts, wanted).unwrap(), dir)
}

/// The last number that was told there.
pub(crate) fn last(host: &Host) -> u64 {
    read_console(&host.console()).last()
}

/// The guest's QEMU there, as the agent shows it.
pub(crate) fn process(host: &Host) -> serde_json::Value {
    let list = host.vmctl(&["vm", "list", "-o", "json"]).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    list["vms"][0]["process"].clone()
}

/// Waits until the guest has gone on here.
pub(crate) fn goes_on(host: &Host, after: u64) {
    let on =
        wait_until("the guest", PATIENCE, || Ok::<_, ProcessError>((last(host) >= after + 3).then_some(())));
    assert!(on.is_ok(), "{on:?} at {}, after {after}\n{}", host.name, host.last_words());
}

/// What a command of vmctl has said, on both of its streams.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// `vmctl migrate`, to its end.
pub(crate) fn try_migrate(from: &Host, to: &str, more: &[&str]) -> Output {
    from.vmctl_command(&["migrate", "web1", "--to", to]).args(more).output().unwrap()
}

/// A move that must succeed.
pub(crate) fn migrate(from: &Host, to: &Host) {
    let output = try_migrate(from, to.name, &[]);
    let said = said(&output);
    assert!(output.status.success(), "{said}\n{}\n{}", from.last_words(), to.last_words());
}

/// The agent of A is held no more: the next move succeeds, and the guest has lost nothing.
pub(crate) fn moves_at_last(rig: &mut Rig) {
    rig.a.settings.hold = None;
    rig.a.restart_agent().unwrap();
    let at = last(&rig.a);
    migrate(&rig.a, &rig.b);
    goes_on(&rig.b, at);
    judge(rig, &rig.b, 1);
}

/// A move that must not; what was said. The guest goes on.
pub(crate) fn refused(from: &Host, to: &str, more: &[&str]) -> String {
    let output = try_migrate(from, to, more);
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    goes_on(from, last(from));
    said
}

/// Begins a move from A whose agent holds it, as in `gate=2000`, and waits until it does.
pub(crate) fn held(rig: &mut Rig, hold: &str, more: &[&str]) {
    rig.a.settings.hold = Some(hold.to_owned());
    rig.a.restart_agent().unwrap();
    let heard = std::fs::read(rig.a.log("agent")).unwrap().len();
    rig.a.vmctl(&[&["migrate", "web1", "--to", "B", "--no-wait"], more].concat()).unwrap();
    wait_for_hold(&rig.a, heard);
}

/// Waits until the agent there is held in a phase, after so many bytes of its log.
fn wait_for_hold(host: &Host, heard: usize) {
    let held = wait_until("the phase", PATIENCE, || {
        let log = std::fs::read(host.log("agent")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[heard.min(log.len())..]).into_owned();
        Ok::<_, ProcessError>(log.contains("held for a trial").then_some(()))
    });
    assert!(held.is_ok(), "{}", host.last_words());
}

/// What the guest has told, on both hosts.
pub(crate) fn story_of(rig: &Rig) -> Story {
    let mut story: Story = read_console(&rig.a.console()).then(read_console(&rig.b.console()));
    story.written.sort_unstable();
    story
}

/// Nothing that the guest was answered is lost, wherever it was when it wrote it. It is ended for that. `cuts`: moves, and
/// ends by force before another start.
pub(crate) fn judge(rig: &Rig, runs_at: &Host, cuts: usize) {
    judge_from(rig, runs_at, cuts, 0);
}

/// The same; `first`: where on the disk its blocks begin.
pub(crate) fn judge_from(rig: &Rig, runs_at: &Host, cuts: usize, first: usize) {
    runs_at.vmctl(&["vm", "stop", "web1", "--force", "--timeout", "0"]).unwrap();
    let story = story_of(rig);
    story.check(cuts).unwrap();
    assert!(story.memory_good > 0);
    story.check_disk(&runs_at.disk(VOLUME_BYTES).unwrap()[first..], story.last()).unwrap();
}
