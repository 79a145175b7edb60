//! Tells every cargo in this clone where the compiled RocksDB is, through a file that `.cargo/config.toml`
//! includes if it is there.
//!
//! A file and not our environment, so that a cargo typed by hand and ours agree: cargo would otherwise build
//! the crate anew on each change between them.

use std::fs;
use std::path::Path;
use std::process;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cached;
use crate::workspace::Workspace;

/// What the build script of the crate reads, in the order of [`content`].
pub(crate) const VARIABLES: [&str; 3] = ["ROCKSDB_LIB_DIR", "ROCKSDB_INCLUDE_DIR", "ROCKSDB_STATIC"];

/// Writes `.cargo/rocksdb.toml`, if it does not say so already.
pub(super) fn write(workspace: &Workspace, cached: &Cached) -> Result<()> {
    let file = workspace.root.join(".cargo/rocksdb.toml");
    let content = content(cached)?;
    if fs::read_to_string(&file).is_ok_and(|old| old == content) {
        return Ok(());
    }
    replace(&file, &content).with_context(|| format!("cannot write {}", file.display()))
}

fn content(cached: &Cached) -> Result<String> {
    let values = [quoted(&cached.dir.join("lib"))?, quoted(&cached.include())?, "\"1\"".to_owned()];
    let lines: String =
        VARIABLES.iter().zip(values).map(|(variable, value)| format!("{variable} = {value}\n")).collect();
    Ok(format!(
        "# Written by `cargo xtask`: where the compiled RocksDB is.\n\
         # Without this file cargo compiles RocksDB itself, which takes many minutes per profile.\n\
         [env]\n{lines}"
    ))
}

/// A path as a TOML string. JSON's escapes are among TOML's.
fn quoted(path: &Path) -> Result<String> {
    let text =
        path.to_str().with_context(|| format!("cargo cannot be told of {}: not UTF-8", path.display()))?;
    Ok(Value::from(text).to_string())
}

/// Through a rename, because other cargos may be reading it.
fn replace(file: &Path, content: &str) -> std::io::Result<()> {
    let new = file.with_extension(format!("toml.{}", process::id()));
    fs::write(&new, content)?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn the_file_names_library_headers_and_linkage() {
        let cached = Cached { dir: PathBuf::from("/a \"b\"") };
        let content = content(&cached).unwrap();
        let expected = "[env]\nROCKSDB_LIB_DIR = \"/a \\\"b\\\"/lib\"\n\
                        ROCKSDB_INCLUDE_DIR = \"/a \\\"b\\\"/include\"\nROCKSDB_STATIC = \"1\"\n";
        assert!(content.ends_with(expected), "{content}");
    }

    #[test]
    fn writing_leaves_one_file_and_says_the_same_twice() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join(".cargo")).unwrap();
        let workspace = Workspace { root: top.path().to_owned(), target: top.path().join("target") };
        let cached = Cached { dir: PathBuf::from("/cache") };
        write(&workspace, &cached).unwrap();
        write(&workspace, &cached).unwrap();
        let names: Vec<_> = fs::read_dir(top.path().join(".cargo")).unwrap().flatten().collect();
        assert_eq!(names.len(), 1);
        assert_eq!(names[0].file_name(), "rocksdb.toml");
    }
}
