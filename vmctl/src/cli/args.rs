//! What may be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::migrate::{MigrateArgs, RecoverArgs, RollbackArgs, VmArgs};
use super::vm::VmCommand;
use crate::config::{SOCKET_DEFAULT, Settings};
use crate::vm::name::VmName;

const EXAMPLES: &str = "\
Examples:
  vmctl vm define web1.toml
      a VM on blockd's volumes; vmctl vm define --help shows a whole file
  vmctl vm start web1
  vmctl vm console web1
      its serial console; Ctrl-] leaves
  vmctl migrate web1 --to B
      to another host, while it runs
  vmctl vm stop web1

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 busy, 5 refused, 6 partial, 7 unreachable,
8 verification failed.";

/// Virtual machines of this host, on blockd's volumes.
#[derive(Parser, Debug)]
#[command(name = "vmctl", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Socket of the agent. Default: /run/vmctl/vmctl.sock.
    #[arg(long, global = true, value_name = "PATH", env = "VMCTL_SOCKET")]
    pub socket: Option<PathBuf>,

    /// How results are written: for people, as one JSON object, or as one object a line.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub output: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    pub(super) fn socket_or_default(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| SOCKET_DEFAULT.into())
    }
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One object.
    Json,
    /// One object a line.
    Jsonl,
}

/// What can be done.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the agent of this host until SIGTERM or Ctrl-C. The guests go on without it.
    #[command(
        after_help = "Examples:\n  vmctl agent --config /etc/vmctl/vmctl.toml\n  vmctl agent --data D --run R --socket S --blockd-socket C --nbd-socket N"
    )]
    Agent(Box<AgentArgs>),
    /// Virtual machines.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Move a running VM to another host, with its disks and its memory.
    #[command(
        after_help = "Examples:\n  vmctl migrate web1 --to B --plan\n  vmctl migrate web1 --to B\n  vmctl migrate web1 --to B --silence 100ms"
    )]
    Migrate(MigrateArgs),
    /// Give up a move that is under way: the VM stays where it is.
    #[command(after_help = "Example:\n  vmctl abort web1")]
    Abort(VmArgs),
    /// Bring a VM back to where it was before its last move, with today's data.
    #[command(after_help = "Example:\n  vmctl rollback web1")]
    Rollback(RollbackArgs),
    /// Finish or undo what a crash has left of moves; any number of times.
    #[command(after_help = "Examples:\n  vmctl recover\n  vmctl recover web1")]
    Recover(RecoverArgs),
    /// What the last move of a VM was: times, bytes, forecast against actual, and the certificate.
    #[command(after_help = "Examples:\n  vmctl report web1\n  vmctl report web1 -o json")]
    Report(VmArgs),
    /// The agent and its VMs, or all about one.
    #[command(
        after_help = "Examples:\n  vmctl status\n  vmctl status web1 -o json\n  vmctl status web1 --watch"
    )]
    Status(StatusArgs),
    /// Print a script for the shell that completes what is typed.
    #[command(after_help = "Example:\n  vmctl completion bash >/etc/bash_completion.d/vmctl")]
    Completion {
        /// Which shell.
        shell: Shell,
    },
}

/// `agent`.
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// Configuration file; its keys are the flags below, with _ for -.
    #[arg(long, value_name = "FILE", env = "VMCTL_CONFIG")]
    pub config: Option<PathBuf>,
    /// What it may say.
    #[command(flatten)]
    pub settings: Settings,
}

/// `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Which VM; missing: all.
    pub vm: Option<VmName>,
    /// Follow its move until that has ended.
    #[arg(long, requires = "vm")]
    pub watch: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                if sub.has_subcommands() {
                    check(sub);
                } else {
                    let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains("vmctl "), "{} has no example", sub.get_name());
                    assert!(sub.get_about().is_some(), "{}", sub.get_name());
                }
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn the_agent_takes_the_socket_like_everybody() {
        let cli = Cli::parse_from(["vmctl", "agent", "--socket", "/s", "--data", "/d"]);
        assert_eq!(cli.socket, Some("/s".into()));
    }
}
