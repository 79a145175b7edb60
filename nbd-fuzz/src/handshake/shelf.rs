//! What the fuzzed server exports: two disks, one of them with meta contexts.

use nbd_server::client::Client;
use nbd_server::disk::ExportIndex;
use nbd_server::export::ExportInfo;
use nbd_server::handshake::{Directory, ExportAddress};
use nbd_server::status::{ContextKey, MetaContext};

/// Of the first export; their keys are their places here.
pub const CONTEXTS: [&str; 3] = ["base:allocation", "x-fuzz:a", "x-fuzz:b"];

/// See the module.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// `disk`, which is also the default, and `other`.
    pub exports: [ExportInfo; 2],
    /// The server is about to stop.
    pub stopping: bool,
    /// Only who speaks TLS may ask.
    pub closed: bool,
}

impl Default for Shelf {
    fn default() -> Self {
        let exports = ["disk", "other"].map(|name| ExportInfo::new(name, 1 << 20));
        Self { exports, stopping: false, closed: false }
    }
}

impl Shelf {
    /// Which export is meant by a name.
    pub fn place(&self, name: &[u8]) -> Option<usize> {
        self.exports.iter().position(|known| name.is_empty() || known.name.as_bytes() == name)
    }

    fn admit(&self, client: &Client) {
        assert!(!self.closed || *client == Self::known_client(), "exports were asked for in clear");
    }
}

impl Directory for Shelf {
    fn count(&self, _client: &Client) -> usize {
        self.exports.len()
    }

    fn list(&self, client: &Client) -> Vec<ExportInfo> {
        self.admit(client);
        self.exports.to_vec()
    }

    fn find(&self, client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        self.admit(client);
        let place = self.place(name)?;
        let index = ExportIndex(u32::try_from(place).expect("a short shelf"));
        Some((ExportAddress { reactor: 0, index }, self.exports[place].clone()))
    }

    fn contexts(&self, client: &Client, name: &[u8]) -> Vec<MetaContext> {
        self.admit(client);
        let context = |(key, name): (u64, &str)| MetaContext { name: name.into(), key: ContextKey(key) };
        if self.place(name) == Some(0) { (0..).zip(CONTEXTS).map(context).collect() } else { Vec::new() }
    }

    fn stopping(&self) -> bool {
        self.stopping
    }
}
