//! What depends on QEMU's version, all of it. Sources: QEMU's docs/about/removed-features, the `since` marks of its QAPI
//! schema, and measurements on 7.2 and 10.0.

use crate::error::{Error, Kind};
use crate::qmp::Version;

/// Oldest QEMU that we start: Debian 12's.
const OLDEST: (u32, u32) = (7, 2);

/// What a version can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// The NBD driver waits for its server when it is opened (`open-timeout`, 7.0).
    pub nbd_open_timeout: bool,
    /// `-netdev stream` (7.2).
    pub stream_netdev: bool,
    /// … which connects again by itself; `reconnect`, in seconds (8.0).
    pub stream_reconnect: bool,
    /// … told in milliseconds, `reconnect-ms` (9.2); `reconnect` is deprecated since.
    pub stream_reconnect_ms: bool,
    /// Disks are taken on arrival unless the capability `late-block-activate` is set; from 10.0 on never.
    pub needs_late_block_activate: bool,
    /// A failed incoming migration leaves QEMU there to be asked (`exit-on-error`, 9.1); before, only its log tells.
    pub keeps_failed_incoming: bool,
    /// Combining multifd with xbzrle is refused by QEMU itself (10.0); before, we must.
    pub refuses_multifd_with_xbzrle: bool,
}

impl Abilities {
    /// Those of a version.
    ///
    /// # Errors
    /// It is too old.
    pub fn of(version: Version) -> Result<Self, Error> {
        let (major, minor) = OLDEST;
        if !version.is_at_least(major, minor) {
            let message = format!("QEMU {version} is too old: {major}.{minor} or later is needed");
            return Err(Error::one_line(Kind::Refused, message).with_next("apt install qemu-system-x86"));
        }
        Ok(Self {
            nbd_open_timeout: version.is_at_least(7, 0),
            stream_netdev: version.is_at_least(7, 2),
            stream_reconnect: version.is_at_least(8, 0),
            stream_reconnect_ms: version.is_at_least(9, 2),
            needs_late_block_activate: !version.is_at_least(10, 0),
            keeps_failed_incoming: version.is_at_least(9, 1),
            refuses_multifd_with_xbzrle: version.is_at_least(10, 0),
        })
    }
}

/// Reads what `--version` prints: `QEMU emulator version 7.2.22 (Debian …)`.
pub fn parse(text: &str) -> Option<Version> {
    let mut words = text.lines().next()?.split_whitespace();
    words.find(|word| *word == "version")?;
    let mut numbers = words.next()?.split('.').map(str::parse);
    let mut number = || numbers.next()?.ok();
    Some(Version { major: number()?, minor: number()?, micro: number()? })
}

/// What QEMU may not do (seccomp). `spawn` and `elevateprivileges` would be right, too, but 7.2 sets the filter before it
/// goes into the background, and then cannot (measured: killed by SIGSYS, or ended with 1).
pub const SANDBOX: &str = "on,obsolete=deny,resourcecontrol=deny";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let debian = parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright\n").unwrap();
        assert_eq!(debian, Version { major: 7, minor: 2, micro: 22 });
        assert!(parse("QEMU").is_none() && parse("").is_none() && parse("x version 7.x.1").is_none());
        assert!(debian.is_at_least(7, 2) && !debian.is_at_least(8, 0) && !debian.is_at_least(7, 3));
    }

    #[test]
    fn an_old_qemu_is_refused_and_a_new_one_can_more() {
        let version = |major, minor| Version { major, minor, micro: 0 };
        assert!(Abilities::of(version(6, 2)).unwrap_err().message.contains("too old"));
        assert!(Abilities::of(version(7, 2)).unwrap().needs_late_block_activate);
        let new = Abilities::of(version(10, 0)).unwrap();
        assert!(!new.needs_late_block_activate && new.stream_reconnect && new.keeps_failed_incoming);
    }
}
