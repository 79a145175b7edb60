//! What the numbers were measured on. No host name, no paths: a results page may go anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde::Serialize;

use crate::plan::Plan;
use crate::servers::{Program, ServerId};
use crate::sync::hashing::find_b3sum;
use crate::trouble::{OrTrouble, Trouble};

const UNKNOWN: &str = "unknown";

/// The machine of a results page.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Type of the file system the image is on.
    pub file_system: String,
    /// What each program says of its version.
    pub versions: BTreeMap<String, String>,
}

impl Machine {
    /// Looks around.
    ///
    /// # Errors
    /// `/proc` is not readable.
    pub fn look(plan: &Plan, image_dir: Option<&Path>) -> Result<Self, Trouble> {
        Ok(Self {
            cpu: value_of(&read("/proc/cpuinfo")?, "model name").unwrap_or(UNKNOWN).to_owned(),
            cpus: cpu_count(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            memory_mib: kib_of(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default() >> 10,
            file_system: file_system_of(image_dir)?,
            versions: versions(plan),
        })
    }
}

/// CPUs this process may use.
pub fn cpu_count() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Memory that can be had without swapping, page cache included, in bytes.
///
/// # Errors
/// `/proc/meminfo` is not readable or has no such line.
pub fn memory_available() -> Result<u64, Trouble> {
    let kib = kib_of(&read("/proc/meminfo")?, "MemAvailable");
    let missing = || Trouble::new("ask for free memory", "no MemAvailable in /proc/meminfo", "mount /proc");
    kib.map(|kib| kib << 10).ok_or_else(missing)
}

fn read(path: &str) -> Result<String, Trouble> {
    fs::read_to_string(path).or_trouble(|| format!("read {path}"), "mount /proc")
}

/// The value of the first `key : value` line.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
}

fn kib_of(text: &str, key: &str) -> Option<u64> {
    value_of(text, key)?.strip_suffix(" kB")?.parse().ok()
}

fn file_system_of(dir: Option<&Path>) -> Result<String, Trouble> {
    let Some(dir) = dir.and_then(|dir| dir.canonicalize().ok()) else { return Ok("none used".to_owned()) };
    let mounts = read("/proc/self/mountinfo")?;
    Ok(file_system_in(&mounts, &dir).unwrap_or(UNKNOWN).to_owned())
}

/// The type of the file system mounted deepest above `dir`; of several on one place the last hides the others.
///
/// Spec: proc(5), "/proc/pid/mountinfo": field 5 is the mount point, the first after the lone dash the type.
fn file_system_in<'a>(mounts: &'a str, dir: &Path) -> Option<&'a str> {
    let parse = |line: &'a str| {
        let (front, back) = line.split_once(" - ")?;
        let point = Path::new(front.split(' ').nth(4)?);
        let depth = dir.starts_with(point).then(|| point.components().count())?;
        Some((depth, back.split(' ').next()?))
    };
    mounts.lines().filter_map(parse).max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

fn versions(plan: &Plan) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    if plan.sync.is_none() && plan.migrate.is_none() {
        found.insert("fio".to_owned(), version_of(Path::new("fio"), "--version"));
    }
    for server in &plan.servers {
        let (name, version) = program_version(*server, plan);
        found.insert(name.to_owned(), version);
    }
    if let Some(store) = &plan.store {
        found.insert("blockd".to_owned(), version_of(&store.blockd, "--version"));
        found.insert("qemu-nbd".to_owned(), version_of(Path::new("qemu-nbd"), "--version"));
    }
    if let Some(sync) = &plan.sync {
        found.insert("blockd".to_owned(), version_of(&sync.store.blockd, "--version"));
        for peer in ["rsync", "nbdkit", "nbdcopy", "qemu-img", "btrfs"] {
            found.insert(peer.to_owned(), version_of(Path::new(peer), "--version"));
        }
        if let Some(b3sum) = find_b3sum() {
            found.insert("b3sum".to_owned(), version_of(Path::new(&b3sum), "--version"));
        }
    }
    if let Some(migrate) = &plan.migrate {
        found.insert("blockd".to_owned(), version_of(&migrate.store.blockd, "--version"));
        found.insert(
            "vmctl".to_owned(),
            version_of(&migrate.store.blockd.with_file_name("vmctl"), "--version"),
        );
        let qemu = "qemu-system-x86_64";
        found.insert(qemu.to_owned(), version_of(Path::new(qemu), "--version"));
    }
    found
}

fn program_version(server: ServerId, plan: &Plan) -> (&'static str, String) {
    match server.program() {
        Program::Ours => ("ours", version_of(&plan.ours, "--version")),
        Program::Blockd => ("blockd", version_of(&plan.volume.blockd, "--version")),
        Program::Debian => ("debian-nbd-server", version_of(&plan.debian, "-V")),
        Program::InPath(name) => (name, version_of(Path::new(name), "--version")),
    }
}

/// The first line a program prints when asked for its version; some use the error output.
fn version_of(program: &Path, switch: &str) -> String {
    let Ok(output) = Command::new(program).arg(switch).output() else { return UNKNOWN.to_owned() };
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    text.lines().next().map_or(UNKNOWN, str::trim).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key() {
        let text = "model\t: 85\nmodel name\t: Some CPU @ 2 GHz: fast\nMemTotal:  24000 kB\n";
        assert_eq!(value_of(text, "model name"), Some("Some CPU @ 2 GHz: fast"));
        assert_eq!(kib_of(text, "MemTotal"), Some(24000));
        assert_eq!(kib_of(text, "MemFree"), None);
    }

    #[test]
    fn the_deepest_mount_above_wins() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
                      2 1 8:2 / /data rw shared:1 - xfs /dev/b rw\n\
                      3 1 8:3 / /database rw - btrfs /dev/c rw\n";
        assert_eq!(file_system_in(mounts, Path::new("/data/x")), Some("xfs"));
        assert_eq!(file_system_in(mounts, Path::new("/datax")), Some("ext4"));
        assert_eq!(file_system_in("", Path::new("/")), None);
    }
}
