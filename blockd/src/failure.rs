//! Errors as a person sees them: what, why, and the next command to type.

pub use local_api::failure::{Failure, code_of};

use crate::api::client::ClientError;
use crate::api::types::{ErrorBody, Kind};
use crate::exit_code;

/// The daemon's word on what was asked of it.
pub fn of_client(what: impl Into<String>, error: &ClientError) -> Failure {
    let (code, next) = match error {
        ClientError::Refused(body) => (code_of(body.kind), next_of(body)),
        ClientError::Unreachable { source, .. } => unreachable_advice(source),
        ClientError::Late(_) => (exit_code::UNREACHABLE, "journalctl -u blockd -n 20".to_owned()),
        ClientError::Protocol(_) => {
            (exit_code::FAILED, "blockctl --version; blockd --version    (do they fit?)".to_owned())
        }
    };
    Failure::new(code, what, error, next)
}

fn unreachable_advice(source: &std::io::Error) -> (u8, String) {
    if source.kind() == std::io::ErrorKind::PermissionDenied {
        return (exit_code::REFUSED, "sudo blockctl …    (or join the daemon's socket_group)".to_owned());
    }
    let next = "systemctl start blockd    (or name its socket: --socket PATH, $BLOCKD_SOCKET)";
    (exit_code::UNREACHABLE, next.to_owned())
}

/// What to type next: the daemon's advice, else what helps with errors of that kind.
fn next_of(error: &ErrorBody) -> String {
    let usual = match error.kind {
        Kind::BadName => "choose 1 to 255 of A-Z a-z 0-9 . _ -, not beginning with . or -",
        Kind::BadValue => "blockctl volume show NAME    (sizes are multiples of 512 bytes)",
        Kind::BadRequest | Kind::TooLarge => "blockctl --version; blockd --version    (do they fit?)",
        Kind::NotFound => "blockctl volume list; blockctl snapshot list",
        Kind::Exists => "blockctl volume list    (choose another name)",
        Kind::Busy => "blockctl export list    (shows where clients are connected)",
        Kind::Stale => "blockctl replica list    (shows what there is, and of which epoch)",
        Kind::Refused => "blockctl snapshot list    (shows snapshots, holds and clones)",
        Kind::NoSpace => "blockctl status    (delete snapshots, or give the pool more room)",
        Kind::Io | Kind::Unknown => "journalctl -u blockd -n 20; dmesg | tail",
        Kind::Damaged => "blockctl scrub; journalctl -u blockd -n 20",
        Kind::Stopping | Kind::Timeout => "systemctl status blockd",
        Kind::Forbidden => "sudo blockctl …    (or join the daemon's socket_group)",
        Kind::Overloaded => "try again in a minute",
        Kind::Unreachable => "blockctl host list    (does the other host run?)",
    };
    error.next.clone().unwrap_or_else(|| usual.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_and_advice() {
        for kind in Kind::ALL {
            let failure = of_client("cannot do it", &ClientError::Refused(ErrorBody::new(kind, "because")));
            assert_ne!(failure.code, exit_code::OK, "{kind:?}");
            assert_eq!(failure.to_string().lines().count(), 3, "{kind:?}");
            assert!(failure.to_string().starts_with("error: cannot do it\nwhy:   because\nnext:  "));
        }
    }
}
