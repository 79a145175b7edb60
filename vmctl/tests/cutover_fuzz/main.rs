//! Random bytes, and random events in any order, against the cutover protocol.
//!
//! What must hold, whatever the other side says, blockd answers and QEMU claims: no panic; nothing irreversible without the
//! fact from blockd that allows it; one operation of a kind at a time; one end.
//!
//! `FUZZ_CASES` sets the number of cases per property (default 500).

mod bytes;
mod destination;
mod source;
mod words;

fn config() -> proptest::test_runner::Config {
    let cases = std::env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}
