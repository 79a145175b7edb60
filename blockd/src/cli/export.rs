//! `blockctl export …`: how clients reach what is exported.

use crate::api::connections::ConnectionInfo;
use crate::api::types::ExportInfo;
use crate::exit_code;
use crate::failure::Failure;
use crate::size::Size;

use super::args::ExportCommand;
use super::context::{Context, Trying};
use super::{export_temporary, output, time};

pub(super) async fn run(context: &Context, command: ExportCommand) -> Result<(), Failure> {
    match command {
        ExportCommand::List => list(context).await,
        ExportCommand::Create(args) => export_temporary::create(context, args).await,
        ExportCommand::Remove { name } => export_temporary::remove(context, &name).await,
        ExportCommand::Show { name, libvirt, qemu } => {
            let export =
                context.client.export(&name).await.trying(|| format!("cannot show export {name}"))?;
            let write = if libvirt { libvirt_disk } else { qemu_arguments };
            match libvirt || qemu {
                true => {
                    let status = context.client.status().await;
                    let status = status.trying(|| format!("cannot show export {name}"))?;
                    output::line(snippet(&export, status.store.recent_log, write)?)
                }
                _ if context.for_people() => show(&export),
                _ => output::object(&export),
            }
        }
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let exports = context.client.exports().await.trying(|| "cannot list exports".to_owned())?;
    if !context.for_people() {
        return output::list(context.format, "exports", &exports);
    }
    let rows = exports.iter().map(|export| {
        vec![
            export.name.clone(),
            Size(export.size).to_string(),
            access(export),
            export.clients.to_string(),
            export.uri.clone().unwrap_or_else(|| "–".to_owned()),
        ]
    });
    output::table(&["NAME", "SIZE", "ACCESS", "CLIENTS", "URI"], &[1, 3], rows.collect())
}

fn show(export: &ExportInfo) -> Result<(), Failure> {
    let dash = || "–".to_owned();
    let mut rows = vec![
        ("name", export.name.clone()),
        ("size", format!("{}  ({} bytes)", Size(export.size), export.size)),
        ("access", access(export)),
        ("clients", export.clients.to_string()),
        ("unix", export.unix.clone().unwrap_or_else(dash)),
        ("tcp", export.tcp.clone().unwrap_or_else(dash)),
        ("uri", export.uri.clone().unwrap_or_else(dash)),
    ];
    if let Some(temporary) = &export.temporary {
        rows.push(("until", format!("{} UTC", time::utc(temporary.expires_ms))));
    }
    output::pairs(&rows)?;
    match export.connections.is_empty() {
        true => Ok(()),
        false => connections(&export.connections),
    }
}

fn access(export: &ExportInfo) -> String {
    let access = if export.read_only { "read-only" } else { "writable" };
    export.temporary.as_ref().map_or_else(|| access.to_owned(), export_temporary::access)
}

fn connections(connections: &[ConnectionInfo]) -> Result<(), Failure> {
    output::line("")?;
    let rows = connections.iter().map(|one| {
        vec![
            one.peer.clone(),
            one.identity.clone().unwrap_or_else(|| "–".to_owned()),
            one.export.clone(),
            if one.read_only { "read-only" } else { "writable" }.to_owned(),
            time::utc(one.since_ms),
            one.requests.to_string(),
            one.errors.to_string(),
            Size(one.read_bytes).to_string(),
            Size(one.written_bytes).to_string(),
            one.p99_us.map_or_else(|| "–".to_owned(), microseconds),
        ]
    });
    let head =
        ["CLIENT", "IDENTITY", "AS", "ACCESS", "SINCE", "REQUESTS", "ERRORS", "READ", "WRITTEN", "P99"];
    output::table(&head, &[5, 6, 7, 8, 9], rows.collect())
}

/// A bound that is a double of 16: `≤256us`, `≤4ms`, `≤2s`.
fn microseconds(bound: u64) -> String {
    match bound {
        u64::MAX => ">16s".to_owned(),
        0..10_000 => format!("≤{bound}us"),
        10_000..10_000_000 => format!("≤{}ms", bound / 1000),
        _ => format!("≤{}s", bound / 1_000_000),
    }
}

/// How a client reaches the daemon.
enum Address<'a> {
    Unix(&'a str),
    Tcp { host: &'a str, port: &'a str, tls: bool },
}

/// Where an export is reached; the socket on the same host first.
fn address(export: &ExportInfo) -> Option<Address<'_>> {
    if let Some(path) = &export.unix {
        return Some(Address::Unix(path));
    }
    let (host, port) = export.tcp.as_deref()?.rsplit_once(':')?;
    // With TCP alone the URI is of it.
    let tls = export.uri.as_deref().is_some_and(|uri| uri.starts_with("nbds:"));
    Some(Address::Tcp { host: host.trim_matches(['[', ']']), port, tls })
}

/// Whether the guest's disk may have a volatile cache. What the guest has not flushed must be lost only with the guest
/// itself: not with a daemon that leaves nothing behind, and not with the power of a host that is not the guest's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GuestCache {
    Volatile,
    None,
}

fn snippet(
    export: &ExportInfo,
    recent_log: bool,
    write: fn(&ExportInfo, &Address<'_>, GuestCache) -> String,
) -> Result<String, Failure> {
    let unreachable = || {
        Failure::new(
            exit_code::UNREACHABLE,
            format!("cannot say how to reach {}", export.name),
            "the daemon knows no address of its NBD sockets",
            "blockd serve --help    (nbd_unix, nbd_listen)",
        )
    };
    let address = address(export).ok_or_else(unreachable)?;
    let cache = match address {
        Address::Unix(_) if recent_log => GuestCache::Volatile,
        _ => GuestCache::None,
    };
    Ok(write(export, &address, cache))
}

/// A guest pauses instead of seeing errors (`error_policy`), and finds a restarted daemon again (`reconnect`).
fn libvirt_disk(export: &ExportInfo, address: &Address<'_>, cache: GuestCache) -> String {
    let cache = if cache == GuestCache::Volatile { "none" } else { "directsync" };
    let host = match address {
        Address::Unix(path) => format!("<host transport='unix' socket='{}'/>", xml(path)),
        Address::Tcp { host, port, .. } => format!("<host name='{}' port='{port}'/>", xml(host)),
    };
    // libvirt looks for the client's certificate where its qemu.conf says (nbd_tls_x509_cert_dir).
    let tls = if matches!(address, Address::Tcp { tls: true, .. }) { " tls='yes'" } else { "" };
    let read_only = if export.read_only { "\n  <readonly/>" } else { "" };
    format!(
        "<disk type='network' device='disk'>
  <driver name='qemu' type='raw' cache='{cache}' discard='unmap' error_policy='stop' rerror_policy='stop'/>
  <source protocol='nbd' name='{}'{tls}>
    {host}
    <reconnect delay='300'/>
  </source>
  <target dev='vda' bus='virtio'/>{read_only}
</disk>",
        xml(&export.name)
    )
}

fn qemu_arguments(export: &ExportInfo, address: &Address<'_>, cache: GuestCache) -> String {
    let cache = if cache == GuestCache::Volatile { "on" } else { "off" };
    let server = match address {
        Address::Unix(path) => format!("server.type=unix,server.path={}", commas(path)),
        Address::Tcp { host, port, .. } => format!("server.type=inet,server.host={host},server.port={port}"),
    };
    let mut block = format!("driver=nbd,node-name=disk0,{server},export={}", commas(&export.name));
    let mut object = "";
    if let Address::Tcp { tls: true, .. } = address {
        // The directory that `blockctl client create` has made, wherever it is on the client's host.
        object = "-object tls-creds-x509,id=tls0,dir=DIR,endpoint=client \\\n";
        block.push_str(",tls-creds=tls0");
    }
    if export.read_only {
        block.push_str(",read-only=on");
    }
    block.push_str(",reconnect-delay=300,discard=unmap,cache.direct=on");
    format!(
        "{object}-blockdev '{block}' \\\n-device virtio-blk-pci,drive=disk0,write-cache={cache},werror=stop,rerror=stop"
    )
}

/// A value in QEMU's option syntax: commas are doubled.
fn commas(text: &str) -> String {
    text.replace(',', ",,")
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(name: &str, read_only: bool, unix: Option<&str>, tcp: Option<&str>) -> ExportInfo {
        ExportInfo {
            name: name.to_owned(),
            size: 1 << 30,
            read_only,
            clients: 0,
            unix: unix.map(str::to_owned),
            tcp: tcp.map(str::to_owned),
            uri: None,
            temporary: None,
            connections: Vec::new(),
        }
    }

    #[test]
    fn over_tls_clients_are_told_of_certificates() {
        let uri = Some("nbds://10.0.0.1:10809/web".to_owned());
        let web = ExportInfo { uri, ..export("web", false, None, Some("10.0.0.1:10809")) };
        let text = snippet(&web, true, qemu_arguments).unwrap();
        assert!(
            text.starts_with("-object tls-creds-x509,id=tls0,dir=DIR,endpoint=client \\\n-blockdev"),
            "{text}"
        );
        assert!(text.contains("export=web,tls-creds=tls0,reconnect"), "{text}");
        let text = snippet(&web, true, libvirt_disk).unwrap();
        assert!(text.contains("<source protocol='nbd' name='web' tls='yes'>"), "{text}");
        let plain = export("web", false, None, Some("10.0.0.1:10809"));
        assert!(!snippet(&plain, true, qemu_arguments).unwrap().contains("tls"));
    }

    #[test]
    fn libvirt_gets_a_disk_element() {
        let web = export("web", false, Some("/run/it's/nbd.sock"), None);
        let text = snippet(&web, true, libvirt_disk).unwrap();
        assert!(text.contains("<host transport='unix' socket='/run/it&apos;s/nbd.sock'/>"), "{text}");
        assert!(text.contains("error_policy='stop' rerror_policy='stop'"), "{text}");
        assert!(!text.contains("<readonly/>"), "{text}");
    }

    #[test]
    fn qemu_gets_arguments() {
        let web = export("web@a", true, None, Some("[::1]:10809"));
        let text = snippet(&web, true, qemu_arguments).unwrap();
        assert!(text.contains("server.host=::1,server.port=10809,export=web@a,read-only=on"), "{text}");
        assert!(text.contains("reconnect-delay=300"), "{text}");
    }

    #[test]
    fn the_documentation_shows_what_is_printed() {
        let web = export("web", false, Some("/run/blockd/nbd.sock"), None);
        let page = include_str!("../../../docs/operating.md");
        for write in [libvirt_disk, qemu_arguments] {
            let text = snippet(&web, true, write).unwrap();
            assert!(page.contains(&text), "docs/operating.md lacks:\n{text}");
        }
    }

    #[test]
    fn without_an_address_nothing_is_made_up() {
        assert_eq!(snippet(&export("web", false, None, None), true, libvirt_disk).unwrap_err().code, 7);
    }

    #[test]
    fn a_guest_has_a_cache_only_where_it_goes_with_the_guest() {
        let (unix, tcp) = (Some("/run/blockd/nbd.sock"), Some("10.0.0.1:10809"));
        for (unix, tcp, recent_log, cache, write_cache) in [
            (unix, None, true, "cache='none'", "write-cache=on"),
            (unix, None, false, "cache='directsync'", "write-cache=off"),
            (None, tcp, true, "cache='directsync'", "write-cache=off"),
        ] {
            let web = export("web", false, unix, tcp);
            assert!(snippet(&web, recent_log, libvirt_disk).unwrap().contains(cache));
            assert!(snippet(&web, recent_log, qemu_arguments).unwrap().contains(write_cache));
        }
    }
}
