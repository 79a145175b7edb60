//! Where files of a VM are.
//!
//! ```text
//! RUN/vm/NAME/    0700   qmp.sock, serial.sock, pid: of the QEMU that runs now
//! DATA/log/       0700   NAME.console, NAME.qemu, and those of the start before: ending in .1
//! DATA/vms/       0700   NAME.json: the record (journal)
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::name::VmName;
use crate::error::{Error, Kind};

/// Longest path of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The files of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    run: PathBuf,
    log: PathBuf,
    name: VmName,
}

impl Places {
    /// Below those directories of the agent.
    pub fn new(run: &Path, data: &Path, name: &VmName) -> Self {
        Self { run: run.join("vm").join(name.as_str()), log: data.join("log"), name: name.clone() }
    }

    /// QEMU's monitor.
    pub fn qmp(&self) -> PathBuf {
        self.run.join("qmp.sock")
    }

    /// The guest's serial console.
    pub fn serial(&self) -> PathBuf {
        self.run.join("serial.sock")
    }

    /// QEMU's process id.
    pub fn pid_file(&self) -> PathBuf {
        self.run.join("pid")
    }

    /// A socket for QEMU's migration stream.
    pub fn migration(&self) -> PathBuf {
        self.run.join("mig.sock")
    }

    /// What the guest has written on its console.
    pub fn console_log(&self) -> PathBuf {
        self.log.join(format!("{}.console", self.name))
    }

    /// What QEMU itself complains about.
    pub fn qemu_log(&self) -> PathBuf {
        self.log.join(format!("{}.qemu", self.name))
    }

    /// Makes the directories, takes away what an earlier QEMU left, and puts its logs aside. Only when none runs.
    ///
    /// # Errors
    /// The system says no, or the directory is too deep for a socket.
    pub fn prepare(&self) -> Result<(), Error> {
        let longest = self.serial();
        if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let message = format!("{} is longer than a Unix socket's path: 107 bytes", longest.display());
            return Err(Error::one_line(Kind::BadValue, message).with_next("vmctl agent --run /run/vmctl …"));
        }
        let failed = |path: &Path, error: &io::Error| {
            Error::one_line(Kind::Io, format!("{}: {error}", path.display()))
        };
        for dir in [&self.run, &self.log] {
            private_dir(dir).map_err(|error| failed(dir, &error))?;
        }
        for file in [self.qmp(), self.serial(), self.pid_file(), self.migration()] {
            remove_if_there(&file).map_err(|error| failed(&file, &error))?;
        }
        for log in [self.console_log(), self.qemu_log()] {
            put_aside(&log).map_err(|error| failed(&log, &error))?;
        }
        Ok(())
    }

    /// Takes away what a QEMU that has ended left; its logs stay.
    ///
    /// # Errors
    /// The system says no.
    pub fn clear(&self) -> io::Result<()> {
        for file in [self.qmp(), self.serial(), self.pid_file(), self.migration()] {
            remove_if_there(&file)?;
        }
        Ok(())
    }

    /// Takes everything away, the logs too.
    ///
    /// # Errors
    /// The system says no.
    pub fn remove(&self) -> io::Result<()> {
        self.clear()?;
        for log in [self.console_log(), self.qemu_log()] {
            remove_if_there(&aside(&log))?;
            remove_if_there(&log)?;
        }
        match fs::remove_dir(&self.run) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Makes a directory and those above it that are missing; nobody else may look into it.
///
/// # Errors
/// The system says no.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn aside(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn put_aside(log: &Path) -> io::Result<()> {
    match fs::rename(log, aside(log)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Keeps a log that QEMU goes on writing to within `bytes_max`: what is there is put aside, and it begins anew. QEMU appends,
/// so that it writes on at the new end; what it writes between the copy and the cut is lost.
///
/// # Errors
/// The system says no.
pub fn bound_log(log: &Path, bytes_max: u64) -> io::Result<()> {
    match fs::metadata(log) {
        Ok(metadata) if metadata.len() > bytes_max => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::copy(log, aside(log))?;
    fs::OpenOptions::new().write(true).open(log)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path) -> Places {
        Places::new(&dir.join("run"), &dir.join("data"), &"web1".parse().unwrap())
    }

    #[test]
    fn directories_are_private_and_old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        places.prepare().unwrap();
        fs::write(places.pid_file(), "1").unwrap();
        fs::write(places.console_log(), "old").unwrap();
        places.prepare().unwrap();
        assert!(!places.pid_file().exists() && !places.console_log().exists());
        assert_eq!(fs::read_to_string(aside(&places.console_log())).unwrap(), "old");
        let mode = fs::metadata(dir.path().join("run/vm/web1")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        places.remove().unwrap();
        assert!(!dir.path().join("run/vm/web1").exists());
    }

    #[test]
    fn a_directory_that_is_too_deep_for_sockets_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = places(&dir.path().join("d".repeat(100))).prepare().unwrap_err();
        assert!(error.message.contains("107 bytes"), "{error}");
    }

    #[test]
    fn a_log_is_kept_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        bound_log(&log, 10).unwrap();
        fs::write(&log, "0123456789").unwrap();
        bound_log(&log, 10).unwrap();
        assert_eq!(fs::metadata(&log).unwrap().len(), 10);
        fs::write(&log, "0123456789a").unwrap();
        bound_log(&log, 10).unwrap();
        assert_eq!(fs::metadata(&log).unwrap().len(), 0);
    }
}
