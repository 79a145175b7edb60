//! The model test: random requests on random connections against a simulated disk that loses, tears and
//! reorders unsynced writes, fails and fills up, compared with a reference after every reply.
//!
//! In half of the cases one of the clients speaks TLS, in whatever pieces its records come and go.
//!
//! A case is a list of actions and a seed; both shrink. `MODEL_CASES` sets the number of cases.
//! What is checked is in `reference`; how the server is driven, in `driver`.

mod driver;
mod reference;

use driver::{Action, Driver, Setup, Tls};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::Config;

fn cases() -> u32 {
    std::env::var("MODEL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(2000)
}

fn setup() -> impl Strategy<Value = Setup> {
    (
        any::<u64>(),
        prop_oneof![Just(1_u32), Just(512), Just(4096)],
        prop_oneof![Just(1_u32), Just(4)],
        any::<bool>(),
        // Keys take time: half of the cases have none.
        prop_oneof![2 => Just(None), 1 => Just(Some(Tls::Version13)), 1 => Just(Some(Tls::Version12))],
    )
        .prop_map(|(seed, transfer_align, zero_factor, structured, tls)| Setup {
            seed,
            transfer_align,
            zero_align: if transfer_align == 1 && zero_factor > 1 { 512 } else { transfer_align },
            structured,
            tls,
        })
}

fn action() -> impl Strategy<Value = Action> {
    let range = || (0..driver::CELLS, prop_oneof![3 => 1..5_usize, 2 => Just(32), 1 => 1..100_usize]);
    let flags = any::<[bool; 3]>();
    prop_oneof![
        8 => (0..3_usize, range(), any::<bool>()).prop_map(|(c, (at, n), whole)| Action::Read { connection: c, at, cells: n, whole }),
        12 => (0..3_usize, range(), any::<bool>(), any::<bool>())
            .prop_map(|(c, (at, n), whole, fua)| Action::Write { connection: c, at, cells: n, whole, fua }),
        3 => (0..3_usize, range(), flags).prop_map(|(c, (at, n), [fua, no_hole, fast])| {
            Action::Zero { connection: c, at, cells: n, fua, no_hole, fast }
        }),
        2 => (0..3_usize, range(), any::<bool>()).prop_map(|(c, (at, n), fua)| Action::Trim { connection: c, at, cells: n, fua }),
        1 => (0..3_usize, range()).prop_map(|(c, (at, n))| Action::Cache { connection: c, at, cells: n }),
        2 => (0..3_usize, range(), any::<bool>()).prop_map(|(c, (at, n), one)| Action::Status { connection: c, at, cells: n, one }),
        5 => (0..3_usize).prop_map(|connection| Action::Flush { connection }),
        20 => (0..3_usize, prop_oneof![1..64_usize, Just(8192)]).prop_map(|(connection, bytes)| Action::Deliver { connection, bytes }),
        1 => Just(Action::RenewKeys),
        25 => Just(Action::Disk),
        15 => (0..3_usize, prop_oneof![1..64_usize, Just(1 << 20)]).prop_map(|(connection, bytes)| Action::Drain { connection, bytes }),
        3 => (0..6_u8).prop_map(Action::Fault),
        1 => (0..4_usize).prop_map(|room| Action::FillUp { room }),
        1 => Just(Action::Heal),
        1 => (0..3_usize).prop_map(|connection| Action::Disconnect { connection }),
        2 => Just(Action::Settle),
        1 => Just(Action::PowerCut),
    ]
}

proptest! {
    #![proptest_config(Config { cases: cases(), max_shrink_iters: 20_000, ..Config::default() })]

    #[test]
    fn any_history_is_one_that_the_protocol_allows(setup in setup(), actions in vec(action(), 1..300)) {
        let mut driver = Driver::new(setup);
        for action in actions {
            driver.act(action).map_err(TestCaseError::fail)?;
        }
        driver.finish().map_err(TestCaseError::fail)?;
    }
}
