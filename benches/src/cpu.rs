//! CPU time of a server: its threads and its children, from `/proc/PID/stat`.
//!
//! Spec: proc(5), "/proc/pid/stat": fields 4 (ppid), 14 to 17 (utime, stime, cutime, cstime, in clock ticks).
//! The fields count the whole thread group, io_uring's workers included. Debian's nbd-server forks a process for
//! each client: while it lives it is found by its parent, afterwards its time stands in the parent's cutime
//! and cstime.

use std::fs;
use std::io;
use std::time::Duration;

use crate::trouble::{OrTrouble, Trouble};

/// What `/proc/PID/stat` says of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// Process id.
    pub pid: u32,
    /// Parent's process id.
    pub parent: u32,
    /// Own CPU time and that of children already waited for, in clock ticks.
    pub ticks: u64,
}

/// Reads one line of `/proc/PID/stat`.
///
/// The command name stands in parentheses and may itself contain spaces and parentheses: the last closing one
/// ends it.
pub fn parse_stat(line: &str) -> Option<ProcessStat> {
    let (pid, rest) = line.split_once(" (")?;
    let (_name, rest) = rest.rsplit_once(") ")?;
    // `rest` begins with field 3, the state.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(ProcessStat { pid: pid.parse().ok()?, parent: fields.get(1)?.parse().ok()?, ticks })
}

/// All processes there are now.
///
/// # Errors
/// `/proc` could not be listed. A process that ends meanwhile is left out.
pub fn all_processes() -> Result<Vec<ProcessStat>, Trouble> {
    let listing = fs::read_dir("/proc").or_trouble(|| "list the processes".into(), "mount /proc")?;
    let is_pid = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let names = listing.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| is_pid(name)).filter_map(|name| read_stat(&name).ok().flatten()).collect())
}

fn read_stat(pid: &str) -> io::Result<Option<ProcessStat>> {
    Ok(parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?))
}

/// `root` and everything below it.
pub fn tree(processes: &[ProcessStat], root: u32) -> Vec<ProcessStat> {
    let mut found: Vec<ProcessStat> =
        processes.iter().filter(|process| process.pid == root).copied().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.pid) {
        found.extend(processes.iter().filter(|process| process.parent == parent && process.pid != root));
        next += 1;
    }
    found
}

/// CPU time spent so far by `root` and everything below it.
///
/// Units: the kernel's clock tick, usually 10 ms.
/// # Errors
/// The process is gone.
pub fn spent_by_tree(root: u32) -> Result<Duration, Trouble> {
    let family = tree(&all_processes()?, root);
    if family.is_empty() {
        return Err(Trouble::new("sample the server's CPU time", "the server has ended", "look at its log"));
    }
    Ok(ticks_to_duration(family.iter().map(|process| process.ticks).sum()))
}

fn ticks_to_duration(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_nanos(ticks * (1_000_000_000 / per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "6112 (nbd-server) S 1 6112 6112 0 -1 4194368 252 1271 0 0 11 2 30 261 20 0 1 0 89113 \
                         12328960 1038 18446744073709551615 0 0";

    #[test]
    fn stat_sums_own_and_waited_for_time() {
        assert_eq!(parse_stat(PLAIN), Some(ProcessStat { pid: 6112, parent: 1, ticks: 11 + 2 + 30 + 261 }));
    }

    #[test]
    fn a_name_may_hold_spaces_and_parentheses() {
        for name in ["a b", "a) S 7 (b", "((", "))", ") R 9 9 9", ""] {
            let line = PLAIN.replace("nbd-server", name);
            assert_eq!(parse_stat(&line).map(|stat| stat.parent), Some(1), "{name:?}");
        }
    }

    #[test]
    fn a_torn_line_is_refused() {
        for line in ["", "12", "12 (x", "12 (x) S 1 2 3", "x (y) S 1 1 1 0 -1 0 0 0 0 0 1 2 3 4 5"] {
            assert_eq!(parse_stat(line), None, "{line:?}");
        }
    }

    #[test]
    fn the_tree_has_children_of_children_and_nobody_else() {
        let process = |pid, parent| ProcessStat { pid, parent, ticks: 1 };
        let all = [process(1, 0), process(30, 20), process(20, 10), process(10, 1), process(11, 1)];
        let pids: Vec<u32> = tree(&all, 10).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [10, 20, 30]);
        assert!(tree(&all, 99).is_empty());
    }

    #[test]
    fn our_own_process_is_in_proc() {
        assert!(spent_by_tree(std::process::id()).is_ok());
    }
}
