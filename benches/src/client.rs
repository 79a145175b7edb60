//! Who makes the load: fio, or our own `nbd-load`, run as programs of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::fio::{GRACE, Measurement};
use crate::interrupt::Interrupt;
use crate::jobs::Job;
use crate::load::{Pattern, Report};
use crate::process::{last_words, run_to_end};
use crate::servers::ServerId;
use crate::trouble::Trouble;

/// A load generator. Measurements of two are never put together, nor into one ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// fio's nbd engine: nobody's own, but on small machines busy before the server is.
    Fio,
    /// `nbd-load` of this workspace ([`crate::load`]).
    Ours,
}

impl Client {
    /// How tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Fio => "fio",
            Self::Ours => "nbd-load, ours",
        }
    }

    /// How the results page describes it.
    pub fn described(self) -> &'static str {
        match self {
            Self::Fio => "fio's nbd engine over a Unix socket. Latency runs from queueing to completion.",
            Self::Ours => {
                "`nbd-load`, ours, over a Unix socket: one thread for all connections, requests sent and replies received in \
                 batches, payload not looked at. Latency runs from before the send to after the receive."
            }
        }
    }

    /// Whether it can run the job on that server.
    pub fn can_run(self, server: ServerId, job: &Job) -> bool {
        match self {
            // io_uring has no trim for files.
            Self::Fio => !(server == ServerId::FioFile && job.trims()),
            Self::Ours => {
                let plain = job.rwmixread.is_none() && job.rate_iops.is_none();
                server != ServerId::FioFile && plain && pattern(job).is_some()
            }
        }
    }
}

fn pattern(job: &Job) -> Option<Pattern> {
    Pattern::from_str(job.rw, false).ok()
}

/// `nbd-load`, with a place for its files.
#[derive(Debug)]
pub struct NbdLoad<'a> {
    /// The program.
    pub program: &'a Path,
    /// Directory for its output.
    pub dir: &'a Path,
    /// The CPU it is tied to.
    pub cpu: Option<u32>,
    /// Ends it early.
    pub interrupt: &'a Interrupt,
}

impl NbdLoad<'_> {
    /// Runs one job.
    ///
    /// # Errors
    /// It cannot be started, fails, does not end in time, or somebody asked to stop.
    pub fn run(
        &self,
        job: &Job,
        socket: &Path,
        export: &str,
        runtime_s: u32,
    ) -> Result<Measurement, Trouble> {
        let line = command(self.program, job, socket, export, runtime_s);
        let log = self.dir.join("nbd-load.log");
        let limit = Duration::from_secs(runtime_s.into()) + GRACE;
        let status = run_to_end(&line, &log, self.cpu, limit, self.interrupt)?;
        let failed =
            |why: String| Trouble::new("run nbd-load", why, format!("try it by hand: {}", line.join(" ")));
        if !status.success() {
            return Err(failed(last_words(&log)));
        }
        let text = fs::read_to_string(&log).map_err(|error| failed(error.to_string()))?;
        parse(&text).map_err(failed)
    }
}

/// The complete command of one job. No warm-up, as for fio: the server's CPU time is sampled around the whole.
fn command(program: &Path, job: &Job, socket: &Path, export: &str, runtime_s: u32) -> Vec<String> {
    let mut line = vec![program.display().to_string(), "--json".to_owned()];
    let mut option = |name: &str, value: String| line.extend([name.to_owned(), value]);
    option("--unix", socket.display().to_string());
    option("--export", export.to_owned());
    option("--rw", job.rw.to_owned());
    option("--bs", job.bs.to_owned());
    option("--depth", job.iodepth.to_string());
    option("--connections", job.numjobs.to_string());
    option("--runtime", runtime_s.to_string());
    if let Some(writes) = job.fsync {
        option("--fsync", writes.to_string());
    }
    line
}

fn parse(text: &str) -> Result<Measurement, String> {
    let report: Report = serde_json::from_str(text).map_err(|error| format!("its result: {error}"))?;
    Ok(report.measurement)
}

/// `nbd-load` beside this program: they are built together. Where the system does not tell where that is, the one in the
/// search path, whose absence is told when it is started.
pub fn beside_us() -> PathBuf {
    let name = "nbd-load";
    std::env::current_exe().map_or_else(|_| PathBuf::from(name), |own| own.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{JOBS, find};

    #[test]
    fn our_client_takes_the_jobs_that_it_can_do() {
        for job in &JOBS {
            let expected = !job.trims() && job.rw != "randrw" && job.rate_iops.is_none();
            assert_eq!(Client::Ours.can_run(ServerId::NbdkitFile, job), expected, "{}", job.name);
            assert!(Client::Fio.can_run(ServerId::NbdkitFile, job), "{}", job.name);
            assert!(!Client::Ours.can_run(ServerId::FioFile, job), "there is no server: {}", job.name);
            assert_eq!(Client::Fio.can_run(ServerId::FioFile, job), !job.trims());
        }
    }

    #[test]
    fn the_command_carries_the_whole_job() {
        let job = find("randwrite-4k-qd8-jobs4-fsync32").unwrap();
        let line = command(Path::new("/p/nbd-load"), job, Path::new("/s s"), "bench", 3);
        assert_eq!(
            line.join("|"),
            "/p/nbd-load|--json|--unix|/s s|--export|bench|--rw|randwrite|--bs|4k|--depth|8|--connections|4|--runtime|3|--fsync|32"
        );
        let plain = command(Path::new("l"), find("read-1m-qd8").unwrap(), Path::new("/s"), "", 3).join("|");
        assert!(!plain.contains("fsync"), "{plain}");
    }

    #[test]
    fn what_is_no_result_is_told() {
        assert!(parse("killed").unwrap_err().contains("its result"));
        assert!(parse("{}").is_err());
    }
}
