//! Errors as a person sees them: what, why, and the next command to type.

pub use local_api::failure::Failure;

use crate::error::{Error, Kind};
use crate::exit_code;
use crate::http::HttpError;

/// The failure that goes with an error's kind.
pub fn of_error(what: impl Into<String>, error: &Error) -> Failure {
    let next = error.next.clone().unwrap_or_else(|| usual_advice(error.kind).to_owned());
    Failure::new(code_of(error.kind), what, error, next)
}

/// The agent's word on what was asked of it.
pub fn of_client(what: impl Into<String>, error: &HttpError) -> Failure {
    let (code, next) = match error {
        HttpError::Refused(error) => return of_error(what, error),
        HttpError::Unreachable { source, .. } => unreachable_advice(source),
        HttpError::Late(_) => (exit_code::UNREACHABLE, "journalctl -u vmctl -n 20"),
        HttpError::Protocol(_) => {
            (exit_code::FAILED, "vmctl --version    (is the agent of the same version?)")
        }
    };
    Failure::new(code, what, error, next)
}

fn unreachable_advice(source: &std::io::Error) -> (u8, &'static str) {
    if source.kind() == std::io::ErrorKind::PermissionDenied {
        return (exit_code::REFUSED, "sudo vmctl …    (or join the agent's socket_group)");
    }
    let next = "systemctl start vmctl    (or name its socket: --socket PATH, $VMCTL_SOCKET)";
    (exit_code::UNREACHABLE, next)
}

/// The exit code that goes with a kind of error.
pub fn code_of(kind: Kind) -> u8 {
    match kind {
        // The agent did answer: what did not happen in time is the guest's or blockd's doing.
        Kind::Timeout => exit_code::FAILED,
        kind => local_api::failure::code_of(kind),
    }
}

/// What helps with errors of that kind.
fn usual_advice(kind: Kind) -> &'static str {
    match kind {
        Kind::BadName => "choose 1 to 63 of A-Z a-z 0-9 . _ -, not beginning with . or -",
        Kind::BadValue => "vmctl vm define --help    (shows a whole definition)",
        Kind::BadRequest | Kind::TooLarge => "vmctl --version    (is the agent of the same version?)",
        Kind::NotFound => "vmctl vm list",
        Kind::Exists => "vmctl vm list    (choose another name)",
        Kind::Busy | Kind::Refused | Kind::Stale => "vmctl status",
        Kind::NoSpace => "df -h; free -m",
        Kind::Io | Kind::Unknown => "journalctl -u vmctl -n 20",
        Kind::Damaged => "journalctl -u vmctl -n 20; ls -la /var/lib/vmctl/vms",
        Kind::Stopping | Kind::Timeout => "vmctl status; systemctl status vmctl",
        Kind::Forbidden => "sudo vmctl …    (or join the agent's socket_group)",
        Kind::Overloaded => "try again in a minute",
        Kind::Unreachable => "systemctl status blockd vmctl",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_and_advice() {
        for kind in Kind::ALL {
            let failure = of_error("cannot do it", &Error::one_line(kind, "because"));
            assert_ne!(failure.code, exit_code::OK, "{kind:?}");
            assert_eq!(failure.to_string().lines().count(), 3, "{kind:?}");
            assert!(failure.to_string().starts_with("error: cannot do it\nwhy:   because\nnext:  "));
        }
    }

    #[test]
    fn codes_are_those_of_the_contract() {
        let kinds = [Kind::NotFound, Kind::Busy, Kind::Unreachable, Kind::Timeout];
        assert_eq!(kinds.map(code_of), [3, 4, 7, 1]);
    }
}
