//! Arbitrary bytes before TLS and arbitrary records inside it: nothing is told too early, nothing panics.

use std::sync::Arc;

use fixtures::nbd::client::{info_data, option, option_message, reply_type};
use fixtures::nbd::tls::MemoryClient;
use nbd_server::client::Client;
use nbd_server::export::ExportInfo;
use nbd_server::handshake::{Directory, ExportAddress, Handshake, Offer, Step};
use nbd_server::tls::sealed_bytes_max;
use proptest::collection::vec;
use proptest::prelude::*;

/// What nobody may ask before TLS.
struct Closed;

impl Directory for Closed {
    fn count(&self, _client: &Client) -> usize {
        2
    }

    fn list(&self, _client: &Client) -> Vec<ExportInfo> {
        panic!("exports were listed in clear")
    }

    fn find(&self, _client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        panic!("{name:x?} was looked for in clear")
    }
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let name = || prop_oneof![Just("disk"), Just(""), Just("none")];
    prop_oneof![
        8 => (0..14_u32, vec(any::<u8>(), 0..60)).prop_map(|(number, data)| option_message(number, &data)),
        4 => name().prop_map(|name| option_message(option::GO, &info_data(name.as_bytes(), &[0, 1, 3]))),
        2 => Just(option_message(option::LIST, &[])),
        1 => Just(option_message(option::STARTTLS, &[])),
        1 => vec(any::<u8>(), 1..50),
    ]
}

/// What happens to ciphertext on its way, and how much comes at once.
#[derive(Clone, Debug)]
enum Event {
    Send(usize),
    Renew,
    Flip(usize),
    Insert(Vec<u8>),
    Drop(usize),
    Receive(usize),
    Answer(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => prop_oneof![1..50_usize, 1..40_000_usize].prop_map(Event::Send),
        1 => Just(Event::Renew),
        1 => (0..2000_usize).prop_map(Event::Flip),
        1 => vec(any::<u8>(), 1..30).prop_map(Event::Insert),
        1 => (1..40_usize).prop_map(Event::Drop),
        8 => prop_oneof![1..100_usize, 1..60_000_usize].prop_map(Event::Receive),
        4 => (0..50_000_usize).prop_map(Event::Answer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_told_in_clear(messages in vec(message(), 0..40), piece in 1..200_usize) {
        let mut handshake = Handshake::new(Arc::new(Closed), Offer::default()).requiring_tls();
        let bytes = [vec![0, 0, 0, 3], messages.concat()].concat();
        let mut pieces = bytes.chunks(piece);
        loop {
            let step = handshake.advance();
            for reply in handshake.take_output().chunks(20).take(1) {
                let kind = u32::from_be_bytes(reply[12..16].try_into().unwrap());
                let known = [
                    reply_type::ACK, reply_type::ERR_TLS_REQD, reply_type::ERR_INVALID, reply_type::ERR_TOO_BIG,
                ];
                prop_assert!(known.contains(&kind), "{kind:x}");
            }
            match step {
                Step::Again => {}
                Step::NeedInput => match pieces.next() {
                    Some(piece) => handshake.receive(piece),
                    None => break,
                },
                Step::StartTls | Step::Close(_) => break,
                Step::Done(_) => prop_assert!(false, "transmission in clear"),
            }
        }
    }

    /// What comes out is what was sent, up to the first byte that was tampered with; then an error, and no more.
    #[test]
    fn records_come_out_as_they_were_sent_or_not_at_all(older in any::<bool>(), events in vec(event(), 1..60)) {
        let (mut client, mut server) = MemoryClient::pair(older);
        let (mut sent, mut got, mut cipher) = (Vec::new(), Vec::new(), Vec::new());
        let (mut counter, mut tampered, mut broken) = (0_u8, false, false);
        for event in events {
            match event {
                Event::Send(bytes) => {
                    let data: Vec<u8> = (0..bytes).map(|at| counter.wrapping_add(at as u8)).collect();
                    counter = counter.wrapping_add(91);
                    cipher.extend(client.seal(&data));
                    sent.extend(data);
                }
                Event::Renew if !older => cipher.extend(client.renew_keys()),
                Event::Renew => {}
                Event::Flip(at) if at < cipher.len() => {
                    cipher[at] ^= 1;
                    tampered = true;
                }
                Event::Insert(bytes) => {
                    cipher.splice(0..0, bytes);
                    tampered = true;
                }
                Event::Drop(bytes) if bytes < cipher.len() => {
                    cipher.drain(..bytes);
                    tampered = true;
                }
                Event::Receive(room) => {
                    let (mut first, mut second) = (vec![0; room / 3], vec![0; room - room / 3]);
                    match server.open(&mut cipher, (&mut first, &mut second)) {
                        Ok((filled, opened)) => {
                            first.append(&mut second);
                            got.extend_from_slice(&first[..filled]);
                            cipher.drain(..opened.used);
                        }
                        Err(_) => broken = true,
                    }
                }
                Event::Answer(bytes) => {
                    let (data, mut out) = (vec![7; bytes], vec![0; sealed_bytes_max(bytes)]);
                    match server.seal(std::iter::once(&data[..]), &mut out) {
                        Ok(sealed) => {
                            prop_assert_eq!(sealed.plain, bytes);
                            let received = client.receive(&out[..sealed.cipher]);
                            prop_assert!(received.is_ok_and(|received| received == data));
                        }
                        Err(_) => broken = true,
                    }
                }
                Event::Flip(_) | Event::Drop(_) => {}
            }
            prop_assert!(sent.starts_with(&got));
            prop_assert!(tampered || !broken, "an error without a cause");
            if broken {
                break;
            }
        }
    }
}
