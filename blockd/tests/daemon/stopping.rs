//! SIGTERM and SIGKILL under load, and what clients find afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fixtures::nbd::client::ClientError;
use fixtures::nbd::codec::errno;

use crate::place::Place;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;
const DEPTH: usize = 8;

/// The last answered version of each block, and the one that may follow it.
#[derive(Default)]
struct Books {
    answered: BTreeMap<u64, u32>,
    maybe: BTreeMap<u64, u32>,
}

fn version(bytes: &[u8]) -> u32 {
    let version = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    assert!(bytes.chunks(4).all(|word| word == version.to_le_bytes()), "a torn block");
    version
}

/// Writes versions to blocks of its own, one request in flight for each, until the connection ends or refuses.
fn load(place: &Place, lane: u64, stopping: &AtomicBool) -> Books {
    let mut client = place.client("web");
    let (mut books, mut flying, mut rng) =
        (Books::default(), BTreeMap::new(), fastrand::Rng::with_seed(lane));
    for number in 1.. {
        let block = lane * BLOCKS + rng.u64(0..BLOCKS);
        if !flying.values().any(|(other, _)| *other == block) {
            books.maybe.insert(block, number);
            let Ok(cookie) = client.submit_write(0, block * BLOCK, &number.to_le_bytes().repeat(1024)) else {
                return books;
            };
            flying.insert(cookie, (block, number));
        }
        if flying.len() < DEPTH {
            continue;
        }
        let reply = match client.reply() {
            Ok(reply) => reply,
            Err(ClientError::Protocol(what)) => panic!("{what}"),
            Err(_) => break,
        };
        let (block, number) = flying.remove(&reply.cookie).unwrap();
        match reply.result {
            Ok(_) => drop(books.answered.insert(block, number)),
            Err(error) => {
                assert!(stopping.load(Ordering::SeqCst) && error == errno::ESHUTDOWN, "error {error}");
                break;
            }
        }
    }
    books
}

/// Every answered write is there, unless one that was not answered is.
fn check(place: &Place, books: &[Books]) {
    let mut client = place.client("web");
    let answered: usize = books.iter().map(|books| books.answered.len()).sum();
    assert!(answered > 50, "{answered}");
    for books in books {
        for (block, &at_least) in &books.answered {
            let found = version(&client.read(block * BLOCK, 4096).unwrap());
            assert!(
                found == at_least || found == books.maybe[block],
                "block {block}: {found}, answered {at_least}"
            );
        }
    }
}

fn under_load(place: &Place, end: impl FnOnce()) -> Vec<Books> {
    let stopping = AtomicBool::new(false);
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..3)
            .map(|lane| {
                scope.spawn({
                    let stopping = &stopping;
                    move || load(place, lane, stopping)
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        stopping.store(true, Ordering::SeqCst);
        end();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    })
}

/// Stopping commits: what was answered is there, flushed or not, even if the power goes next.
#[test]
fn sigterm_under_load_loses_nothing_that_was_answered() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 16M");
    let books = under_load(&place, || daemon.stop());
    place.assert_sound();
    let _daemon = place.serve();
    check(&place, &books);
}

/// What a killed daemon was told is in its memory: only FLUSH makes it outlive that.
#[test]
fn clients_come_back_after_a_kill_and_find_what_they_flushed() {
    let place = Place::new();
    for round in 1..=5u8 {
        let daemon = place.serve();
        if round == 1 {
            place.ok("volume create web --size 16M");
        }
        let mut client = place.client("web");
        let expected: Vec<u8> = (1..round).flat_map(|round| [round; 8192]).collect();
        assert_eq!(client.read(0, 8192 * 4).unwrap()[..expected.len()], expected);
        client.write(u64::from(round - 1) * 8192, &[round; 8192]).unwrap();
        client.flush().unwrap();
        // Requests in flight: the kernel goes on with them after the process has gone.
        for at in 0..64 {
            client.submit_write(0, (8 << 20) + at * 65_536, &[round; 65_536]).unwrap();
        }
        daemon.kill();
    }
    place.assert_sound();
}
