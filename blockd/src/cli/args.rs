//! What may be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::SOCKET_DEFAULT;
use crate::control::{SnapshotName, is_valid_name};
use crate::size::Size;

use super::archive::ArchiveCommand;
use super::export_temporary::CreateArgs;
use super::follow::SyncArgs;
use super::job::JobCommand;
use super::keep::PruneArgs;
use super::scrub::RepairArgs;

const EXAMPLES: &str = "\
Examples:
  blockctl volume create web --size 64GiB
      a thin volume; its NBD export has the same name
  blockctl export show web --libvirt
      how to attach it
  blockctl snapshot create web@monday db@monday
      one instant across both
  blockctl volume import web disk.qcow2
      from an image in any format that qemu-img knows

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 busy, 5 refused, 6 partial, 7 unreachable,
8 verification failed.";

/// Volumes, snapshots and clones of the blockd on this host.
#[derive(Parser, Debug)]
#[command(name = "blockctl", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Socket of the daemon.
    #[arg(long, global = true, value_name = "PATH", env = "BLOCKD_SOCKET", default_value = SOCKET_DEFAULT)]
    pub socket: PathBuf,

    /// How results are written: for people, as one JSON object, or as one object a line.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub output: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One object.
    Json,
    /// One object a line.
    Jsonl,
}

/// What can be done.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Disks.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Frozen states of disks.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make a new volume that begins as a snapshot; at once, sharing its space.
    #[command(after_help = "Example:\n  blockctl clone golden@v1 web7")]
    Clone(CloneArgs),
    /// What NBD clients can open.
    #[command(subcommand)]
    Export(ExportCommand),
    /// Volumes whose writes go to another host, too, while they are moved there.
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// What is replicated by itself, how old each copy is, and what is kept.
    #[command(subcommand)]
    Job(JobCommand),
    /// Bring volumes to other hosts: once, or again and again. Needs no configuration.
    #[command(
        after_help = "Examples:\n  blockctl sync web --to B\n  blockctl sync web --to B --to C\n  blockctl sync web-sys web-data --to B --every 30s\n  blockctl sync web --to B --plan"
    )]
    Sync(Box<SyncArgs>),
    /// Snapshots in S3 or a directory.
    #[command(subcommand)]
    Archive(ArchiveCommand),
    /// NBD clients over TCP: their certificates.
    #[command(subcommand)]
    Client(super::client::ClientCommand),
    /// Other hosts: pairing, trust.
    #[command(subcommand)]
    Host(super::host::HostCommand),
    /// Copies of other hosts' volumes: their age, promotion, the way back.
    #[command(subcommand)]
    Replica(super::replica::ReplicaCommand),
    /// One page about the daemon and its store.
    #[command(after_help = "Example:\n  blockctl status\n  blockctl status -o json")]
    Status,
    /// The same, with rates, again and again; Ctrl-C ends it.
    #[command(after_help = "Example:\n  blockctl top\n  blockctl top --once\n  blockctl top -o jsonl")]
    Top(TopArgs),
    /// One line for monitors; exit code 0 ok, 1 warning, 2 critical.
    #[command(after_help = "Example:\n  blockctl check")]
    Check,
    /// What happened lately.
    #[command(after_help = "Example:\n  blockctl events -f\n  blockctl events -o jsonl")]
    Events(EventsArgs),
    /// Counters and lags in Prometheus' text format.
    #[command(after_help = "Example:\n  blockctl metrics")]
    Metrics,
    /// Read all snapshots (or one volume's) and compare them with their recorded hashes.
    #[command(
        after_help = "Examples:\n  blockctl scrub\n  blockctl scrub web\n  blockctl scrub --repair          from hosts that have it, too\n  blockctl scrub web --repair=B    from that one\n\nOnly what a recorded hash says is right is written, and only into snapshots."
    )]
    Scrub {
        /// Only this volume's snapshots.
        #[arg(value_name = "NAME", value_parser = volume_name)]
        volume: Option<String>,
        /// What is damaged.
        #[command(flatten)]
        repair: RepairArgs,
    },
    /// Write a shell's completion script.
    #[command(
        after_help = "Example:\n  blockctl completion bash > /usr/share/bash-completion/completions/blockctl"
    )]
    Completion {
        /// The shell.
        shell: Shell,
    },
}

/// Volumes.
#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    /// Make a volume of zeroes. It takes space as it is written.
    #[command(after_help = "Example:\n  blockctl volume create web --size 64GiB")]
    Create {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
        /// Its size: bytes, or a number with K, M, G or T.
        #[arg(long)]
        size: Size,
    },
    /// All volumes.
    #[command(visible_alias = "ls", after_help = "Example:\n  blockctl volume list -o jsonl")]
    List,
    /// One volume.
    #[command(after_help = "Example:\n  blockctl volume show web")]
    Show {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// Grow a volume. Connected clients see it when they reconnect.
    #[command(after_help = "Example:\n  blockctl volume resize web --size 128GiB")]
    Resize {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
        /// The new size, not less than now.
        #[arg(long)]
        size: Size,
    },
    /// Give a volume another name; refused while clients are connected.
    #[command(after_help = "Example:\n  blockctl volume rename web web-old --plan")]
    Rename {
        /// The name now.
        #[arg(value_parser = volume_name)]
        from: String,
        /// The new name.
        #[arg(value_parser = volume_name)]
        to: String,
        /// Say what would happen, change nothing.
        #[arg(long)]
        plan: bool,
    },
    /// Delete a volume and what is in it; refused while it has clients or snapshots.
    #[command(visible_alias = "rm", after_help = "Example:\n  blockctl volume delete web --plan")]
    Delete {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
        /// How sure you are.
        #[command(flatten)]
        sure: Sure,
    },
    /// Make a volume from an image file.
    #[command(
        after_help = "Examples:\n  blockctl volume import web disk.qcow2\n  blockctl volume import web disk.img --format raw"
    )]
    Import(ImportArgs),
    /// Write a snapshot's content to a sparse raw file.
    #[command(after_help = "Example:\n  blockctl volume export-file web@monday web.img")]
    ExportFile(ExportFileArgs),
}

/// Confirmation of what cannot be undone.
#[derive(Args, Clone, Copy, Debug)]
pub struct Sure {
    /// Say what would happen, change nothing.
    #[arg(long)]
    pub plan: bool,
    /// Do not ask; needed where nobody can be asked.
    #[arg(long)]
    pub yes: bool,
}

/// `volume import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// The new volume's name.
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// The image: raw (also a block device), qcow2, vmdk … as qemu-img knows them.
    pub file: PathBuf,
    /// The image's format. Say "raw" for a guest's raw disk from others: its content could pose as another format.
    #[arg(long)]
    pub format: Option<String>,
    /// Follow the other files that the image names. Only for images that you trust: one from somebody else could
    /// name any file of this host.
    #[arg(long)]
    pub allow_backing: bool,
    /// Say what would happen, change nothing.
    #[arg(long)]
    pub plan: bool,
}

/// `volume export-file`.
#[derive(Args, Debug)]
pub struct ExportFileArgs {
    /// NAME@SNAP.
    #[arg(value_parser = snapshot_name)]
    pub name: String,
    /// Where to.
    pub file: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    pub force: bool,
}

/// Snapshots.
#[derive(Subcommand, Debug)]
pub enum SnapshotCommand {
    /// Freeze the state of one volume or several, all at one instant.
    #[command(after_help = "Example:\n  blockctl snapshot create web-sys@monday web-data@monday")]
    Create {
        /// NAME@SNAP, one for each volume.
        #[arg(required = true, value_name = "NAME@SNAP", value_parser = snapshot_name)]
        names: Vec<String>,
    },
    /// All snapshots, or one volume's.
    #[command(visible_alias = "ls", after_help = "Example:\n  blockctl snapshot list web")]
    List {
        /// The volume.
        #[arg(value_name = "NAME", value_parser = volume_name)]
        volume: Option<String>,
    },
    /// The extents that differ between two snapshots; with one, all that holds data.
    #[command(after_help = "Example:\n  blockctl snapshot diff web@monday web@tuesday -o jsonl")]
    Diff {
        /// The earlier one, then the later one; or only one.
        #[arg(required = true, num_args = 1..=2, value_name = "NAME@SNAP", value_parser = snapshot_name)]
        names: Vec<String>,
    },
    /// Make the volume what the snapshot holds. What was written since is lost.
    #[command(after_help = "Example:\n  blockctl snapshot rollback web@monday --plan")]
    Rollback {
        /// NAME@SNAP.
        #[arg(value_parser = snapshot_name)]
        name: String,
        /// How sure you are.
        #[command(flatten)]
        sure: Sure,
    },
    /// Delete a snapshot; refused while it is held or its export has clients.
    #[command(visible_alias = "rm", after_help = "Example:\n  blockctl snapshot delete web@monday --plan")]
    Delete {
        /// NAME@SNAP.
        #[arg(value_parser = snapshot_name)]
        name: String,
        /// Say what would happen, change nothing.
        #[arg(long)]
        plan: bool,
    },
    /// Delete the snapshots that no rule keeps; never the newest, the last common base with a target, or a held one.
    #[command(
        after_help = "Examples:\n  blockctl snapshot prune web --plan\n  blockctl snapshot prune web --keep-hourly 24 --keep-daily 7 --plan"
    )]
    Prune(Box<PruneArgs>),
    /// Forbid to delete a snapshot, for a reason.
    #[command(after_help = "Example:\n  blockctl snapshot hold web@monday audit")]
    Hold(HoldArgs),
    /// Take such a reason away.
    #[command(after_help = "Example:\n  blockctl snapshot release web@monday audit")]
    Release(HoldArgs),
    /// BLAKE3 of the content, as b3sum of the raw image prints it.
    #[command(after_help = "Example:\n  blockctl snapshot hash web@monday")]
    Hash {
        /// NAME@SNAP.
        #[arg(value_parser = snapshot_name)]
        name: String,
    },
    /// Read all of it and compare with the recorded hashes.
    #[command(after_help = "Example:\n  blockctl snapshot verify web@monday")]
    Verify {
        /// NAME@SNAP.
        #[arg(value_parser = snapshot_name)]
        name: String,
    },
}

/// `snapshot hold` and `release`.
#[derive(Args, Debug)]
pub struct HoldArgs {
    /// NAME@SNAP.
    #[arg(value_parser = snapshot_name)]
    pub name: String,
    /// The reason.
    #[arg(default_value = "manual", value_parser = volume_name)]
    pub reason: String,
}

/// `clone`.
#[derive(Args, Debug)]
pub struct CloneArgs {
    /// NAME@SNAP.
    #[arg(value_parser = snapshot_name)]
    pub from: String,
    /// The new volume's name.
    #[arg(value_parser = volume_name)]
    pub to: String,
}

/// Mirrored volumes.
#[derive(Subcommand, Debug)]
pub enum MirrorCommand {
    /// All of them, and those that have ended, and why.
    #[command(visible_alias = "ls", after_help = "Example:\n  blockctl mirror list")]
    List,
    /// Answer clients without the other host. A move that needs the mirror makes it anew, or is given up.
    #[command(after_help = "Example:\n  blockctl mirror end web")]
    End {
        /// The volume's name.
        #[arg(value_parser = volume_name)]
        volume: String,
    },
}

/// Exports.
#[derive(Subcommand, Debug)]
pub enum ExportCommand {
    /// All exports: volumes, and snapshots read-only.
    #[command(visible_alias = "ls", after_help = "Example:\n  blockctl export list")]
    List,
    /// How to open one, and who is connected to it.
    #[command(
        after_help = "Examples:\n  blockctl export show web --libvirt\n  blockctl export show web@monday --qemu"
    )]
    Show {
        /// NAME, NAME@SNAP or NAME:tmp-ID.
        #[arg(value_parser = shown_name)]
        name: String,
        /// As an element for a libvirt domain.
        #[arg(long, conflicts_with = "qemu")]
        libvirt: bool,
        /// As arguments for QEMU.
        #[arg(long)]
        qemu: bool,
    },
    /// Make one that lasts a while: for a backup, a copy, a look.
    #[command(
        after_help = "Examples:\n  blockctl export create web@monday --ttl 2h --token      (one reader, who is told the secret name)\n  blockctl export create web --ttl 10m --write --detach   (for whoever may see web)"
    )]
    Create(CreateArgs),
    /// End one that was made with create, and disconnect its clients.
    #[command(visible_alias = "rm", after_help = "Example:\n  blockctl export remove web:tmp-1f2e3d4c")]
    Remove {
        /// As export list shows it.
        #[arg(value_name = "NAME:tmp-ID")]
        name: String,
    },
}

/// `top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Show one page and end.
    #[arg(long)]
    pub once: bool,
    /// Seconds between two pages.
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

/// `events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Go on with new ones until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// Only events after this number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub after: u64,
}

pub(super) fn volume_name(text: &str) -> Result<String, String> {
    if is_valid_name(text) {
        return Ok(text.to_owned());
    }
    Err("a name has 1 to 255 of A-Z a-z 0-9 . _ - and does not begin with . or -".to_owned())
}

pub(super) fn snapshot_name(text: &str) -> Result<String, String> {
    match text.parse::<SnapshotName>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected NAME@SNAP".to_owned()),
    }
}

/// An export, listed or temporary.
fn shown_name(text: &str) -> Result<String, String> {
    let listed = text.split_once(":tmp-").map_or(text, |(listed, _)| listed);
    export_name(listed).map(|_| text.to_owned())
}

pub(super) fn export_name(text: &str) -> Result<String, String> {
    if text.contains('@') { snapshot_name(text) } else { volume_name(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every command that does something by itself has an example.
    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command) {
            for below in command.get_subcommands() {
                check(below);
            }
            let is_group = command.has_subcommands();
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(is_group || example.contains("  blockctl "), "{}", command.get_name());
        }
        check(&Cli::command());
    }

    #[test]
    fn names_are_checked_before_anything_is_sent() {
        for line in ["volume show ../x", "snapshot hash web", "clone web@a ..", "volume show web@a"] {
            let words = std::iter::once("blockctl").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
