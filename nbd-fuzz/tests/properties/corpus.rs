//! The fuzz targets without a fuzzer: random decisions, and every input that libFuzzer has found worth keeping.

use std::fs;
use std::path::Path;

use nbd_fuzz::seeds;
use nbd_fuzz::targets::Target;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{config, fail};

/// More than nobody would miss, and less than a checkout would suffer from.
const INPUTS: std::ops::Range<usize> = 100..1501;
const BYTES_MAX: usize = 2 << 20;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_decisions_make_a_legal_transmission(input in vec(any::<u8>(), 0..600)) {
        Target::Transmission.run(&input).map_err(fail)?;
    }

    #[test]
    fn any_decisions_make_a_legal_session(input in vec(any::<u8>(), 0..600)) {
        Target::Session.run(&input).map_err(fail)?;
    }
}

fn run_corpus(target: Target) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name());
    let (mut inputs, mut bytes) = (0, 0);
    for file in fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()) {
        let input = fs::read(&file).unwrap();
        if let Err(broken) = target.run(&input) {
            panic!("{}: {broken}", file.display());
        }
        (inputs, bytes) = (inputs + 1, bytes + input.len());
    }
    assert!(INPUTS.contains(&inputs) && bytes < BYTES_MAX, "{inputs} inputs of {bytes} bytes");
}

#[test]
fn every_handshake_of_the_corpus_is_legal() {
    run_corpus(Target::Handshake);
}

#[test]
fn every_transmission_of_the_corpus_is_legal() {
    run_corpus(Target::Transmission);
}

#[test]
fn every_session_of_the_corpus_is_legal() {
    run_corpus(Target::Session);
}

/// And they are conversations, not noise: most get to transmission, or to an answer.
#[test]
fn every_seed_is_legal() {
    let seeds = seeds::handshakes();
    assert!(seeds.len() > 100);
    for seed in seeds {
        Target::Handshake.run(&seed).unwrap();
    }
}
