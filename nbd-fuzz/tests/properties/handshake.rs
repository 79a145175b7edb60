//! Options, mostly such as a client may send, and their bytes damaged.

use fixtures::nbd::client::{context_data, info_data, option, option_message};
use nbd_fuzz::handshake::{self, Terms};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::mutate::{mutate, mutations, pieces};
use crate::{config, fail};

fn options() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("disk"), Just("other"), Just(""), Just("none")];
    let kinds = vec(0..5_u16, 0..4);
    let ask = (name, kinds).prop_map(|(name, kinds)| info_data(name.as_bytes(), &kinds));
    // Those that end the negotiation are rare, so that the limit on options is met as well.
    let message = prop_oneof![
        20 => Just(option_message(option::LIST, &[])),
        20 => Just(option_message(option::STRUCTURED_REPLY, &[])),
        10 => Just(option_message(option::EXTENDED_HEADERS, &[])),
        20 => ask.clone().prop_map(|data| option_message(option::INFO, &data)),
        2 => ask.prop_map(|data| option_message(option::GO, &data)),
        1 => (0..3_usize).prop_map(|at| option_message(option::EXPORT_NAME, ["disk", "", "none"][at].as_bytes())),
        1 => vec(any::<u8>(), 0..50).prop_map(|data| option_message(option::ABORT, &data)),
        20 => (8..14_u32, vec(any::<u8>(), 0..300)).prop_map(|(number, data)| option_message(number, &data)),
        10 => vec(any::<u8>(), 0..9000).prop_map(|data| option_message(option::LIST_META_CONTEXT, &data)),
        30 => contexts(),
    ];
    let flags = prop_oneof![8 => 0..4_u32, 1 => any::<u32>()];
    (flags, prop_oneof![3 => vec(message.clone(), 0..12), 1 => vec(message, 30..60)])
        .prop_map(|(flags, messages)| [flags.to_be_bytes().to_vec(), messages.concat()].concat())
}

fn contexts() -> impl Strategy<Value = Vec<u8>> {
    let queries =
        ["base:", "base:allocation", "base:other", "x-fuzz:", "x-fuzz:a", "x-fuzz:b", "x-", "", "none:a"];
    let queries = prop_oneof![8 => vec((0..queries.len()).prop_map(move |at| queries[at]), 0..5), 1 => Just(vec!["base:"; 65])];
    let number = prop_oneof![1 => Just(option::LIST_META_CONTEXT), 2 => Just(option::SET_META_CONTEXT)];
    let name = prop_oneof![8 => Just("disk"), 2 => Just(""), 1 => Just("other"), 1 => Just("none")];
    (number, name, queries)
        .prop_map(|(number, name, queries)| option_message(number, &context_data(name.as_bytes(), &queries)))
}

fn handshake_bytes() -> impl Strategy<Value = Vec<u8>> {
    let mutated = (options(), mutations()).prop_map(|(bytes, mutations)| mutate(bytes, &mutations));
    prop_oneof![1 => vec(any::<u8>(), 0..2000), 9 => mutated]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_handshake_does_what_the_bytes_mean(input in handshake_bytes(), mut pieces in pieces()) {
        let terms = Terms::default();
        let haggled = handshake::haggle(&input, &mut pieces, &terms).map_err(fail)?;
        handshake::check(&input, &haggled, &terms).map_err(fail)?;
    }

    /// Whoever does not begin with STARTTLS is told nothing; what follows it is as good as without.
    #[test]
    fn a_handshake_that_demands_tls_does_what_the_bytes_mean(
        start in prop::bool::weighted(0.8),
        input in handshake_bytes(),
        mut pieces in pieces(),
    ) {
        let (flags, rest) = input.split_at(input.len().min(4));
        let start = if start { option_message(option::STARTTLS, &[]) } else { Vec::new() };
        let input = [flags, &start, rest].concat();
        let terms = Terms { tls: true, ..Terms::default() };
        let haggled = handshake::haggle(&input, &mut pieces, &terms).map_err(fail)?;
        handshake::check(&input, &haggled, &terms).map_err(fail)?;
    }
}
