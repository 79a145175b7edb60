//! Replication against a model: two hosts, a network that delays, cuts, repeats and reorders, disks that lose what was not
//! synced. One seed is one case; a violation names it. `SYNC_CASES` is how many (default 2000), `SYNC_FIRST` the
//! first one, `SYNC_SEED` runs one.

mod case;
mod directed;
mod hostile;

#[test]
fn replicas_keep_their_promises() {
    fixtures::sim::seeds::run_cases("SYNC", &case::EVERYTHING, case::run);
}
