//! Judges requests: what a header may ask for, decided before a byte is allocated for it.
//!
//! Pure functions from a header and the rules of the connection to a verdict; the rows X1-X15 of the
//! list of bad requests are decided here and nowhere else.

use std::sync::Arc;

use crate::export::ExportInfo;
use crate::status::Contexts;
use crate::wire::{Errno, MAX_PAYLOAD_BYTES, ReplyForm, RequestHeader, command, command_flag as flag};

/// A write longer than [`MAX_PAYLOAD_BYTES`] is read and thrown away up to this many bytes, so that the
/// connection survives the error; a client that announces more is not worth the reading.
pub const MAX_DRAINED_BYTES: u32 = 64 << 20;
/// Bytes of a `BLOCK_STATUS` request's payload before its contexts: the length that is asked about.
const FILTER_HEADER_BYTES: u64 = 8;
/// Bytes of each context behind them.
const FILTER_CONTEXT_BYTES: u64 = 4;

/// What the connection has agreed on.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The export in use.
    pub export: ExportInfo,
    /// Structured replies were negotiated, or extended headers.
    pub structured: bool,
    /// Extended headers were negotiated.
    pub extended: bool,
    /// The meta contexts that were chosen; none without structured replies.
    pub contexts: Contexts,
}

impl Rules {
    /// Without extended headers and meta contexts.
    pub fn new(export: ExportInfo, structured: bool) -> Self {
        Self { export, structured, extended: false, contexts: Arc::new([]) }
    }

    /// How replies are written.
    pub fn form(&self) -> ReplyForm {
        match (self.structured, self.extended) {
            (_, true) => ReplyForm::Extended,
            (true, false) => ReplyForm::Structured,
            (false, false) => ReplyForm::Simple,
        }
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
        /// The payload says of what, and which contexts are wanted; see [`judge_filter`].
        filter: bool,
    },
    /// Nothing to do, successfully: a command on zero bytes.
    Nothing,
}

impl Accepted {
    /// The header is followed by something.
    pub fn has_payload(self) -> bool {
        matches!(self, Self::Write { .. } | Self::BlockStatus { filter: true, .. })
    }

    /// The disk is another one afterwards.
    pub fn changes(self) -> bool {
        matches!(self, Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes { .. })
    }

    /// Durable before the reply.
    pub fn is_durable(self) -> bool {
        matches!(
            self,
            Self::Write { fua: true } | Self::Trim { fua: true } | Self::WriteZeroes { fua: true, .. }
        )
    }
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
    /// What came was no TLS, or TLS that was tampered with.
    BrokenTls,
    /// The directory does not admit this client any more.
    Revoked,
}

impl CloseReason {
    /// Its name in the log.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::BadRequestMagic => "BAD_REQUEST_MAGIC",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::Stalled => "STALLED",
            Self::PeerGone => "PEER_GONE",
            Self::Left => "LEFT",
            Self::Shutdown => "SHUTDOWN",
            Self::BrokenTls => "BROKEN_TLS",
            Self::Revoked => "REVOKED",
        }
    }
}

/// Judges one request.
pub fn judge(header: &RequestHeader, rules: &Rules) -> Verdict {
    if header.command == command::DISC {
        return Verdict::Leave;
    }
    let payload = if has_payload(header, rules) { header.length } else { 0 };
    let Some(skip) = u32::try_from(payload).ok().filter(|&bytes| bytes <= MAX_DRAINED_BYTES) else {
        return Verdict::Close(CloseReason::PayloadTooLarge);
    };
    match check(header, rules) {
        Ok(_) if header.length == 0 && header.command != command::FLUSH => Verdict::Accept(Accepted::Nothing),
        Ok(accepted) => Verdict::Accept(accepted),
        Err(error) => Verdict::Refuse { error, skip },
    }
}

/// A write always has one. With extended headers its flag has to say so, which QEMU's client (10.0) forgets: without the payload a
/// write would be nothing, so it is taken. All other payloads are where the flag says.
fn has_payload(header: &RequestHeader, rules: &Rules) -> bool {
    header.command == command::WRITE || rules.extended && header.flags & flag::PAYLOAD_LEN != 0
}

/// Judges the payload of a `BLOCK_STATUS` request: how many bytes are asked about, and the numbers of the contexts that
/// are wanted, each once.
///
/// # Errors
/// What the request is refused with.
pub fn judge_filter(header: &RequestHeader, payload: &[u8], rules: &Rules) -> Result<(u64, Contexts), Errno> {
    let (length, numbers) = payload.split_first_chunk::<8>().ok_or(Errno::Inval)?;
    let length = u64::from_be_bytes(*length);
    if length == 0 {
        return Err(Errno::Inval);
    }
    let asked = RequestHeader { length, ..*header };
    check_alignment(&asked, rules)?;
    check_range(&asked, Accepted::Cache, rules)?;
    let mut wanted = Vec::new();
    for number in numbers.chunks(FILTER_CONTEXT_BYTES as usize) {
        let known =
            rules.contexts.iter().find(|known| number == known.id.to_be_bytes()).ok_or(Errno::Inval)?;
        if wanted.contains(known) {
            return Err(Errno::Inval);
        }
        wanted.push(*known);
    }
    Ok((length, wanted.into()))
}

fn check(header: &RequestHeader, rules: &Rules) -> Result<Accepted, Errno> {
    let accepted = parse_command(header, rules)?;
    check_writable(accepted, rules)?;
    if accepted == Accepted::Flush || matches!(accepted, Accepted::BlockStatus { filter: true, .. }) {
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
        command::WRITE => (Accepted::Write { fua }, payload_flag(rules)),
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
            let filter = rules.extended && has_payload(header, rules);
            if filter && !is_filter(header.length, rules) {
                return Err(Errno::Inval);
            }
            (Accepted::BlockStatus { one: has(flag::REQ_ONE), filter }, flag::REQ_ONE | payload_flag(rules))
        }
        _ => return Err(Errno::Inval),
    };
    if header.flags & !(allowed | flag::FUA) != 0 {
        return Err(Errno::Inval);
    }
    Ok(accepted)
}

/// The flag that a request with a payload has to carry.
fn payload_flag(rules: &Rules) -> u16 {
    if rules.extended { flag::PAYLOAD_LEN } else { 0 }
}

/// Whether a payload has the length of a list of contexts: one at least, none twice.
fn is_filter(bytes: u64, rules: &Rules) -> bool {
    let contexts = 1..=rules.contexts.len() as u64;
    contexts.contains(&(bytes.saturating_sub(FILTER_HEADER_BYTES) / FILTER_CONTEXT_BYTES))
        && bytes.is_multiple_of(FILTER_CONTEXT_BYTES)
}

fn check_writable(accepted: Accepted, rules: &Rules) -> Result<(), Errno> {
    if accepted.changes() && rules.export.read_only { Err(Errno::Perm) } else { Ok(()) }
}

/// Only requests with a payload, in either direction, are bound by its maximum.
fn check_length(header: &RequestHeader) -> Result<(), Errno> {
    let carries = matches!(header.command, command::READ | command::WRITE);
    if carries && header.length > u64::from(MAX_PAYLOAD_BYTES) { Err(Errno::Inval) } else { Ok(()) }
}

fn check_alignment(header: &RequestHeader, rules: &Rules) -> Result<(), Errno> {
    let minimum = u64::from(rules.export.block_minimum);
    let aligned = header.offset.is_multiple_of(minimum) && header.length.is_multiple_of(minimum);
    if aligned { Ok(()) } else { Err(Errno::Inval) }
}

/// Past the end is `ENOSPC` for what writes data and `EINVAL` for the rest, as the protocol says.
fn check_range(header: &RequestHeader, accepted: Accepted, rules: &Rules) -> Result<(), Errno> {
    let end = header.offset.checked_add(header.length);
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
        RequestHeader { flags, command, cookie: 1, offset, length: u64::from(length) }
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
            assert_eq!(verdict, Verdict::Accept(Accepted::BlockStatus { one, filter: false }));
        }
        for (flags, offset, length) in [(0, 0, 0), (flag::DF, 0, 1), (0, SIZE - 1, 2), (0, SIZE, u32::MAX)] {
            assert_eq!(error(header(command::BLOCK_STATUS, flags, offset, length), &rules), Errno::Inval);
        }
        assert_eq!(error(header(command::READ, flag::REQ_ONE, 0, 1), &rules), Errno::Inval);
    }

    fn extended() -> Rules {
        let contexts = [3, 5].map(|id| Chosen { id, key: ContextKey(u64::from(id)) });
        Rules { extended: true, contexts: Arc::new(contexts), ..rules() }
    }

    #[test]
    fn payloads_are_where_the_flag_says() {
        let rules = extended();
        let write = judge(&header(command::WRITE, flag::PAYLOAD_LEN | flag::FUA, 0, 4096), &rules);
        assert_eq!(write, Verdict::Accept(Accepted::Write { fua: true }));
        let bare = judge(&header(command::WRITE, 0, 0, 4096), &rules);
        assert_eq!(bare, Verdict::Accept(Accepted::Write { fua: false }), "QEMU's");
        for command in
            [command::READ, command::TRIM, command::WRITE_ZEROES, command::CACHE, command::FLUSH, 99]
        {
            let refused = judge(&header(command, flag::PAYLOAD_LEN, 0, 4096), &rules);
            assert_eq!(refused, Verdict::Refuse { error: Errno::Inval, skip: 4096 }, "{command}");
            let large = RequestHeader { length: u64::MAX, ..header(command, flag::PAYLOAD_LEN, 0, 0) };
            assert_eq!(judge(&large, &rules), Verdict::Close(CloseReason::PayloadTooLarge));
        }
        let long = RequestHeader { length: 1 << 40, ..header(command::TRIM, 0, 0, 0) };
        assert_eq!(error(long, &rules), Errno::Inval);
        assert_eq!(
            error(header(command::TRIM, flag::PAYLOAD_LEN, 0, 1), &super::tests::rules()),
            Errno::Inval
        );
    }

    #[test]
    fn filters_name_contexts_that_were_chosen_once() {
        let rules = extended();
        let ask = |length: u32| judge(&header(command::BLOCK_STATUS, flag::PAYLOAD_LEN, 0, length), &rules);
        for length in [12, 16] {
            assert_eq!(ask(length), Verdict::Accept(Accepted::BlockStatus { one: false, filter: true }));
        }
        for length in [1, 4, 8, 11, 13, 20, 1000] {
            assert_eq!(ask(length), Verdict::Refuse { error: Errno::Inval, skip: length });
        }
        let asked = header(command::BLOCK_STATUS, flag::PAYLOAD_LEN, 4096, 12);
        let payload = |length: u64, numbers: &[u32]| -> Vec<u8> {
            length.to_be_bytes().into_iter().chain(numbers.iter().flat_map(|id| id.to_be_bytes())).collect()
        };
        let (length, contexts) = judge_filter(&asked, &payload(SIZE - 4096, &[5]), &rules).unwrap();
        assert_eq!((length, &contexts[..]), (SIZE - 4096, &rules.contexts[1..]));
        for (length, numbers) in [(0, [3, 5]), (SIZE, [3, 5]), (u64::MAX, [3, 5]), (1, [3, 3]), (1, [3, 4])] {
            assert_eq!(judge_filter(&asked, &payload(length, &numbers), &rules), Err(Errno::Inval));
        }
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
