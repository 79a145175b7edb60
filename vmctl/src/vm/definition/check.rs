//! What a definition may say.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Backend, Boot, DISKS_MAX, Definition, DefinitionError, Disk, NICS_MAX, Nic};

/// Least memory that firmware and a kernel get along with.
const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// Most memory: 16 TiB, beyond what QEMU's machines address.
const MEMORY_BYTES_MAX: u64 = 16 << 40;
/// Most processors of a q35.
const VCPUS_MAX: u32 = 255;
/// Longest serial number that virtio-blk shows.
const SERIAL_BYTES_MAX: usize = 20;
/// Longest kernel command line.
const APPEND_BYTES_MAX: usize = 2047;
/// Longest name of a network device in Linux.
const IFNAME_BYTES_MAX: usize = 15;
/// Longest path of a Unix socket.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

type Checked = Result<(), DefinitionError>;

fn refuse(place: impl Into<String>, reason: impl Into<String>) -> Checked {
    Err(DefinitionError::new(place, reason))
}

pub(super) fn check(definition: &Definition) -> Checked {
    check_memory(definition.memory.0)?;
    if !(1..=VCPUS_MAX).contains(&definition.vcpus) {
        return refuse("vcpus", format!("{} is not in 1 to {VCPUS_MAX}", definition.vcpus));
    }
    check_word("machine", definition.machine.as_deref(), "._-")?;
    // Commas, equal signs and plus signs: features are part of a model, as in max,pmu=off.
    check_word("cpu", definition.cpu.as_deref(), "._-,=+")?;
    definition.boot.as_ref().map_or(Ok(()), check_boot)?;
    check_disks(&definition.disks)?;
    check_nics(&definition.nics)
}

fn check_memory(bytes: u64) -> Checked {
    if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) {
        return refuse("memory", format!("{bytes} bytes are not in 16MiB to 16TiB"));
    }
    if !bytes.is_multiple_of(1 << 20) {
        return refuse("memory", format!("{bytes} bytes are no multiple of 1MiB"));
    }
    Ok(())
}

fn check_word(place: &str, word: Option<&str>, marks: &str) -> Checked {
    let Some(word) = word else { return Ok(()) };
    let plain = |c: char| c.is_ascii_alphanumeric() || marks.contains(c);
    if word.is_empty()
        || word.len() > 255
        || !word.chars().all(plain)
        || !word.starts_with(char::is_alphanumeric)
    {
        return refuse(place, format!("{word:?} has characters that no {place} has"));
    }
    Ok(())
}

fn check_boot(boot: &Boot) -> Checked {
    check_path("boot.kernel", &boot.kernel)?;
    boot.initrd.as_deref().map_or(Ok(()), |initrd| check_path("boot.initrd", initrd))?;
    let append = boot.append.as_deref().unwrap_or_default();
    if append.len() > APPEND_BYTES_MAX || append.chars().any(char::is_control) {
        return refuse("boot.append", "is no kernel command line: one line of at most 2047 bytes");
    }
    Ok(())
}

fn check_path(place: &str, path: &Path) -> Checked {
    let Some(text) = path.to_str() else { return refuse(place, "is no text") };
    if !path.is_absolute() {
        return refuse(
            place,
            format!("{text:?} is not absolute: the agent stands in another directory than you"),
        );
    }
    if text.chars().any(char::is_control) {
        return refuse(place, "has control characters");
    }
    Ok(())
}

fn check_disks(disks: &[Disk]) -> Checked {
    if disks.len() > DISKS_MAX {
        return refuse("disk", format!("{} disks, at most {DISKS_MAX}", disks.len()));
    }
    let mut volumes = BTreeSet::new();
    let mut serials = BTreeSet::new();
    for (index, disk) in disks.iter().enumerate() {
        let place = |key: &str| format!("disk[{index}].{key}");
        if !is_volume_name(&disk.volume) {
            let reason = format!(
                "{:?} is no name of a volume: 1 to 255 of A-Z a-z 0-9 . _ -, not beginning with . or -",
                disk.volume
            );
            return refuse(place("volume"), reason);
        }
        if !volumes.insert(&disk.volume) {
            return refuse(place("volume"), format!("{:?} is the volume of another disk, too", disk.volume));
        }
        let Some(serial) = &disk.serial else { continue };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=SERIAL_BYTES_MAX).contains(&serial.len()) || !serial.bytes().all(plain) {
            return refuse(place("serial"), format!("{serial:?} is not 1 to 20 of A-Z a-z 0-9 . _ -"));
        }
        if !serials.insert(serial) {
            return refuse(place("serial"), format!("{serial:?} is the serial of another disk, too"));
        }
    }
    Ok(())
}

/// As blockd has them.
fn is_volume_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with(['.', '-'])
}

fn check_nics(nics: &[Nic]) -> Checked {
    if nics.len() > NICS_MAX {
        return refuse("nic", format!("{} network cards, at most {NICS_MAX}", nics.len()));
    }
    let mut macs = BTreeSet::new();
    for (index, nic) in nics.iter().enumerate() {
        let place = |key: &str| format!("nic[{index}].{key}");
        check_backend(&place("backend"), &nic.backend)?;
        let Some(mac) = &nic.mac else { continue };
        if let Err(reason) = check_mac(mac) {
            return refuse(place("mac"), reason);
        }
        if !macs.insert(mac.to_ascii_lowercase()) {
            return refuse(place("mac"), format!("{mac:?} is the address of another card, too"));
        }
    }
    Ok(())
}

fn check_mac(mac: &str) -> Result<(), String> {
    let parts: Vec<&str> = mac.split(':').collect();
    let two_digits = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    if parts.len() != 6 || !parts.iter().all(two_digits) {
        return Err(format!("{mac:?} is no address: six pairs of hex digits, as in 52:54:00:12:34:56"));
    }
    let first = u8::from_str_radix(parts[0], 16).unwrap_or(1);
    if first & 1 != 0 {
        return Err(format!("{mac:?} is a multicast address: the first pair must be even"));
    }
    if parts.iter().all(|part| *part == "00") {
        return Err(format!("{mac:?} is nobody's address"));
    }
    Ok(())
}

fn check_backend(place: &str, backend: &Backend) -> Checked {
    match backend {
        Backend::User | Backend::None => Ok(()),
        Backend::Tap { ifname } => {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if (1..=IFNAME_BYTES_MAX).contains(&ifname.len()) && ifname.bytes().all(plain) {
                return Ok(());
            }
            refuse(format!("{place}.tap.ifname"), format!("{ifname:?} is no name of a network device"))
        }
        Backend::Stream { path } => {
            let place = format!("{place}.stream.path");
            check_path(&place, path)?;
            if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                return refuse(place, "is longer than a Unix socket's path: at most 107 bytes");
            }
            Ok(())
        }
    }
}
