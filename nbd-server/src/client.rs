//! Who a client is: what a directory is told before it answers.

use std::net::SocketAddr;

/// Bytes of a peer's words that are logged.
const WORDS_MAX: usize = 64;

/// A client, as far as it has shown itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// From where; `None`: over a Unix socket, whose file's rights have let it in.
    pub address: Option<SocketAddr>,
    /// Whom its certificate names; `None` without TLS, and where certificates name nobody.
    pub identity: Option<String>,
    /// It speaks TLS, and its certificate was checked.
    pub verified: bool,
}

impl Client {
    /// A client over a Unix socket.
    #[must_use]
    pub fn unix() -> Self {
        Self::default()
    }

    /// A client over TCP that has shown nothing yet.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        Self { address: Some(address), ..Self::default() }
    }

    /// For the log.
    pub fn place(&self) -> String {
        self.address.map_or_else(|| "unix".to_owned(), |address| address.to_string())
    }
}

/// What a peer has said, fit for a log line: no control characters, and no more than 64 bytes.
#[must_use]
pub fn quoted(words: &str) -> String {
    let mut out = words.escape_debug().to_string();
    if out.len() > WORDS_MAX {
        let end = (0..=WORDS_MAX).rev().find(|&at| out.is_char_boundary(at)).unwrap_or(0);
        out.truncate(end);
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_peer_are_escaped_and_cut() {
        assert_eq!(quoted("all right"), "all right");
        assert_eq!(quoted("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        let long = quoted(&"ü".repeat(500));
        assert_eq!(long, format!("{}…", "ü".repeat(32)));
    }
}
