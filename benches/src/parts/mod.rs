//! Parts of the hot path alone, for micro benches and for counting instructions.
//!
//! Each [`Part`] is set up once and then does one *unit* of its work as often as it is asked to: a request parsed, served, mapped.
//! `cargo bench -p benches` times units ([divan]); `cargo xtask count` lets callgrind count their instructions, which needs no
//! quiet machine. Protocol, engine and store are the real ones; in place of the ring there is a disk in memory ([`disk`]) that
//! ends an operation as soon as it is asked, in place of RocksDB the simulation's metadata in memory.
//!
//! [divan]: https://docs.rs/divan

pub mod disk;
mod serving;
mod stores;

use blockd::hash::cluster_value;
use blockd::map::FlatMap;
use blockd::units::{CLUSTER_BYTES, ClusterIndex, Mask};
use clap::ValueEnum;
use fastrand::Rng;
use nbd_server::wire::{REQUEST_HEADER_BYTES, RequestHeader};
use std::hint::black_box;

pub use serving::Serving;
pub use stores::{Commits, Stored};

/// Requests that arrive in one piece, as from a client with so many in flight.
pub const BATCH: usize = 64;
/// Clusters of the map that is looked up: 16 GiB, twice as many entries as the processor's caches hold.
const MAP_CLUSTERS: u32 = 1 << 18;

/// What can be measured alone. The comment says what one unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// One request header.
    ParseRequest,
    /// One 4 KiB read of a file, from its bytes to those of its reply, 64 in flight.
    ServeRead,
    /// One 4 KiB write of a file, 64 in flight.
    ServeWrite,
    /// One 4 KiB read of a file, alone.
    ServeReadAlone,
    /// One cluster looked up, at random.
    MapLookup,
    /// One block's owner asked for, as a write does.
    MapOwned,
    /// One 4 KiB read of a volume, below the protocol.
    StoreRead,
    /// One 4 KiB write to blocks that the volume owns.
    StoreWrite,
    /// One first 4 KiB write to a cluster after a snapshot; its commit with 63 others.
    StoreFirstWrite,
    /// One cluster hashed.
    HashCluster,
}

impl Part {
    /// Its name on the command line and in tables.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// What one unit is: the comment at its variant.
    pub fn unit(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// Units that are done at once; counts are asked for in multiples of it.
    pub fn batch(self) -> usize {
        match self {
            Self::ServeRead | Self::ServeWrite | Self::StoreFirstWrite => BATCH,
            _ => 1,
        }
    }

    /// The part, ready to work.
    pub fn set_up(self) -> Work {
        match self {
            Self::ParseRequest => Work::Parse(Box::new(headers())),
            Self::ServeRead => Work::Serve(Box::new(Serving::new(serving::Direction::Read, BATCH))),
            Self::ServeWrite => Work::Serve(Box::new(Serving::new(serving::Direction::Write, BATCH))),
            Self::ServeReadAlone => Work::Serve(Box::new(Serving::new(serving::Direction::Read, 1))),
            Self::MapLookup => Work::Lookup(mapped(), Rng::with_seed(1)),
            Self::MapOwned => Work::Owned(mapped(), Rng::with_seed(1)),
            Self::StoreRead => Work::Store(Box::new(Stored::new(stores::Kind::Read))),
            Self::StoreWrite => Work::Store(Box::new(Stored::new(stores::Kind::Write))),
            Self::StoreFirstWrite => Work::Store(Box::new(Stored::new(stores::Kind::FirstWrite))),
            Self::HashCluster => Work::Hash(vec![0xa5; CLUSTER_BYTES as usize]),
        }
    }
}

/// A part that is set up.
pub enum Work {
    /// [`Part::ParseRequest`].
    Parse(Box<[[u8; REQUEST_HEADER_BYTES]; BATCH]>),
    /// The parts that serve.
    Serve(Box<Serving>),
    /// [`Part::MapLookup`].
    Lookup(FlatMap, Rng),
    /// [`Part::MapOwned`].
    Owned(FlatMap, Rng),
    /// The store's parts.
    Store(Box<Stored>),
    /// [`Part::HashCluster`].
    Hash(Vec<u8>),
}

impl Work {
    /// Does so many units.
    ///
    /// # Panics
    /// When a part does not do what it should: its time would mean nothing.
    pub fn run(&mut self, units: usize) {
        match self {
            Self::Parse(headers) => headers.iter().cycle().take(units).for_each(|bytes| {
                black_box(RequestHeader::parse(black_box(bytes)).expect("a header"));
            }),
            Self::Serve(serving) => serving.run(units),
            Self::Lookup(map, rng) => (0..units).for_each(|_| {
                black_box(map.get(ClusterIndex(rng.u32(..MAP_CLUSTERS))));
            }),
            Self::Owned(map, rng) => (0..units).for_each(|_| {
                let cluster = ClusterIndex(rng.u32(..MAP_CLUSTERS));
                black_box(map.owned(cluster, Mask::ALL).expect("mapped"));
            }),
            Self::Store(stored) => stored.run(units),
            Self::Hash(content) => (0..units).for_each(|_| {
                black_box(cluster_value(ClusterIndex(7), black_box(content)));
            }),
        }
    }
}

/// As a client sends them.
fn headers() -> [[u8; REQUEST_HEADER_BYTES]; BATCH] {
    std::array::from_fn(|at| {
        serving::header(serving::Direction::Read, at as u64, at as u64 * 4096).to_bytes()
    })
}

/// A map in which every cluster is owned by the head.
fn mapped() -> FlatMap {
    stores::whole_map(MAP_CLUSTERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_does_its_work() {
        for part in Part::value_variants() {
            let mut work = part.set_up();
            work.run(part.batch());
            work.run(3 * part.batch());
        }
    }
}
