//! Linux's ext4 on the host, without its NBD driver:
//!
//! ```text
//!  ext4 ─ loop device ─ FUSE file ─ qemu-storage-daemon ─ NBD ─ our server ─ image
//! ```
//!
//! The kernel's flushes reach the server as FLUSH, its discards as TRIM or WRITE_ZEROES. Needs root for the
//! loop device and the mount: without it the test says so and returns. What the kernel would keep after us is
//! undone by guards, in reverse order, also when the test panics.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fixtures::process::{ChildGuard, ProcessError, wait_until};

use crate::server::{CACHES, Place, Server};
use crate::tools::{Cleanup, allocated, may_mount, noise, run, tool};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// The server's export as a file.
struct FuseFile {
    daemon: ChildGuard,
    path: PathBuf,
}

impl FuseFile {
    fn mount(place: &Place, server: &Server, size: u64) -> Self {
        let path = place.sparse("fuse", 0);
        let socket = server.socket().display();
        let mut command = tool("qemu-storage-daemon");
        command.arg("--blockdev");
        command.arg(format!("driver=nbd,node-name=n,server.type=unix,server.path={socket},discard=unmap"));
        command.arg("--export");
        let options = "type=fuse,id=e,node-name=n,writable=on";
        command.arg(format!("{options},mountpoint={}", path.display()));
        let mut file = Self { daemon: ChildGuard::spawn(&mut command).unwrap(), path };
        file.wait_for(size);
        file
    }

    /// The mount is there once the file has the export's size.
    fn wait_for(&mut self, size: u64) {
        let found = wait_until("the export as a file", PATIENCE, || {
            if let Some(status) = self.daemon.try_status()? {
                panic!("qemu-storage-daemon ended with {status}");
            }
            let length = fs::metadata(&self.path).map(|metadata| metadata.len());
            Ok::<_, ProcessError>(length.is_ok_and(|length| length == size).then_some(()))
        });
        found.unwrap();
    }

    fn unmount(mut self) {
        let status = self.daemon.terminate(PATIENCE).unwrap();
        assert!(status.success(), "qemu-storage-daemon ended with {status}");
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        if let Err(error) = self.daemon.terminate(PATIENCE) {
            eprintln!("qemu-storage-daemon: {error}");
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounts.contains(&*self.path.to_string_lossy()) {
            drop(Cleanup::new("umount", &["-l".as_ref(), &self.path]));
        }
    }
}

/// A loop device over `file`, and what detaches it.
fn attach(file: &Path) -> (PathBuf, Cleanup) {
    let said = run(tool("losetup").args(["--find", "--show"]).arg(file)).stdout;
    let device = PathBuf::from(said.trim());
    let detach = Cleanup::new("losetup", &["-d".as_ref(), &device]);
    (device, detach)
}

/// Detaching goes on after the command's end while somebody (udev) has the device open.
fn wait_for_detached(file: &Path) {
    let gone = || {
        let still = run(tool("losetup").arg("-j").arg(file)).stdout;
        Ok::<_, ProcessError>(still.trim().is_empty().then_some(()))
    };
    wait_until("the loop device's end", PATIENCE, gone).unwrap();
}

fn mount(device: &Path, target: &Path) -> Cleanup {
    fs::create_dir_all(target).unwrap();
    run(tool("mount").args(["-t", "ext4", "-o", "discard"]).arg(device).arg(target));
    Cleanup::new("umount", &[target])
}

fn check(image: &Path) {
    run(tool("e2fsck").arg("-fn").arg(image));
}

/// The name, seed and length of what is written.
const FILES: [(&str, u64, usize); 4] =
    [("small", 1, 1), ("odd", 2, 77_777), ("large", 3, 8 << 20), ("last", 4, 65_536)];

fn write_files(target: &Path) {
    for (name, seed, length) in FILES {
        let file = File::create(target.join(name)).unwrap();
        file.write_all_at(&noise(seed, length), 0).unwrap();
        file.sync_all().unwrap();
    }
    fs::write(target.join("waste"), noise(9, 16 << 20)).unwrap();
    run(tool("sync").arg("-f").arg(target));
    fs::remove_file(target.join("waste")).unwrap();
}

fn read_files(target: &Path) {
    for (name, seed, length) in FILES {
        assert!(fs::read(target.join(name)).unwrap() == noise(seed, length), "{name}");
    }
}

/// Makes a file system through the whole pile, fills it, checks it, mounts it again and reads it back.
fn exercise(place: &Place, fuse: &Path) {
    let target = place.path("mounted");
    let (device, detach) = attach(fuse);
    run(tool("mkfs.ext4").args(["-q", "-F"]).arg(&device));
    let mounted = mount(&device, &target);
    write_files(&target);
    mounted.now();
    check(&device);
    let mounted = mount(&device, &target);
    read_files(&target);
    run(tool("fstrim").arg(&target));
    read_files(&target);
    mounted.now();
    check(&device);
    detach.now();
    wait_for_detached(fuse);
}

#[test]
fn ext4_of_the_hosts_kernel_stays_clean() {
    if !may_mount("ext4_of_the_hosts_kernel_stays_clean") {
        return;
    }
    for cache in CACHES {
        let place = Place::new();
        let image = place.sparse("disk.img", 96 * MIB);
        let server = place.serve(&["disk.img", "--cache", cache]);
        let fuse = FuseFile::mount(&place, &server, 96 * MIB);
        exercise(&place, &fuse.path.clone());
        fuse.unmount();
        server.stop();
        check(&image);
        assert!(allocated(&image) < 32 * MIB, "the deleted 16 MiB still take space: {}", allocated(&image));
        verify_raw(&place, &image);
    }
}

/// The files once more, from the image itself, without any server.
fn verify_raw(place: &Place, image: &Path) {
    for (name, seed, length) in FILES {
        let out = place.path("dumped");
        run(tool("debugfs").arg("-R").arg(format!("dump /{name} {}", out.display())).arg(image));
        assert!(fs::read(&out).unwrap() == noise(seed, length), "{name}");
    }
}
