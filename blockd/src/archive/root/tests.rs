use proptest::prelude::*;

use super::*;

fn archive() -> (ArchiveConfig, SecretKey) {
    let (_, key) = SecretKey::generate().unwrap();
    (ArchiveConfig { id: [7; 16], created_ms: 5, key: key.public() }, key)
}

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

fn root() -> Root {
    Root {
        name: name("web@a"),
        size: (1 << 40) + 512,
        created_ms: 1_795_183_410_999,
        hash: [3; 32],
        clusters: 9,
        inner: vec![Some([4; 32]), None],
    }
}

#[test]
fn roots_are_read_as_they_were_written() {
    let (config, key) = archive();
    let bytes = root().encode(&config, &key);
    assert_eq!(Root::parse(&bytes, &config, &name("web@a")).unwrap(), root());
}

#[test]
fn the_largest_root_is_within_its_limit() {
    let (config, key) = archive();
    let long = format!("{0}@{0}", "x".repeat(255));
    let inner = vec![Some([1; 32]); inner_count(VOLUME_BYTES_MAX) as usize];
    let root = Root { name: name(&long), size: VOLUME_BYTES_MAX, inner, ..root() };
    let bytes = root.encode(&config, &key);
    assert!(bytes.len() as u64 <= ROOT_BYTES_MAX, "{}", bytes.len());
    assert_eq!(Root::parse(&bytes, &config, &name(&long)).unwrap(), root);
}

#[test]
fn a_root_with_any_byte_changed_is_refused() {
    let (config, key) = archive();
    let bytes = root().encode(&config, &key);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Root::parse(&changed, &config, &name("web@a")).is_err(), "byte {at}");
        assert!(Root::parse(&bytes[..at], &config, &name("web@a")).is_err(), "cut to {at}");
    }
    assert!(Root::parse(&[&bytes[..], &[0]].concat(), &config, &name("web@a")).is_err());
}

#[test]
fn the_root_of_another_snapshot_is_refused() {
    let (config, key) = archive();
    let bytes = root().encode(&config, &key);
    assert_eq!(Root::parse(&bytes, &config, &name("web@b")).unwrap_err(), "it is the root of web@a");
}

#[test]
fn the_root_of_another_archive_of_the_same_key_is_refused() {
    let (config, key) = archive();
    let other = ArchiveConfig { id: [8; 16], ..config };
    let error = Root::parse(&root().encode(&other, &key), &config, &name("web@a")).unwrap_err();
    assert_eq!(error, "it belongs to another archive");
}

#[test]
fn a_root_signed_by_another_key_is_refused() {
    let ((config, _), (_, other)) = (archive(), archive());
    let error = Root::parse(&root().encode(&config, &other), &config, &name("web@a")).unwrap_err();
    assert_eq!(error, "its signature is wrong");
}

/// Even with the right signature: a key may be old, and the program that used it wrong.
#[test]
fn signed_nonsense_is_refused() {
    let (config, key) = archive();
    let cases = [
        Root { size: 0, inner: vec![], ..root() },
        Root { size: 1000, inner: vec![None], ..root() },
        Root { size: u64::MAX, ..root() },
        Root { size: VOLUME_BYTES_MAX + 512, inner: vec![None; 257], ..root() },
        Root { clusters: u64::MAX, ..root() },
        Root { inner: vec![None], ..root() },
        Root { inner: vec![None; 3], ..root() },
        Root { inner: vec![None; 65_535], ..root() },
        Root { name: SnapshotName { volume: "..".into(), snapshot: "a".into() }, ..root() },
        Root { name: SnapshotName { volume: "web".into(), snapshot: "a/../../x".into() }, ..root() },
        Root { name: SnapshotName { volume: String::new(), snapshot: "a".into() }, ..root() },
    ];
    for case in cases {
        let bytes = case.encode(&config, &key);
        assert!(Root::parse(&bytes, &config, &case.name).is_err(), "{case:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let (config, _) = archive();
        prop_assert!(Root::parse(&bytes, &config, &name("web@a")).is_err());
    }
}
