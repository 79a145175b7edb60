//! What the agent is told: flags, environment and one TOML file, in that order of precedence, then defaults.
//!
//! Every key of the file is a flag of `vmctl agent` under the same name, with `-` for `_`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::exit_code;
use crate::failure::Failure;
use crate::vm::accel::AccelChoice;

/// Where clients find the agent unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/vmctl/vmctl.sock";
/// In the run directory: where blockd looks for it unless told otherwise.
const PEER_SOCKET_DEFAULT: &str = "peer.sock";
const DATA_DEFAULT: &str = "/var/lib/vmctl";
const RUN_DEFAULT: &str = "/run/vmctl";
const BLOCKD_SOCKET_DEFAULT: &str = "/run/blockd/blockd.sock";
const NBD_SOCKET_DEFAULT: &str = "/run/blockd/nbd.sock";
const QEMU_DEFAULT: &str = "qemu-system-x86_64";
/// Where programs are looked for besides `PATH`.
const PROGRAM_DIRECTORIES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/libexec"];
/// Long enough for a blockd that is started again at once; QEMU's monitor is blocked meanwhile.
const RECONNECT_DELAY_S_DEFAULT: u32 = 4;
/// Beyond it commands to QEMU would give up before it does.
const RECONNECT_DELAY_S_MAX: u32 = 5;
/// Longest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Settings as they were given, each perhaps not: the flags of `agent`, and the keys of the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of records and logs; made if it does not exist. Default: /var/lib/vmctl.
    #[arg(long, value_name = "DIR", env = "VMCTL_DATA")]
    pub data: Option<PathBuf>,

    /// Directory of the guests' sockets, which must outlive the agent. Default: /run/vmctl.
    #[arg(long, value_name = "DIR", env = "VMCTL_RUN")]
    pub run: Option<PathBuf>,

    /// Socket for clients. On the command line: --socket.
    #[arg(skip)]
    pub socket: Option<PathBuf>,

    /// Group whose members may use vmctl. Default: only root and the agent's own user.
    #[arg(long, value_name = "GROUP", env = "VMCTL_SOCKET_GROUP")]
    pub socket_group: Option<String>,

    /// Socket for other hosts' agents, which blockd leads here (its agent_socket). Default: peer.sock in the run directory.
    #[arg(long, value_name = "PATH", env = "VMCTL_PEER_SOCKET")]
    pub peer_socket: Option<PathBuf>,

    /// Socket of blockd's API. Default: /run/blockd/blockd.sock.
    #[arg(long, value_name = "PATH", env = "VMCTL_BLOCKD_SOCKET")]
    pub blockd_socket: Option<PathBuf>,

    /// Socket of blockd for NBD clients. Default: /run/blockd/nbd.sock.
    #[arg(long, value_name = "PATH", env = "VMCTL_NBD_SOCKET")]
    pub nbd_socket: Option<PathBuf>,

    /// QEMU. Default: qemu-system-x86_64.
    #[arg(long, value_name = "PROGRAM", env = "VMCTL_QEMU")]
    pub qemu: Option<PathBuf>,

    /// What runs guests' processors. Default: auto, KVM if a probe gets through it.
    #[arg(long, value_enum, env = "VMCTL_ACCEL")]
    pub accel: Option<AccelChoice>,

    /// How long guests' requests wait for a blockd that went away, in seconds, 1 to 5. Default: 4.
    #[arg(long, value_name = "SECONDS", env = "VMCTL_RECONNECT_DELAY_S")]
    pub reconnect_delay_s: Option<u32>,

    /// Log filter, for example "debug" or "vmctl=trace". Default: info.
    #[arg(long, env = "VMCTL_LOG")]
    pub log: Option<String>,
}

/// What holds, after defaults and checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of records and logs; absolute.
    pub data: PathBuf,
    /// Directory of the guests' sockets; absolute.
    pub run: PathBuf,
    /// Socket of the API.
    pub socket: PathBuf,
    /// Group whose members may use the API.
    pub socket_group: Option<String>,
    /// Where other hosts' agents come in.
    pub peer_socket: PathBuf,
    /// blockd's API.
    pub blockd_socket: PathBuf,
    /// blockd's socket for NBD clients; absolute.
    pub nbd_socket: PathBuf,
    /// QEMU; absolute.
    pub qemu: PathBuf,
    /// What runs guests' processors.
    pub accel: AccelChoice,
    /// How long guests' requests wait for a blockd that went away.
    pub reconnect_delay_s: u32,
    /// Log filter.
    pub log: String,
}

/// Why a configuration is refused: place, key and reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct ConfigError {
    /// `FILE:LINE: key`, a path, or the name of a flag.
    pub place: String,
    /// Why.
    pub reason: String,
}

impl ConfigError {
    fn new(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { place: place.into(), reason: reason.into() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let next = "vmctl agent --help    (explains every key)";
        Self::new(exit_code::USAGE, "the configuration is refused", error, next)
    }
}

/// Flags and environment over the file over the defaults, checked.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(given: Settings, file: Option<&Path>) -> Result<Config, ConfigError> {
    let from_file = match file {
        Some(path) => {
            let text = read_file(path)?;
            toml::from_str(&text).map_err(|error| locate(path, &text, &error))?
        }
        None => Settings::default(),
    };
    finish(given.over(from_file))
}

impl Settings {
    /// These settings, and what they leave open from the others.
    fn over(self, other: Self) -> Self {
        Self {
            data: self.data.or(other.data),
            run: self.run.or(other.run),
            socket: self.socket.or(other.socket),
            socket_group: self.socket_group.or(other.socket_group),
            peer_socket: self.peer_socket.or(other.peer_socket),
            blockd_socket: self.blockd_socket.or(other.blockd_socket),
            nbd_socket: self.nbd_socket.or(other.nbd_socket),
            qemu: self.qemu.or(other.qemu),
            accel: self.accel.or(other.accel),
            reconnect_delay_s: self.reconnect_delay_s.or(other.reconnect_delay_s),
            log: self.log.or(other.log),
        }
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |error: io::Error| ConfigError::new(path.display().to_string(), error.to_string());
    if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(ConfigError::new(path.display().to_string(), "is no configuration: more than 1 MiB"));
    }
    fs::read_to_string(path).map_err(unreadable)
}

/// `FILE:LINE: key`, from where the parser stumbled.
fn locate(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let number = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let key = line.split(['=', '#']).next().unwrap_or_default().trim();
    let reason = error.message().lines().collect::<Vec<_>>().join(", ");
    ConfigError::new(format!("{}:{number}: {key}", path.display()), reason)
}

fn finish(settings: Settings) -> Result<Config, ConfigError> {
    let delay = settings.reconnect_delay_s.unwrap_or(RECONNECT_DELAY_S_DEFAULT);
    if !(1..=RECONNECT_DELAY_S_MAX).contains(&delay) {
        let reason = format!("{delay} is not in 1 to {RECONNECT_DELAY_S_MAX}");
        return Err(ConfigError::new("reconnect_delay_s (--reconnect-delay-s)", reason));
    }
    // Absolute: QEMU stands in another directory than we do.
    let path = |key: &str, given: Option<PathBuf>, default: &str| {
        let path = given.unwrap_or_else(|| default.into());
        std::path::absolute(path).map_err(|error| ConfigError::new(key, error.to_string()))
    };
    let run = path("run", settings.run, RUN_DEFAULT)?;
    Ok(Config {
        data: path("data", settings.data, DATA_DEFAULT)?,
        run: run.clone(),
        socket: path("socket", settings.socket, SOCKET_DEFAULT)?,
        socket_group: settings.socket_group,
        peer_socket: match settings.peer_socket {
            Some(given) => path("peer_socket", Some(given), "")?,
            None => run.join(PEER_SOCKET_DEFAULT),
        },
        blockd_socket: path("blockd_socket", settings.blockd_socket, BLOCKD_SOCKET_DEFAULT)?,
        nbd_socket: path("nbd_socket", settings.nbd_socket, NBD_SOCKET_DEFAULT)?,
        qemu: find_program(settings.qemu.unwrap_or_else(|| QEMU_DEFAULT.into()))?,
        accel: settings.accel.unwrap_or_default(),
        reconnect_delay_s: delay,
        log: settings.log.unwrap_or_else(|| "info".to_owned()),
    })
}

/// A name without a slash is looked for; one that is not found stays as it is, and is told when a VM is started.
fn find_program(program: PathBuf) -> Result<PathBuf, ConfigError> {
    if program.components().count() > 1 {
        return std::path::absolute(program)
            .map_err(|error| ConfigError::new("qemu (--qemu)", error.to_string()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(PROGRAM_DIRECTORIES.map(PathBuf::from));
    Ok(directories.map(|directory| directory.join(&program)).find(|file| file.is_file()).unwrap_or(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_outrank_the_file_and_the_file_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmctl.toml");
        fs::write(&file, "data = \"/a\"\nrun = \"/b\"\naccel = \"tcg\"\n").unwrap();
        let given = Settings { data: Some("/c".into()), ..Settings::default() };
        let config = load(given, Some(&file)).unwrap();
        assert_eq!((config.data, config.run), ("/c".into(), "/b".into()));
        assert_eq!((config.accel, config.socket), (AccelChoice::Tcg, SOCKET_DEFAULT.into()));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmctl.toml");
        fs::write(&file, "data = \"/a\"\nqemux = \"x\"\n").unwrap();
        let error = load(Settings::default(), Some(&file)).unwrap_err().to_string();
        assert!(error.contains("vmctl.toml:2: qemux: unknown field"), "{error}");
        let given = Settings { reconnect_delay_s: Some(60), ..Settings::default() };
        assert!(load(given, None).unwrap_err().to_string().contains("1 to 5"));
        assert!(load(Settings::default(), Some(&dir.path().join("none"))).is_err());
    }
}
