//! What a volume holds, looked at from outside: a snapshot as a file, with e2fsck and debugfs. No guest, no daemon and
//! none of our own code is asked about the content.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fixtures::process::{self, ProcessError};

use super::daemon::Host;
use super::words::Sums;

/// e2fsck's exit code for "was not unmounted, is right now".
const CORRECTED: i32 = 1;

/// A snapshot's content as a file.
#[derive(Debug)]
pub(super) struct Disk {
    /// The snapshot's.
    name: String,
    dir: PathBuf,
    file: PathBuf,
}

impl Disk {
    /// Writes the content of a snapshot to a file.
    pub(super) fn export(host: &Host, name: &str) -> Result<Self> {
        let raw = format!("{name}.raw");
        host.ctl(&["volume", "export-file", name, &raw, "--force"])?;
        Ok(Self { name: name.to_owned(), dir: host.dir.clone(), file: host.dir.join(raw) })
    }

    /// The content, a raw image.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the two have the same bytes, all of them.
    pub(super) fn refuse_difference(&self, other: &Self) -> Result<()> {
        let mut compare = process::command("qemu-img");
        compare.args(["compare", "-q", "-s", "-f", "raw", "-F", "raw"]).arg(&self.file).arg(&other.file);
        let compared = process::run(&mut compare);
        compared.map(drop).with_context(|| format!("{} and {} differ", self.name, other.name))
    }

    /// Replays the file system's journal, as mounting does. Nothing else may be to do.
    pub(super) fn replay_journal(&self) -> Result<()> {
        match process::run(process::command("e2fsck").arg("-p").arg(&self.file)) {
            Err(ProcessError::Failed { status, .. }) if status.code() == Some(CORRECTED) => Ok(()),
            result => {
                result.map(drop).with_context(|| format!("{}: the journal was not replayed", self.name))
            }
        }
    }

    /// A full check of the file system that changes nothing.
    pub(super) fn check(&self) -> Result<()> {
        let checked = process::run(process::command("e2fsck").arg("-fn").arg(&self.file));
        checked.map(drop).with_context(|| format!("{}: the file system is damaged", self.name))
    }

    /// All of `expected` must be there with their checksums. Returns the sums of all files in `/data`.
    pub(super) fn check_files(&self, expected: &Sums) -> Result<Sums> {
        let found = self.read_files()?;
        for (path, md5) in expected {
            match found.get(path) {
                None => bail!("{}: {path} is not there", self.name),
                Some(other) if other != md5 => {
                    bail!("{}: {path}: checksum {other}, and {md5} in the guest", self.name)
                }
                Some(_) => {}
            }
        }
        Ok(found)
    }

    /// Removes the file: what it showed is known.
    pub(super) fn remove(self) -> Result<()> {
        super::remove(&self.file)
    }

    fn read_files(&self) -> Result<Sums> {
        let name = format!("{}.tree", self.name);
        let tree = self.dir.join(&name);
        // debugfs exits with 0 whatever happens: older files must not pass for these.
        super::remove_dir(&tree)?;
        fs::create_dir(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
        // A relative name: debugfs takes blanks for the ends of words.
        let request = format!("rdump /data {name}");
        let mut debugfs = process::command("debugfs");
        process::run(debugfs.current_dir(&self.dir).args(["-R", &request]).arg(&self.file))?;
        let mut files = Vec::new();
        list(&tree.join("data"), &mut files)?;
        let sums = md5(&tree, &files)?;
        super::remove_dir(&tree)?;
        Ok(sums)
    }
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Checksums by the paths that the files have in the guest.
fn md5(tree: &Path, files: &[PathBuf]) -> Result<Sums> {
    if files.is_empty() {
        return Ok(Sums::new());
    }
    let output = process::run(process::command("md5sum").arg("--").args(files))?.stdout;
    let sums = output.lines().map(|line| line.split_once("  "));
    let mut found = Sums::new();
    for (sum, file) in sums.zip(files) {
        let (md5, _) = sum.context("md5sum printed something else")?;
        let path = Path::new("/").join(file.strip_prefix(tree)?);
        found.insert(path.display().to_string(), md5.trim_start_matches('\\').to_owned());
    }
    if found.len() != files.len() {
        bail!("md5sum printed {} sums of {} files", found.len(), files.len());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fixtures::guest::RootImage;

    /// A root disk with one file that holds an "x".
    fn disk(dir: &Path) -> Disk {
        fs::write(dir.join("x"), "x").unwrap();
        let files = vec![(dir.join("x"), PathBuf::from("/data/a/x"))];
        RootImage { size_mib: 16, files }.build(&dir.join("disk.raw")).unwrap();
        Disk { name: "disk".into(), dir: dir.to_owned(), file: dir.join("disk.raw") }
    }

    fn sums(path: &str, md5: &str) -> Sums {
        Sums::from([(path.to_owned(), md5.to_owned())])
    }

    const MD5_OF_X: &str = "9dd4e461268c8034f5c8564e155c67a6";

    #[test]
    fn a_missing_and_a_changed_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        assert_eq!(disk.check_files(&Sums::new()).unwrap(), sums("/data/a/x", MD5_OF_X));
        disk.check_files(&sums("/data/a/x", MD5_OF_X)).unwrap();
        let changed = disk.check_files(&sums("/data/a/x", "0")).unwrap_err().to_string();
        assert_eq!(changed, format!("disk: /data/a/x: checksum {MD5_OF_X}, and 0 in the guest"));
        let missing = disk.check_files(&sums("/data/y", "0")).unwrap_err().to_string();
        assert_eq!(missing, "disk: /data/y is not there");
    }

    #[test]
    fn damage_and_differences_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let good = disk(dir.path());
        good.check().unwrap();
        good.replay_journal().unwrap();
        let bad = Disk { name: "bad".into(), dir: dir.path().into(), file: dir.path().join("bad.raw") };
        let mut bytes = fs::read(&good.file).unwrap();
        // Group descriptors, behind the superblock.
        bytes[4096..8192].fill(0xff);
        fs::write(&bad.file, bytes).unwrap();
        assert!(bad.check().unwrap_err().to_string().contains("bad: the file system is damaged"));
        assert_eq!(bad.refuse_difference(&good).unwrap_err().to_string(), "bad and disk differ");
        good.refuse_difference(&good).unwrap();
    }

    #[test]
    fn files_are_found_below_and_named_as_in_the_guest() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("data/round-1")).unwrap();
        fs::write(tree.path().join("data/round-1/file 1"), "x").unwrap();
        let mut files = Vec::new();
        list(tree.path(), &mut files).unwrap();
        let sums = md5(tree.path(), &files).unwrap();
        assert_eq!(sums["/data/round-1/file 1"], MD5_OF_X);
    }
}
