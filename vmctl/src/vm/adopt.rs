//! From a running QEMU back to a definition: what its monitor tells, what it cannot tell, and what makes the VM unfit for a
//! move. Nothing is guessed: what is not known is named.

use std::path::Path;

use serde_json::Value;

use super::definition::{Bus, Definition, Disk, Nic, Serial};
use super::machine::is_versioned;
use super::name::VmName;
use crate::error::{Error, Kind};
use crate::journal::Adopted;
use crate::qmp::types::BlockDevice;
use crate::qmp::{Client, shown};
use crate::size::Size;

/// The guest's devices that have names of their own.
const PERIPHERAL: &str = "/machine/peripheral";
/// Those that have none.
const PERIPHERAL_ANON: &str = "/machine/peripheral-anon";
/// Devices of one VM that are looked at.
const DEVICES_MAX: usize = 256;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As far as it is known.
    pub definition: Definition,
    /// What is not, and what is in the way of a move.
    pub adopted: Adopted,
}

/// Asks a QEMU what it runs. `nbd_socket` is blockd's: disks elsewhere are none of ours.
///
/// # Errors
/// The monitor does not answer, or the VM has a name that is none for us and `name` gives no other.
pub async fn look(qmp: &Client, nbd_socket: &Path, name: Option<&VmName>) -> Result<Found, Error> {
    let mut adopted = Adopted::default();
    let name = match name {
        Some(name) => name.clone(),
        None => own_name(qmp.query_name().await?.as_deref())?,
    };
    let memory = qmp.query_memory().await?;
    let machine = machine(qmp, &mut adopted).await?;
    let disks = disks(qmp, nbd_socket, &mut adopted).await?;
    let nics = nics(qmp, &mut adopted).await?;
    let definition = Definition {
        name,
        memory: Size(memory.base),
        vcpus: u32::try_from(qmp.query_vcpus().await?).unwrap_or(u32::MAX),
        machine: Some(machine),
        cpu: None,
        boot: None,
        serial: Serial { enabled: false },
        disks,
        nics,
    };
    if memory.plugged > 0 {
        adopted.unfit.push("memory was plugged in later".to_owned());
    }
    for what in ["the processor's model and its features", "how it boots", "its serial console"] {
        adopted.unknown.push(what.to_owned());
    }
    definition.check()?;
    Ok(Found { definition, adopted })
}

fn own_name(name: Option<&str>) -> Result<VmName, Error> {
    let next = "vmctl vm adopt SOCKET --name NAME";
    let Some(name) = name else {
        return Err(Error::one_line(Kind::BadName, "it was started without a name (-name)").with_next(next));
    };
    name.parse().map_err(|why: String| Error::one_line(Kind::BadName, why).with_next(next))
}

async fn machine(qmp: &Client, adopted: &mut Adopted) -> Result<String, Error> {
    let kind = qmp.qom_get("/machine", "type").await?;
    let kind = kind.as_str().unwrap_or_default();
    let name = kind.strip_suffix("-machine").unwrap_or(kind);
    if !is_versioned(name) {
        adopted.unfit.push(format!("its machine type {:?} is not versioned", shown(name)));
    }
    Ok(name.to_owned())
}

async fn disks(qmp: &Client, nbd_socket: &Path, adopted: &mut Adopted) -> Result<Vec<Disk>, Error> {
    let nodes = qmp.query_named_block_nodes().await?;
    let mut disks = Vec::new();
    for device in qmp.query_block().await? {
        let id = device_id(&device);
        let Some(inserted) = &device.inserted else {
            adopted.unknown.push(format!("drive {id}: it is empty"));
            continue;
        };
        if inserted.read_only {
            adopted.unfit.push(format!("disk {id} is read-only"));
        }
        // A format driver on top has the same file as the connection below it.
        let file = nodes.iter().find(|node| node.driver == "nbd" && node.file == inserted.file);
        match file.and_then(|node| export_on(&node.file, nbd_socket)) {
            Some(volume) => {
                check_errors(qmp, &device, &id, adopted).await;
                disks.push(Disk { volume, bus: bus_of(qmp, &device).await, serial: None });
            }
            None => adopted
                .unfit
                .push(format!("disk {id} is not on this host's blockd: {}", shown(&inserted.file))),
        }
    }
    if !disks.is_empty() {
        adopted.unknown.push("serial numbers of its disks".to_owned());
    }
    Ok(disks)
}

fn device_id(device: &BlockDevice) -> String {
    let path = device.qdev.as_deref().unwrap_or(&device.device);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let name =
        parts.iter().rev().find(|part| **part != "virtio-backend").copied().unwrap_or("without a name");
    shown(name)
}

/// The QOM object that has the properties of a disk: what virtio plugs in carries them itself.
fn qom_path(device: &BlockDevice) -> Option<&str> {
    device.qdev.as_deref().map(|path| path.strip_suffix("/virtio-backend").unwrap_or(path))
}

async fn check_errors(qmp: &Client, device: &BlockDevice, id: &str, adopted: &mut Adopted) {
    let Some(path) = qom_path(device) else {
        return adopted.unknown.push(format!("disk {id}: what the guest sees of errors"));
    };
    for policy in ["werror", "rerror"] {
        match qmp.qom_get(path, policy).await {
            Ok(Value::String(value)) if value == "stop" => {}
            Ok(value) => {
                let value = shown(value.as_str().unwrap_or("?"));
                adopted
                    .unfit
                    .push(format!("disk {id} has {policy}={value}, not stop: a fenced guest sees errors"));
            }
            Err(error) => adopted.unknown.push(format!("disk {id}: {policy} ({error})")),
        }
    }
}

async fn bus_of(qmp: &Client, device: &BlockDevice) -> Bus {
    let Some(path) = qom_path(device) else { return Bus::Virtio };
    match qmp.qom_get(path, "type").await {
        Ok(Value::String(kind)) if kind.starts_with("scsi") => Bus::Scsi,
        _ => Bus::Virtio,
    }
}

/// The export's name, if that is blockd's socket: `nbd+unix:///web1?socket=/run/…` is what QEMU calls it.
fn export_on(file: &str, nbd_socket: &Path) -> Option<String> {
    if let Some(json) = file.strip_prefix("json:") {
        return export_in_json(json, nbd_socket);
    }
    let (export, query) = file.strip_prefix("nbd+unix:///")?.split_once('?')?;
    let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="))?;
    let same = is_same_socket(Path::new(&unescape(socket)?), nbd_socket);
    same.then(|| unescape(export))?.map(volume_of)
}

fn export_in_json(json: &str, nbd_socket: &Path) -> Option<String> {
    let value: Value = serde_json::from_str(json).ok()?;
    // Nested when a format driver has no shorter form, flat for the connection itself.
    let node = value.get("file").filter(|file| file.is_object()).unwrap_or(&value);
    let text = |key: &str| node.get(key).and_then(Value::as_str);
    let server = node.get("server").and_then(|server| server.get("path")).and_then(Value::as_str);
    let path = server.or_else(|| text("server.path")).or_else(|| text("path"))?;
    is_same_socket(Path::new(path), nbd_socket)
        .then(|| text("export").map(|name| volume_of(name.to_owned())))?
}

/// The volume of an export: `web1:7` is `web1` in its seventh epoch.
fn volume_of(export: String) -> String {
    match export.split_once(':') {
        Some((volume, _)) => volume.to_owned(),
        None => export,
    }
}

fn is_same_socket(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}

/// Undoes `%XX`.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digits = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
                tail
            }
            (b'%', _) => return None,
            (byte, tail) => {
                bytes.push(*byte);
                tail
            }
        };
    }
    String::from_utf8(bytes).ok()
}

async fn nics(qmp: &Client, adopted: &mut Adopted) -> Result<Vec<Nic>, Error> {
    let mut nics = Vec::new();
    for parent in [PERIPHERAL, PERIPHERAL_ANON] {
        for property in qmp.qom_list(parent).await?.into_iter().take(DEVICES_MAX) {
            let Some(kind) = property.kind.strip_prefix("child<").and_then(|kind| kind.strip_suffix('>'))
            else {
                continue;
            };
            let path = format!("{parent}/{}", property.name);
            match qmp.qom_get(&path, "mac").await {
                Ok(Value::String(mac)) => {
                    if !kind.starts_with("virtio-net") {
                        adopted.unfit.push(format!(
                            "network card {} is a {}",
                            shown(&property.name),
                            shown(kind)
                        ));
                    }
                    adopted
                        .unknown
                        .push(format!("what network card {} is connected with", shown(&property.name)));
                    let mac = Some(mac.to_ascii_lowercase());
                    nics.push(Nic { mac, backend: super::definition::Backend::None });
                }
                Ok(_) => {}
                Err(error) if error.is_connected() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(nics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exports_of_our_blockd_are_volumes() {
        let socket = Path::new("/run/blockd/nbd.sock");
        let found = |file: &str| export_on(file, socket);
        assert_eq!(found("nbd+unix:///web1?socket=/run/blockd/nbd.sock").as_deref(), Some("web1"));
        assert_eq!(found("nbd+unix:///a%2Eb?x=1&socket=%2Frun/blockd/nbd.sock").as_deref(), Some("a.b"));
        let nested = r#"json:{"driver":"raw","file":{"driver":"nbd","export":"web1","server":{"type":"unix","path":"/run/blockd/nbd.sock"}}}"#;
        assert_eq!(found(nested).as_deref(), Some("web1"));
        let flat = r#"json:{"server.path":"/run/blockd/nbd.sock","driver":"nbd","export":"web1","server.type":"unix"}"#;
        assert_eq!(found(flat).as_deref(), Some("web1"));
        for other in [
            "nbd+unix:///web1?socket=/tmp/x",
            "/var/disk.qcow2",
            "nbd://host/web1",
            "json:{",
            "nbd+unix:///a%2?socket=%",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn a_disk_is_called_what_its_device_is() {
        let device = |qdev: &str| BlockDevice {
            device: String::new(),
            qdev: Some(qdev.to_owned()),
            io_status: None,
            inserted: None,
        };
        assert_eq!(device_id(&device("/machine/peripheral/disk0/virtio-backend")), "disk0");
        assert_eq!(device_id(&device("/machine/peripheral/cd")), "cd");
        assert_eq!(device_id(&device("")), "without a name");
    }
}
