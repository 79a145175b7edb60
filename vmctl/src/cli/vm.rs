//! `vmctl vm …`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Context, Trying, console, output, status};
use crate::agent::view::{AdoptVm, DefineVm, StartVm, StopVm, VmState, VmView};
use crate::exit_code;
use crate::failure::Failure;
use crate::span::milliseconds;
use crate::vm::definition::{Definition, FILE_BYTES_MAX};
use crate::vm::name::VmName;

/// How long a guest has to power off, unless said otherwise.
const STOP_TIME_DEFAULT: Duration = Duration::from_secs(60);
/// The longest that may be asked for.
const STOP_TIME_MAX: Duration = Duration::from_secs(3600);

const DEFINE_EXAMPLE: &str = r#"A whole file; only name and memory must be there:
  name = "web1"
  memory = "512MiB"
  vcpus = 2
  machine = "q35"              # stored as the version that this QEMU has, as in pc-q35-7.2
  # cpu = "host"               # with KVM; else max
  # [boot]                     # instead of what the disks boot
  # kernel = "/boot/vmlinuz"
  # initrd = "/boot/initrd.img"
  # append = "console=ttyS0"
  [[disk]]
  volume = "web1"              # blockctl volume create web1 --size 20GiB
  # bus = "scsi"               # else virtio
  # serial = "web1-sys"
  [[nic]]
  # mac = "52:54:00:12:34:56"  # else one is made
  backend = "user"             # "none", { tap = { ifname = "tap0" } }, { stream = { path = "/run/x.sock" } }
  # [serial]
  # enabled = false

Examples:
  vmctl vm define web1.toml
  vmctl vm define web1.toml --replace    (when it is stopped)"#;

/// Virtual machines.
#[derive(Subcommand, Debug)]
pub enum VmCommand {
    /// Make a VM out of a file; it is not started.
    #[command(after_help = DEFINE_EXAMPLE)]
    Define(DefineArgs),
    /// Start a VM.
    #[command(after_help = "Examples:\n  vmctl vm start web1\n  vmctl vm start web1 --paused")]
    Start {
        /// Its name.
        name: VmName,
        /// Its processors stand still.
        #[arg(long)]
        paused: bool,
    },
    /// Ask a VM's guest to power off; if it does not, end it only with --force.
    #[command(
        after_help = "Examples:\n  vmctl vm stop web1\n  vmctl vm stop web1 --timeout 10s\n  vmctl vm stop web1 --timeout 2m --force    (ask, then end it)\n  vmctl vm stop web1 --force                 (end it at once, as a power cut would)"
    )]
    Stop(StopArgs),
    /// All VMs.
    #[command(visible_alias = "ls", after_help = "Example:\n  vmctl vm list -o jsonl")]
    List,
    /// One VM.
    #[command(after_help = "Example:\n  vmctl vm show web1")]
    Show {
        /// Its name.
        name: VmName,
    },
    /// The serial console of a VM; Ctrl-] leaves. Without a terminal: what it writes, until Ctrl-C.
    #[command(
        after_help = "Examples:\n  vmctl vm console web1\n  vmctl vm console web1 --log    (what it has written so far)"
    )]
    Console {
        /// Its name.
        name: VmName,
        /// Print what it has written so far, and end.
        #[arg(long)]
        log: bool,
    },
    /// Forget a stopped VM and its logs. Its volumes stay.
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  vmctl vm delete web1 --plan\n  vmctl vm delete web1"
    )]
    Delete {
        /// Its name.
        name: VmName,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        plan: bool,
    },
    /// Make a running QEMU a VM of ours, through a free monitor of it.
    #[command(
        after_help = "Example:\n  vmctl vm adopt /run/web1-qmp.sock\n\nQEMU was started with -qmp unix:/run/web1-qmp.sock,server=on,wait=off; nobody else may be connected."
    )]
    Adopt {
        /// QEMU's monitor (QMP), a Unix socket.
        qmp: PathBuf,
        /// What to call it. Default: what it calls itself (-name).
        #[arg(long)]
        name: Option<VmName>,
    },
}

/// `vm define`.
#[derive(Args, Debug)]
pub struct DefineArgs {
    /// The definition, in TOML.
    pub file: PathBuf,
    /// Replace the definition of a stopped VM of that name.
    #[arg(long)]
    pub replace: bool,
}

/// `vm stop`.
#[derive(Args, Debug)]
pub struct StopArgs {
    /// Its name.
    pub name: VmName,
    /// How long the guest has to power off: a number with ms, s, m or h. Default: 60s; with --force: not at all.
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub timeout: Option<Duration>,
    /// End QEMU then; what the guest has not flushed is lost, as in a power cut.
    #[arg(long)]
    pub force: bool,
}

/// `10s`, `500ms`, `2m`, `1h`; without a unit seconds.
fn parse_span(text: &str) -> Result<Duration, String> {
    let ms = match text.parse::<u32>() {
        Ok(seconds) => u64::from(seconds) * 1000,
        Err(_) => milliseconds(text)?,
    };
    let span = Some(Duration::from_millis(ms)).filter(|span| *span <= STOP_TIME_MAX);
    span.ok_or_else(|| format!("{text:?} is more than an hour"))
}

pub(super) async fn run(context: &Context, command: VmCommand) -> Result<(), Failure> {
    match command {
        VmCommand::Define(args) => define(context, &args).await,
        VmCommand::Start { name, paused } => start(context, &name, paused).await,
        VmCommand::Stop(args) => stop(context, &args).await,
        VmCommand::List => list(context).await,
        VmCommand::Show { name } => show(context, &name).await,
        VmCommand::Console { name, log } => console::run(context, &name, log).await,
        VmCommand::Delete { name, plan } => delete(context, &name, plan).await,
        VmCommand::Adopt { qmp, name } => adopt(context, &qmp, name).await,
    }
}

/// One line for people, the VM as it is now for programs.
fn tell(context: &Context, vm: &VmView, line: &str) -> Result<(), Failure> {
    if context.for_people() { output::line(line) } else { output::object(vm) }
}

async fn define(context: &Context, args: &DefineArgs) -> Result<(), Failure> {
    let definition = read(&args.file)?;
    let name = definition.name.clone();
    let request = DefineVm { definition, replace: args.replace };
    let vm = context.client.define(&request).await.trying(|| format!("cannot define {name}"))?;
    let machine = vm.definition.as_ref().and_then(|definition| definition.machine.as_deref()).unwrap_or("?");
    tell(context, &vm, &format!("{name} is defined ({machine}). Start it: vmctl vm start {name}"))
}

fn read(file: &Path) -> Result<Definition, Failure> {
    let what = "the definition cannot be read";
    let unreadable = |error: std::io::Error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound {
            exit_code::NOT_FOUND
        } else {
            exit_code::FAILED
        };
        let next = format!("ls -l {}", file.display());
        Failure::new(code, what, format!("{}: {error}", file.display()), next)
    };
    let next = "vmctl vm define --help    (shows a whole definition)";
    if fs::metadata(file).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(Failure::new(
            exit_code::USAGE,
            what,
            format!("{} has more than 64 KiB", file.display()),
            next,
        ));
    }
    let text = fs::read_to_string(file).map_err(unreadable)?;
    Definition::parse(&text, file)
        .map_err(|error| Failure::new(exit_code::USAGE, "the definition is refused", error, next))
}

async fn start(context: &Context, name: &VmName, paused: bool) -> Result<(), Failure> {
    let vm =
        context.client.start(name, &StartVm { paused }).await.trying(|| format!("cannot start {name}"))?;
    tell(context, &vm, &format!("{name} is {}", vm.state.name()))
}

async fn stop(context: &Context, args: &StopArgs) -> Result<(), Failure> {
    let name = &args.name;
    let default = if args.force { Duration::ZERO } else { STOP_TIME_DEFAULT };
    let timeout_ms = u64::try_from(args.timeout.unwrap_or(default).as_millis()).unwrap_or(u64::MAX);
    let request = StopVm { timeout_ms, force: args.force };
    context.client.stop(name, &request).await.trying(|| format!("cannot stop {name}"))?;
    let vm = context.client.vm(name).await.trying(|| format!("cannot look at {name}"))?;
    tell(context, &vm, &format!("{name} is {}", vm.state.name()))
}

async fn list(context: &Context) -> Result<(), Failure> {
    let vms = context.client.vms().await.trying(|| "cannot list VMs".to_owned())?;
    if !context.for_people() {
        return output::list(context.format, "vms", &vms);
    }
    let moves = context.client.moves(None).await.trying(|| "cannot list moves".to_owned())?;
    status::table(&vms, &moves)
}

async fn show(context: &Context, name: &VmName) -> Result<(), Failure> {
    let vm = context.client.vm(name).await.trying(|| format!("cannot show {name}"))?;
    if context.for_people() { status::one(&vm) } else { output::object(&vm) }
}

async fn delete(context: &Context, name: &VmName, plan: bool) -> Result<(), Failure> {
    let vm = context.client.vm(name).await.trying(|| format!("cannot delete {name}"))?;
    if plan {
        let runs = vm.process.is_some();
        let volumes = vm.definition.iter().flat_map(Definition::volumes).collect::<Vec<_>>().join(", ");
        let line = match runs {
            true => format!("{name} runs: it would be refused. First: vmctl vm stop {name}"),
            false => {
                format!("would forget {name} and its logs; volumes stay: {volumes}\nNothing was changed.")
            }
        };
        return tell(context, &vm, &line);
    }
    context.client.delete(name).await.trying(|| format!("cannot delete {name}"))?;
    tell(context, &vm, &format!("{name} is forgotten; its volumes are still there"))
}

async fn adopt(context: &Context, qmp: &Path, name: Option<VmName>) -> Result<(), Failure> {
    let what = || format!("cannot adopt {}", qmp.display());
    let absolute = std::path::absolute(qmp)
        .map_err(|error| Failure::new(exit_code::USAGE, what(), error, "vmctl vm adopt --help"))?;
    let vm = context.client.adopt(&AdoptVm { qmp: absolute, name }).await.trying(what)?;
    if !context.for_people() {
        return output::object(&vm);
    }
    output::line(format!("{} is adopted; it is {}", vm.name, vm.state.name()))?;
    for (what, notes) in vm
        .adopted
        .iter()
        .flat_map(|adopted| [("not known", &adopted.unknown), ("unfit for a move", &adopted.unfit)])
    {
        for note in notes {
            output::line(format!("{what}: {note}"))?;
        }
    }
    if vm.state == VmState::Unreachable {
        output::line(format!("its monitor does not answer: {}", vm.reason.unwrap_or_default()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_takes_an_hour_at_most() {
        let cases = [("500ms", 500), ("1h", 3_600_000), ("7", 7000), ("0s", 0)];
        for (text, ms) in cases {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "-1", "1d", "3601", "99999999999999999999"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_example_in_the_help_is_a_definition() {
        let text = DEFINE_EXAMPLE.split("\n\nExamples").next().unwrap().split_once('\n').unwrap().1;
        let definition = Definition::parse(text, Path::new("help")).unwrap();
        assert_eq!((definition.disks.len(), definition.nics.len()), (1, 1));
    }
}
