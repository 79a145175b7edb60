//! The load: which fio jobs are run. Names are stable, they are keys of the results.

use serde::Serialize;

/// Whether a job belongs to the headline set or is run with `--all` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobSet {
    /// Always run: those that the goals speak of.
    Headline,
    /// Run with `--all`, or when named by `--only`.
    Extended,
}

/// One fio job.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Key in results and on the command line.
    pub name: &'static str,
    /// fio's `rw`.
    pub rw: &'static str,
    /// fio's `bs`.
    pub bs: &'static str,
    /// Requests in flight on each connection.
    pub iodepth: u32,
    /// Connections.
    pub numjobs: u32,
    /// Percentage of reads of a mixed job.
    pub rwmixread: Option<u32>,
    /// A flush after so many writes.
    pub fsync: Option<u32>,
    /// At most so many I/Os a second, instead of as many as there can be.
    pub rate_iops: Option<u32>,
    /// Headline or extended.
    pub set: JobSet,
}

impl Job {
    /// Whether the job punches holes, after which the image has to be written again.
    pub fn trims(&self) -> bool {
        self.rw.contains("trim")
    }
}

/// 4 KiB random reads, queue depth 64.
pub const RANDREAD_QD64: &str = "randread-4k-qd64";
/// 4 KiB random writes, queue depth 64.
pub const RANDWRITE_QD64: &str = "randwrite-4k-qd64";
/// 4 KiB random reads, one at a time.
pub const RANDREAD_QD1: &str = "randread-4k-qd1";
/// 4 KiB random writes, one at a time.
pub const RANDWRITE_QD1: &str = "randwrite-4k-qd1";
/// 4 KiB random reads, as many as one disk of QEMU can ask for.
pub const RANDREAD_QD16: &str = "randread-4k-qd16";
/// 4 KiB random writes, as many as one disk of QEMU can ask for.
pub const RANDWRITE_QD16: &str = "randwrite-4k-qd16";
/// 4 KiB random reads on four connections.
pub const RANDREAD_JOBS4: &str = "randread-4k-qd16-jobs4";
/// 4 KiB random writes on four connections.
pub const RANDWRITE_JOBS4: &str = "randwrite-4k-qd16-jobs4";
/// 256 KiB sequential reads, queue depth 16.
pub const READ_256K: &str = "read-256k-qd16";
/// 256 KiB sequential writes, queue depth 16.
pub const WRITE_256K: &str = "write-256k-qd16";
/// 1 MiB sequential reads, queue depth 8.
pub const READ_1M: &str = "read-1m-qd8";
/// 1 MiB sequential writes, queue depth 8.
pub const WRITE_1M: &str = "write-1m-qd8";
/// 4 KiB random writes, one at a time, a FLUSH after each.
pub const FSYNC_1: &str = "randwrite-4k-qd1-fsync1";
/// 4 KiB random writes on four connections, a FLUSH after 32 on each.
pub const FSYNC_32: &str = "randwrite-4k-qd8-jobs4-fsync32";

/// Every job, in the order of running: those of the goals, others, and the trimming one, which costs a new image.
pub const JOBS: [Job; 23] = [
    headline(RANDREAD_QD64, "randread", "4k", 64),
    headline(RANDWRITE_QD64, "randwrite", "4k", 64),
    headline(RANDREAD_QD1, "randread", "4k", 1),
    headline(RANDWRITE_QD1, "randwrite", "4k", 1),
    Job { numjobs: 4, ..headline(RANDREAD_JOBS4, "randread", "4k", 16) },
    Job { numjobs: 4, ..headline(RANDWRITE_JOBS4, "randwrite", "4k", 16) },
    headline(RANDREAD_QD16, "randread", "4k", 16),
    headline(RANDWRITE_QD16, "randwrite", "4k", 16),
    headline(READ_256K, "read", "256k", 16),
    headline(WRITE_256K, "write", "256k", 16),
    headline(READ_1M, "read", "1m", 8),
    headline(WRITE_1M, "write", "1m", 8),
    Job { fsync: Some(1), ..headline(FSYNC_1, "randwrite", "4k", 1) },
    Job { numjobs: 4, fsync: Some(32), ..headline(FSYNC_32, "randwrite", "4k", 8) },
    extended("randread-4k-qd32", "randread", "4k", 32),
    extended("randwrite-4k-qd32", "randwrite", "4k", 32),
    // CPU time a request says most where all servers do equally much.
    Job { rate_iops: Some(20_000), ..extended("randwrite-4k-qd32-20k", "randwrite", "4k", 32) },
    Job { rwmixread: Some(70), ..extended("randrw-4k-qd32-r70", "randrw", "4k", 32) },
    Job { numjobs: 2, ..extended("randread-4k-qd16-jobs2", "randread", "4k", 16) },
    Job { numjobs: 8, ..extended("randread-4k-qd16-jobs8", "randread", "4k", 16) },
    extended("read-64k-qd16", "read", "64k", 16),
    extended("write-64k-qd16", "write", "64k", 16),
    extended("randtrim-64k-qd16", "randtrim", "64k", 16),
];

const fn headline(name: &'static str, rw: &'static str, bs: &'static str, iodepth: u32) -> Job {
    let (numjobs, set) = (1, JobSet::Headline);
    Job { name, rw, bs, iodepth, numjobs, rwmixread: None, fsync: None, rate_iops: None, set }
}

const fn extended(name: &'static str, rw: &'static str, bs: &'static str, iodepth: u32) -> Job {
    Job { set: JobSet::Extended, ..headline(name, rw, bs, iodepth) }
}

/// The job of that name.
pub fn find(name: &str) -> Option<&'static Job> {
    JOBS.iter().find(|job| job.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for job in &JOBS {
            assert_eq!(JOBS.iter().filter(|other| other.name == job.name).count(), 1, "{}", job.name);
            assert_eq!(find(job.name), Some(job));
        }
        assert_eq!(find("no-such-job"), None);
    }

    #[test]
    fn the_trimming_job_runs_last() {
        let first_trim = JOBS.iter().position(Job::trims);
        assert_eq!(first_trim, Some(JOBS.len() - 1));
    }
}
