//! Puts a compiled library at its final place, as a whole or not at all.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use super::Cached;

/// Gathers everything in `staged`, makes it durable and renames it to its final place.
///
/// In this order: after a power cut the final name holds all of the files with their content, or is not there.
pub(super) fn run(archive: &Path, include: &Path, staged: &Path, cached: &Cached) -> Result<()> {
    let lib = staged.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    copy_file(archive, &lib.join("librocksdb.a"))?;
    sync(&lib)?;
    copy_dir(include, &staged.join("include"))?;
    sync(staged)?;
    // Whatever is there is not complete; a directory can only be renamed onto an empty one.
    remove_dir(&cached.dir)?;
    fs::rename(staged, &cached.dir).with_context(|| format!("cannot create {}", cached.dir.display()))?;
    sync(cached.dir.parent().context("the cache has no parent directory")?)
}

/// Removes a directory with all that is in it; one that is not there is fine.
pub(super) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            copy_file(&entry.path(), &target)?;
        }
    }
    sync(to)
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    sync(to)
}

fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.with_context(|| format!("cannot sync {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_complete_and_replaces_a_broken_one() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        fs::create_dir_all(at("source/rocksdb/sub")).unwrap();
        fs::write(at("source/rocksdb/c.h"), "header").unwrap();
        fs::write(at("source/rocksdb/sub/x.h"), "nested").unwrap();
        fs::write(at("librocksdb.a"), "archive").unwrap();
        let cached = Cached { dir: at("cache") };
        fs::create_dir_all(cached.dir.join("lib/half")).unwrap();
        assert!(!cached.is_complete());

        run(&at("librocksdb.a"), &at("source"), &at("staged"), &cached).unwrap();

        assert!(cached.is_complete());
        assert_eq!(fs::read_to_string(cached.include().join("rocksdb/sub/x.h")).unwrap(), "nested");
        assert!(!cached.dir.join("lib/half").exists() && !at("staged").exists());
    }

    #[test]
    fn a_missing_archive_leaves_nothing_at_the_final_place() {
        let top = tempfile::tempdir().unwrap();
        let cached = Cached { dir: top.path().join("cache") };
        let missing = top.path().join("missing");
        assert!(run(&missing, &missing, &top.path().join("staged"), &cached).is_err());
        assert!(!cached.dir.exists());
    }
}
