//! What one tenant leaves behind does not show in another's volume (row I2).

use std::fs;

use fixtures::nbd::client::{Client, Negotiation, Wire};

use crate::place::Place;
use crate::sync::{pair, place};

const MIB: u64 = 1 << 20;
/// Of a volume. The pool is less than three times that, so that what is freed is what is given away.
const SIZE: u64 = 16 * MIB;
const CLUSTER: u64 = 64 << 10;
/// What a tenant has written everywhere, and nobody else ever does.
const CANARY: &[u8; 16] = b"\xc5canary\xa5of\x5aAAAAA";

/// Cycles; 1,000 are the long form.
fn cycles() -> u64 {
    std::env::var("CANARY_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

fn has_canary(bytes: &[u8]) -> bool {
    bytes.windows(CANARY.len()).any(|window| window == CANARY)
}

fn fill_with_canary(place: &Place) {
    let mut client = place.client("a");
    let piece = CANARY.repeat(MIB as usize / CANARY.len());
    (0..SIZE / MIB).for_each(|at| client.write(at * MIB, &piece).unwrap());
    client.flush().unwrap();
    client.leave().unwrap();
}

/// A little in some clusters, so that most of each is what was there before, or must not be.
fn write_a_little(client: &mut Client, rng: &mut fastrand::Rng) -> Vec<u64> {
    let written: Vec<u64> = (0..SIZE / CLUSTER).filter(|_| rng.bool()).collect();
    for cluster in &written {
        let (bytes, at) = (rng.u64(1..=5000), rng.u64(0..CLUSTER - 5000));
        client.write(cluster * CLUSTER + at, &vec![rng.u8(1..); bytes as usize]).unwrap();
    }
    written
}

/// What is told of as allocated, by clusters.
fn allocated(place: &Place) -> Vec<u64> {
    let mut negotiation = Negotiation::begin(Wire::unix(&place.socket()).unwrap()).unwrap();
    negotiation.structured().unwrap();
    assert_eq!(negotiation.choose_contexts(b"b", &["base:allocation"]).unwrap().len(), 1);
    let mut client = negotiation.go(b"b").unwrap();
    let (mut at, mut clusters) = (0, Vec::new());
    while at < SIZE {
        for (bytes, flags) in client.block_status(0, at, (SIZE - at) as u32).unwrap().remove(0).extents {
            if flags & 1 == 0 {
                clusters.extend(at / CLUSTER..(at + bytes).div_ceil(CLUSTER));
            }
            at += bytes;
        }
    }
    clusters.dedup();
    clusters
}

#[test]
fn i2_nothing_of_a_deleted_volume_shows_in_another() {
    let (mut a, b) = (place("A"), place("B"));
    let size = a.arguments.iter_mut().find(|word| *word == "2G").unwrap();
    "44M".clone_into(size);
    let (_a, running) = (a.serve(), b.serve());
    pair(&a, &b);
    let mut rng = fastrand::Rng::with_seed(2);
    for cycle in 0..cycles() {
        a.ok(&format!("volume create a --size {SIZE}"));
        fill_with_canary(&a);
        a.ok("volume delete a --yes");
        a.ok(&format!("volume create b --size {SIZE}"));
        let mut client = a.client("b");
        let written = write_a_little(&mut client, &mut rng);
        client.leave().unwrap();
        let content = a.content("b");
        assert!(!has_canary(&content), "cycle {cycle}: another's bytes are read");
        assert_eq!(allocated(&a), written, "cycle {cycle}: of the map");
        if cycle + 1 == cycles() {
            a.ok("sync b --to B");
            assert!(b.content("b") == content, "what was shipped");
            break;
        }
        a.ok("volume delete b --yes");
    }
    running.stop();
    // Not even where nobody looks.
    let pool = fs::read(b.data().join("pool-0")).unwrap();
    assert!(!has_canary(&pool), "the other host's disk has got some");
}
