//! Arbitrary and mutated bytes, in arbitrary pieces, against the parts of the protocol that do no I/O, on stable: the oracles are
//! those of the fuzz targets, and so are the targets themselves.
//!
//! `FUZZ_CASES` sets the number of cases per property (default 500).

#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

mod mutate;

mod handshake;
mod transmission;

mod corpus;

use proptest::prelude::ProptestConfig;
use proptest::test_runner::TestCaseError;

fn config() -> ProptestConfig {
    let cases = std::env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A broken rule is a failed case.
fn fail(broken: String) -> TestCaseError {
    TestCaseError::fail(broken)
}
