//! Judges requests: what a header may ask for, decided before a byte is allocated for it.
//!
//! Pure functions from a header and the rules of the connection to a verdict; the rows X1-X15 of the
//! list of bad requests are decided here and nowhere else.

use std::sync::Arc;

use crate::export::ExportInfo;
use crate::status::Contexts;
use crate::wire::{Errno, MAX_PAYLOAD_BYTES, RequestHeader, command, command_flag as flag};

/// A write longer than [`MAX_PAYLOAD_BYTES`] is read and thrown away up to this many bytes, so that the
/// connection survives the error; a client that announces more is not worth the reading.
pub const MAX_DRAINED_BYTES: u32 = 64 << 20;

/// What the connection has agreed on.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The export in use.
    pub export: ExportInfo,
    /// Structured replies were negotiated.
    pub structured: bool,
    /// The meta contexts that were chosen; none without structured replies.
    pub contexts: Contexts,
}

impl Rules {
    /// Without meta contexts.
    pub fn new(export: ExportInfo, structured: bool) -> Self {
        Self { export, structured, contexts: Arc::new([]) }
    }
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Carry it out.
    Accept(Accepted),
    /// Answer with the error, after skipping that many bytes of payload.
    Refuse {
        /// The error to answer.
        error: Errno,
        /// Payload bytes that follow the header and must be skipped to stay in step.
        skip: u32,
    },
    /// The client leaves: finish what is in flight, answer nothing.
    Leave,
    /// The stream cannot be kept in step: close.
    Close(CloseReason),
}

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Read; `holes`: the reply may name holes.
    Read {
        /// See [`crate::export::Command::Read`].
        holes: bool,
    },
    /// Write; the payload follows.
    Write {
        /// Durable before the reply.
        fua: bool,
    },
    /// Flush.
    Flush,
    /// Trim.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// Zero a range.
    WriteZeroes {
        /// Durable before the reply.
        fua: bool,
        /// Keep it allocated.
        no_hole: bool,
        /// Fail rather than be slow.
        fast: bool,
    },
    /// Prefetch.
    Cache,
    /// Tell what is known.
    BlockStatus {
        /// One extent a context is enough.
        one: bool,
    },
    /// Nothing to do, successfully: a command on zero bytes.
    Nothing,
}

/// Why a connection in transmission is closed by us. Logged with these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// A request did not begin with the magic.
    BadRequestMagic,
    /// A write announced more payload than we are willing to skip.
    PayloadTooLarge,
    /// The client sent half a payload, or reads no replies, for too long.
    Stalled,
    /// The client closed its end, or the socket failed.
    PeerGone,
    /// The client said goodbye.
    Left,
    /// The server stops and the client did not leave in time.
    Shutdown,
}

/// Judges one request.
pub fn judge(header: &RequestHeader, rules: &Rules) -> Verdict {
    if header.command == command::DISC {
        return Verdict::Leave;
    }
    let payload = if header.command == command::WRITE { header.length } else { 0 };
    if payload > MAX_DRAINED_BYTES {
        return Verdict::Close(CloseReason::PayloadTooLarge);
    }
    match check(header, rules) {
        Ok(_) if header.length == 0 && header.command != command::FLUSH => Verdict::Accept(Accepted::Nothing),
        Ok(accepted) => Verdict::Accept(accepted),
        Err(error) => Verdict::Refuse { error, skip: payload },
    }
}

fn check(header: &RequestHeader, rules: &Rules) -> Result<Accepted, Errno> {
    let accepted = parse_command(header, rules)?;
    check_writable(accepted, rules)?;
    if accepted == Accepted::Flush {
        return Ok(accepted);
    }
    check_length(header)?;
    check_alignment(header, rules)?;
    check_range(header, accepted, rules)?;
    Ok(accepted)
}

/// The command with its flags; an unknown command, an unknown flag and a flag on the wrong command are
/// `EINVAL`. FUA is fine everywhere: the protocol demands that once it is offered.
fn parse_command(header: &RequestHeader, rules: &Rules) -> Result<Accepted, Errno> {
    let has = |bit| header.flags & bit != 0;
    let fua = has(flag::FUA);
    let (accepted, allowed) = match header.command {
        command::READ => {
            let offered = if rules.structured { flag::DF } else { 0 };
            (Accepted::Read { holes: rules.structured && !has(flag::DF) }, offered)
        }
        command::WRITE => (Accepted::Write { fua }, 0),
        command::FLUSH => (Accepted::Flush, 0),
        command::TRIM => (Accepted::Trim { fua }, 0),
        command::CACHE => (Accepted::Cache, 0),
        command::WRITE_ZEROES => {
            let offered = flag::NO_HOLE | if rules.export.fast_zero { flag::FAST_ZERO } else { 0 };
            let (no_hole, fast) = (has(flag::NO_HOLE), has(flag::FAST_ZERO));
            (Accepted::WriteZeroes { fua, no_hole, fast }, offered)
        }
        // A reply to a question about nothing could not be written down: no extent is empty.
        command::BLOCK_STATUS if !rules.contexts.is_empty() && header.length > 0 => {
            (Accepted::BlockStatus { one: has(flag::REQ_ONE) }, flag::REQ_ONE)
        }
        _ => return Err(Errno::Inval),
    };
    if header.flags & !(allowed | flag::FUA) != 0 {
        return Err(Errno::Inval);
    }
    Ok(accepted)
}

fn check_writable(accepted: Accepted, rules: &Rules) -> Result<(), Errno> {
    let writes =
        matches!(accepted, Accepted::Write { .. } | Accepted::Trim { .. } | Accepted::WriteZeroes { .. });
    if writes && rules.export.read_only { Err(Errno::Perm) } else { Ok(()) }
}

/// Only requests with a payload, in either direction, are bound by its maximum.
fn check_length(header: &RequestHeader) -> Result<(), Errno> {
    let carries = matches!(header.command, command::READ | command::WRITE);
    if carries && header.length > MAX_PAYLOAD_BYTES { Err(Errno::Inval) } else { Ok(()) }
}

fn check_alignment(header: &RequestHeader, rules: &Rules) -> Result<(), Errno> {
    let minimum = u64::from(rules.export.block_minimum);
    let aligned = header.offset.is_multiple_of(minimum) && u64::from(header.length).is_multiple_of(minimum);
    if aligned { Ok(()) } else { Err(Errno::Inval) }
}

/// Past the end is `ENOSPC` for what writes data and `EINVAL` for the rest, as the protocol says.
fn check_range(header: &RequestHeader, accepted: Accepted, rules: &Rules) -> Result<(), Errno> {
    let end = header.offset.checked_add(u64::from(header.length));
    if end.is_some_and(|end| end <= rules.export.size) {
        return Ok(());
    }
    match accepted {
        Accepted::Write { .. } | Accepted::WriteZeroes { .. } => Err(Errno::NoSpace),
        _ => Err(Errno::Inval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Chosen, ContextKey};

    const SIZE: u64 = 1 << 20;

    fn rules() -> Rules {
        let export = ExportInfo { fast_zero: true, ..ExportInfo::new("disk", SIZE) };
        Rules::new(export, true)
    }

    fn header(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 1, offset, length }
    }

    fn error(header: RequestHeader, rules: &Rules) -> Errno {
        match judge(&header, rules) {
            Verdict::Refuse { error, .. } => error,
            other => panic!("{header:?} got {other:?}"),
        }
    }

    #[test]
    fn x2_x3_ranges_past_the_end() {
        for (offset, length) in
            [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX, u32::MAX), (u64::MAX - 4095, 4096)]
        {
            for (command, expected) in [
                (command::READ, Errno::Inval),
                (command::TRIM, Errno::Inval),
                (command::CACHE, Errno::Inval),
                (command::WRITE_ZEROES, Errno::NoSpace),
            ] {
                let length = if command == command::READ { length.min(4096) } else { length };
                assert_eq!(error(header(command, 0, offset, length), &rules()), expected, "{command}");
            }
        }
        assert_eq!(
            judge(&header(command::WRITE, 0, SIZE - 1, 2), &rules()),
            Verdict::Refuse { error: Errno::NoSpace, skip: 2 }
        );
    }

    #[test]
    fn x4_unaligned_to_the_minimum() {
        let mut rules = rules();
        rules.export.block_minimum = 512;
        assert_eq!(error(header(command::READ, 0, 511, 512), &rules), Errno::Inval);
        assert_eq!(error(header(command::TRIM, 0, 512, 511), &rules), Errno::Inval);
    }

    #[test]
    fn x5_x6_payload_limits() {
        let rules = Rules::new(ExportInfo::new("big", 1 << 40), true);
        assert_eq!(error(header(command::READ, 0, 0, MAX_PAYLOAD_BYTES + 1), &rules), Errno::Inval);
        assert!(matches!(
            judge(&header(command::WRITE, 0, 0, MAX_PAYLOAD_BYTES), &rules),
            Verdict::Accept(Accepted::Write { fua: false })
        ));
        assert_eq!(
            judge(&header(command::WRITE, 0, 0, MAX_DRAINED_BYTES), &rules),
            Verdict::Refuse { error: Errno::Inval, skip: MAX_DRAINED_BYTES }
        );
        assert_eq!(
            judge(&header(command::WRITE, 0, 0, MAX_DRAINED_BYTES + 1), &rules),
            Verdict::Close(CloseReason::PayloadTooLarge)
        );
        let zeroes = judge(&header(command::WRITE_ZEROES, 0, 0, u32::MAX), &rules);
        assert!(matches!(zeroes, Verdict::Accept(Accepted::WriteZeroes { .. })));
    }

    #[test]
    fn x7_zero_length_is_nothing_to_do() {
        for command in [command::READ, command::WRITE, command::TRIM, command::CACHE, command::WRITE_ZEROES] {
            assert_eq!(
                judge(&header(command, 0, 0, 0), &rules()),
                Verdict::Accept(Accepted::Nothing),
                "{command}"
            );
        }
        assert_eq!(judge(&header(command::FLUSH, 0, 0, 0), &rules()), Verdict::Accept(Accepted::Flush));
    }

    #[test]
    fn x8_unknown_commands_and_flags() {
        assert_eq!(error(header(99, 0, 0, 1), &rules()), Errno::Inval);
        assert_eq!(error(header(7, 0, 0, 1), &rules()), Errno::Inval);
        for command in 0..=6 {
            if command == command::DISC {
                continue;
            }
            let unknown = judge(&header(command, 1 << 15, 0, 1), &rules());
            assert!(matches!(unknown, Verdict::Refuse { error: Errno::Inval, .. }), "{command}");
            let fua = judge(&header(command, flag::FUA, 0, 1), &rules());
            assert!(matches!(fua, Verdict::Accept(_)), "FUA on {command}");
        }
        assert_eq!(error(header(command::TRIM, flag::NO_HOLE, 0, 1), &rules()), Errno::Inval);
        assert_eq!(error(header(command::CACHE, flag::DF, 0, 1), &rules()), Errno::Inval);
    }

    #[test]
    fn x9_writes_on_a_read_only_export() {
        let mut rules = rules();
        rules.export.read_only = true;
        for command in [command::TRIM, command::WRITE_ZEROES, command::WRITE] {
            assert_eq!(
                error(header(command, 0, SIZE, 4096), &rules),
                Errno::Perm,
                "before the range is judged"
            );
        }
    }

    #[test]
    fn x10_block_status_needs_contexts() {
        let mut rules = rules();
        assert_eq!(error(header(command::BLOCK_STATUS, 0, 0, 1), &rules), Errno::Inval);
        rules.contexts = Arc::new([Chosen { id: 1, key: ContextKey::ALLOCATION }]);
        for (flags, one) in [(0, false), (flag::REQ_ONE, true), (flag::FUA, false)] {
            let verdict = judge(&header(command::BLOCK_STATUS, flags, 0, 1), &rules);
            assert_eq!(verdict, Verdict::Accept(Accepted::BlockStatus { one }));
        }
        for (flags, offset, length) in [(0, 0, 0), (flag::DF, 0, 1), (0, SIZE - 1, 2), (0, SIZE, u32::MAX)] {
            assert_eq!(error(header(command::BLOCK_STATUS, flags, offset, length), &rules), Errno::Inval);
        }
        assert_eq!(error(header(command::READ, flag::REQ_ONE, 0, 1), &rules), Errno::Inval);
    }

    #[test]
    fn x15_flags_that_were_not_offered() {
        let mut rules = rules();
        rules.export.fast_zero = false;
        rules.structured = false;
        assert_eq!(error(header(command::WRITE_ZEROES, flag::FAST_ZERO, 0, 1), &rules), Errno::Inval);
        assert_eq!(error(header(command::READ, flag::DF, 0, 1), &rules), Errno::Inval);
    }
}
