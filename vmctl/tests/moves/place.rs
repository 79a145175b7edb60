//! A rig for one test.

use std::path::{Path, PathBuf};

use fixtures::cutover::{Parts, Programs, Rig};
use fixtures::guest::{Kernel, default_cache, probe_accel};
use tempfile::TempDir;

/// The programs lie beside each other: `cargo xtask test` builds blockd first.
fn programs() -> Programs {
    let vmctl = Path::new(env!("CARGO_BIN_EXE_vmctl"));
    let dir =
        std::env::var_os("BLOCKD_BIN_DIR").map_or_else(|| vmctl.parent().unwrap().to_owned(), PathBuf::from);
    let programs = Programs { vmctl: vmctl.to_owned(), ..Programs::in_dir(&dir) };
    assert!(
        programs.blockd.exists(),
        "{} is not built: cargo build -p blockd --bins",
        programs.blockd.display()
    );
    programs
}

/// Two hosts, and the guest defined at A.
pub(crate) fn rig() -> (Rig, TempDir) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let kernel = Kernel::fetch(&default_cache()).unwrap();
    let accel = probe_accel(&kernel, &default_cache()).unwrap();
    let parts = Parts { programs: &programs(), kernel: &kernel, accel, dir: dir.path() };
    (Rig::start(&parts).unwrap(), dir)
}
