//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  nbd-server disk.img --unix /run/disk.sock
      serve one image on a Unix socket
  nbdinfo \"nbd+unix:///?socket=/run/disk.sock\"
      look at it
  qemu-system-x86_64 -drive file=nbd:unix:/run/disk.sock,format=raw,if=virtio
      boot from it
  nbd-server web=web.img db=/dev/vg0/db --listen 127.0.0.1:10809
      two disks under their names, on a loopback port
  nbd-server web=web.img --listen 0.0.0.0:10809 --tls-certificates /etc/pki/nbd
      to other hosts: TLS, and only clients whose certificate the CA there has signed
  nbdinfo \"nbds://HOST/web?tls-certificates=/etc/pki/nbd\"
      from there, with client-cert.pem and client-key.pem
  nbd-server --memory 1G --unix /run/scratch.sock
      serve memory
  nbdinfo [ nbd-server disk.img ]
      let a client start the server (socket activation)

Exit codes: 0 stopped as asked, 1 failed, 2 usage, 3 not found, 4 in use, 5 refused.";

/// Serves disk images, block devices or memory over NBD.
///
/// The first image is also the default export (the empty name). SIGTERM or Ctrl-C stops: requests in
/// flight are finished, new ones are answered ESHUTDOWN.
#[derive(Parser, Debug)]
#[command(name = "nbd-server", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    /// Images to serve: FILE, or NAME=FILE to choose the export's name (else the file's own name).
    #[arg(value_name = "[NAME=]FILE", required_unless_present = "memory")]
    pub(crate) images: Vec<String>,

    /// Serve that much memory as the export "memory"; nothing survives the end. Units: K, M, G, T.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,

    /// Listen on a Unix socket. It is made with mode 0600 and removed at the end.
    #[arg(long, value_name = "PATH")]
    pub(crate) unix: Option<PathBuf>,

    /// Listen on a TCP address. Default when no socket is given: 127.0.0.1:10809.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,

    /// Insist on TLS over TCP. In DIR: server-cert.pem, server-key.pem, ca-cert.pem (whose clients are let in) and perhaps
    /// ca-crl.pem. Replaced files are used for new clients.
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_certificates: Option<PathBuf>,

    /// Allow --listen on an address that other hosts can reach. Nothing is encrypted or authenticated.
    #[arg(long, conflicts_with = "tls_certificates")]
    pub(crate) insecure_tcp: bool,

    /// How images are cached.
    #[arg(long, value_enum, default_value_t = Cache::Writeback)]
    pub(crate) cache: Cache,

    /// Refuse writes.
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Tell clients that the disks spin.
    #[arg(long)]
    pub(crate) rotational: bool,

    /// Reactor threads; exports are spread over them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) threads: u8,

    /// Microseconds to look for the next request before sleeping, with clients that keep few in flight. It
    /// halves such a client's latency and uses the processor meanwhile; 0 turns it off.
    #[arg(long, value_name = "US", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) poll_us: u32,

    /// Connections at once.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) max_connections: u32,

    /// Connections at once of one client: of one identity where certificates name their owners, else of one address.
    /// Clients over the Unix socket share the limit of all.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) max_connections_per_client: u32,

    /// Offer simple replies only, as servers of the old days do.
    #[arg(long, alias = "no-sr")]
    pub(crate) no_structured_replies: bool,

    /// Offer no extended headers, as most servers do.
    #[arg(long, alias = "no-eh")]
    pub(crate) no_extended_headers: bool,

    /// Tell nothing of what is allocated, as servers without meta contexts do.
    #[arg(long, alias = "no-meta")]
    pub(crate) no_meta_contexts: bool,

    /// Log filter, for example "debug" or "nbd_server=trace".
    #[arg(long, env = "NBD_SERVER_LOG", default_value = "info")]
    pub(crate) log: String,
}

/// See [`nbd_server::image::CacheMode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cache {
    /// Through the page cache.
    Writeback,
    /// Past the page cache (O_DIRECT).
    Direct,
}

/// Bytes, or a number with a unit of 1024: 512, 64K, 8G, 1T.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.trim_end_matches(['i', 'B']).char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number = u64::from_str(digits).map_err(|_| "expected a number with K, M, G or T".to_owned())?;
    let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes > 0 && i64::try_from(bytes).is_ok());
    bytes.ok_or_else(|| "must be between 1 byte and 8 EiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("512", 512), ("64K", 65_536), ("8GiB", 8 << 30), ("1T", 1 << 40), ("1MB", 1 << 20)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "0", "16777216T", "1.5G", "9E", "iB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
