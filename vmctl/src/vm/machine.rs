//! Machine types. Only versioned ones are stored: an alias means another machine after QEMU's next update, and a guest that
//! was started as one cannot be loaded as the other.

use crate::qmp::Version;

/// What is taken if the definition names none.
const MACHINE_DEFAULT: &str = "q35";
/// The families whose buses we know: see [`root_bus`].
const FAMILIES: [&str; 2] = ["pc-q35-", "pc-i440fx-"];

/// One that a QEMU has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineType {
    /// As `-machine` takes it.
    pub name: String,
    /// What it is short for.
    pub alias_of: Option<String>,
}

/// Reads what `-machine help` prints; lines of any other form are skipped.
pub fn parse_list(text: &str) -> Vec<MachineType> {
    text.lines().skip(1).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<MachineType> {
    let (name, about) = line.split_once(char::is_whitespace)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        return None;
    }
    let alias_of = about.rsplit_once("(alias of ").and_then(|(_, rest)| rest.split(')').next());
    Some(MachineType { name: name.to_owned(), alias_of: alias_of.map(str::to_owned) })
}

/// The versioned machine type that is meant.
///
/// # Errors
/// This QEMU has none of that name, or one whose devices we cannot place.
pub fn resolve(wanted: Option<&str>, machines: &[MachineType]) -> Result<String, String> {
    let wanted = wanted.unwrap_or(MACHINE_DEFAULT);
    let Some(found) = machines.iter().find(|machine| machine.name == wanted) else {
        let newest = machines.iter().find(|machine| is_versioned(&machine.name));
        let has = newest.map_or_else(|| "none that we know".to_owned(), |machine| machine.name.clone());
        return Err(format!("this host's QEMU has no machine {wanted:?}; it has {has}, and others"));
    };
    let name = found.alias_of.as_ref().unwrap_or(&found.name);
    if is_versioned(name) {
        return Ok(name.clone());
    }
    Err(format!(
        "{name:?} is not versioned: choose q35, pc, or one like pc-q35-7.2 (qemu-system-x86_64 -machine help)"
    ))
}

/// The newest machine of the same family that a QEMU of that version has, too: it has all until its own.
pub fn newest_until(wanted: &str, version: Version, machines: &[MachineType]) -> Option<String> {
    let family = FAMILIES.iter().find(|family| wanted.starts_with(*family))?;
    let number = |machine: &MachineType| {
        let (major, minor) = machine.name.strip_prefix(family)?.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    let known = machines.iter().filter_map(|machine| Some((number(machine)?, &machine.name)));
    let until = known.filter(|(number, _)| *number <= (version.major, version.minor));
    until.max().map(|(_, name)| name.clone())
}

/// Whether a name says exactly one machine: a family that we know, and a version.
pub fn is_versioned(name: &str) -> bool {
    FAMILIES.iter().any(|family| {
        let version = name.strip_prefix(family).and_then(|version| version.split_once('.'));
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        version.is_some_and(|(major, minor)| number(major) && number(minor))
    })
}

/// The bus that devices without a bridge are plugged into.
pub fn root_bus(machine: &str) -> &'static str {
    if machine.starts_with("pc-i440fx-") { "pci.0" } else { "pcie.0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Supported machines are:\n\
        microvm              microvm (i386)\n\
        pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)\n\
        pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)\n\
        q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n\
        pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)\n\
        pc-q35-2.4           Standard PC (Q35 + ICH9, 2009) (deprecated)\n\
        none                 empty machine\n";

    #[test]
    fn aliases_become_versions() {
        let machines = parse_list(HELP);
        assert_eq!(resolve(None, &machines).as_deref(), Ok("pc-q35-7.2"));
        assert_eq!(resolve(Some("pc"), &machines).as_deref(), Ok("pc-i440fx-7.2"));
        assert_eq!(resolve(Some("pc-q35-2.4"), &machines).as_deref(), Ok("pc-q35-2.4"));
    }

    #[test]
    fn what_cannot_be_pinned_is_refused() {
        let machines = parse_list(HELP);
        assert!(resolve(Some("microvm"), &machines).unwrap_err().contains("not versioned"));
        assert!(resolve(Some("pc-q35-10.0"), &machines).unwrap_err().contains("no machine"));
        assert!(resolve(None, &[]).is_err());
        for name in ["q35", "pc-q35-", "pc-q35-7", "pc-q35-7.2,x=y", "pc-q35-rhel7.2"] {
            assert!(!is_versioned(name), "{name}");
        }
    }

    #[test]
    fn each_family_has_its_bus() {
        assert_eq!((root_bus("pc-q35-7.2"), root_bus("pc-i440fx-7.2")), ("pcie.0", "pci.0"));
    }
}
