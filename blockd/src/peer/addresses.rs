//! Where hosts are found: `HOST:PORT`, theirs and ours.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::error::{PeerError, PeerErrorKind};
use super::{Inner, certs, lock};

/// Addresses of one host.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address: a DNS name, a colon, a port.
pub const ADDRESS_BYTES_MAX: usize = 253 + 6;

impl Inner {
    /// Where the other host is to look for us.
    pub(super) fn token_addresses(&self, given: Vec<String>) -> Result<Vec<String>, PeerError> {
        let Some(listening) = *lock(&self.listening) else {
            let message = "this daemon does not listen for other hosts";
            let next = "blockd serve --peer-listen ADDR:PORT …    (or make the token on the other host)";
            return Err(PeerError::new(PeerErrorKind::Refused, message).with_next(next));
        };
        if !given.is_empty() {
            return Ok(given);
        }
        let ip = if listening.ip().is_unspecified() { outward_ip(listening) } else { Some(listening.ip()) };
        let unknown = || {
            let message =
                "this daemon listens on all addresses and does not know which of them others can reach";
            let next = "blockctl host pair --new --address HOST:PORT";
            PeerError::new(PeerErrorKind::BadValue, message).with_next(next)
        };
        Ok(vec![SocketAddr::new(ip.ok_or_else(unknown)?, listening.port()).to_string()])
    }

    /// What the other host is told of where we are, when we talk to it from that address.
    pub(super) fn own_addresses(&self, given: &[String], local: Option<IpAddr>) -> Vec<String> {
        if !given.is_empty() {
            return given.to_vec();
        }
        let Some(listening) = *lock(&self.listening) else { return Vec::new() };
        let ip = if listening.ip().is_unspecified() { local } else { Some(listening.ip()) };
        ip.map(|ip| SocketAddr::new(ip.to_canonical(), listening.port()).to_string()).into_iter().collect()
    }
}

/// The address that we have towards the rest of the world. Nothing is sent: the system only looks for the way.
fn outward_ip(listening: SocketAddr) -> Option<IpAddr> {
    // Addresses for documentation; nobody has them.
    let (from, to) =
        if listening.is_ipv4() { ("0.0.0.0:0", "192.0.2.1:9") } else { ("[::]:0", "[2001:db8::1]:9") };
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// Whether each is `HOST:PORT`, with square brackets around an IPv6 address.
pub(super) fn check_addresses(addresses: &[String]) -> Result<(), PeerError> {
    if addresses.len() > ADDRESSES_MAX {
        let message = format!("{} addresses, at most {ADDRESSES_MAX} may be", addresses.len());
        return Err(PeerError::new(PeerErrorKind::BadValue, message));
    }
    match addresses.iter().find(|address| !is_address(address)) {
        None => Ok(()),
        Some(bad) => {
            let message = format!("{bad:?} is no address: HOST:PORT, or [IPV6]:PORT");
            Err(PeerError::new(PeerErrorKind::BadValue, message))
        }
    }
}

fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let good_port = port.parse::<u16>().is_ok_and(|port| port != 0) && !port.starts_with('+');
    let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good_host = match is_v6 {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => certs::dns_name(host).is_some() || host.parse::<std::net::Ipv4Addr>().is_ok(),
    };
    address.len() <= ADDRESS_BYTES_MAX && good_port && good_host
}
