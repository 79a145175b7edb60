//! Where each device is plugged in. A migration loads devices by their places: both sides must build the same tree, also
//! when one of them is a later QEMU that would choose other slots by itself.
//!
//! ```text
//! slot  0x00 host bridge   0x01 left to the machine   0x02 SCSI controller   0x03–0x0e disks   0x10–0x17 network cards
//!       0x1d pvpanic       0x1f left to the machine
//! ```
//!
//! Each kind has a range of its own: a disk more does not move a network card.

use super::definition::{DISKS_MAX, NICS_MAX};

/// The SCSI controller's slot.
pub const SLOT_SCSI: usize = 0x02;
/// The first disk's slot.
const SLOT_DISKS: usize = 0x03;
/// The first network card's slot.
const SLOT_NICS: usize = 0x10;
/// The slot of the device through which a guest tells that it panicked.
pub const SLOT_PANIC: usize = 0x1d;

const _: () = assert!(SLOT_DISKS + DISKS_MAX <= SLOT_NICS && SLOT_NICS + NICS_MAX <= SLOT_PANIC);

/// The slot of a disk on virtio.
pub fn disk_slot(index: usize) -> usize {
    SLOT_DISKS + index
}

/// The slot of a network card.
pub fn nic_slot(index: usize) -> usize {
    SLOT_NICS + index
}

/// A disk's device, and its node's name in the block layer.
pub fn disk_id(index: usize) -> String {
    format!("disk{index}")
}

/// The node of a disk's connection to its server; below [`disk_id`], so that it can be exchanged.
pub fn disk_nbd_node(index: usize) -> String {
    format!("disk{index}-nbd")
}

/// A network card's device.
pub fn nic_id(index: usize) -> String {
    format!("nic{index}")
}
