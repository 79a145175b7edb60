//! The QEMU that is installed: its version and its machine types.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::machine::{self, MachineType};
use super::version::{self, Abilities};
use crate::error::{Error, Kind};
use crate::qmp::{Version, shown};

/// How long QEMU may take to say what it is.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What it says of itself. Asked anew each time it matters: an update exchanges it under a running agent.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// Its version.
    pub version: Version,
    /// What that version can.
    pub abilities: Abilities,
    /// Its machine types.
    pub machines: Vec<MachineType>,
}

impl Qemu {
    /// Asks a program.
    ///
    /// # Errors
    /// It cannot be run, says nothing that we understand, or is too old.
    pub async fn ask(program: &Path) -> Result<Self, Error> {
        let text = run(program, &["--version"]).await?;
        let unclear =
            || Error::one_line(Kind::Io, format!("{}: not a version: {}", program.display(), shown(&text)));
        let version = version::parse(&text).ok_or_else(unclear)?;
        let abilities = Abilities::of(version)?;
        let machines = machine::parse_list(&run(program, &["-machine", "help"]).await?);
        Ok(Self { version, abilities, machines })
    }
}

async fn run(program: &Path, arguments: &[&str]) -> Result<String, Error> {
    let failed = |reason: String| {
        let message = format!("{} {}: {reason}", program.display(), arguments.join(" "));
        Error::one_line(Kind::Io, message)
            .with_next("apt install qemu-system-x86    (or name it: --qemu PATH)")
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER_TIME_MAX, command.output()).await;
    let output =
        output.map_err(|_| failed("no answer".to_owned()))?.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() || output.stdout.len() > ANSWER_BYTES_MAX {
        return Err(failed(format!(
            "{}: {}",
            output.status,
            shown(&String::from_utf8_lossy(&output.stderr))
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_no_qemu_is_refused() {
        assert!(
            Qemu::ask(Path::new("/nonexistent")).await.unwrap_err().next.unwrap().contains("apt install")
        );
        assert!(Qemu::ask(Path::new("/bin/false")).await.is_err());
        assert!(Qemu::ask(Path::new("/bin/echo")).await.unwrap_err().message.contains("not a version"));
    }
}
