//! The whole command line, word for word: a change that moves a device shows here, and breaks moves between hosts with
//! different versions of us.

use super::*;
use crate::qmp::Version;

fn around(version: Version) -> Surroundings {
    Surroundings {
        places: Places::new(Path::new("/run/vmctl"), Path::new("/var/lib/vmctl"), &"web1".parse().unwrap()),
        nbd_socket: "/run/blockd/nbd.sock".into(),
        reconnect_delay_s: 4,
        accel: Accel::Tcg,
        abilities: Abilities::of(version).unwrap(),
        exports: vec!["web1:7".to_owned()],
    }
}

fn old() -> Surroundings {
    around(Version { major: 7, minor: 2, micro: 22 })
}

fn definition(text: &str) -> Definition {
    let text = format!("name = \"web1\"\nmemory = \"256MiB\"\nmachine = \"pc-q35-7.2\"\n{text}");
    Definition::parse(&text, Path::new("x")).unwrap()
}

fn line(definition: &Definition, around: &Surroundings, beginning: Beginning) -> String {
    command_line(definition, around, beginning).join("\n")
}

const SMALLEST: &str = "\
-nodefaults
-no-user-config
-display
none
-name
guest=web1,process=vm-web1,debug-threads=on
-machine
pc-q35-7.2,usb=off,dump-guest-core=off
-accel
tcg,thread=multi
-cpu
max
-m
size=256M
-smp
1,sockets=1,cores=1,threads=1
-sandbox
on,obsolete=deny,resourcecontrol=deny
-qmp
unix:/run/vmctl/vm/web1/qmp.sock,server=on,wait=off
-daemonize
-pidfile
/run/vmctl/vm/web1/pid
-D
/var/lib/vmctl/log/web1.qemu
-msg
timestamp=on
-no-shutdown
-S
-chardev
socket,id=serial0,path=/run/vmctl/vm/web1/serial.sock,server=on,wait=off,logfile=/var/lib/vmctl/log/web1.console,logappend=on
-serial
chardev:serial0
-device
pvpanic-pci,id=panic,bus=pcie.0,addr=0x1d";

#[test]
fn the_smallest_vm_is_this() {
    assert_eq!(line(&definition(""), &old(), Beginning::Boot), SMALLEST);
}

#[test]
fn a_destination_waits_and_differs_in_nothing_else() {
    let there = command_line(&definition(""), &old(), Beginning::Incoming);
    let here = command_line(&definition(""), &old(), Beginning::Boot);
    let position = there.iter().position(|word| word == "-incoming").unwrap();
    assert_eq!(there[position + 1], "defer");
    assert_eq!([&there[..position], &there[position + 2..]].concat(), here);
}

#[test]
fn disks_stop_the_guest_and_have_fixed_places() {
    let text = "[[disk]]\nvolume = \"web1\"\nserial = \"s1\"\n[[disk]]\nvolume = \"data\"\nbus = \"scsi\"\n";
    let line = line(&definition(text), &old(), Beginning::Boot);
    let nbd = r#"{"cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"nbd","export":"web1:7","node-name":"disk0-nbd","open-timeout":4,"reconnect-delay":4,"server":{"path":"/run/blockd/nbd.sock","type":"unix"}}"#;
    let raw = r#"{"cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"raw","file":"disk0-nbd","node-name":"disk0"}"#;
    let device = "virtio-blk-pci,bus=pcie.0,addr=0x3,id=disk0,drive=disk0,werror=stop,rerror=stop,share-rw=off,\
        write-cache=on,logical_block_size=512,physical_block_size=4096,bootindex=1,serial=s1";
    let scsi = "-device\nvirtio-scsi-pci,id=scsi0,bus=pcie.0,addr=0x2\n";
    let second = "scsi-hd,bus=scsi0.0,channel=0,scsi-id=0,lun=1,device_id=disk1,id=disk1,drive=disk1,werror=stop,\
        rerror=stop,share-rw=off,write-cache=on,logical_block_size=512,physical_block_size=4096,bootindex=2";
    assert!(
        line.contains(&format!("{scsi}-blockdev\n{nbd}\n-blockdev\n{raw}\n-device\n{device}\n")),
        "{line}"
    );
    assert!(line.contains(&format!("-device\n{second}\n")), "{line}");
}

#[test]
fn network_cards_keep_their_places_when_a_disk_comes() {
    let nics = "[[nic]]\nmac = \"52:54:00:00:00:01\"\n[[nic]]\nmac = \"52:54:00:00:00:02\"\nbackend = { tap = { ifname = \"tap0\" } }\n\
        [[nic]]\nmac = \"52:54:00:00:00:03\"\nbackend = { stream = { path = \"/run/a,b\" } }\n\
        [[nic]]\nmac = \"52:54:00:00:00:04\"\nbackend = \"none\"\n";
    let device = |index: usize, slot: &str| {
        format!(
            "virtio-net-pci,id=nic{index},netdev=net{index},mac=52:54:00:00:00:0{},bus=pcie.0,addr={slot},romfile=",
            index + 1
        )
    };
    let expected = [
        format!("-netdev\nuser,id=net0\n-device\n{}", device(0, "0x10")),
        format!("-netdev\ntap,id=net1,ifname=tap0,script=no,downscript=no\n-device\n{}", device(1, "0x11")),
        format!(
            "-netdev\nstream,id=net2,server=off,addr.type=unix,addr.path=/run/a,,b\n-device\n{}",
            device(2, "0x12")
        ),
        format!("-netdev\nhubport,id=net3,hubid=3\n-device\n{}", device(3, "0x13")),
    ]
    .join("\n");
    let without = line(&definition(nics), &old(), Beginning::Boot);
    assert!(without.contains(&expected), "{without}");
    let disk = format!("[[disk]]\nvolume = \"a\"\n{nics}");
    assert!(line(&definition(&disk), &old(), Beginning::Boot).contains(&expected));
}

#[test]
fn the_older_machine_has_another_bus() {
    let mut definition = definition("[[disk]]\nvolume = \"a\"\n");
    definition.machine = Some("pc-i440fx-7.2".to_owned());
    let line = line(&definition, &old(), Beginning::Boot);
    assert!(line.contains("bus=pci.0,addr=0x3") && !line.contains("pcie.0"), "{line}");
}

#[test]
fn a_kernel_is_handed_over_as_it_was_written() {
    let boot = "[boot]\nkernel = \"/boot/vm,linuz\"\ninitrd = \"/i\"\nappend = \"console=ttyS0 a,b\"\n";
    let line = line(&definition(boot), &old(), Beginning::Boot);
    assert!(line.contains("-kernel\n/boot/vm,linuz\n-initrd\n/i\n-append\nconsole=ttyS0 a,b\n"), "{line}");
}

#[test]
fn a_later_qemu_connects_its_network_again_and_has_the_same_devices() {
    let text = "[[nic]]\nmac = \"52:54:00:00:00:03\"\nbackend = { stream = { path = \"/run/a\" } }\n[serial]\nenabled = false\n";
    let definition = definition(text);
    let new = around(Version { major: 10, minor: 0, micro: 2 });
    let here = command_line(&definition, &old(), Beginning::Boot);
    let there = command_line(&definition, &new, Beginning::Boot);
    let differing: Vec<_> = here.iter().zip(&there).filter(|(a, b)| a != b).collect();
    assert_eq!(differing.len(), 1, "{differing:?}");
    // In seconds it is deprecated there.
    assert!(differing[0].1.ends_with("addr.path=/run/a,reconnect-ms=1000"));
    let between = around(Version { major: 9, minor: 1, micro: 0 });
    let there = command_line(&definition, &between, Beginning::Boot);
    assert!(there.iter().any(|word| word.ends_with("addr.path=/run/a,reconnect=1")));
    assert!(here.windows(2).any(|pair| pair == ["-serial", "none"]));
}
