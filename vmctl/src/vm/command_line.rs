//! QEMU's command line: a pure function of the definition, of what this QEMU can, and of where files are.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::accel::Accel;
use super::definition::{Backend, Bus, Definition, Disk, Nic};
use super::devices::{SLOT_PANIC, SLOT_SCSI, disk_id, disk_nbd_node, disk_slot, nic_id, nic_slot};
use super::machine::root_bus;
use super::places::Places;
use super::version::{Abilities, SANDBOX};

/// How a QEMU begins. Its processors never run before it is told `cont`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// From the disks or the kernel.
    Boot,
    /// From another QEMU, once `migrate-incoming` says from where.
    Incoming,
}

/// What the command line is made from besides the definition.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The VM's files.
    pub places: Places,
    /// blockd's socket for NBD clients.
    pub nbd_socket: PathBuf,
    /// How long requests wait for a blockd that went away, in seconds; QEMU's monitor is blocked meanwhile.
    pub reconnect_delay_s: u32,
    /// What runs the processors.
    pub accel: Accel,
    /// What this QEMU can.
    pub abilities: Abilities,
    /// The exports of the disks' volumes, in their order: `VOLUME:EPOCH`. A QEMU that should have ended and has not can
    /// then never write in a later epoch, whatever it connects to.
    pub exports: Vec<String>,
}

/// The arguments, without the program. The definition is resolved.
pub fn command_line(definition: &Definition, around: &Surroundings, beginning: Beginning) -> Vec<String> {
    let mut line = Line::default();
    base(&mut line, definition, around);
    process(&mut line, &around.places, beginning);
    boot(&mut line, definition);
    serial(&mut line, definition, &around.places);
    let bus = root_bus(definition.machine.as_deref().unwrap_or_default());
    disks(&mut line, definition, around, bus);
    nics(&mut line, definition, around, bus);
    line.option("-device", format!("pvpanic-pci,id=panic,bus={bus},addr={SLOT_PANIC:#x}"));
    line.0
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn option(&mut self, option: &str, value: impl Into<String>) {
        self.flag(option);
        self.0.push(value.into());
    }
}

/// A path as part of an option: a comma ends a value; doubled, it stands for itself.
fn path_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn base(line: &mut Line, definition: &Definition, around: &Surroundings) {
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    let name = &definition.name;
    // The process' name is cut by the kernel at 15 bytes; it is for `ps`, nothing depends on it.
    line.option("-name", format!("guest={name},process=vm-{name},debug-threads=on"));
    let machine = definition.machine.as_deref().unwrap_or_default();
    line.option("-machine", format!("{machine},usb=off,dump-guest-core=off"));
    line.option("-accel", around.accel.argument());
    line.option("-cpu", definition.cpu.as_deref().unwrap_or(around.accel.cpu_default()));
    line.option("-m", format!("size={}M", definition.memory.0 >> 20));
    line.option("-smp", format!("{0},sockets=1,cores={0},threads=1", definition.vcpus));
    line.option("-sandbox", SANDBOX);
}

fn process(line: &mut Line, places: &Places, beginning: Beginning) {
    line.option("-qmp", format!("unix:{},server=on,wait=off", path_value(&places.qmp())));
    line.flag("-daemonize");
    line.option("-pidfile", places.pid_file().to_string_lossy());
    line.option("-D", places.qemu_log().to_string_lossy());
    line.option("-msg", "timestamp=on");
    // A guest that powers off leaves QEMU there to be asked: a QEMU that is gone has crashed, or was killed.
    line.flag("-no-shutdown");
    // Nothing runs before the agent has recorded the process, and a destination not before its disks are its own.
    line.flag("-S");
    if beginning == Beginning::Incoming {
        line.option("-incoming", "defer");
    }
}

fn boot(line: &mut Line, definition: &Definition) {
    let Some(boot) = &definition.boot else { return };
    line.option("-kernel", boot.kernel.to_string_lossy());
    if let Some(initrd) = &boot.initrd {
        line.option("-initrd", initrd.to_string_lossy());
    }
    if let Some(append) = &boot.append {
        line.option("-append", append);
    }
}

fn serial(line: &mut Line, definition: &Definition, places: &Places) {
    if !definition.serial.enabled {
        return line.option("-serial", "none");
    }
    // Appended to: the agent cuts the log when it gets long, and QEMU must write on at the new end.
    let (socket, log) = (path_value(&places.serial()), path_value(&places.console_log()));
    let chardev = format!("socket,id=serial0,path={socket},server=on,wait=off,logfile={log},logappend=on");
    line.option("-chardev", chardev);
    line.option("-serial", "chardev:serial0");
}

fn disks(line: &mut Line, definition: &Definition, around: &Surroundings, bus: &str) {
    if definition.disks.iter().any(|disk| disk.bus == Bus::Scsi) {
        line.option("-device", format!("virtio-scsi-pci,id=scsi0,bus={bus},addr={SLOT_SCSI:#x}"));
    }
    for (index, disk) in definition.disks.iter().enumerate() {
        line.option("-blockdev", nbd_node(index, disk, around).to_string());
        line.option("-blockdev", raw_node(index).to_string());
        line.option("-device", disk_device(index, disk, bus));
    }
}

/// The connection to blockd. Also what `blockdev-reopen` is given when a disk's server is exchanged.
pub fn nbd_node(index: usize, disk: &Disk, around: &Surroundings) -> Value {
    let mut node = json!({
        "driver": "nbd",
        "node-name": disk_nbd_node(index),
        "server": { "type": "unix", "path": around.nbd_socket },
        "export": around.exports.get(index).unwrap_or(&disk.volume),
        "reconnect-delay": around.reconnect_delay_s,
        "cache": { "direct": true, "no-flush": false },
        "discard": "unmap",
    });
    if around.abilities.nbd_open_timeout {
        node["open-timeout"] = around.reconnect_delay_s.into();
    }
    node
}

fn raw_node(index: usize) -> Value {
    json!({
        "driver": "raw",
        "node-name": disk_id(index),
        "file": disk_nbd_node(index),
        "cache": { "direct": true, "no-flush": false },
        "discard": "unmap",
    })
}

fn disk_device(index: usize, disk: &Disk, bus: &str) -> String {
    let id = disk_id(index);
    let place = match disk.bus {
        Bus::Virtio => format!("virtio-blk-pci,bus={bus},addr={:#x}", disk_slot(index)),
        Bus::Scsi => format!("scsi-hd,bus=scsi0.0,channel=0,scsi-id=0,lun={index},device_id={id}"),
    };
    // A failing request stops the guest instead of reaching it: a fenced disk, and a move that is undone, are then not
    // noticed by it. Blocks of 4 KiB are what blockd keeps.
    let errors = "werror=stop,rerror=stop,share-rw=off,write-cache=on";
    let blocks = "logical_block_size=512,physical_block_size=4096";
    let serial = disk.serial.as_ref().map(|serial| format!(",serial={serial}")).unwrap_or_default();
    format!("{place},id={id},drive={id},{errors},{blocks},bootindex={}{serial}", index + 1)
}

fn nics(line: &mut Line, definition: &Definition, around: &Surroundings, bus: &str) {
    for (index, nic) in definition.nics.iter().enumerate() {
        line.option("-netdev", netdev(index, nic, around));
        let (id, slot) = (nic_id(index), nic_slot(index));
        let mac = nic.mac.as_deref().unwrap_or_default();
        // Without a boot ROM: its size is part of what a migration compares, and it comes from another package.
        line.option(
            "-device",
            format!("virtio-net-pci,id={id},netdev=net{index},mac={mac},bus={bus},addr={slot:#x},romfile="),
        );
    }
}

fn netdev(index: usize, nic: &Nic, around: &Surroundings) -> String {
    match &nic.backend {
        Backend::User => format!("user,id=net{index}"),
        Backend::Tap { ifname } => format!("tap,id=net{index},ifname={ifname},script=no,downscript=no"),
        Backend::Stream { path } => {
            let again = match (around.abilities.stream_reconnect_ms, around.abilities.stream_reconnect) {
                (true, _) => ",reconnect-ms=1000",
                (false, true) => ",reconnect=1",
                (false, false) => "",
            };
            format!("stream,id=net{index},server=off,addr.type=unix,addr.path={}{again}", path_value(path))
        }
        // A hub with nobody else: a card without any backend is warned about at each start.
        Backend::None => format!("hubport,id=net{index},hubid={index}"),
    }
}

#[cfg(test)]
mod tests;
