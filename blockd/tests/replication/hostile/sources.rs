//! A hostile source, our target: names, data and numbers (P1 to P5).

use blockd::hash::cluster_value;
use blockd::sync::batch::{CopyRun, Packer, run_hash};
use blockd::sync::wire::{
    Begin, Code, HEADER_BYTES, Header, Message, Mode, PAYLOAD_BYTES_MAX, Values, WireError,
};
use blockd::units::{ClusterIndex, SnapshotUid};

use super::lab::{CLUSTER, CLUSTERS, Lab, SIZE, identities};
use super::words::{data, data_run, each_is_refused, each_offer_is_refused, raw, zero_run};

#[test]
fn p1_names_that_are_paths_are_refused() {
    let mut lab = Lab::new();
    for bad in ["../x", "/etc/passwd", "a/b", "", ".", "..", ".x", "-x", "x\0y", "x\n", "ä", "a b", "v@s"] {
        each_offer_is_refused(&mut lab, |offer| offer.volume = bad.to_owned(), bad, Code::BadId);
        each_offer_is_refused(&mut lab, |offer| offer.name = bad.to_owned(), bad, Code::BadId);
    }
    lab.goes_on();
}

#[test]
fn p2_data_that_are_not_what_their_hash_says_are_refused() {
    let mut lab = Lab::new();
    let block = vec![7; 4096];
    let whole = vec![8; CLUSTER];
    let [one, two] = [1, 2].map(ClusterIndex);
    let of = |hash| data(2, raw(0, 4096, &[&data_run(1, 0, 1, hash)], &block));
    let cases = vec![
        ("another's", of(run_hash(one, 0, &[9; 4096]))),
        ("of another place", of(run_hash(one, 1, &block))),
        ("of another cluster", of(run_hash(two, 0, &block))),
        ("of another domain", of(*blake3::hash(&block).as_bytes())),
        (
            "a whole cluster's, elsewhere",
            data(2, raw(0, 65536, &[&data_run(1, 0, 16, cluster_value(two, &whole))], &whole)),
        ),
    ];
    each_is_refused(&mut lab, cases, Code::BadData);
    // A copy of what it is not: of content that is here, under another hash.
    let candidates = lab.offered().candidates.len();
    assert!(candidates > 0);
    let mut packer = Packer::new(false);
    packer.copy(&CopyRun { cluster: two, candidate: 0, from: two, value: [9; 32] });
    each_is_refused(&mut lab, vec![("a copy", data(3, packer.finish()))], Code::BaseMismatch);
    lab.goes_on();
}

#[test]
fn p3_a_root_that_is_not_the_contents_is_refused() {
    let mut lab = Lab::new();
    let (honest, old_root, new_root) = (lab.data(), lab.old_root, lab.new_root);
    // The right hashes under another root; the base's root; part of the data under the right root.
    for (messages, root) in [(vec![honest.clone()], [9; 32]), (vec![honest], old_root), (vec![], new_root)] {
        let mut visit = lab.receiving();
        let cursor = if messages.is_empty() { 0 } else { 3 };
        visit.say(messages.into_iter().chain([Message::End { cursor, root }]));
        assert_eq!(visit.refused(), Code::RootMismatch);
        lab.is_unharmed();
        let all = identities(&mut lab.b);
        assert!(all.iter().all(|volume| volume.receiving.is_none()), "what was wrong is thrown away");
    }
    lab.goes_on();
}

#[test]
fn p3_a_base_that_is_not_here_is_refused() {
    let mut lab = Lab::new();
    let (uid, root) = lab.begin().base.expect("it has one");
    let others = [(uid, [9; 32]), (SnapshotUid([9; 16]), root), (lab.offered().uid, root)];
    for base in others {
        for mode in [Mode::Changes, Mode::Compare] {
            let begin = Begin { mode, base: Some(base), resume: None };
            let offered = lab.offered();
            let mut visit = lab.visit();
            visit.say([Message::Offer(vec![offered]), Message::Begin(begin)]);
            assert_eq!(visit.refused(), Code::BaseMismatch);
            lab.is_unharmed();
        }
    }
    lab.goes_on();
}

#[test]
fn p4_decompression_bombs_are_refused() {
    let mut lab = Lab::new();
    let block = vec![7; 4096];
    let run = data_run(1, 0, 1, run_hash(ClusterIndex(1), 0, &block));
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).expect("memory");
    let bomb = |length: u32, payload: Vec<u8>| data(2, raw(1, length, &[&run], &payload));
    let window = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8][..], &[1, 0, 0]].concat();
    let cases = vec![
        ("256 MiB in kilobytes", bomb(4096, zstd(&vec![0; 1 << 28]))),
        ("a byte more", bomb(4096, zstd(&vec![7; 4097]))),
        ("a byte less", bomb(4096, zstd(&vec![7; 4095]))),
        ("two frames", bomb(4096, [zstd(&block), zstd(&block)].concat())),
        ("a frame of nothing behind", bomb(4096, [zstd(&block), zstd(&[])].concat())),
        ("a window of 2 GiB", bomb(4096, window)),
    ];
    each_is_refused(&mut lab, cases, Code::BadData);
    each_is_refused(&mut lab, vec![("4 GiB announced", bomb(u32::MAX, zstd(&block)))], Code::BadManifest);
    lab.goes_on();
}

#[test]
fn p5_lengths_and_counts_that_cannot_be_are_refused() {
    let mut lab = Lab::new();
    for length in [PAYLOAD_BYTES_MAX as u32 + 1, 1 << 31, u32::MAX] {
        let mut head = [0; HEADER_BYTES];
        head[..4].copy_from_slice(&length.to_be_bytes());
        let error = Header::decode(head).expect_err("no frame is so long");
        assert_eq!(error, WireError::TooLong(length));
        let mut visit = lab.receiving();
        visit.side.target.unreadable(error.to_string());
        visit.settle();
        assert_eq!(visit.refused(), Code::BadFrame);
    }
    let good = zero_run(1, 0, 1);
    let one = |runs: &[&[u8]]| data(3, raw(0, 0, runs, &[]));
    let copy = [&[0, 0, 0, 1, 2, 0, 0, 0][..], &[0; 36]].concat();
    let copies: Vec<Vec<u8>> =
        (0..17_u32).map(|at| [&at.to_be_bytes()[..], &[2, 0, 0, 0], &[0; 36]].concat()).collect();
    let copies: Vec<&[u8]> = copies.iter().map(Vec::as_slice).collect();
    let mut cases = vec![
        ("an empty batch", data(3, Vec::new())),
        ("no runs", one(&[])),
        ("65535 runs, of which one is there", data(3, [&[0, 0, 0, 0, 0, 0xff, 0xff][..], &good].concat())),
        ("twice", one(&[&good, &good])),
        ("not in order", one(&[&zero_run(2, 0, 1), &good])),
        ("overlapping", one(&[&zero_run(1, 0, 5), &zero_run(1, 4, 1)])),
        ("before what has come", data(7, Vec::new())),
        ("after the frame's clusters", one(&[&zero_run(3, 0, 1)])),
        ("2^63 blocks", one(&[&zero_run(1, 0, 1 << 63)])),
        ("of a candidate that was not offered", one(&[&[&copy[..6], &[0xff, 0xff], &copy[8..]].concat()])),
        ("more copies than a batch writes", one(&copies)),
    ];
    for cursor in [0, CLUSTERS + 1, 1 << 32, 1 << 63, u64::MAX] {
        cases.push(("a cursor", data(cursor, raw(0, 0, &[&good], &[]))));
    }
    cases.push(("values, of which nobody asked", Message::Values(Values { first: 0, values: vec![None] })));
    let (unasked, manifests) = (cases.pop().expect("one"), cases);
    each_is_refused(&mut lab, manifests, Code::BadManifest);
    each_is_refused(&mut lab, vec![unasked], Code::BadFrame);
    lab.goes_on();
}

#[test]
fn p5_offers_of_what_cannot_be_are_refused() {
    let mut lab = Lab::new();
    for size in [0, 1, 513, SIZE - 512, (1 << 48) + 512, 1 << 63, u64::MAX] {
        let what = format!("{size} bytes");
        each_offer_is_refused(&mut lab, |offer| offer.size = size, &what, Code::BadManifest);
    }
    let offered = lab.offered();
    for offer in [vec![], vec![offered.clone(), offered]] {
        let mut visit = lab.visit();
        visit.say([Message::Offer(offer)]);
        assert_eq!(visit.refused(), Code::BadManifest);
    }
    lab.is_unharmed();
    lab.goes_on();
}
