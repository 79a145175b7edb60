//! `cargo bench -p benches`: how long a unit of each part takes. Compare on one quiet machine only; for the rest there is
//! `cargo xtask count`.

#![forbid(unsafe_code)]

use benches::parts::Part;
use clap::ValueEnum;
use divan::counter::ItemsCount;

/// Units of one sample: enough to be seen by the clock.
const UNITS: usize = 512;

fn main() {
    divan::main();
}

#[divan::bench(args = names(), sample_count = 50, sample_size = 1)]
fn part(bencher: divan::Bencher<'_, '_>, name: &str) {
    let part = Part::from_str(name, false).expect("a part's name");
    let mut work = part.set_up();
    work.run(UNITS);
    bencher.counter(ItemsCount::new(UNITS)).bench_local(|| work.run(UNITS));
}

/// What a record of 1,000 mappings costs RocksDB, with its sync.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn commit_1000(bencher: divan::Bencher<'_, '_>) {
    let mut commits = benches::parts::Commits::new().expect("a store in a temporary directory");
    bencher.counter(ItemsCount::new(benches::parts::Commits::RECORDS)).bench_local(|| commits.commit());
}

fn names() -> impl Iterator<Item = String> {
    Part::value_variants().iter().map(|part| part.name())
}
