//! A file system without room: a sparse image on a tmpfs that is smaller than the image. Needs root for the
//! mount: without it the test says so and returns.

use std::fs;
use std::path::Path;

use crate::server::Place;
use crate::tools::{Cleanup, may_mount, python, run, tool};

/// 64 MiB are served, 16 MiB fit.
const FILL: &str = r#"
import nbd, random, sys

MIB = 1 << 20
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
pieces = [random.randbytes(MIB) for _ in range(64)]

def write(number):
    try:
        h.pwrite(pieces[number], number * MIB)
        return True
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error
        return False

def verify(numbers):
    for number in numbers:
        assert h.pread(MIB, number * MIB) == pieces[number], number

def rest_is_zeroes_or_data(numbers):
    # A refused write may have left a part of itself, and nothing else.
    for number in numbers:
        found = h.pread(MIB, number * MIB)
        for at in range(0, MIB, 4096):
            block = found[at:at + 4096]
            assert block in (bytes(4096), pieces[number][at:at + 4096]), (number, at)

written = [number for number in range(64) if write(number)]
assert 10 <= len(written) <= 16, written
verify(written)
refused = [number for number in range(64) if number not in written]
rest_is_zeroes_or_data(refused)

# Allocating zeroes needs room, too; reads, flushes and the connection go on.
try:
    h.zero(MIB, refused[-1] * MIB, nbd.CMD_FLAG_NO_HOLE)
    raise AssertionError("zeroes were allocated on a full disk")
except nbd.Error as error:
    assert error.errno == "ENOSPC", error
h.flush()
verify(written)

# Overwriting what has its room already still works, and durably.
for number in written:
    pieces[number] = random.randbytes(MIB)
    h.pwrite(pieces[number], number * MIB)
h.flush()
verify(written)

# A trim makes room.
freed, kept = written[:4], written[4:]
h.trim(4 * MIB, freed[0] * MIB)
assert h.pread(4 * MIB, freed[0] * MIB) == bytes(4 * MIB)
for number in refused[-2:]:
    assert write(number), "no room after the trim"
h.flush()
verify(kept + refused[-2:])
h.shutdown()
"#;

fn mount_tmpfs(target: &Path) -> Cleanup {
    fs::create_dir(target).unwrap();
    run(tool("mount").args(["-t", "tmpfs", "-o", "size=16m", "nbd-test"]).arg(target));
    Cleanup::new("umount", &[target])
}

#[test]
fn a_full_file_system_is_enospc_until_a_trim_makes_room() {
    if !may_mount("a_full_file_system_is_enospc_until_a_trim_makes_room") {
        return;
    }
    let place = Place::new();
    let mounted = mount_tmpfs(&place.path("small"));
    place.sparse("small/disk.img", 64 << 20);
    let server = place.serve(&["small/disk.img"]);
    run(python(FILL).arg(server.uri()));
    server.stop();
    mounted.at_once();
}

/// The ring outlived its process by some 30 ms, and `systemctl stop … && umount …` found the mount busy.
#[test]
fn a_file_system_is_free_when_its_server_has_ended() {
    if !may_mount("a_file_system_is_free_when_its_server_has_ended") {
        return;
    }
    for _ in 0..3 {
        let place = Place::new();
        let mounted = mount_tmpfs(&place.path("small"));
        place.sparse("small/disk.img", 1 << 20);
        let server = place.serve(&["small/disk.img"]);
        run(tool("nbdinfo").arg("--size").arg(server.uri()));
        server.stop();
        mounted.at_once();
    }
}
