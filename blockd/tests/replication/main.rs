//! Replication against a model: two hosts, a network that delays, cuts, repeats and reorders, disks that lose what was not
//! synced. One seed is one case; a violation names it. `SYNC_CASES` is how many (default 2000), `SYNC_FIRST` the
//! first one, `SYNC_SEED` runs one.

mod case;
mod directed;
mod exchange;
mod host;
mod hostile;
#[path = "../common/killed.rs"]
mod killed;
mod sides;

const CASES: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn replicas_keep_their_promises() {
    if let Some(seed) = number("SYNC_SEED") {
        println!("{:?}", case::run(seed, true));
        return;
    }
    let first = number("SYNC_FIRST").unwrap_or(1);
    let cases = number("SYNC_CASES").unwrap_or(CASES);
    let mut seen = case::Seen::default();
    for seed in first..first + cases {
        match std::panic::catch_unwind(|| case::run(seed, false)) {
            Ok(counts) => seen.add(&counts),
            Err(cause) => {
                eprintln!("violation with SYNC_SEED={seed}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{cases} cases from seed {first}: {seen:?}");
    if cases >= 500 {
        seen.assert_everything_happened();
    }
}
