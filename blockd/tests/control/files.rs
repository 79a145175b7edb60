//! `volume import` and `export-file`, over a real NBD server that serves plain files.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::engine::TestEngine;
use crate::harness::{Daemon, outcome};

const MIB: u64 = 1 << 20;

/// A sparse file with data here and there, the same each time.
fn sparse(path: &Path, size: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (number, offset) in [0, 4096 * 3 + 5, 5 * MIB - 100, size - 600].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..500).map(|index| (index * 7 + number * 13 + 1) as u8).collect();
        file.write_all_at(&bytes, offset).unwrap();
    }
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_raw_image_is_imported_sparsely() {
    // 100 bytes short of a sector: the volume is rounded up.
    let size = 8 * MIB - 100;
    let daemon = Daemon::with_disks(TestEngine::default(), &[("web", 8 * MIB)]);
    let image = daemon.dir.path().join("image");
    sparse(&image, size);
    let (code, stdout, stderr) = daemon.run(&format!("volume import web {} --format raw", path(&image)));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("imported web, 8 MiB, from "), "{stdout}");
    assert!(stderr.contains("note: rounded up from 8388508 to 8388608 bytes"), "{stderr}");
    let disk = daemon.dir.path().join("web.disk");
    let mut expected = std::fs::read(&image).unwrap();
    expected.resize(8 * MIB as usize, 0);
    assert!(std::fs::read(&disk).unwrap() == expected, "the volume holds something else than the image");
    assert!(std::fs::metadata(&disk).unwrap().blocks() * 512 < MIB, "zeroes were written");
}

#[test]
fn other_formats_go_through_qemu_img() {
    let daemon = Daemon::with_disks(TestEngine::default(), &[("web", 8 * MIB)]);
    let (image, qcow2) = (daemon.dir.path().join("image"), daemon.dir.path().join("image.qcow2"));
    sparse(&image, 8 * MIB);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", path(&image), path(&qcow2)]);
    let plan = daemon.ok(&format!("volume import web {} --plan", path(&qcow2)));
    assert!(plan.contains("would create web, 8 MiB") && plan.contains("(qcow2)"), "{plan}");
    daemon.ok(&format!("volume import web {}", path(&qcow2)));
    let disk = daemon.dir.path().join("web.disk");
    assert!(std::fs::read(&disk).unwrap() == std::fs::read(&image).unwrap());
}

#[test]
fn an_image_that_names_other_files_is_refused() {
    let daemon = Daemon::with_disks(TestEngine::default(), &[("web", 8 * MIB)]);
    let (base, overlay) = (daemon.dir.path().join("base"), daemon.dir.path().join("overlay.qcow2"));
    sparse(&base, 8 * MIB);
    qemu_img(&["create", "-f", "qcow2", "-F", "raw", "-b", path(&base), path(&overlay)]);
    let words = format!("volume import web {}", path(&overlay));
    let (code, _, stderr) = daemon.run(&words);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains(&format!("it names other files of this host: {}", path(&base))), "{stderr}");
    assert!(daemon.ok("volume list").contains("no volumes"));
    daemon.ok(&format!("{words} --allow-backing"));
    assert!(std::fs::read(daemon.dir.path().join("web.disk")).unwrap() == std::fs::read(&base).unwrap());
}

/// A guest can write another format's header onto its raw disk.
#[test]
fn a_raw_disk_that_poses_as_qcow2_is_imported_as_it_is() {
    let daemon = Daemon::with_disks(TestEngine::default(), &[("web", MIB)]);
    let image = daemon.dir.path().join("disk.raw");
    qemu_img(&["create", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/hostname", path(&image), "1M"]);
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(MIB).unwrap();
    assert_eq!(daemon.run(&format!("volume import web {}", path(&image))).0, 5);
    daemon.ok(&format!("volume import web {} --format raw", path(&image)));
    assert!(std::fs::read(daemon.dir.path().join("web.disk")).unwrap() == std::fs::read(&image).unwrap());
}

#[test]
fn a_failed_import_leaves_nothing_behind() {
    // The export has another size than the volume: the copy cannot begin.
    let daemon = Daemon::with_disks(TestEngine::default(), &[("web", 4 * MIB)]);
    let image = daemon.dir.path().join("image");
    sparse(&image, 8 * MIB);
    let (code, _, stderr) = daemon.run(&format!("volume import web {} --format raw", path(&image)));
    assert_eq!(code, 1);
    assert!(stderr.contains("; the half-made volume was removed"), "{stderr}");
    assert!(daemon.ok("volume list").contains("no volumes"));
}

/// More than all buffers between the two hold: neither side may wait for the other for ever.
#[test]
fn full_disks_go_through_both_ways() {
    let size = 48 * MIB;
    let daemon = Daemon::with_disks(TestEngine::default(), &[("web", size), ("web@a", size)]);
    let mut state = 1u64;
    let bytes: Vec<u8> = (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    let (image, target) = (daemon.dir.path().join("image"), daemon.dir.path().join("out.img"));
    std::fs::write(&image, &bytes).unwrap();
    daemon.ok(&format!("volume import web {}", path(&image)));
    assert!(std::fs::read(daemon.dir.path().join("web.disk")).unwrap() == bytes);
    daemon.ok("snapshot create web@a");
    std::fs::write(daemon.dir.path().join("web@a.disk"), &bytes).unwrap();
    daemon.ok(&format!("volume export-file web@a {}", path(&target)));
    assert!(std::fs::read(&target).unwrap() == bytes);
}

/// The NBD server of this test accepts and says nothing.
#[test]
fn an_interrupted_import_leaves_nothing_behind() {
    let daemon = Daemon::start(TestEngine::default());
    let silent = std::os::unix::net::UnixListener::bind(daemon.dir.path().join("nbd.sock")).unwrap();
    let image = daemon.dir.path().join("image");
    sparse(&image, 8 * MIB);
    let words = format!("volume import web {} --format raw", path(&image));
    let child = daemon.command(&words).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let _client = silent.accept().unwrap();
    assert!(daemon.ok("volume list").contains("web"));
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains(
            "error: import of web was interrupted\nwhy:   Ctrl-C; the half-made volume was removed"
        ),
        "{stderr}"
    );
    assert!(daemon.ok("volume list").contains("no volumes"));
}

#[test]
fn what_is_no_image_is_refused() {
    let daemon = Daemon::start(TestEngine::default());
    assert_eq!(daemon.run("volume import web /nonexistent").0, 3);
    assert_eq!(daemon.run("volume import web /dev/null").0, 1);
    assert_eq!(daemon.run("volume import web /etc").0, 1);
    assert_eq!(daemon.run("volume import web /etc/hostname --format https").0, 2);
    assert!(daemon.ok("volume list").contains("no volumes"));
}

#[test]
fn a_snapshot_is_exported_to_a_sparse_file() {
    let size = 8 * MIB;
    let daemon = Daemon::with_disks(TestEngine::default(), &[("web@a", size)]);
    daemon.ok("volume create web --size 8M");
    daemon.ok("snapshot create web@a");
    sparse(&daemon.dir.path().join("web@a.disk"), size);
    let target = daemon.dir.path().join("out.img");
    let words = format!("volume export-file web@a {}", path(&target));
    daemon.ok(&words);
    let expected = std::fs::read(daemon.dir.path().join("web@a.disk")).unwrap();
    assert!(std::fs::read(&target).unwrap() == expected);
    assert!(std::fs::metadata(&target).unwrap().blocks() * 512 < MIB, "it is not sparse");
    let (code, _, stderr) = daemon.run(&words);
    assert_eq!(code, 5, "{stderr}");
    std::fs::write(&target, "old").unwrap();
    daemon.ok(&format!("{words} --force"));
    assert!(std::fs::read(&target).unwrap() == expected);
    let left = std::fs::read_dir(daemon.dir.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".blockctl-")), "{left:?}");
    let (code, _, stderr) = daemon.run("volume export-file web@a /nonexistent/out.img");
    assert_eq!(code, 3, "{stderr}");
}
