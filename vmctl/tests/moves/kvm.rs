//! A guest whose processor is not translated: it is moved while it runs.

use std::time::Duration;

use fixtures::cutover::{SECTOR_FIRST_BYTE, Settings, boot_sector, kvm_runs_sector, write_sector_definition};
use fixtures::guest::Accel;

use crate::place::{goes_on, judge_from, last, migrate, process, rig_of};

/// How long a BIOS may take.
const BOOT: Duration = Duration::from_secs(60);

#[test]
fn a_guest_moves_under_kvm_and_back() {
    if !kvm_runs_sector().unwrap() {
        eprintln!("SKIPPED: there is no /dev/kvm, or it does not run a boot sector");
        return;
    }
    let (rig, _dir) = rig_of(Accel::Kvm, &Settings::default(), "");
    rig.a.write_disk(0, &boot_sector()).unwrap();
    let definition = rig.dir.join("sector.toml");
    write_sector_definition(&definition).unwrap();
    rig.a.vmctl(&["vm", "define", "--replace", &definition.display().to_string()]).unwrap();
    rig.a.vmctl(&["vm", "start", "web1"]).unwrap();
    rig.a.wait_for_console("SEQ 0000000003", BOOT).unwrap();
    for number in 0..4 {
        let (from, to) = if number % 2 == 0 { (&rig.a, &rig.b) } else { (&rig.b, &rig.a) };
        assert_eq!(process(from)["accel"], "kvm");
        let at = last(from);
        migrate(from, to);
        goes_on(to, at);
        let numbers = &from.report().unwrap()["numbers"];
        println!("{} ms of silence, {} passes", numbers["silence_ms"], numbers["memory_passes"]);
    }
    judge_from(&rig, &rig.a, 4, SECTOR_FIRST_BYTE);
}
