//! Who is compared with whom: the servers, their classes, and their command lines.
//!
//! The same function builds the command that is run and the one that is printed on the results page, so the
//! page cannot drift from the truth.

use clap::ValueEnum;
use serde::Serialize;

/// What may be compared with what. A ratio never crosses a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Through the host's page cache; the image is in it before each run.
    Cached,
    /// Past the page cache, to the disk; the cache is dropped before each run.
    Direct,
    /// No disk at all: what the transport and the client allow.
    Ceiling,
}

impl Class {
    /// All classes, in the order of running.
    pub const ALL: [Self; 3] = [Self::Cached, Self::Direct, Self::Ceiling];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Direct => "direct",
            Self::Ceiling => "ceiling",
        }
    }

    /// The server whose CPU time per request is the yardstick: nbdkit, or qemu-nbd where nbdkit has no
    /// counterpart.
    pub fn cpu_reference(self) -> ServerId {
        match self {
            Self::Cached => ServerId::NbdkitFile,
            Self::Direct => ServerId::QemuNbdDirect,
            Self::Ceiling => ServerId::NbdkitMemory,
        }
    }
}

/// How a line takes part in its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A server of this workspace.
    Ours,
    /// Another NBD server doing the same work.
    Peer,
    /// A bound, not a competitor: no server, or no data.
    Limit,
}

/// One line of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerId {
    /// Our server over the page cache.
    Ours,
    /// A volume of our daemon: every block written, no snapshot.
    Blockd,
    /// nbdkit's file plugin.
    NbdkitFile,
    /// qemu-nbd, raw, writeback.
    QemuNbd,
    /// nbd-server of the nbd project, as Debian packages it.
    DebianNbdServer,
    /// Our server with `O_DIRECT`.
    OursDirect,
    /// A volume of our daemon with `O_DIRECT`.
    BlockdDirect,
    /// qemu-nbd, raw, no cache, io_uring.
    QemuNbdDirect,
    /// No server: fio's io_uring engine on the image itself.
    FioFile,
    /// Our server on memory.
    OursMemory,
    /// nbdkit's memory plugin.
    NbdkitMemory,
    /// nbdkit's null plugin: no data at all.
    NbdkitNull,
}

/// The program behind a server, as far as finding it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Our server, built by this workspace.
    Ours,
    /// Our daemon, built by this workspace.
    Blockd,
    /// Found by its name in `PATH`.
    InPath(&'static str),
    /// Debian's nbd-server: has the name of ours, so only looked for in the system's directories.
    Debian,
}

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// The image, all of it written.
    Image,
    /// A volume, all of it written.
    Volume,
    /// Nothing on any disk.
    None,
}

/// The paths and sizes a command line is filled with.
#[derive(Debug, Clone)]
pub struct Places {
    /// Our server's binary.
    pub ours: String,
    /// Our daemon's binary.
    pub blockd: String,
    /// The daemon's store.
    pub store: String,
    /// The socket of the daemon's API.
    pub api: String,
    /// Debian's nbd-server.
    pub debian: String,
    /// The image.
    pub image: String,
    /// Size of the memory servers, with a suffix.
    pub size: String,
    /// The Unix socket to listen on.
    pub socket: String,
    /// Debian's configuration file.
    pub config: String,
    /// Where Debian's daemon leaves its process id.
    pub pid_file: String,
}

impl Places {
    /// Placeholders for printing: no path of this machine in them.
    pub fn placeholders(size: &str) -> Self {
        Self {
            ours: "target/release/nbd-server".into(),
            blockd: "target/release/blockd".into(),
            store: "$STORE".into(),
            api: "$API".into(),
            debian: "nbd-server".into(),
            image: "$IMG".into(),
            size: size.into(),
            socket: "$SOCK".into(),
            config: "$CONF".into(),
            pid_file: "$PID".into(),
        }
    }
}

impl ServerId {
    /// The name on the command line, in tables and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Blockd => "blockd",
            Self::NbdkitFile => "nbdkit-file",
            Self::QemuNbd => "qemu-nbd",
            Self::DebianNbdServer => "debian-nbd-server",
            Self::OursDirect => "ours-direct",
            Self::BlockdDirect => "blockd-direct",
            Self::QemuNbdDirect => "qemu-nbd-direct",
            Self::FioFile => "fio-file",
            Self::OursMemory => "ours-memory",
            Self::NbdkitMemory => "nbdkit-memory",
            Self::NbdkitNull => "nbdkit-null",
        }
    }

    /// The class it is compared in.
    pub fn class(self) -> Class {
        match self {
            Self::Ours | Self::Blockd | Self::NbdkitFile | Self::QemuNbd | Self::DebianNbdServer => {
                Class::Cached
            }
            Self::OursDirect | Self::BlockdDirect | Self::QemuNbdDirect | Self::FioFile => Class::Direct,
            Self::OursMemory | Self::NbdkitMemory | Self::NbdkitNull => Class::Ceiling,
        }
    }

    /// Ours, a peer, or a limit.
    pub fn role(self) -> Role {
        match self {
            Self::Ours | Self::OursDirect | Self::OursMemory | Self::Blockd | Self::BlockdDirect => {
                Role::Ours
            }
            Self::FioFile | Self::NbdkitNull => Role::Limit,
            Self::NbdkitFile
            | Self::QemuNbd
            | Self::DebianNbdServer
            | Self::QemuNbdDirect
            | Self::NbdkitMemory => Role::Peer,
        }
    }

    /// The program that has to be there.
    pub fn program(self) -> Program {
        match self {
            Self::Ours | Self::OursDirect | Self::OursMemory => Program::Ours,
            Self::Blockd | Self::BlockdDirect => Program::Blockd,
            Self::NbdkitFile | Self::NbdkitMemory | Self::NbdkitNull => Program::InPath("nbdkit"),
            Self::QemuNbd | Self::QemuNbdDirect => Program::InPath("qemu-nbd"),
            Self::DebianNbdServer => Program::Debian,
            Self::FioFile => Program::InPath("fio"),
        }
    }

    /// Whether it holds the data in memory of its own, which has to be written before reading says anything.
    pub fn holds_memory(self) -> bool {
        matches!(self, Self::OursMemory | Self::NbdkitMemory)
    }

    /// What it serves.
    pub fn disk(self) -> DiskKind {
        match self {
            Self::Blockd | Self::BlockdDirect => DiskKind::Volume,
            Self::OursMemory | Self::NbdkitMemory | Self::NbdkitNull => DiskKind::None,
            Self::Ours
            | Self::NbdkitFile
            | Self::QemuNbd
            | Self::DebianNbdServer
            | Self::OursDirect
            | Self::QemuNbdDirect
            | Self::FioFile => DiskKind::Image,
        }
    }

    /// The export's name in the URI.
    pub fn export(self) -> &'static str {
        match (self, self.disk()) {
            (Self::DebianNbdServer, _) => DEBIAN_EXPORT,
            (_, DiskKind::Volume) => VOLUME,
            _ => "",
        }
    }

    /// The command line, or `None` for the line without a server.
    pub fn command(self, places: &Places) -> Option<Vec<String>> {
        let Places { ours, blockd, store, api, debian, image, size, socket, config, pid_file } = places;
        let line: Vec<&str> = match self {
            Self::Ours => vec![ours, image, "--unix", socket, "--cache", "writeback"],
            Self::Blockd => serve_store(blockd, store, socket, api, "writeback"),
            Self::BlockdDirect => serve_store(blockd, store, socket, api, "direct"),
            Self::OursDirect => vec![ours, image, "--unix", socket, "--cache", "direct"],
            Self::OursMemory => vec![ours, "--memory", size, "--unix", socket],
            Self::NbdkitFile => vec!["nbdkit", "-f", "-U", socket, "file", image],
            Self::NbdkitMemory => vec!["nbdkit", "-f", "-U", socket, "memory", size],
            Self::NbdkitNull => vec!["nbdkit", "-f", "-U", socket, "null", size],
            Self::QemuNbd => qemu_nbd(&["--cache=writeback", image], socket),
            Self::QemuNbdDirect => {
                qemu_nbd(&["--cache=none", "--aio=io_uring", "--discard=unmap", image], socket)
            }
            Self::DebianNbdServer => vec![debian, "-C", config, "-p", pid_file],
            Self::FioFile => return None,
        };
        Some(line.into_iter().map(str::to_owned).collect())
    }
}

fn qemu_nbd<'a>(rest: &[&'a str], socket: &'a str) -> Vec<&'a str> {
    [&["qemu-nbd", "-t", "-e", "8", "-k", socket, "-f", "raw"], rest].concat()
}

fn serve_store<'a>(
    blockd: &'a str,
    store: &'a str,
    socket: &'a str,
    api: &'a str,
    cache: &'a str,
) -> Vec<&'a str> {
    vec![blockd, "serve", "--data", store, "--nbd-unix", socket, "--socket", api, "--cache", cache]
}

/// The volume's name in its store.
pub const VOLUME: &str = "bench";

/// The export's name in [`debian_config`].
pub const DEBIAN_EXPORT: &str = "bench";

/// The configuration of Debian's nbd-server: only the Unix socket, one export, every command switched on.
///
/// Run as a daemon, as the package does, and not with `-d`: with that switch it serves one connection and
/// then stops, but fio connects once for the size and again for the job.
pub fn debian_config(image: &str, socket: &str) -> String {
    format!(
        "[generic]\nunixsock={socket}\nallowlist=true\n\
         [{DEBIAN_EXPORT}]\nexportname={image}\nflush=true\nfua=true\ntrim=true\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_with_the_command_line_and_the_results() {
        for server in ServerId::value_variants() {
            let on_command_line = server.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(on_command_line.as_deref(), Some(server.name()));
            assert_eq!(serde_json::to_value(server).unwrap(), server.name());
        }
    }

    #[test]
    fn the_yardstick_of_a_class_belongs_to_it() {
        for class in Class::ALL {
            assert_eq!(class.cpu_reference().class(), class);
            assert_eq!(class.cpu_reference().role(), Role::Peer);
        }
    }

    #[test]
    fn every_server_listens_on_the_socket_only() {
        let places = Places::placeholders("4G");
        for server in ServerId::value_variants() {
            let Some(line) = server.command(&places) else { continue };
            let on_socket = line.contains(&places.socket) || *server == ServerId::DebianNbdServer;
            assert!(on_socket, "{line:?}");
        }
        assert!(debian_config("i", "/s").contains("unixsock=/s\n"));
    }
}
