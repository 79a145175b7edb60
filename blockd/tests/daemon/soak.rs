//! The replication rig, in short. The long run is `cargo xtask soak` (`soak` in fixtures).

use std::path::PathBuf;

use fixtures::soak::{Plan, Programs, run};
use tempfile::TempDir;

#[test]
fn increments_arrive_through_cuts_and_kills() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let programs = Programs {
        blockd: PathBuf::from(env!("CARGO_BIN_EXE_blockd")),
        blockctl: PathBuf::from(env!("CARGO_BIN_EXE_blockctl")),
    };
    let plan = Plan { increments: 12, seed: 3, compare_every: 4 };
    let summary = run(&programs, dir.path(), &plan, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{summary}");
    assert!(summary.increments == 12 && summary.compared >= 3, "{summary:?}");
    assert!(summary.disturbed > 0 && summary.images_read > 0 && summary.bytes_up > 0, "{summary:?}");
}
