//! What one connection is like, and what it may cost.

use nbd_server::connection::Limits;
use nbd_server::export::ExportInfo;
use nbd_server::status::{Chosen, ContextKey};
use nbd_server::transmission::Rules;
use nbd_server::wire::ReplyForm;

use crate::choices::Choices;

/// Bytes of a usual export: three and a half units of memory's allocation.
pub const EXPORT_BYTES: u64 = 7 << 15;

/// What was agreed on, and the export.
#[derive(Clone, Debug)]
pub struct Setting {
    /// How replies are written.
    pub form: ReplyForm,
    /// Numbers of the contexts; none with simple replies.
    pub contexts: Vec<u32>,
    /// Bytes of the export.
    pub size: u64,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Zeroing may be asked to fail rather than be slow.
    pub fast_zero: bool,
    /// The smallest block.
    pub block: u32,
}

impl Setting {
    /// Any.
    pub fn choose(choices: &mut Choices<'_>) -> Self {
        let form = choices.one_of(&[ReplyForm::Extended, ReplyForm::Structured, ReplyForm::Simple]);
        let bits = choices.byte();
        let contexts: &[u32] = if bits & 3 == 0 || form == ReplyForm::Simple { &[] } else { &[7, 1] };
        Self {
            form,
            contexts: contexts[..contexts.len().min(usize::from(bits & 3))].to_vec(),
            size: EXPORT_BYTES,
            read_only: bits & 0x1c == 0x1c,
            fast_zero: bits & 0x20 != 0,
            block: if bits & 0xc0 == 0xc0 { 512 } else { 1 },
        }
    }

    /// What a negotiation has led to.
    pub fn of(rules: &Rules) -> Self {
        let ExportInfo { size, read_only, fast_zero, block_minimum: block, .. } = rules.export;
        let contexts = rules.contexts.iter().map(|chosen| chosen.id).collect();
        Self { form: rules.form(), contexts, size, read_only, fast_zero, block }
    }

    /// As the server has them.
    pub fn rules(&self) -> Rules {
        let mut info = ExportInfo::new("fuzzed", self.size);
        (info.read_only, info.fast_zero, info.block_minimum) = (self.read_only, self.fast_zero, self.block);
        let chosen = |&id: &u32| Chosen { id, key: ContextKey::ALLOCATION };
        Rules {
            extended: self.is_extended(),
            contexts: self.contexts.iter().map(chosen).collect(),
            ..Rules::new(info, self.form != ReplyForm::Simple)
        }
    }

    /// Extended headers were agreed on.
    pub fn is_extended(&self) -> bool {
        self.form == ReplyForm::Extended
    }

    /// Bytes of a request's header.
    pub fn header_bytes(&self) -> usize {
        if self.is_extended() { 32 } else { 28 }
    }
}

/// Small limits, so that they are met.
pub fn choose_limits(choices: &mut Choices<'_>) -> Limits {
    let bits = choices.byte();
    Limits {
        requests_max: usize::from(bits & 7) + 1,
        // More than any request that such an export can be asked for.
        payload_bytes_max: EXPORT_BYTES as usize + (usize::from(bits >> 3 & 3) << 14),
        receive_bytes: [64, 500, 4096, 128 << 10][usize::from(bits >> 5 & 3)],
        send_ahead_bytes: [1, 1 << 14, 1 << 17, 2 << 20][usize::from(choices.below(4))],
        refuse_at_stop: bits & 0x80 == 0,
        ..Limits::default()
    }
}

/// Bytes of buffers that a connection may have at most, disk operations apart: payload in blocks of powers of two, small reads in
/// whole blocks; two batches' heads with a chunk's header for each 64 KiB of every read; the read-ahead.
pub fn buffers_max(limits: &Limits, leftover: usize, export_bytes: u64) -> usize {
    let payloads = 2 * limits.payload_bytes_max + limits.requests_max * 4096;
    let chunks = 2 + export_bytes as usize / 65_536;
    let heads = 2 * (8192 + limits.requests_max * 64 * chunks).next_power_of_two();
    payloads + heads + limits.receive_bytes.max(leftover).next_power_of_two().max(4096)
}
