//! `blockctl client …`: NBD clients over TCP, and their certificates.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use crate::api::clients::{CreateClient, CreatedClient};
use crate::events::now_ms;
use crate::exit_code;
use crate::failure::Failure;
use crate::peer::NbdClient;

use super::args::{Sure, volume_name};
use super::context::{Context, Trying};
use super::volume::{Changed, Plan};
use super::{output, time};

/// NBD clients over TCP, which show a certificate.
#[derive(Subcommand, Debug)]
pub enum ClientCommand {
    /// Make a certificate for a client, as QEMU, libnbd and nbd-client take it: ca-cert.pem, client-cert.pem,
    /// client-key.pem.
    #[command(
        after_help = "Examples:\n  blockctl client create web1 --out /root/web1-pki      (copy it to the hypervisor, then remove it here)\n  blockctl client create web1 --out DIR --days 30\n\nWhat it may see and write is said by [[nbd_access]] in the configuration; without any: all, and write."
    )]
    Create {
        /// Whom it names: a host, a person, a guest.
        #[arg(value_parser = volume_name)]
        name: String,
        /// Directory for the three files; made if it does not exist. A client's files that are there already are left
        /// alone.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Days it is good for.
        #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// The certificates that were made.
    #[command(visible_alias = "ls", after_help = "Example:\n  blockctl client list")]
    List,
    /// Let a client in no more, whichever of its certificates it shows, and end its connections.
    #[command(
        after_help = "Examples:\n  blockctl client revoke web1 --plan\n  blockctl client revoke web1 --yes"
    )]
    Revoke {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
        /// How sure you are.
        #[command(flatten)]
        sure: Sure,
    },
}

pub(super) async fn run(context: &Context, command: ClientCommand) -> Result<(), Failure> {
    match command {
        ClientCommand::Create { name, out, days } => create(context, name, &out, days).await,
        ClientCommand::List => list(context).await,
        ClientCommand::Revoke { name, sure } => revoke(context, &name, sure).await,
    }
}

/// What `create` tells programs.
#[derive(Serialize)]
struct Created<'a> {
    action: &'static str,
    client: &'a NbdClient,
    directory: &'a Path,
    tcp: Option<&'a str>,
}

async fn create(context: &Context, name: String, out: &Path, days: u32) -> Result<(), Failure> {
    let unwritten = |error: &io::Error| {
        let what = format!("cannot write certificates to {}", out.display());
        Failure::new(exit_code::FAILED, what, error, format!("ls -ld {}", out.display()))
    };
    // Before the certificate is made: there may be no second chance to write the key down.
    let key_file = prepare(out).map_err(|error| unwritten(&error))?;
    let wanted = CreateClient { name: name.clone(), days };
    let made = context.client.create_nbd_client(&wanted).await;
    let made = match made.trying(|| format!("cannot make a certificate for {name}")) {
        Ok(made) => made,
        Err(failure) => {
            drop(key_file);
            fs::remove_file(out.join(KEY)).map_err(|error| unwritten(&error))?;
            return Err(failure);
        }
    };
    write(out, key_file, &made).map_err(|error| unwritten(&error))?;
    if !context.for_people() {
        let tcp = made.tcp.as_deref();
        return output::object(&Created { action: "created", client: &made.client, directory: out, tcp });
    }
    for line in advice(out, &made) {
        output::line(line)?;
    }
    Ok(())
}

const KEY: &str = "client-key.pem";
const CERTIFICATE: &str = "client-cert.pem";
const CA: &str = "ca-cert.pem";

/// The directory, and in it the file of the key, which must not be there yet: readable for its owner only, from the
/// first moment on.
fn prepare(out: &Path) -> io::Result<File> {
    match DirBuilder::new().mode(0o700).create(out) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::options().write(true).create_new(true).mode(0o600).open(out.join(KEY))
}

fn write(out: &Path, mut key: File, made: &CreatedClient) -> io::Result<()> {
    key.write_all(made.key.as_bytes())?;
    key.sync_all()?;
    for (name, text) in [(CERTIFICATE, &made.certificate), (CA, &made.ca)] {
        let mut file = File::create(out.join(name))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    File::open(out)?.sync_all()
}

fn advice(out: &Path, made: &CreatedClient) -> Vec<String> {
    let dir = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    let dir = dir.display();
    let until = time::utc(made.client.until_ms);
    let mut lines =
        vec![format!("{dir}: certificate and key of {}, good until {until} UTC", made.client.name)];
    match &made.tcp {
        Some(_) if !made.used => {
            lines.push("this daemon lets nobody in with it: see insecure_tcp and nbd_tls_dir".to_owned());
        }
        None => lines.push("this daemon does not listen over TCP: see nbd_listen".to_owned()),
        Some(address) => lines.extend(commands(&dir.to_string(), address)),
    }
    lines
}

/// Ready to be typed where the directory was copied to, under the same path.
fn commands(dir: &str, address: &str) -> Vec<String> {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "10809"));
    let host = match host {
        "0.0.0.0" | "[::]" => "HOST",
        host => host,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    vec![
        "For EXPORT on a host that has this directory:".to_owned(),
        format!("  nbdinfo \"nbds://{host}:{port}/EXPORT?tls-certificates={dir}\""),
        format!("  qemu-system-x86_64 -object tls-creds-x509,id=tls0,dir={dir},endpoint=client \\"),
        format!(
            "    -blockdev driver=nbd,node-name=disk,server.type=inet,server.host={bare},server.port={port},export=EXPORT,tls-creds=tls0 …"
        ),
        format!(
            "  nbd-client {bare} {port} /dev/nbd0 -N EXPORT -tlshostname {bare} -certfile {dir}/{CERTIFICATE} -keyfile {dir}/{KEY} -cacertfile {dir}/{CA}"
        ),
    ]
}

/// What is to be said of a certificate.
fn state(client: &NbdClient, now_ms: u64) -> &'static str {
    match client.revoked_ms {
        Some(_) => "revoked",
        None if client.until_ms <= now_ms => "ended",
        None => "good",
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let clients = context.client.nbd_clients().await.trying(|| "cannot list clients".to_owned())?.clients;
    if !context.for_people() {
        return output::list(context.format, "clients", &clients);
    }
    let now = now_ms();
    let rows = clients.iter().map(|client| {
        vec![
            client.name.clone(),
            state(client, now).to_owned(),
            time::utc(client.created_ms),
            time::utc(client.until_ms),
            client.fingerprint.chars().take(16).collect(),
        ]
    });
    output::table(&["NAME", "STATE", "MADE (UTC)", "UNTIL (UTC)", "FINGERPRINT"], &[], rows.collect())
}

async fn revoke(context: &Context, name: &str, sure: Sure) -> Result<(), Failure> {
    let loss = "its connections would end at once, and it would need a new certificate to come back";
    if sure.plan {
        let would = format!("would let client {name} in no more: {loss}");
        let blocked_code = exit_code::REFUSED;
        return Plan { action: "revoked", name, would, obstacles: Vec::new(), blocked_code }.tell(context);
    }
    context.confirm(sure, "client revoke", loss, name)?;
    let done = context.client.revoke_nbd_client(name).await;
    done.trying(|| format!("cannot revoke client {name}"))?;
    Changed::new("revoked", name)
        .tell(context, &format!("{name} is let in no more; its connections are closed"))
}
