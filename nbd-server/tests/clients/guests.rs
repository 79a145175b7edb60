//! Linux guests as clients: virtio-blk through QEMU's NBD client, and the kernel's own client `nbd.ko`.
//!
//! The names begin with `guest_`: the test runner boots one machine at a time.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use fixtures::guest::{
    GuestRoot, GuestRun, GuestSpec, HOST_ADDRESS, Kernel, RootImage, default_cache, nbd_drive, probe_accel,
};

use crate::server::{Place, Server};
use crate::tools::{allocated, noise, require, run, tool};

const MIB: u64 = 1 << 20;
const BOOT: Duration = Duration::from_secs(90);

/// Boots a guest that runs `spec`'s script to its end; it must end well.
fn boot(place: &Place, spec: &GuestSpec, drive: Option<String>) -> String {
    require(&["qemu-system-x86_64", "busybox", "cpio", "depmod", "dpkg-deb"]);
    let cache = default_cache();
    let kernel = Kernel::fetch(&cache).unwrap();
    let initramfs = place.path("initramfs");
    spec.build_initramfs(&kernel, &initramfs).unwrap();
    let accel = probe_accel(&kernel, &cache).unwrap();
    let mut run = GuestRun::new(&kernel, &initramfs, accel, &place.path("console"));
    run = if spec.network { run.user_network() } else { run };
    run = drive.into_iter().fold(run, GuestRun::drive);
    let outcome = run.start().unwrap().wait_done(BOOT).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(outcome.rc, 0, "{}", outcome.console);
    outcome.console
}

/// Serves the root disk, boots it with `script`, stops the server and checks the file system.
fn boot_root(place: &Place, arguments: &[&str], script: &str) {
    let server = place.serve(arguments);
    let spec = GuestSpec { script: script.into(), ..GuestSpec::default() };
    boot(place, &spec, Some(nbd_drive(server.socket(), "root")));
    server.stop();
    run(tool("e2fsck").arg("-fn").arg(place.path("root.img")));
}

/// What the first boot does: files with checksums, and 16 MiB that are deleted and trimmed again.
const WRITE_AND_TRIM: &str = "set -e
dd if=/dev/urandom of=/data/noise bs=64k count=64 2>/dev/null
dd if=/dev/urandom of=/data/odd bs=777 count=99 2>/dev/null
md5sum /data/noise /data/odd >/data/sums
dd if=/dev/zero of=/data/waste bs=64k count=256 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
md5sum -c /data/sums
rm /data/waste
sync
fstrim /
echo 3 >/proc/sys/vm/drop_caches
md5sum -c /data/sums
";

fn write_trim_and_reboot(cache: &str) {
    let place = Place::new();
    let image = place.path("root.img");
    RootImage { size_mib: 96, files: Vec::new() }.build(&image).unwrap();
    let before = allocated(&image);
    let arguments = ["root=root.img", "--cache", cache];
    boot_root(&place, &arguments, WRITE_AND_TRIM);
    let grown = allocated(&image) - before;
    assert!((4 * MIB..14 * MIB).contains(&grown), "{grown} bytes more: the deleted 16 MiB are not trimmed");
    boot_root(&place, &arguments, "md5sum -c /data/sums && [ ! -e /data/waste ]");
}

#[test]
fn guest_on_virtio_writes_trims_and_finds_everything_after_a_reboot() {
    write_trim_and_reboot("writeback");
}

#[test]
fn guest_on_virtio_and_direct_io_writes_trims_and_finds_everything_after_a_reboot() {
    write_trim_and_reboot("direct");
}

/// An ext4 file system with one file of noise, made by the host.
fn build_ext4(place: &Place) {
    let tree = place.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("noise"), noise(1, 3 << 20)).unwrap();
    let mut mke2fs = tool("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(place.path("fs.img"));
    run(mke2fs.arg("32M"));
}

/// A raw disk written and read back past the guest's cache, then a file system of the host's.
fn kernel_client_script(port: u16) -> String {
    format!(
        "set -e
nbd-client {HOST_ADDRESS} {port} /dev/nbd0 -N raw -C 4
nbd-client {HOST_ADDRESS} {port} /dev/nbd1 -N fs -C 4
[ $(blockdev --getsize64 /dev/nbd0) = 33554432 ]
dd if=/dev/urandom of=/run/pattern bs=64k count=128 2>/dev/null
dd if=/run/pattern of=/dev/nbd0 bs=64k seek=16 conv=fsync 2>/dev/null
dd if=/run/pattern of=/dev/nbd0 bs=4k seek=5120 count=99 conv=fsync 2>/dev/null
blockdev --flushbufs /dev/nbd0
echo 3 >/proc/sys/vm/drop_caches
echo PATTERN $(md5sum </run/pattern)
[ \"$(dd if=/dev/nbd0 bs=64k skip=16 count=128 2>/dev/null | md5sum)\" = \"$(md5sum </run/pattern)\" ]
mkdir /run/fs
mount -t ext4 /dev/nbd1 /run/fs
echo NOISE $(md5sum </run/fs/noise)
cp /run/pattern /run/fs/pattern
rm /run/fs/noise
sync
fstrim /run/fs
umount /run/fs
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/nbd1 /run/fs
cmp /run/pattern /run/fs/pattern
umount /run/fs
nbd-client -d /dev/nbd0
nbd-client -d /dev/nbd1
"
    )
}

fn md5(file: &Path) -> String {
    run(tool("md5sum").arg(file)).stdout.split_whitespace().next().unwrap().to_owned()
}

fn kernel_client(place: &Place, server: &Server) -> String {
    require(&["nbd-client"]);
    let script = kernel_client_script(server.port());
    let spec = GuestSpec {
        script,
        root: GuestRoot::Memory,
        network: true,
        nbd_client: true,
        ..GuestSpec::default()
    };
    boot(place, &spec, None)
}

#[test]
fn guest_with_the_kernels_client_writes_a_disk_and_mounts_another() {
    let place = Place::new();
    let raw = place.sparse("raw.img", 32 * MIB);
    build_ext4(&place);
    let server = place.serve(&["raw=raw.img", "fs=fs.img", "--listen", "127.0.0.1:0"]);
    let console = kernel_client(&place, &server);
    server.stop();
    let log = fs::read_to_string(place.path("server.log")).unwrap();
    let connections = log.split_once("stopped after ").and_then(|(_, rest)| rest.split_once(" connections"));
    assert_eq!(connections.unwrap().0, "8", "four for each disk: {log}");

    let noise = place.path("tree").join("noise");
    assert!(console.contains(&format!("NOISE {}", md5(&noise))), "{console}");
    let mut written = vec![0; 8 << 20];
    File::open(raw).unwrap().read_exact_at(&mut written, MIB).unwrap();
    let pattern = place.path("pattern");
    fs::write(&pattern, written).unwrap();
    assert!(console.contains(&format!("PATTERN {}", md5(&pattern))), "{console}");
    run(tool("e2fsck").arg("-fn").arg(place.path("fs.img")));
    let dumped = place.path("dumped");
    run(tool("debugfs")
        .arg("-R")
        .arg(format!("dump /pattern {}", dumped.display()))
        .arg(place.path("fs.img")));
    crate::tools::assert_same_content(&pattern, &dumped);
}
