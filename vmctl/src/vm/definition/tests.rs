//! Definitions as people get them right and wrong.

use super::*;

const WHOLE: &str = r#"
name = "web1"
memory = "512MiB"
vcpus = 2
machine = "q35"
cpu = "max,pmu=off"

[boot]
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd"
append = "console=ttyS0 root=/dev/vda"

[serial]
enabled = false

[[disk]]
volume = "web1"
serial = "one"

[[disk]]
volume = "web1-data"
bus = "scsi"

[[nic]]
mac = "52:54:00:AB:cd:ef"
backend = { tap = { ifname = "tap0" } }

[[nic]]
backend = { stream = { path = "/run/x.sock" } }

[[nic]]
backend = "none"

[[nic]]
"#;

fn parse(text: &str) -> Result<Definition, DefinitionError> {
    Definition::parse(text, Path::new("web1.toml"))
}

fn machines() -> Vec<MachineType> {
    machine::parse_list(
        "Supported machines are:\nq35  Standard PC (alias of pc-q35-7.2)\npc-q35-7.2  Standard PC\npc-q35-7.1  Standard PC\n",
    )
}

/// The error of a small definition with those lines added.
fn error_of(lines: &str) -> String {
    parse(&format!("name = \"web1\"\nmemory = \"256MiB\"\n{lines}\n")).unwrap_err().to_string()
}

#[test]
fn a_whole_definition_is_read_resolved_and_read_back() {
    let definition = parse(WHOLE).unwrap();
    assert!(!definition.is_resolved());
    let resolved = definition.resolve(&machines()).unwrap();
    assert!(resolved.is_resolved());
    assert_eq!(resolved.machine.as_deref(), Some("pc-q35-7.2"));
    assert_eq!(resolved.nics[0].mac.as_deref(), Some("52:54:00:ab:cd:ef"));
    let macs: BTreeSet<_> = resolved.nics.iter().map(|nic| nic.mac.clone().unwrap()).collect();
    assert_eq!(macs.len(), 4);
    assert_eq!(parse(&toml::to_string(&resolved).unwrap()).unwrap(), resolved);
    let json = serde_json::to_string(&resolved).unwrap();
    assert_eq!(serde_json::from_str::<Definition>(&json).unwrap(), resolved);
}

#[test]
fn a_small_definition_has_defaults() {
    let definition = parse("name = \"a\"\nmemory = \"64MiB\"\n").unwrap();
    assert_eq!((definition.vcpus, definition.serial.enabled), (1, true));
}

#[test]
fn an_unknown_machine_is_refused_by_resolving() {
    let mut definition = parse(WHOLE).unwrap();
    definition.machine = Some("pc-q35-99.0".to_owned());
    let error = definition.resolve(&machines()).unwrap_err().to_string();
    assert!(error.contains("pc-q35-99.0") && error.contains("pc-q35-7.2"), "{error}");
}

#[test]
fn unknown_keys_are_told_with_their_line() {
    let error = error_of("colour = \"red\"");
    assert!(error.starts_with("web1.toml:3: colour: unknown field"), "{error}");
}

#[test]
fn bad_sizes_of_memory_are_refused() {
    for (memory, part) in
        [("1MiB", "16MiB"), ("17MB", ""), ("1025KiB", "16MiB"), ("20481KiB", "multiple"), ("17T", "16TiB")]
    {
        let result = parse(&format!("name = \"a\"\nmemory = \"{memory}\"\n"));
        match part {
            "" => assert!(result.is_ok(), "{memory}"),
            part => assert!(result.unwrap_err().to_string().contains(part), "{memory}"),
        }
    }
    assert!(parse("name = \"a\"\nmemory = \"much\"\n").unwrap_err().to_string().contains("is no size"));
}

#[test]
fn bad_names_are_refused() {
    let error = parse("name = \"../etc\"\nmemory = \"64MiB\"\n").unwrap_err().to_string();
    assert!(error.contains("is no name of a VM"), "{error}");
}

#[test]
fn bad_numbers_of_processors_are_refused() {
    assert!(error_of("vcpus = 0").contains("1 to 255"));
    assert!(error_of("vcpus = 256").contains("1 to 255"));
    assert!(error_of("vcpus = -1").contains("web1.toml:3: vcpus"));
}

#[test]
fn options_cannot_be_smuggled_into_machine_and_cpu() {
    assert!(error_of("machine = \"q35,dumpdtb=/etc/passwd\"").contains("machine"));
    assert!(error_of("cpu = \"max -monitor stdio\"").contains("cpu"));
    assert!(error_of("cpu = \"\"").contains("cpu"));
}

#[test]
fn bad_boot_files_are_refused() {
    assert!(error_of("[boot]\nkernel = \"vmlinuz\"").contains("boot.kernel: \"vmlinuz\" is not absolute"));
    assert!(error_of("[boot]\nkernel = \"/v\"\ninitrd = \"i\"").contains("boot.initrd"));
    assert!(error_of("[boot]\nkernel = \"/v\"\nappend = \"a\\nb\"").contains("boot.append"));
    assert!(error_of("[boot]\ninitrd = \"/i\"").contains("missing field `kernel`"));
}

#[test]
fn bad_disks_are_refused() {
    assert!(error_of("[[disk]]\nvolume = \"a@b\"").contains("disk[0].volume"));
    assert!(error_of("[[disk]]\nvolume = \"a\"\n[[disk]]\nvolume = \"a\"").contains("another disk"));
    assert!(error_of("[[disk]]\nvolume = \"a\"\nserial = \"a,b\"").contains("disk[0].serial"));
    assert!(
        error_of("[[disk]]\nvolume = \"a\"\nserial = \"012345678901234567890\"").contains("disk[0].serial")
    );
    let twice = "[[disk]]\nvolume = \"a\"\nserial = \"s\"\n[[disk]]\nvolume = \"b\"\nserial = \"s\"";
    assert!(error_of(twice).contains("disk[1].serial"));
    assert!(error_of("[[disk]]\nvolume = \"a\"\nbus = \"ide\"").contains("ide"));
    let many: String = (0..=DISKS_MAX).map(|n| format!("[[disk]]\nvolume = \"v{n}\"\n")).collect();
    assert!(error_of(&many).contains("13 disks, at most 12"));
}

#[test]
fn bad_network_cards_are_refused() {
    for (mac, part) in
        [("52:54:00:12:34", "six pairs"), ("53:54:00:12:34:56", "multicast"), ("00:00:00:00:00:00", "nobody")]
    {
        let error = error_of(&format!("[[nic]]\nmac = \"{mac}\""));
        assert!(error.contains("nic[0].mac") && error.contains(part), "{error}");
    }
    let twice = "[[nic]]\nmac = \"52:54:00:00:00:0a\"\n[[nic]]\nmac = \"52:54:00:00:00:0A\"";
    assert!(error_of(twice).contains("nic[1].mac"));
    assert!(
        error_of("[[nic]]\nbackend = { tap = { ifname = \"x,script=/bin/sh\" } }")
            .contains("nic[0].backend.tap.ifname")
    );
    assert!(error_of("[[nic]]\nbackend = { stream = { path = \"x\" } }").contains("not absolute"));
    let long = format!("[[nic]]\nbackend = {{ stream = {{ path = \"/{}\" }} }}", "x".repeat(120));
    assert!(error_of(&long).contains("107 bytes"));
    let many = "[[nic]]\n".repeat(NICS_MAX + 1);
    assert!(error_of(&many).contains("9 network cards, at most 8"));
}
