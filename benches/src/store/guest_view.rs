//! What a guest sees: the same guest and the same fio in it, its disk on a volume, on a raw image and on a qcow2 image.
//!
//! QEMU is the client of all three, by NBD on a Unix socket, and past the host's page cache as far as QEMU is concerned.
//! In the guest fio works on the whole disk, past the guest's page cache. A guest is booted for each disk and round.
//! Where KVM cannot be used QEMU translates the guest, which takes most of the processors: then all disks look alike.

use std::path::PathBuf;
use std::time::Duration;

use fixtures::guest::{
    Accel, GuestOutcome, GuestRoot, GuestRun, GuestSpec, Kernel, default_cache, probe_accel,
};

use super::daemon::Daemon;
use super::disks::{Disk, Qcow2, QcowCut, Volume};
use super::files::{By, PlainFile};
use super::record::{Key, Recorder};
use super::room::{Room, Served};
use crate::fio::{self, Aim};
use crate::jobs::{Job, JobSet};
use crate::trouble::{OrTrouble, Trouble};

/// Name of the scenario.
pub const NAME: &str = "guest-view";
const VOLUME: &str = "volume";
/// The disks that a volume is measured by.
const PEERS: [&str; 2] = ["qemu-nbd-raw", "qcow2"];
/// What fio does in the guest: what one disk of QEMU's can have in flight, and one request at a time.
const JOBS: [Job; 4] = [
    of_guest("guest-randread-4k-qd16", "randread", 16),
    of_guest("guest-randwrite-4k-qd16", "randwrite", 16),
    of_guest("guest-randread-4k-qd1", "randread", 1),
    Job { fsync: Some(1), ..of_guest("guest-randwrite-4k-qd1-fsync1", "randwrite", 1) },
];
/// The guest's disk.
const DEVICE: &str = "/dev/vda";
/// fio and its libraries are unpacked into it.
const MEMORY_MIB: u32 = 768;
/// How long a guest may take beside its jobs.
const GRACE: Duration = Duration::from_secs(180);
const BEGIN: &str = "FIO-BEGIN";
const END: &str = "FIO-END";
const NEXT: &str = "cargo xtask setup --for demo";

const fn of_guest(name: &'static str, rw: &'static str, iodepth: u32) -> Job {
    Job {
        name,
        rw,
        bs: "4k",
        iodepth,
        numjobs: 1,
        rwmixread: None,
        fsync: None,
        rate_iops: None,
        set: JobSet::Extended,
    }
}

/// What is the same for all guests.
struct Guests {
    kernel: Kernel,
    accel: Accel,
    initramfs: PathBuf,
}

/// The disks take turns within a round.
///
/// # Errors
/// There is no kernel, the daemon fails, or somebody asked to stop. What fails otherwise is recorded.
pub fn run(room: &Room<'_>, recorder: &mut Recorder, daemon: &Daemon) -> Result<(), Trouble> {
    let guests = Guests::prepare(room)?;
    recorder.note(format!("guests were run by {}", guests.accel.name()));
    let mut disks: Vec<Box<dyn Disk + '_>> = vec![
        Box::new(Volume::new(daemon, "guest")),
        Box::new(PlainFile::new(By::QemuNbd)),
        Box::new(Qcow2::new("qcow2", QcowCut::Overlay)),
    ];
    let mut ready: Vec<(&'static str, Served)> = Vec::new();
    for disk in &mut disks {
        ready.push((disk.name(), disk.whole(room)?));
        room.interrupt.check()?;
    }
    for round in 1..=room.plan.rounds {
        // Nobody is always the first.
        ready.rotate_left(1);
        for (name, served) in &ready {
            if let Err(trouble) = guests.measure(room, recorder, (name, served), round) {
                room.interrupt.check()?;
                recorder.fail(NAME, name, &trouble);
            }
        }
    }
    put_ratios(recorder);
    drop(ready);
    disks.iter_mut().try_for_each(|disk| disk.discard(room))
}

fn put_ratios(recorder: &mut Recorder) {
    for peer in PEERS {
        for job in &JOBS {
            let (subject, measure) = (format!("volume / {peer}"), job.name.to_owned());
            let key = Key { scenario: NAME, subject, measure, unit: "x" };
            recorder.put_ratios(&key, (VOLUME, job.name), (peer, job.name));
        }
    }
}

impl Guests {
    fn prepare(room: &Room<'_>) -> Result<Self, Trouble> {
        let cache = default_cache();
        let kernel = Kernel::fetch(&cache).or_trouble(|| "find a kernel for guests".into(), NEXT)?;
        let accel = probe_accel(&kernel, &cache).or_trouble(|| "find out what runs guests".into(), NEXT)?;
        let initramfs = room.new_image("initramfs");
        let (script, root) = (script(room.plan.runtime_s), GuestRoot::Memory);
        let spec = GuestSpec { script, root, programs: vec!["fio"], ..GuestSpec::default() };
        spec.build_initramfs(&kernel, &initramfs).or_trouble(|| "pack a guest".into(), NEXT)?;
        Ok(Self { kernel, accel, initramfs })
    }

    fn measure(
        &self,
        room: &Room<'_>,
        recorder: &mut Recorder,
        (name, served): (&str, &Served),
        round: u32,
    ) -> Result<(), Trouble> {
        room.flush(&served.uri)?;
        let outcome = self.boot(room, &served.uri)?;
        for job in &JOBS {
            let iops = fio::parse(said_of(&outcome.console, job.name)?)?.iops;
            let (subject, measure) = (name.to_owned(), job.name.to_owned());
            recorder.put(Key { scenario: NAME, subject, measure, unit: "IOPS" }, round, iops);
        }
        Ok(())
    }

    /// Runs a guest to its end.
    fn boot(&self, room: &Room<'_>, uri: &str) -> Result<GuestOutcome, Trouble> {
        let console = room.new_short("console");
        let drive = format!("file={uri},format=raw,if=virtio,cache=none,werror=report,rerror=report");
        let run = GuestRun::new(&self.kernel, &self.initramfs, self.accel, &console).memory_mib(MEMORY_MIB);
        let within = GRACE + Duration::from_secs(room.plan.runtime_s.into()) * (JOBS.len() as u32);
        let failed = |error: anyhow::Error| Trouble::new("run a guest", format!("{error:#}"), NEXT);
        let outcome = run.drive(drive).start().and_then(|guest| guest.wait_done(within)).map_err(failed)?;
        if outcome.rc == 0 {
            return Ok(outcome);
        }
        let why = format!("its script ended with {}", outcome.rc);
        Err(Trouble::new("run fio in a guest", why, "install fio; start it in such a guest by hand"))
    }
}

/// What the guest runs: each job, and its result between two lines.
fn script(runtime_s: u32) -> String {
    let one = |job: &Job| {
        let line = fio::command(job, Aim::Device(DEVICE), runtime_s).join(" ");
        format!("echo '{BEGIN} {}'\n{line} || exit 1\necho {END}\n", job.name)
    };
    let wait = format!("until [ -b {DEVICE} ]; do usleep 50000; done\n");
    [wait].into_iter().chain(JOBS.iter().map(one)).collect()
}

/// What the guest said between the two lines of a job.
fn said_of<'a>(console: &'a str, job: &str) -> Result<&'a str, Trouble> {
    let begin = format!("{BEGIN} {job}\n");
    let rest = console.split_once(&begin).map(|(_, rest)| rest);
    let said = rest.and_then(|rest| rest.split_once(END)).map(|(said, _)| said);
    said.ok_or_else(|| Trouble::new("read a guest's console", format!("nothing of {job}"), NEXT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_of_the_script_is_found_on_the_console() {
        let script = script(3);
        assert!(script.contains("--filename=/dev/vda") && script.contains("--direct=1"), "{script}");
        let console = JOBS.map(|job| format!("{BEGIN} {}\nresult of {}\n{END}\n", job.name, job.iodepth));
        let console = console.concat();
        assert_eq!(said_of(&console, JOBS[0].name).unwrap(), "result of 16\n");
        assert_eq!(said_of(&console, JOBS[3].name).unwrap(), "result of 1\n");
        assert!(said_of(&console, "guest").is_err());
        assert!(JOBS.iter().all(|job| script.contains(&format!("{BEGIN} {}'", job.name))));
    }
}
