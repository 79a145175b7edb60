//! Names: those that our certificate is good for, and the one that a foreign certificate gives its owner.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::config::Config;

/// Longest common name that is read.
const NAME_BYTES_MAX: usize = 256;
/// DER: a sequence, a set, an object's identifier.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
/// DER: UTF8String, PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// The identifier of a common name, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// What our certificate is good for: this host's name, the address where we listen, this host as it calls itself, and
/// what the configuration adds.
pub(super) fn of(config: &Config) -> Vec<String> {
    let listening = config.nbd_listen.map(|address| address.ip());
    let listening = listening.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
    let fixed = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let own = std::iter::once(config.name.clone()).filter(|name| is_dns_name(name));
    let mut names: Vec<String> = own.chain(fixed).chain(listening).collect();
    names.extend(config.nbd_tls_names.iter().cloned());
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether a certificate can be good for that.
pub(crate) fn is_host_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || is_dns_name(name)
}

fn is_dns_name(name: &str) -> bool {
    rustls::pki_types::DnsName::try_from(name).is_ok()
}

/// The common name of a certificate that was verified, for one that was made elsewhere.
///
/// # Errors
/// It has none, or several: then who it is would depend on the reader.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let bad = || "its certificate has no single common name".to_owned();
    let certificate = EndEntityCert::try_from(certificate).map_err(|_| bad())?;
    let mut rest = certificate.subject();
    let mut found = Vec::new();
    while let Some((SET, set, after)) = element(rest) {
        found.extend(common_names(set));
        rest = after;
    }
    match found.as_slice() {
        [name] if rest.is_empty() => Ok(name.clone()),
        _ => Err(bad()),
    }
}

fn common_names(mut set: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((SEQUENCE, attribute, after)) = element(set) {
        set = after;
        if let Some((OBJECT, kind, value)) = element(attribute)
            && kind == COMMON_NAME
            && let Some((tag, text, [])) = element(value)
            && TEXTS.contains(&tag)
            && let Ok(text) = std::str::from_utf8(text)
            && (1..=NAME_BYTES_MAX).contains(&text.len())
        {
            names.push(text.to_owned());
        }
    }
    names
}

/// The first element of DER: its tag, its content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(&length, rest)| (usize::from(length), rest))?,
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length)?;
    Some((tag, content, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fixtures::nbd::certificates::{Authority, Wanted};

    #[test]
    fn the_common_name_is_found_among_others() {
        let authority = Authority::new("ours");
        for (name, ballast) in [("web1", 0), ("Wéb 1", 200), ("x", 3000)] {
            let made = authority.make(&Wanted { ballast, ..Wanted::client(name) });
            assert_eq!(subject(made.certificate.der()).as_deref(), Ok(name));
        }
        assert!(subject(authority.make(&Wanted::client(&"x".repeat(257))).certificate.der()).is_err());
    }

    #[test]
    fn elements_that_lie_about_their_length_are_none() {
        assert_eq!(element(&[0x30, 2, 1, 2, 3]), Some((0x30, &[1, 2][..], &[3][..])));
        for bad in [
            &[][..],
            &[0x30],
            &[0x30, 1],
            &[0x30, 0x81],
            &[0x30, 0x82, 1],
            &[0x30, 0x82, 1, 0],
            &[0x30, 0x84, 0, 0, 0, 1, 1],
        ] {
            assert_eq!(element(bad), None, "{bad:x?}");
        }
    }
}
