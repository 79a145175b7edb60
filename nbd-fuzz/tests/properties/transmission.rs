//! Requests, mostly such as a client may send, and their bytes damaged.

use fixtures::nbd::codec::{command, extended_request, flag, request};
use nbd_fuzz::pieces::Pieces;
use nbd_fuzz::transmission::law::PAYLOAD_MAX;
use nbd_fuzz::transmission::setting::{EXPORT_BYTES, Setting};
use nbd_fuzz::world::{Medium, World};
use nbd_server::connection::Limits;
use nbd_server::reactor::buffer::Pool;
use nbd_server::wire::ReplyForm;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::mutate::{mutate, mutations, pieces};
use crate::{config, fail};

/// The number of the only context, where it was chosen.
const CONTEXT: u32 = 7;

/// What a connection is like, and how much comes with its client.
#[derive(Clone, Debug)]
struct Connection {
    setting: Setting,
    requests_max: usize,
    receive_bytes: usize,
    leftover: usize,
}

impl Connection {
    fn limits(&self) -> Limits {
        Limits {
            requests_max: self.requests_max,
            // Little more than one maximum payload, so that it is met.
            payload_bytes_max: PAYLOAD_MAX as usize + 1,
            receive_bytes: self.receive_bytes,
            ..Limits::default()
        }
    }
}

fn setting() -> impl Strategy<Value = Setting> {
    let forms = prop_oneof![
        2 => Just(ReplyForm::Simple),
        3 => Just(ReplyForm::Structured),
        3 => Just(ReplyForm::Extended)
    ];
    let block = prop_oneof![4 => Just(1), 1 => Just(512)];
    (forms, prop::bool::weighted(0.8), prop::bool::weighted(0.1), any::<bool>(), block).prop_map(
        |(form, contexts, read_only, fast_zero, block)| {
            let contexts = if contexts && form != ReplyForm::Simple { vec![CONTEXT] } else { Vec::new() };
            Setting { form, contexts, size: EXPORT_BYTES, read_only, fast_zero, block }
        },
    )
}

fn connection() -> impl Strategy<Value = Connection> {
    let leftover = prop_oneof![3 => Just(0), 1 => 0..200_usize, 1 => Just(1 << 20)];
    let receive_bytes = prop_oneof![32..200_usize, Just(128 << 10)];
    (setting(), 1..12_usize, receive_bytes, leftover).prop_map(
        |(setting, requests_max, receive_bytes, leftover)| Connection {
            setting,
            requests_max,
            receive_bytes,
            leftover,
        },
    )
}

fn requests(extended: bool) -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![
        6 => 0..EXPORT_BYTES,
        3 => (0..4_u64).prop_map(|chunk| chunk << 16),
        2 => (0..448_u64).prop_map(|block| block << 9),
        1 => Just(EXPORT_BYTES),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        6 => 0..9000_u32,
        3 => (0..5_u32).prop_map(|chunks| chunks << 16),
        2 => (0..9_u32).prop_map(|blocks| blocks << 9),
        1 => Just(PAYLOAD_MAX as u32 + 1),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![6 => Just(0_u16), 3 => (0..6).prop_map(|bit| 1_u16 << bit), 1 => any::<u16>()];
    let command = prop_oneof![30 => 0..2_u16, 16 => 3..8_u16, 1 => Just(2), 1 => any::<u16>()];
    let one = (flags, command, any::<u64>(), offset, length, any::<u8>())
        .prop_map(move |request| if extended { encode_extended(request) } else { encode(request) });
    vec(one, 0..30).prop_map(|requests| requests.concat())
}

type Asked = (u16, u16, u64, u64, u32, u8);

/// Writes have the flag of a payload, mostly, and others have not; a payload of a question may be a good one.
fn encode_extended((flags, number, cookie, offset, length, fill): Asked) -> Vec<u8> {
    let usual = if number == command::WRITE { flag::PAYLOAD_LEN } else { 0 };
    let flags = flags ^ usual;
    if flags & flag::PAYLOAD_LEN == 0 {
        // Effects may be longer than 32 bits can tell.
        let length = if fill == 0 { u64::from(length) << 30 } else { u64::from(length) };
        return extended_request(flags, number, cookie, offset, length);
    }
    if number == command::BLOCK_STATUS && fill < 0xe0 {
        let payload =
            [&u64::from(length).to_be_bytes()[..], &(CONTEXT - u32::from(fill < 0x20)).to_be_bytes()];
        return [extended_request(flags, number, cookie, offset, 12), payload.concat()].concat();
    }
    let length = length as usize % (300 << 10);
    let mut bytes = extended_request(flags, number, cookie, offset, length as u64);
    bytes.resize(32 + length, fill);
    bytes
}

fn encode((flags, number, cookie, offset, length, fill): Asked) -> Vec<u8> {
    // A write with a payload beyond all measure would only make the test slow.
    let length = if number == command::WRITE { length % (300 << 10) } else { length };
    let mut bytes = request(flags, number, cookie, offset, length);
    if number == command::WRITE {
        bytes.resize(28 + length as usize, fill);
    }
    bytes
}

fn request_bytes(extended: bool) -> impl Strategy<Value = Vec<u8>> {
    let mutated = (requests(extended), mutations()).prop_map(|(bytes, mutations)| mutate(bytes, &mutations));
    prop_oneof![1 => vec(any::<u8>(), 0..2000), 9 => mutated]
}

type Client = (Connection, Vec<u8>, Pieces, Pieces);

fn client() -> impl Strategy<Value = Client> {
    connection().prop_flat_map(|connection| {
        let extended = connection.setting.is_extended();
        (Just(connection), request_bytes(extended), pieces(), pieces())
    })
}

/// Everything arrives and is read, in pieces; then everybody leaves.
fn tell(clients: Vec<Client>) -> Result<(), String> {
    // One set of limits per engine: the first client's.
    let mut world = World::new(&Medium::Memory, &[EXPORT_BYTES; 2], clients[0].0.limits(), Pool::new());
    for (number, (connection, input, ..)) in (0..).zip(&clients) {
        let (leftover, rest) = input.split_at(connection.leftover.min(input.len()));
        world.connect(connection.setting.clone(), number, leftover)?;
        world.send(number as usize, rest);
    }
    let mut pieces: Vec<_> =
        clients.into_iter().map(|(_, _, incoming, outgoing)| (incoming, outgoing)).collect();
    let mut moved = true;
    while moved {
        moved = false;
        for (who, (incoming, outgoing)) in pieces.iter_mut().enumerate() {
            moved |= world.drain(who, outgoing.size())? || world.deliver(who, incoming.size())?;
        }
    }
    world.finish(|| pieces[0].1.size())
}

proptest! {
    #![proptest_config(config())]

    /// Two clients of one engine, each on a disk of its own: what they say must not mix.
    #[test]
    fn transmission_does_what_the_bytes_mean(clients in vec(client(), 1..3)) {
        tell(clients).map_err(fail)?;
    }
}
