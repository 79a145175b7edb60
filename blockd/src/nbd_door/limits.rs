//! Bounds of NBD clients, by name: `[nbd_limits]` in the configuration, `nbd_limits` in the status.

use std::ops::RangeInclusive;
use std::time::Duration;

use nbd_server::connection::Limits;
use nbd_server::handshake::HandshakeLimits;
use nbd_server::wire::MAX_PAYLOAD_BYTES;
use serde::{Deserialize, Serialize};

use crate::jobs::span::Span;
use crate::size::Size;

/// Connections at once, of everybody.
const CONNECTIONS_DEFAULT: u32 = 1000;
/// Connections at once of one client.
const CONNECTIONS_PER_CLIENT_DEFAULT: u32 = 256;
/// As QEMU has it for its own server.
const HANDSHAKE_SECONDS_DEFAULT: u64 = 10;

/// `[nbd_limits]` as it was given, each key perhaps not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    connections_per_client: Option<u32>,
    handshake_time: Option<Span>,
    options: Option<u32>,
    option_bytes: Option<Size>,
    requests: Option<u32>,
    payload_bytes: Option<Size>,
    stall_time: Option<Span>,
}

/// What holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NbdLimits {
    /// Connections at once, those in the handshake included.
    pub connections: u32,
    /// Connections at once of one identity; of one address where there is none, and during the handshake. Clients over the
    /// Unix socket are bound by `connections` only.
    pub connections_per_client: u32,
    /// Seconds that a handshake may take as a whole.
    pub handshake_seconds: u64,
    /// Options that a client may send in the handshake, and four more for each export that it may see.
    pub options: u32,
    /// Longest data of an option, bytes.
    pub option_bytes: u64,
    /// Requests in flight of one connection; more are read when those are answered.
    pub requests: u32,
    /// Bytes that these may hold, and their replies until they are sent.
    pub payload_bytes: u64,
    /// Seconds that a client may leave half a request, or unread replies, before it is disconnected.
    pub stall_seconds: u64,
}

impl Default for NbdLimits {
    fn default() -> Self {
        let (limits, handshake) = (Limits::default(), HandshakeLimits::default());
        Self {
            connections: CONNECTIONS_DEFAULT,
            connections_per_client: CONNECTIONS_PER_CLIENT_DEFAULT,
            handshake_seconds: HANDSHAKE_SECONDS_DEFAULT,
            options: handshake.options_max as u32,
            option_bytes: handshake.option_bytes_max as u64,
            requests: limits.requests_max as u32,
            payload_bytes: limits.payload_bytes_max as u64,
            stall_seconds: limits.stall.as_secs(),
        }
    }
}

impl NbdLimits {
    /// What was given over the defaults, checked.
    ///
    /// # Errors
    /// The key, and why its value is refused.
    pub fn of(given: &LimitSettings, connections: Option<u32>) -> Result<Self, (&'static str, String)> {
        let own = Self::default();
        let seconds = |given: Option<Span>, default| given.map_or(default, Span::as_secs);
        let bytes = |given: Option<Size>, default| given.map_or(default, |size| size.0);
        let limits = Self {
            connections: connections.unwrap_or(own.connections),
            connections_per_client: given.connections_per_client.unwrap_or(own.connections_per_client),
            handshake_seconds: seconds(given.handshake_time, own.handshake_seconds),
            options: given.options.unwrap_or(own.options),
            option_bytes: bytes(given.option_bytes, own.option_bytes),
            requests: given.requests.unwrap_or(own.requests),
            payload_bytes: bytes(given.payload_bytes, own.payload_bytes),
            stall_seconds: seconds(given.stall_time, own.stall_seconds),
        };
        limits.check()?;
        Ok(limits)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let largest = u64::from(MAX_PAYLOAD_BYTES);
        let bounds: [(&str, u64, RangeInclusive<u64>); 8] = [
            ("connections_max", self.connections.into(), 1..=100_000),
            ("connections_per_client", self.connections_per_client.into(), 1..=100_000),
            ("handshake_time", self.handshake_seconds, 1..=300),
            ("options", self.options.into(), 8..=10_000),
            // A name and a few contexts must fit.
            ("option_bytes", self.option_bytes, 8 << 10..=1 << 20),
            ("requests", self.requests.into(), 1..=65_536),
            // One request of the largest payload must fit, or it would wait for ever.
            ("payload_bytes", self.payload_bytes, largest..=1 << 30),
            ("stall_time", self.stall_seconds, 1..=3600),
        ];
        match bounds.into_iter().find(|(_, value, range)| !range.contains(value)) {
            Some((key, _, range)) => Err((key, format!("must be {} to {}", range.start(), range.end()))),
            None => Ok(()),
        }
    }

    /// Those of a handshake.
    pub fn handshake(&self) -> HandshakeLimits {
        HandshakeLimits { option_bytes_max: self.option_bytes as usize, options_max: self.options as usize }
    }

    /// Those of a connection.
    pub fn connection(&self) -> Limits {
        Limits {
            requests_max: self.requests as usize,
            payload_bytes_max: self.payload_bytes as usize,
            stall: Duration::from_secs(self.stall_seconds),
            // QEMU waits for the next daemon when a connection ends, but hands ESHUTDOWN on as an error of the disk.
            refuse_at_stop: false,
            ..Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<NbdLimits, (&'static str, String)> {
        NbdLimits::of(&toml::from_str(text).expect("well-formed"), None)
    }

    #[test]
    fn what_is_not_given_is_the_default() {
        assert_eq!(of(""), Ok(NbdLimits::default()));
        let given = of("requests = 16\nstall_time = '1m30s'\npayload_bytes = '64MiB'").unwrap();
        let wanted =
            NbdLimits { requests: 16, stall_seconds: 90, payload_bytes: 64 << 20, ..NbdLimits::default() };
        assert_eq!(given, wanted);
        assert_eq!(given.connection().stall, Duration::from_secs(90));
        assert_eq!(NbdLimits::of(&LimitSettings::default(), Some(7)).unwrap().connections, 7);
    }

    #[test]
    fn what_could_not_work_is_refused_by_its_key() {
        for (text, key) in [
            ("payload_bytes = '32MiB'\nrequests = 0", "requests"),
            ("payload_bytes = '31MiB'", "payload_bytes"),
            ("payload_bytes = '2GiB'", "payload_bytes"),
            ("option_bytes = '1KiB'", "option_bytes"),
            ("options = 7", "options"),
            ("handshake_time = '0s'", "handshake_time"),
            ("stall_time = '2h'", "stall_time"),
            ("connections_per_client = 0", "connections_per_client"),
        ] {
            assert_eq!(of(text).unwrap_err().0, key, "{text}");
        }
        assert!(toml::from_str::<LimitSettings>("request = 1").is_err());
    }
}
