//! Random bytes and random conversations against the parts of replication that do no I/O.
//!
//! What must hold, whatever the other side says and however operations end: no panic; nothing grows without a limit; one
//! exclusive operation at a time, each asked for once; and after the last word, silence.
//!
//! `FUZZ_CASES` sets the number of cases per property (default 500).

#[path = "sync_fuzz/bytes.rs"]
mod bytes;
#[path = "sync_fuzz/frames.rs"]
mod frames;
#[path = "sync_fuzz/mirror.rs"]
mod mirror;
#[path = "sync_fuzz/source.rs"]
mod source;
#[path = "sync_fuzz/target.rs"]
mod target;

fn config() -> proptest::test_runner::Config {
    let cases = std::env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}
