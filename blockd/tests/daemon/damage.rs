//! Damaged files, end to end: the daemon refuses them by name, or serves exactly what was written. The records
//! themselves are the subject of `tests/damage.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use fixtures::faults::bitrot;

use crate::place::Place;
use crate::tools::{assert_same, noise, run, tool};

const CODES: [&str; 5] =
    ["META_ROLLBACK: ", "META_DAMAGED: ", "MARK_DAMAGED: ", "POOL_MISMATCH: ", "MARK_MISMATCH: "];

/// A store with data in every kind of file, an older copy of it, and what it holds.
struct Template {
    place: Place,
    older: PathBuf,
    content: BTreeMap<String, Vec<u8>>,
}

fn copy(from: &Path, to: &Path) {
    run(tool("cp").args(["-a", "--sparse=always"]).arg(from).arg(to));
}

impl Template {
    fn new() -> Self {
        let mut place = Place::new();
        place.arguments = vec!["--pool-size".to_owned(), "64M".to_owned()];
        let daemon = place.serve();
        for volume in ["web", "db"] {
            place.ok(&format!("volume create {volume} --size 4M"));
        }
        change(&place, 1);
        place.ok("snapshot create web@a db@a");
        daemon.stop();
        // Opened again, RocksDB writes its log out into a table.
        let daemon = place.serve();
        change(&place, 2);
        place.ok("snapshot create web@b");
        daemon.stop();
        let older = place.path("older");
        copy(place.data(), &older);
        let daemon = place.serve();
        change(&place, 3);
        place.ok("snapshot create db@c");
        change(&place, 4);
        let names = ["web", "db", "web@a", "db@a", "web@b", "db@c"];
        let content = names.map(|name| (name.to_owned(), place.content(name))).into();
        daemon.kill();
        Self { place, older, content }
    }

    /// A copy of the store, damaged; it is refused, `Some`, or right.
    fn with_damage(&self, what: &str, damage: impl FnOnce(&Path, &Path)) -> Option<String> {
        let mut place = Place::new();
        place.arguments.clone_from(&self.place.arguments);
        copy(self.place.data(), place.data());
        damage(place.data(), &self.older);
        match place.try_serve() {
            Ok(daemon) => {
                for (name, expected) in &self.content {
                    assert_same(&place.content(name), expected, &format!("{what}: {name}"));
                }
                drop(daemon);
                None
            }
            Err((code, log)) => {
                let named = CODES.into_iter().find(|code| log.contains(code));
                assert!(code == 8 && named.is_some(), "{what}: exit code {code}\n{log}");
                let words = ["error: ", "why:   ", "next:  "];
                assert!(words.iter().all(|word| log.lines().any(|line| line.starts_with(word))), "{log}");
                named.map(|code| code.trim_end_matches(": ").to_owned())
            }
        }
    }
}

/// Some flushed writes to both volumes.
fn change(place: &Place, seed: u64) {
    for volume in ["web", "db"] {
        let mut client = place.client(volume);
        for number in 0..12 {
            let bytes = noise(seed * 100 + number, 8192);
            client.write((seed * 7 + number * 13) % 500 * 8192, &bytes).unwrap();
            client.flush().unwrap();
        }
        client.leave().unwrap();
    }
}

/// Files of RocksDB by what they are.
fn meta_files(data: &Path, kind: &str) -> Vec<PathBuf> {
    let is_kind = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match kind {
            "CURRENT" => name == kind,
            "MANIFEST" => name.starts_with(kind),
            kind => name.ends_with(kind),
        }
    };
    let entries = fs::read_dir(data.join("meta")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(is_kind).collect();
    files.sort();
    files
}

/// The newest file of that kind with something in it.
fn newest(data: &Path, kind: &str) -> PathBuf {
    let used = |path: &PathBuf| fs::metadata(path).unwrap().len() > 0;
    meta_files(data, kind).into_iter().rfind(used).unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn damaged_metadata_are_refused_or_right() {
    let template = Template::new();
    let mut rng = Rng::with_seed(4);
    let mut refused = BTreeMap::<String, u32>::new();
    for kind in ["CURRENT", "MANIFEST", ".sst", ".log"] {
        for round in 0..3 {
            let what = format!("a flipped bit in {kind}, {round}");
            let flip = |data: &Path, _: &Path| {
                assert!(bitrot::flip_bit(&newest(data, kind), &mut rng).unwrap().is_some());
            };
            *refused.entry(template.with_damage(&what, flip).unwrap_or_default()).or_default() += 1;
        }
        let cut = |data: &Path, _: &Path| {
            assert!(bitrot::truncate(&newest(data, kind), &mut rng).unwrap().is_some());
        };
        let what = format!("{kind} cut short");
        *refused.entry(template.with_damage(&what, cut).unwrap_or_default()).or_default() += 1;
        let remove = |data: &Path, _: &Path| fs::remove_file(newest(data, kind)).unwrap();
        let what = format!("{kind} removed");
        *refused.entry(template.with_damage(&what, remove).unwrap_or_default()).or_default() += 1;
    }
    eprintln!("{refused:?}");
    assert!(refused.contains_key("META_ROLLBACK") && refused.contains_key("META_DAMAGED"), "{refused:?}");
}

#[test]
fn older_copies_are_refused_or_right() {
    let template = Template::new();
    let put_back = |names: &'static [&'static str]| {
        move |data: &Path, older: &Path| {
            for name in names {
                run(tool("rm").arg("-rf").arg(data.join(name)));
                copy(&older.join(name), &data.join(name));
            }
        }
    };
    let code = |what, names| template.with_damage(what, put_back(names)).unwrap_or_default();
    assert_eq!(code("all of meta, older", &["meta"]), "META_ROLLBACK");
    assert_eq!(code("the mark, older", &["mark"]), "", "metadata ahead of the mark are what a crash leaves");
    let single = |what: &str, kind: &'static str| {
        template.with_damage(what, move |data, older| {
            let from = newest(older, kind);
            let to = data.join("meta").join(from.file_name().unwrap());
            fs::copy(from, to).unwrap();
        })
    };
    assert!(single("an older CURRENT", "CURRENT").is_some());
    for kind in ["MANIFEST", ".sst", ".log"] {
        single(&format!("an older {kind} beside the others"), kind);
    }
}

#[test]
fn damaged_marks_and_pool_files_are_refused_or_right() {
    let template = Template::new();
    let file = |name: &'static str| move |data: &Path| data.join(name);
    let (mark, pool) = (file("mark"), file("pool-0"));
    let flip_at = |path: PathBuf, at: u64| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 16], at).unwrap();
    };
    let code = |what: &str, damage: &dyn Fn(&Path)| {
        template.with_damage(what, |data, _| damage(data)).unwrap_or_default()
    };
    for slot in [0, 4096] {
        assert_eq!(
            code("one slot of the mark", &|data| flip_at(mark(data), slot + 35)),
            "",
            "the other is valid or one behind"
        );
    }
    let both = |data: &Path| [33, 4096 + 20].into_iter().for_each(|at| flip_at(mark(data), at));
    assert_eq!(code("both slots of the mark", &both), "MARK_DAMAGED");
    let set_len =
        |path: PathBuf, length| fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
    assert_eq!(code("an empty mark", &|data| set_len(mark(data), 0)), "MARK_DAMAGED");
    assert_eq!(code("no mark", &|data| fs::remove_file(mark(data)).unwrap()), "MARK_DAMAGED");
    for at in [0, 9, 17, 33, 38, 41] {
        assert_eq!(code("the superblock", &|data| flip_at(pool(data), at)), "POOL_MISMATCH");
    }
    assert_eq!(code("the superblock's padding", &|data| flip_at(pool(data), 2000)), "");
    assert_eq!(code("a pool file that is cut short", &|data| set_len(pool(data), 1 << 20)), "POOL_MISMATCH");
    assert_eq!(code("an empty pool file", &|data| set_len(pool(data), 0)), "POOL_MISMATCH");
    assert_eq!(code("no pool file", &|data| fs::remove_file(pool(data)).unwrap()), "POOL_MISMATCH");
}
