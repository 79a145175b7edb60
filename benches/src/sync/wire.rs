//! The wire between the two ends: a network of its own on this machine, whose loopback device counts every byte.
//!
//! All ends that talk over TCP run inside one network namespace that nobody else is in. So what its loopback device has
//! sent is what went over the wire, both ways, acknowledgements and the headers of TCP, IP and Ethernet included, for
//! our daemons and for the peers alike; no relay stands between that would take processor time. Loopback packets hold up
//! to 64 KiB: on a real link there are more headers.

use std::fs;

use crate::process::{Guarded, spawn};
use crate::store::record::Recorder;
use crate::store::room::Room;
use crate::trouble::{OrTrouble, Trouble};

const NEXT: &str = "run it as root";

/// The namespace; gone with this value.
#[derive(Debug)]
pub struct Wire {
    /// Keeps the namespace; none: the machine's own network is used.
    holder: Option<Guarded>,
}

impl Wire {
    /// Makes the network; where that is not allowed, the machine's own is used.
    ///
    /// # Errors
    /// Somebody asked to stop.
    pub fn new(room: &Room<'_>, recorder: &mut Recorder) -> Result<Self, Trouble> {
        match Self::private(room) {
            Ok(wire) => Ok(wire),
            Err(trouble) => {
                room.interrupt.check()?;
                let why = format!("{}: {}", trouble.what, trouble.why);
                recorder.note(format!(
                    "no network of its own ({why}): bytes on the wire are those of the machine's whole loopback device"
                ));
                Ok(Self { holder: None })
            }
        }
    }

    fn private(room: &Room<'_>) -> Result<Self, Trouble> {
        // Its words show that `unshare` has done its part: only then does the process have the namespace.
        let line = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"];
        let line = line.map(str::to_owned);
        let log = room.new_short("log");
        let mut holder = Guarded::child(spawn(&line, &log, None)?);
        loop {
            let said = fs::read_to_string(&log).or_trouble(|| "read a log".into(), NEXT)?;
            if said.trim() == "up" {
                return Ok(Self { holder: Some(holder) });
            }
            if let Some(how) = holder.ended().or_trouble(|| "make a network".into(), NEXT)? {
                return Err(Trouble::new("make a network", format!("{how}: {}", said.trim()), NEXT));
            }
            room.pause(LOOK)?;
        }
    }

    /// A command line that runs inside.
    pub fn inside(&self, line: &[&str]) -> Vec<String> {
        let pid = self.pid();
        let enter =
            pid.map(|pid| vec!["nsenter".to_owned(), format!("--net=/proc/{pid}/ns/net"), "--".into()]);
        let line = line.iter().map(|&word| word.to_owned());
        enter.into_iter().flatten().chain(line).collect()
    }

    /// Bytes that have gone over it so far, both ways.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn bytes(&self) -> Result<u64, Trouble> {
        let path = match self.pid() {
            Some(pid) => format!("/proc/{pid}/net/dev"),
            None => "/proc/self/net/dev".to_owned(),
        };
        let text = fs::read_to_string(&path).or_trouble(|| format!("read {path}"), NEXT)?;
        let missing = || Trouble::new(format!("read {path}"), "no loopback device in it", NEXT);
        loopback_sent(&text).ok_or_else(missing)
    }

    fn pid(&self) -> Option<i32> {
        self.holder.as_ref().and_then(Guarded::pid).map(|pid| pid.as_raw_nonzero().get())
    }
}

/// Pause between two looks at a process that starts.
const LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// Bytes that `lo` has sent: each packet of a loopback device is sent once and received once.
///
/// Spec: proc(5), "/proc/net/dev": eight fields of what was received, then those of what was sent.
fn loopback_sent(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loopback_has_sent_is_the_ninth_number() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets ...\n  \
                    eth0: 1 1 0 0 0 0 0 0 2 2 0 0 0 0 0 0\n    lo:     700 7 0 0 0 0 0 0 701 7 0 0 0 0 0 0\n";
        assert_eq!(loopback_sent(text), Some(701));
        assert_eq!(loopback_sent("  eth0: 1 1 0 0 0 0 0 0 2"), None);
        assert_eq!(loopback_sent("lo: 1 2"), None);
    }
}
