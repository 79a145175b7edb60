//! What clients see of a volume and its snapshots.

use fixtures::nbd::client::{ClientError, reply_type};
use fixtures::nbd::codec::{command, errno, flag};

use crate::place::Place;
use crate::tools::{assert_same, noise, run, tool};

const MIB: u64 = 1 << 20;

#[test]
fn foreign_tools_see_what_is_there() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 32M");
    run(tool("qemu-io").args(["-f", "raw", "-c", "write -P 7 1M 64k", "-c", "write -P 9 1080k 8k"]).args([
        "-c",
        "flush",
        &place.uri("web"),
    ]));
    let patterns = ["read -P 7 1M 56k", "read -P 9 1080k 8k", "read -P 0 0 1M", "read -P 0 1088k 64k"];
    let mut qemu_io = tool("qemu-io");
    for pattern in patterns {
        qemu_io.args(["-c", pattern]);
    }
    let said = run(qemu_io.args(["-f", "raw", &place.uri("web")]));
    assert!(!said.stdout.contains("failed"), "{}", said.stdout);
    let said = run(tool("nbdinfo").args(["--json", &place.uri("web")])).stdout;
    for fact in [
        "\"export-size\": 33554432",
        "\"is_read_only\": false",
        "\"can_fua\": true",
        "\"can_flush\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_multi_conn\": true",
        "\"block_size_preferred\": 4096",
    ] {
        assert!(said.contains(fact), "{fact} in {said}");
    }
    place.ok("snapshot create web@a");
    let said = run(tool("nbdinfo").args(["--json", &place.uri("web@a")])).stdout;
    assert!(said.contains("\"is_read_only\": true"), "{said}");
    let list = run(tool("nbdinfo").args(["--list", "--json", &place.uri("")])).stdout;
    assert!(
        list.contains("\"export-name\": \"web\"") && list.contains("\"export-name\": \"web@a\""),
        "{list}"
    );
}

#[test]
fn a_copy_comes_back_whole_and_with_its_holes() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 64M");
    let (image, back) = (place.path("image"), place.path("back"));
    let mut content = vec![0; 64 << 20];
    for (at, seed) in [(0, 1), (20 << 20, 2), (63 << 20, 3)] {
        content[at..at + (1 << 20)].copy_from_slice(&noise(seed, 1 << 20));
    }
    std::fs::write(&image, &content).unwrap();
    run(tool("nbdcopy").arg("--flush").arg(&image).arg(place.uri("web")));
    run(tool("nbdcopy").arg(place.uri("web")).arg(&back));
    assert_same(&std::fs::read(&back).unwrap(), &content, "the copy");
    // What was zeroes in the image takes no space, neither in the pool nor in the copy.
    let mapped = |said: &str| -> u64 {
        let (_, rest) = said.split_once("\"mapped_bytes\":").unwrap();
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    };
    let said = place.ok("volume show web -o json");
    assert!((3 * MIB..=6 * MIB).contains(&mapped(&said)), "{said}");
    let taken = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&back).unwrap()) * 512;
    assert!((3 * MIB..=6 * MIB).contains(&taken), "{taken}");
}

#[test]
fn writes_of_any_alignment_do_what_a_byte_array_does() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 4M");
    let (mut rng, mut model) = (fastrand::Rng::with_seed(11), vec![0u8; 4 << 20]);
    let mut client = place.client("web");
    for step in 0..600 {
        let sectors = rng.usize(1..=if step % 16 == 0 { 400 } else { 24 });
        let at = rng.usize(0..(model.len() / 512 - sectors)) * 512;
        let length = sectors * 512;
        let area = &mut model[at..at + length];
        match rng.u8(0..10) {
            0 => {
                client.call(0, command::TRIM, at as u64, length as u32).unwrap().unwrap();
                area.fill(0);
            }
            1 => {
                let flags = if rng.bool() { flag::NO_HOLE } else { 0 };
                client.call(flags, command::WRITE_ZEROES, at as u64, length as u32).unwrap().unwrap();
                area.fill(0);
            }
            2 => assert_same(&client.read(at as u64, length as u32).unwrap(), area, "a read"),
            _ => {
                let bytes = noise(step, length);
                let flags = if rng.u8(0..8) == 0 { flag::FUA } else { 0 };
                client.call_write(flags, at as u64, &bytes).unwrap().unwrap();
                area.copy_from_slice(&bytes);
            }
        }
        if step % 150 == 100 {
            place.ok(&format!("snapshot create web@s{step}"));
        }
    }
    client.leave().unwrap();
    assert_same(&place.content("web"), &model, "before the restart");
    daemon.stop();
    let _daemon = place.serve();
    assert_same(&place.content("web"), &model, "after the restart");
}

#[test]
fn requests_out_of_range_are_refused_and_cost_no_connection() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    let mut client = place.client("web");
    let end = client.size();
    assert_eq!(client.call(0, command::READ, end, 512).unwrap(), Err(errno::EINVAL));
    assert_eq!(client.call(0, command::READ, u64::MAX - 511, 512).unwrap(), Err(errno::EINVAL));
    assert_eq!(client.call(0, command::TRIM, end - 512, 1024).unwrap(), Err(errno::EINVAL));
    assert_eq!(client.call(0, command::WRITE_ZEROES, end - 512, 1024).unwrap(), Err(errno::ENOSPC));
    assert_eq!(client.call_write(0, end - 512, &[1; 1024]).unwrap(), Err(errno::ENOSPC));
    assert_eq!(client.call(0, 77, 0, 512).unwrap(), Err(errno::EINVAL));
    assert_eq!(client.read(end - 512, 512).unwrap(), [0; 512]);
    client.leave().unwrap();
    assert!(matches!(place.no_client("nothing"), ClientError::Refused(reply_type::ERR_UNKNOWN)));
}

#[test]
fn a_snapshot_is_not_written_to() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    let mut volume = place.client("web");
    volume.write(0, &[3; 8192]).unwrap();
    place.ok("snapshot create web@a");
    volume.write(0, &[4; 8192]).unwrap();
    let mut snapshot = place.client("web@a");
    assert_eq!(snapshot.call_write(0, 0, &[9; 4096]).unwrap(), Err(errno::EPERM));
    for request in [command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(snapshot.call(0, request, 0, 4096).unwrap(), Err(errno::EPERM));
    }
    snapshot.flush().unwrap();
    assert_eq!(snapshot.read(0, 8192).unwrap(), [3; 8192]);
    assert_eq!(volume.read(0, 8192).unwrap(), [4; 8192]);
}
