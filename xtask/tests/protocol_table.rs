//! The tests that docs/nbd.md names exist.
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the tables with the names begin, and what the column of names is called.
const HEADING: &str = "## Everything the protocol has";
const COLUMN: &str = "tests";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Functions that follow `#[test]`, wherever in the crate's sources.
fn add_tests(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            add_tests(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&entry).unwrap();
            let behind = text.split("#[test]").skip(1).chain(text.split("#[tokio::test]").skip(1));
            found.extend(behind.filter_map(name));
        }
    }
}

/// The name of the first function in a text.
fn name(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("fn ")?;
    Some(rest.split('(').next()?.to_owned())
}

fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for package in fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()) {
        for part in ["src", "tests"] {
            if package.join("Cargo.toml").exists() && package.join(part).is_dir() {
                add_tests(&package.join(part), &mut found);
            }
        }
    }
    found
}

fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split(" | ").map(str::trim).collect()
}

/// The last cell of each row of the tables, with what the row is about.
fn rows(document: &str) -> Vec<(String, String)> {
    let (_, tables) = document.split_once(HEADING).unwrap();
    let lines = tables.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let rows = lines.map(cells).filter(|cells| cells.last() != Some(&COLUMN));
    rows.map(|cells| (cells[0].to_owned(), cells.last().unwrap().to_string())).collect()
}

#[test]
fn the_tests_that_the_protocols_table_names_exist() {
    let (document, tests) = (fs::read_to_string(root().join("docs/nbd.md")).unwrap(), tests());
    let rows = rows(&document);
    assert!(rows.len() > 40, "{} rows were found", rows.len());
    for (about, names) in rows {
        let named: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{about}: no test is named");
        for name in named {
            assert!(tests.contains(name), "{about}: there is no test {name}");
        }
    }
}
