//! Inputs to begin with: conversations as real clients have them.

use fixtures::nbd::client::{context_data, info_data, option, option_message};

/// What stands before the client's bytes in an input of the handshake: terms, and pieces of any size.
const PLAIN: [u8; 3] = [0, 0, 0xff];
const TLS: [u8; 3] = [1, 0, 0xff];

/// Inputs for `nbd_handshake`. The other targets' inputs are decisions, not bytes of a client: a fuzzer finds them by itself.
pub fn handshakes() -> Vec<Vec<u8>> {
    let names = [&b"disk"[..], b"", b"other", b"none"];
    let mut messages = vec![
        option_message(option::LIST, &[]),
        option_message(option::STRUCTURED_REPLY, &[]),
        option_message(option::EXTENDED_HEADERS, &[]),
        option_message(option::STARTTLS, &[]),
        option_message(option::ABORT, &[]),
        option_message(option::ABORT, &[7; 70]),
    ];
    for name in names {
        messages.push(option_message(option::INFO, &info_data(name, &[0, 1, 2, 3])));
        messages.push(option_message(option::GO, &info_data(name, &[3])));
        messages.push(option_message(option::EXPORT_NAME, name));
        for queries in [&["base:allocation", "x-fuzz:b"][..], &["x-fuzz:", "none:a"], &[], &["base:"; 65]] {
            messages.push(option_message(option::LIST_META_CONTEXT, &context_data(name, queries)));
            messages.push(option_message(option::SET_META_CONTEXT, &context_data(name, queries)));
        }
    }
    let before = [
        Vec::new(),
        option_message(option::STRUCTURED_REPLY, &[]),
        option_message(option::EXTENDED_HEADERS, &[]),
        [
            option_message(option::EXTENDED_HEADERS, &[]),
            option_message(option::SET_META_CONTEXT, &context_data(b"disk", &["base:allocation"])),
        ]
        .concat(),
    ];
    let flags = [0, 0, 0, 3];
    let plain =
        before.iter().flat_map(|before| messages.iter().map(move |message| [before, &message[..]].concat()));
    let plain: Vec<_> = plain.map(|bytes| [&PLAIN[..], &flags, &bytes].concat()).collect();
    let start = option_message(option::STARTTLS, &[]);
    // Whoever begins TLS waits for the answer: the first piece is flags and that option.
    let first_piece = [1, 1, (4 + start.len() - 1) as u8, 0xff];
    let inside = messages.iter().map(|message| [&first_piece[..], &flags, &start, message].concat());
    let in_clear = messages.iter().map(|message| [&TLS[..], &flags, message].concat());
    inside.chain(in_clear).chain(plain).collect()
}
