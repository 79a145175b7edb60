//! `vmctl status`, and how VMs are shown.

use super::args::StatusArgs;
use super::{Context, Trying, output};
use crate::agent::view::VmView;
use crate::exit_code;
use crate::failure::Failure;
use crate::moves::record::{MoveRecord, Side};
use crate::vm::definition::{Backend, Definition};

use serde::Serialize;

/// Both answers, for programs.
#[derive(Serialize)]
struct Whole<'a> {
    agent: &'a crate::agent::view::StatusView,
    vms: &'a [VmView],
}

pub(super) async fn run(context: &Context, args: StatusArgs) -> Result<(), Failure> {
    if let Some(name) = args.vm {
        let moves = context.client.moves(Some(&name)).await.trying(|| format!("cannot show {name}"))?;
        if let Some(record) = moves.last().filter(|record| args.watch || !record.has_ended()) {
            if args.watch {
                return super::migrate::follow(context, record.id).await;
            }
            if context.for_people() {
                output::line(super::migrate::progress(record))?;
            }
        }
        let vm = context.client.vm(&name).await.trying(|| format!("cannot show {name}"))?;
        return if context.for_people() { one(&vm) } else { output::object(&vm) };
    }
    let trying = || "cannot ask the agent".to_owned();
    let agent = context.client.status().await.trying(trying)?;
    let vms = context.client.vms().await.trying(trying)?;
    if !context.for_people() {
        return output::object(&Whole { agent: &agent, vms: &vms });
    }
    output::pairs(&[
        ("agent", agent.version),
        ("qemu", agent.qemu),
        ("blockd", agent.blockd),
        ("vms", format!("{}, {} running", agent.vms, agent.running)),
    ])?;
    let moves = context.client.moves(None).await.trying(trying)?;
    if vms.is_empty() { Ok(()) } else { table(&vms, &moves) }
}

/// Where a VM without a QEMU has gone, if its last move took it away.
fn gone(vm: &VmView, moves: &[MoveRecord]) -> Option<String> {
    let last = moves.iter().rev().find(|record| record.vm == vm.name && record.has_moved())?;
    (vm.process.is_none() && last.side == Side::Source).then(|| format!("moved to {}", last.host))
}

/// VMs under each other.
pub(super) fn table(vms: &[VmView], moves: &[MoveRecord]) -> Result<(), Failure> {
    let rows = vms.iter().map(|vm| row(vm, gone(vm, moves))).collect();
    output::table(&["NAME", "STATE", "MEMORY", "VCPUS", "VOLUMES", "PID", "WHY"], &[2, 3, 5], rows)
}

fn row(vm: &VmView, gone: Option<String>) -> Vec<String> {
    let none = || "–".to_owned();
    let definition = vm.definition.as_ref();
    let volumes = definition.map(|definition| definition.volumes().collect::<Vec<_>>().join(","));
    let reason = vm.held_by.as_ref().map(|by| format!("held by {by}")).or(gone).or_else(|| vm.reason.clone());
    vec![
        vm.name.to_string(),
        vm.state.name().to_owned(),
        definition.map_or_else(none, |definition| definition.memory.to_string()),
        definition.map_or_else(none, |definition| definition.vcpus.to_string()),
        volumes.filter(|volumes| !volumes.is_empty()).unwrap_or_else(none),
        vm.process.as_ref().map_or_else(none, |process| process.pid.to_string()),
        reason.unwrap_or_default(),
    ]
}

/// One VM, in full. A damaged one is shown, and is a failure.
pub(super) fn one(vm: &VmView) -> Result<(), Failure> {
    let mut pairs = vec![("name", vm.name.to_string()), ("state", vm.state.name().to_owned())];
    pairs.extend(vm.reason.clone().map(|reason| ("why", reason)));
    pairs.extend(vm.held_by.clone().map(|by| ("held by", by)));
    if let Some(process) = &vm.process {
        pairs.push(("qemu", format!("{} ({}), process {}", process.qemu, process.accel.name(), process.pid)));
        pairs.push(("monitor", process.qmp.display().to_string()));
    }
    if let Some(end) = vm.last_end.as_ref().filter(|_| vm.process.is_some()) {
        pairs.push(("last end", end.reason.clone()));
    }
    let definition = vm.definition.iter().flat_map(describe);
    pairs.extend(definition);
    if let Some(adopted) = &vm.adopted {
        pairs.extend(adopted.unknown.iter().map(|note| ("not known", note.clone())));
        pairs.extend(adopted.unfit.iter().map(|note| ("unfit", note.clone())));
    }
    output::pairs(&pairs)?;
    if vm.definition.is_some() {
        return Ok(());
    }
    let next = format!("ls -l /var/lib/vmctl/vms/{}.json    (move it away, restart the agent)", vm.name);
    let why = vm.reason.clone().unwrap_or_default();
    Err(Failure::new(
        exit_code::VERIFICATION_FAILED,
        format!("the record of {} is damaged", vm.name),
        why,
        next,
    ))
}

fn describe(definition: &Definition) -> Vec<(&'static str, String)> {
    let mut pairs = vec![
        ("machine", definition.machine.clone().unwrap_or_default()),
        ("memory", definition.memory.to_string()),
        ("vcpus", definition.vcpus.to_string()),
    ];
    pairs.extend(definition.cpu.clone().map(|cpu| ("cpu", cpu)));
    pairs.extend(definition.boot.as_ref().map(|boot| ("kernel", boot.kernel.display().to_string())));
    pairs.extend(definition.disks.iter().map(|disk| {
        let serial = disk.serial.as_ref().map(|serial| format!(", serial {serial}")).unwrap_or_default();
        ("disk", format!("{}{serial}", disk.volume))
    }));
    pairs.extend(definition.nics.iter().map(|nic| {
        let backend = match &nic.backend {
            Backend::User => "user".to_owned(),
            Backend::None => "not connected".to_owned(),
            Backend::Tap { ifname } => ifname.clone(),
            Backend::Stream { path } => path.display().to_string(),
        };
        ("nic", format!("{}, {backend}", nic.mac.as_deref().unwrap_or("?")))
    }));
    pairs
}
