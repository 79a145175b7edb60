//! Whether a VM can come to this host: what the source asks before anything is done, and what is answered.

use serde::{Deserialize, Serialize};

use super::record::Options;
use crate::cutover::ids::{Digest, MoveId};
use crate::error::{Error, Kind};
use crate::qmp::Version;
use crate::vm::accel::Accel;
use crate::vm::definition::Definition;
use crate::vm::machine::newest_until;
use crate::vm::name::VmName;
use crate::vm::qemu::Qemu;

/// What one agent asks another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Question {
    /// Can this VM come to you? If so, be ready for its move. Answer: [`Judgement`].
    Judge(Box<Offer>),
    /// Bring the VM back: `vmctl rollback`. Answer: the move's id.
    Return {
        /// Which.
        vm: VmName,
        /// As the move that brings it back may be.
        options: Options,
    },
}

/// A VM that wants to come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Offer {
    /// The move; missing: it is only looked whether it could be done.
    pub(super) id: Option<MoveId>,
    /// What it is.
    pub(super) definition: Definition,
    /// Its volumes, as the source has them.
    pub(super) volumes: Vec<VolumeFacts>,
    /// The QEMU that it runs in.
    pub(super) qemu: Version,
    /// What runs its processors.
    pub(super) accel: Accel,
    /// What the move may do.
    pub(super) options: Options,
}

/// A volume, as its host has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeFacts {
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    pub(super) epoch: u64,
    /// `primary` or `replica`.
    pub(super) role: String,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    pub(super) fn good(what: &str, found: impl Into<String>) -> Self {
        Self { what: what.to_owned(), ok: true, found: found.into(), fix: None }
    }

    pub(super) fn bad(what: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.to_owned(), ok: false, found: found.into(), fix: Some(fix.into()) }
    }
}

/// What a host says of a VM that wants to come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Judgement {
    /// What was looked at.
    pub(super) checks: Vec<Check>,
    /// The QEMU that it would run in.
    pub(super) qemu: Version,
}

/// A guest can only be loaded as the very machine that it was started as.
pub(super) fn check_machine(offer: &Offer, here: &Qemu) -> Check {
    let Some(machine) = offer.definition.machine.as_deref() else {
        let fix = "vmctl vm define --replace    (there; the agent writes down which machine it is)";
        return Check::bad("machine", "the definition names none", fix);
    };
    if here.machines.iter().any(|known| known.name == machine) {
        return Check::good("machine", format!("{machine}, QEMU {}", here.version));
    }
    let found = format!("QEMU {} there has no machine {machine}", here.version);
    // What this QEMU has and is not later than the source's QEMU, that one has, too.
    let both = newest_until(machine, offer.qemu, &here.machines);
    let fix = match both {
        Some(both) => format!(
            "give it machine = \"{both}\", which both have (vmctl vm define --replace, and start it anew); \
             or install a QEMU there that has {machine}"
        ),
        None => format!("install a QEMU there that has {machine}"),
    };
    Check::bad("machine", found, fix)
}

/// A processor that changes under a guest: what it has found at its start, it goes on using.
///
/// `host` and `max` are all that a QEMU can offer, and every version can offer more: with them only the same version will do.
pub(super) fn check_processor(offer: &Offer, here: Version, accel: Accel) -> Check {
    let cpu = offer.definition.cpu.as_deref();
    let is_named = cpu.is_some_and(|cpu| !["host", "max"].contains(&cpu.split(',').next().unwrap_or(cpu)));
    let fix = "name a cpu model in the definition (cpu = \"…\"), and start the VM anew";
    if !is_named && accel != offer.accel {
        let found = format!("{} there, {} here", accel.name(), offer.accel.name());
        return Check::bad("processor", found, fix);
    }
    let there = offer.qemu;
    if !is_named && (there.major, there.minor) != (here.major, here.minor) {
        let model = cpu.unwrap_or(accel.cpu_default());
        let found = format!("{model:?} is not the same processor for QEMU {here} there and {there} here");
        return Check::bad("processor", found, fix);
    }
    Check::good("processor", cpu.unwrap_or(accel.name()))
}

/// The first thing that forbids it.
pub(super) fn refusal(vm: &VmName, host: &str, checks: &[Check]) -> Result<(), Error> {
    let Some(check) = checks.iter().find(|check| !check.ok) else { return Ok(()) };
    let message = format!("{vm} cannot go to {host}: {}: {}", check.what, check.found);
    Err(Error::one_line(Kind::Refused, message).with_next(check.fix.clone().unwrap_or_default()))
}

/// What both sides must mean by a VM.
pub(super) fn digest(definition: &Definition) -> Result<Digest, Error> {
    let text = serde_json::to_vec(definition).map_err(|error| Error::one_line(Kind::Io, error))?;
    Ok(Digest(*blake3::hash(&text).as_bytes()))
}

/// Bytes of memory that are free on this host, or can be made so.
pub(super) fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::machine::MachineType;
    use crate::vm::version::Abilities;

    const fn version(major: u32, minor: u32) -> Version {
        Version { major, minor, micro: 0 }
    }

    fn offer(text: &str, qemu: Version) -> Offer {
        let definition =
            Definition::parse(&format!("name = \"web1\"\nmemory = \"64MiB\"\n{text}"), "x".as_ref()).unwrap();
        let options = Options::default();
        Offer { id: None, definition, volumes: Vec::new(), qemu, accel: Accel::Tcg, options }
    }

    fn qemu(version: Version, machines: &[&str]) -> Qemu {
        let one = |name: &&str| MachineType { name: (*name).to_owned(), alias_of: None };
        let machines = machines.iter().map(one).collect();
        Qemu { version, abilities: Abilities::of(version).unwrap(), machines }
    }

    #[test]
    fn a_machine_that_is_not_there_is_refused_with_one_that_both_have() {
        let old = qemu(version(7, 2), &["pc-q35-7.2", "pc-q35-6.2", "pc-i440fx-7.2"]);
        let new = offer("machine = \"pc-q35-10.0\"", version(10, 0));
        let check = check_machine(&new, &old);
        assert!(!check.ok && check.found.contains("no machine pc-q35-10.0"), "{check:?}");
        assert!(
            check.fix.as_deref().is_some_and(|fix| fix.contains("\"pc-q35-7.2\", which both have")),
            "{check:?}"
        );
        assert!(check_machine(&offer("machine = \"pc-q35-6.2\"", version(10, 0)), &old).ok);
        // One that the later QEMU has dropped: what is later than the source's QEMU is of no use.
        let newest = qemu(version(12, 0), &["pc-q35-12.0", "pc-q35-10.1", "pc-q35-8.0"]);
        let check = check_machine(&offer("machine = \"pc-q35-2.4\"", version(8, 2)), &newest);
        assert!(check.fix.as_deref().is_some_and(|fix| fix.contains("\"pc-q35-8.0\", which")), "{check:?}");
        let check = check_machine(&offer("machine = \"pc-q35-2.4\"", version(7, 2)), &newest);
        assert!(check.fix.as_deref().is_some_and(|fix| fix.starts_with("install")), "{check:?}");
    }

    #[test]
    fn a_processor_without_a_name_wants_the_same_qemu() {
        let check = |text: &str, from, to, accel| check_processor(&offer(text, from), to, accel);
        let (old, new) = (version(7, 2), version(10, 0));
        assert!(check("", old, Version { micro: 22, ..old }, Accel::Tcg).ok);
        let refused = check("", old, new, Accel::Tcg);
        assert!(!refused.ok && refused.found.contains("\"max\" is not the same"), "{refused:?}");
        for named in ["host", "max", "max,-avx"] {
            assert!(!check(&format!("cpu = {named:?}"), old, new, Accel::Tcg).ok, "{named}");
        }
        assert!(!check("", old, old, Accel::Kvm).ok);
        assert!(check("cpu = \"Nehalem\"", old, new, Accel::Kvm).ok);
    }
}
