//! Requests out of decisions: mostly such as a client may send.

use fixtures::nbd::codec::{command, extended_request, flag, request};

use super::setting::{EXPORT_BYTES, Setting};
use crate::choices::Choices;

/// Payloads and reads of one script, together: a script is a short one.
const BUDGET_BYTES: u64 = 384 << 10;

/// Makes the requests of a script.
pub struct Requests {
    cookies: u64,
    budget: u64,
}

impl Default for Requests {
    fn default() -> Self {
        Self { cookies: 0, budget: BUDGET_BYTES }
    }
}

impl Requests {
    /// The bytes of the next one.
    pub fn next(&mut self, setting: &Setting, choices: &mut Choices<'_>) -> Vec<u8> {
        const COMMANDS: [u16; 15] = [0, 0, 0, 1, 1, 1, 3, 4, 4, 5, 6, 6, 6, 7, 7];
        let number = match choices.byte() {
            0xff => choices.half(),
            0xfe => command::DISC,
            known => COMMANDS[usize::from(known) % COMMANDS.len()],
        };
        let flags = choose_flags(choices);
        let (offset, length) = (choose_offset(choices), choose_length(choices));
        let (offset, length) = align(setting, choices, offset, length);
        self.cookies += 1;
        let cookie = self.cookies << 56 | self.cookies;
        if setting.is_extended() {
            self.extended(setting, choices, (flags, number, cookie, offset, length))
        } else {
            self.plain(choices, (flags, number, cookie, offset, length))
        }
    }

    /// As much as the budget still has, for what really moves.
    fn afford(&mut self, bytes: u64) -> u64 {
        let bytes = if bytes > self.budget { bytes % 512 } else { bytes };
        self.budget = self.budget.saturating_sub(bytes);
        bytes
    }

    fn plain(&mut self, choices: &mut Choices<'_>, asked: (u16, u16, u64, u64, u64)) -> Vec<u8> {
        let (flags, number, cookie, offset, length) = asked;
        let length =
            if number == command::READ && length <= EXPORT_BYTES { self.afford(length) } else { length };
        let Some(payload) = (number == command::WRITE).then(|| self.afford(length % (EXPORT_BYTES + 513)))
        else {
            return request(flags, number, cookie, offset, length as u32);
        };
        let mut bytes = request(flags, number, cookie, offset, payload as u32);
        fill(&mut bytes, payload as usize, choices);
        bytes
    }

    /// Writes have the flag of a payload, mostly, and others have not; a question's payload may be a good one.
    fn extended(
        &mut self,
        setting: &Setting,
        choices: &mut Choices<'_>,
        asked: (u16, u16, u64, u64, u64),
    ) -> Vec<u8> {
        let (flags, number, cookie, offset, length) = asked;
        let flags = if number == command::WRITE { flags ^ flag::PAYLOAD_LEN } else { flags };
        if number == command::WRITE || flags & flag::PAYLOAD_LEN != 0 && number != command::BLOCK_STATUS {
            let payload = self.afford(length % (EXPORT_BYTES + 513));
            let mut bytes = extended_request(flags, number, cookie, offset, payload);
            fill(&mut bytes, payload as usize, choices);
            return bytes;
        }
        if flags & flag::PAYLOAD_LEN != 0 {
            let payload = filter(setting, choices, length);
            return [extended_request(flags, number, cookie, offset, payload.len() as u64), payload].concat();
        }
        let length =
            if number == command::READ && length <= EXPORT_BYTES { self.afford(length) } else { length };
        extended_request(flags, number, cookie, offset, length)
    }
}

fn choose_flags(choices: &mut Choices<'_>) -> u16 {
    match choices.byte() {
        0..0x80 => 0,
        one @ 0x80..0xc0 => 1 << (one % 6),
        two @ 0xc0..0xf8 => flag::FUA | 1 << (two % 6),
        _ => choices.half(),
    }
}

fn choose_offset(choices: &mut Choices<'_>) -> u64 {
    match choices.byte() {
        kind @ 0..0x60 => u64::from(kind) << 12 | u64::from(choices.half() & 0xfff),
        kind @ 0x60..0xe0 => (u64::from(kind) - 0x60) << 11,
        kind @ 0xe0..0xf8 => EXPORT_BYTES - (u64::from(kind) - 0xe0),
        _ => choices.long(),
    }
}

fn choose_length(choices: &mut Choices<'_>) -> u64 {
    match choices.byte() {
        few @ 0..0x60 => u64::from(few),
        blocks @ 0x60..0xa0 => (u64::from(blocks) - 0x5f) << 9,
        some @ 0xa0..0xc0 => u64::from(some & 0x1f) << 8 | u64::from(choices.byte()),
        large @ 0xc0..0xe0 => (u64::from(large) - 0xbf) << 13,
        0xe0..0xf0 => u64::from(choices.half()) << 2,
        0xf0..0xf4 => (32 << 20) + u64::from(choices.coin()),
        0xf4..0xfa => u64::from(choices.word()),
        _ => choices.long(),
    }
}

/// Most clients keep to the block size, and to the export's end.
fn align(setting: &Setting, choices: &mut Choices<'_>, offset: u64, length: u64) -> (u64, u64) {
    let bits = choices.byte();
    let block = if bits & 7 == 7 { 1 } else { u64::from(setting.block) };
    let (offset, length) = (offset / block * block, length / block * block);
    let inside = bits & 0x38 != 0x38 && offset < setting.size && length <= EXPORT_BYTES;
    (offset, if inside { length.min(setting.size - offset) } else { length })
}

/// A length, and contexts that were chosen, or nearly.
fn filter(setting: &Setting, choices: &mut Choices<'_>, length: u64) -> Vec<u8> {
    let bits = choices.byte();
    let mut bytes = length.to_be_bytes().to_vec();
    for at in 0..usize::from(bits & 3) {
        let known = setting.contexts.get((at + usize::from(bits >> 2 & 1)) % setting.contexts.len().max(1));
        let number = if bits & 0xf0 == 0xf0 { choices.word() } else { known.copied().unwrap_or(1) };
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.truncate(if bits & 0x88 == 0x88 { usize::from(choices.byte()) } else { usize::MAX });
    bytes
}

/// Appends a payload: a piece of noise that no shift, and hardly another write, makes again.
fn fill(bytes: &mut Vec<u8>, payload: usize, choices: &mut Choices<'_>) {
    let start = usize::from(choices.byte()) * 16;
    let end = bytes.len() + payload;
    bytes.extend_from_slice(&NOISE[start..NOISE_BYTES.min(start + payload)]);
    while bytes.len() < end {
        let piece = (end - bytes.len()).min(NOISE_BYTES);
        bytes.extend_from_slice(&NOISE[..piece]);
    }
}

/// A prime, so that no block size divides it.
const NOISE_BYTES: usize = 4099;

static NOISE: [u8; NOISE_BYTES] = noise();

const fn noise() -> [u8; NOISE_BYTES] {
    let (mut bytes, mut state, mut at) = ([0; NOISE_BYTES], 0x9e37_79b9_u32, 0);
    while at < NOISE_BYTES {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes[at] = (state >> 24) as u8;
        at += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_as_long_as_asked_and_no_two_are_alike() {
        for payload in [0, 1, 4098, 4100, 20_000] {
            let (mut one, mut other) = (vec![1], vec![1]);
            fill(&mut one, payload, &mut Choices::new(&[255]));
            fill(&mut other, payload, &mut Choices::new(&[254]));
            assert_eq!((one.len(), other.len()), (payload + 1, payload + 1));
            assert!(payload < 2 || one != other);
        }
    }
}
