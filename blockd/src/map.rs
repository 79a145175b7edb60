//! The flat map of a volume: where each of its blocks is read from, however many layers it has.
//!
//! Seven bytes per 64 KiB cluster (`packed`), in pages that are allocated when they are first touched: 112 MiB per TiB
//! mapped. A cluster whose blocks all come from one place fits its seven bytes; one whose blocks come from two has a row
//! of sixteen bytes beside it (`pairs`), and the rest are in a side table. A read costs one lookup, whether there are
//! no snapshots or a thousand.
//!
//! ```text
//!  Entry   = head part  + older parts
//!  head    = what the open layer has written: its pool cluster, data mask, zero mask. Written in place.
//!  older   = what shows through of closed layers. Never written.
//! ```
//!
//! **A cut costs nothing here.** Whether a part belongs to the open layer is told by a *generation* of six bits in
//! the entry: a cut goes on to the next one, and every head part has become an older part by that. So that a
//! generation's number can be used again, each cut also sweeps a fiftieth of the map, and turns what it finds of
//! past generations into plain older parts: after fifty cuts all of it.
//!
//! A map of a snapshot is the same with its newest layer as the head that nobody writes to.

use std::ops::{ControlFlow, Range};

use slab::Slab;
use smallvec::SmallVec;

use crate::catalog::format::keys::map_range;
use crate::catalog::format::{MapRecord, decode_map};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::units::{ClusterIndex, LayerId, Mask, PoolCluster};

mod packed;
mod pages;
mod pairs;
#[cfg(test)]
mod tests;

use packed::{GENERATIONS, Kind, NO_GENERATION, PAGE_ENTRIES, Packed56, Page};
use pairs::{Pair, Pairs};

pub(crate) use pages::PageFault;

/// After so many cuts all entries have been swept; a generation's number comes again later than that.
const SWEEP_CUTS: usize = 50;
const _: () = assert!(SWEEP_CUTS + 1 < GENERATIONS as usize);

/// What the open layer has of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadPart {
    /// Where its data lie, block in place.
    pub cluster: Option<PoolCluster>,
    /// Blocks with data there.
    pub data: Mask,
    /// Blocks that it has made zero over older data.
    pub zero: Mask,
}

impl HeadPart {
    /// The map record of this part; `None` if there is nothing to record.
    pub fn record(self) -> Option<MapRecord> {
        let Self { cluster, data, zero } = self;
        (cluster.is_some() || !zero.is_empty()).then_some(MapRecord { cluster, data, zero, packed: None })
    }
}

/// Blocks that are read from a closed layer's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where.
    pub cluster: PoolCluster,
    /// The blocks that show through.
    pub shown: Mask,
    /// For packed clusters: all blocks of the record, and where the first of them lies.
    pub packed: Option<Packed>,
}

/// How a packed record finds its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The record's whole data mask.
    pub data: Mask,
    /// Block of the pool cluster that holds the first of them.
    pub first: u8,
}

impl Source {
    /// All data of a record, if it has any.
    pub fn of(record: &MapRecord) -> Option<Self> {
        let cluster = record.cluster.filter(|_| !record.data.is_empty())?;
        let packed = record.packed.map(|first| Packed { data: record.data, first });
        Some(Self { cluster, shown: record.data, packed })
    }

    /// Whether it shows blocks of the same record as another one.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.cluster, self.packed) == (other.cluster, other.packed)
    }

    /// Block of the pool cluster where a shown block of the volume's cluster lies.
    pub fn place(&self, block: u32) -> u32 {
        match self.packed {
            None => block,
            Some(Packed { data, first }) => u32::from(first) + data.and(Mask::of(0..block)).count(),
        }
    }
}

/// All there is to know of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The open layer's part, if it has one.
    pub head: Option<HeadPart>,
    /// Closed layers' parts; their `shown` masks are disjoint, and disjoint from the head's masks.
    pub older: SmallVec<[Source; 2]>,
}

impl Entry {
    /// Blocks that read as data; the others read as zero.
    pub fn visible(&self) -> Mask {
        let head = self.head.map_or(Mask::NONE, |head| head.data);
        self.older.iter().fold(head, |mask, source| mask.with(source.shown))
    }

    /// Blocks of which the open layer says what they read as.
    pub fn touched_by_head(&self) -> Mask {
        self.head.map_or(Mask::NONE, |head| head.data.with(head.zero))
    }

    /// Takes blocks away from the older parts.
    pub fn hide_older(&mut self, blocks: Mask) {
        for source in &mut self.older {
            source.shown = source.shown.without(blocks);
        }
        self.older.retain(|source| !source.shown.is_empty());
    }

    /// Takes away the older part that shows blocks of a record; tells which they were.
    pub fn take_older(&mut self, record: &MapRecord) -> Mask {
        let Some(source) = Source::of(record) else { return Mask::NONE };
        let at = self.older.iter().position(|older| older.is_same(&source));
        at.map_or(Mask::NONE, |at| self.older.remove(at).shown)
    }

    /// The newest layer's part is what its record, and no older one, says. Packed blocks are older parts: they are
    /// never written.
    pub fn show_top(&mut self, record: &MapRecord) {
        let MapRecord { cluster, data, zero, packed } = *record;
        self.head = packed.is_none().then_some(HeadPart { cluster, data, zero });
        self.older.extend(Source::of(record).filter(|_| packed.is_some()));
    }

    /// Blocks of a closed layer's record show.
    pub fn show_older(&mut self, record: &MapRecord, shown: Mask) {
        let source = Source::of(record).filter(|_| !shown.is_empty());
        self.older.extend(source.map(|source| Source { shown, ..source }));
    }

    /// A newer layer's record on top, and that layer not open.
    fn push_closed(&mut self, record: &MapRecord) {
        self.close_head();
        self.hide_older(record.data.with(record.zero));
        self.older.extend(Source::of(record));
    }

    /// The head part becomes the newest older part.
    fn close_head(&mut self) {
        if let Some(HeadPart { cluster: Some(cluster), data, .. }) = self.head.take()
            && !data.is_empty()
        {
            self.older.push(Source { cluster, shown: data, packed: None });
        }
    }
}

/// Side table row: an entry that fits neither seven bytes nor a pair's row.
#[derive(Clone, Debug)]
struct Side {
    head: Option<HeadPart>,
    older: SmallVec<[Source; 2]>,
}

/// See the module.
pub struct FlatMap {
    pages: Vec<Option<Page>>,
    clusters: u64,
    pairs: Pairs,
    side: Slab<Side>,
    /// The open layer's; 1 to [`GENERATIONS`].
    generation: u8,
    /// The entry at which the next sweep goes on, and the cuts in which it must come to the end.
    sweep_at: usize,
    sweep_cuts: usize,
    visible_blocks: u64,
    head_clusters: u64,
}

impl std::fmt::Debug for FlatMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlatMap")
            .field("clusters", &self.clusters)
            .field("visible_blocks", &self.visible_blocks)
            .field("pairs", &self.pairs.len())
            .field("side", &self.side.len())
            .finish_non_exhaustive()
    }
}

impl FlatMap {
    /// A map of `clusters` holes.
    pub fn new(clusters: u64) -> Self {
        let mut map = Self {
            pages: Vec::new(),
            clusters: 0,
            pairs: Pairs::new(),
            side: Slab::new(),
            generation: 1,
            sweep_at: 0,
            sweep_cuts: SWEEP_CUTS,
            visible_blocks: 0,
            head_clusters: 0,
        };
        map.grow(clusters);
        map
    }

    /// Adds holes at the end.
    pub fn grow(&mut self, clusters: u64) {
        assert!(clusters >= self.clusters, "maps do not shrink");
        self.clusters = clusters;
        let pages = usize::try_from(clusters.div_ceil(PAGE_ENTRIES as u64)).expect("2^32 clusters at most");
        self.pages.resize_with(pages, || None);
    }

    /// Clusters of the volume.
    pub fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Blocks that read as data.
    pub fn visible_blocks(&self) -> u64 {
        self.visible_blocks
    }

    /// Pool clusters that the open layer owns.
    pub fn head_clusters(&self) -> u64 {
        self.head_clusters
    }

    /// Rows of the side table.
    pub fn side_rows(&self) -> usize {
        self.side.len()
    }

    /// Clusters whose blocks come from two places.
    pub fn pair_rows(&self) -> usize {
        self.pairs.len()
    }

    /// Bytes of memory, about.
    pub fn memory_bytes(&self) -> usize {
        let pages = self.pages.iter().filter(|page| page.is_some()).count();
        pages * Page::BYTES
            + self.pages.len() * size_of::<Option<Page>>()
            + self.pairs.memory_bytes()
            + self.side.capacity() * size_of::<Side>()
    }

    fn raw(&self, cluster: ClusterIndex) -> Packed56 {
        debug_assert!(u64::from(cluster.0) < self.clusters, "cluster {cluster} of {}", self.clusters);
        let (page, at) = (cluster.0 as usize / PAGE_ENTRIES, cluster.0 as usize % PAGE_ENTRIES);
        self.pages[page].as_ref().map_or(Packed56::HOLE, |page| page.get(at))
    }

    /// What there is of a cluster.
    pub fn get(&self, cluster: ClusterIndex) -> Entry {
        self.entry(self.raw(cluster))
    }

    fn entry(&self, raw: Packed56) -> Entry {
        let open = raw.generation() == self.generation;
        let single = Some(PoolCluster(raw.number()));
        match raw.kind() {
            Kind::Single => {
                let head = HeadPart { cluster: single, data: raw.mask(), zero: Mask::NONE };
                let mut entry = Entry { head: Some(head), older: SmallVec::new() };
                if !open {
                    entry.close_head();
                }
                entry
            }
            Kind::Zeroed => {
                let part = HeadPart { cluster: None, data: Mask::NONE, zero: raw.mask() };
                Entry { head: open.then_some(part), older: SmallVec::new() }
            }
            Kind::Pair => {
                let mut entry = self.pairs.get(raw.number()).entry(raw.mask());
                if !open {
                    entry.close_head();
                }
                entry
            }
            Kind::Side => {
                let Side { head, older } = self.side[raw.number() as usize].clone();
                let mut entry = Entry { head, older };
                if !open {
                    entry.close_head();
                }
                entry
            }
        }
    }

    /// Blocks `blocks` of the cluster, if the open layer holds all of them: where they may be written in place.
    pub fn owned(&self, cluster: ClusterIndex, blocks: Mask) -> Option<PoolCluster> {
        let raw = self.raw(cluster);
        if raw.generation() != self.generation {
            return None;
        }
        match raw.kind() {
            Kind::Single if raw.mask().contains(blocks) => Some(PoolCluster(raw.number())),
            Kind::Pair => {
                let top = self.pairs.get(raw.number()).top();
                Some(top).filter(|_| raw.mask().contains(blocks))
            }
            Kind::Side => {
                let head = self.side[raw.number() as usize].head?;
                head.cluster.filter(|_| head.data.contains(blocks))
            }
            _ => None,
        }
    }

    /// Sets what there is of a cluster.
    pub fn set(&mut self, cluster: ClusterIndex, entry: Entry) {
        let before = self.get(cluster);
        self.count(&before, &entry);
        let raw = self.encode(self.raw(cluster), entry);
        self.put_raw(cluster, raw);
    }

    fn count(&mut self, before: &Entry, after: &Entry) {
        let owns = |entry: &Entry| u64::from(entry.head.is_some_and(|head| head.cluster.is_some()));
        self.visible_blocks += u64::from(after.visible().count());
        self.visible_blocks -= u64::from(before.visible().count());
        self.head_clusters += owns(after);
        self.head_clusters -= owns(before);
    }

    /// Lays a record over what older layers have of its cluster; `open` if it is of the open layer. Tells whether the
    /// volume has the cluster.
    pub fn show(&mut self, cluster: ClusterIndex, record: &MapRecord, open: bool) -> bool {
        if u64::from(cluster.0) >= self.clusters {
            return false;
        }
        // Most clusters have one record, and fit seven bytes.
        if let Some(pool) = record.plain()
            && self.raw(cluster) == Packed56::HOLE
        {
            let generation = if open { self.generation } else { NO_GENERATION };
            self.put_raw(cluster, Packed56::new(Kind::Single, generation, record.data, pool.0));
            self.visible_blocks += u64::from(record.data.count());
            self.head_clusters += u64::from(open);
            return true;
        }
        let mut entry = self.get(cluster);
        if open && record.packed.is_none() {
            entry.hide_older(record.data.with(record.zero));
            let MapRecord { cluster, data, zero, .. } = *record;
            entry.head = Some(HeadPart { cluster, data, zero });
        } else {
            entry.push_closed(record);
        }
        self.set(cluster, entry);
        true
    }

    /// Takes the pages of a map of the same volume that has others than this one. Nothing was cut of either.
    ///
    /// # Panics
    /// When a page is in both.
    pub(crate) fn absorb(&mut self, mut part: Self) {
        self.side.reserve(part.side.len());
        for at in 0..part.pages.len().min(self.pages.len()) {
            let Some(mut from) = part.pages[at].take() else { continue };
            for entry in 0..PAGE_ENTRIES {
                let raw = from.get(entry);
                if matches!(raw.kind(), Kind::Pair | Kind::Side) {
                    from.set(entry, self.take_row(raw, &mut part));
                }
            }
            assert!(self.pages[at].replace(from).is_none(), "parts of a map have pages of their own");
        }
        self.visible_blocks += part.visible_blocks;
        self.head_clusters += part.head_clusters;
    }

    /// An entry of another map, its row, if it has one, being a row of this one.
    fn take_row(&mut self, raw: Packed56, part: &mut Self) -> Packed56 {
        let row = match raw.kind() {
            Kind::Pair => self.pairs.insert(part.pairs.remove(raw.number())),
            Kind::Side => self.insert_side(part.side.remove(raw.number() as usize)),
            Kind::Zeroed | Kind::Single => return raw,
        };
        Packed56::new(raw.kind(), raw.generation(), raw.mask(), row)
    }

    /// The seven bytes for an entry, in the place of `old` ones, whose row is used or freed.
    fn encode(&mut self, old: Packed56, entry: Entry) -> Packed56 {
        if let Some(small) = encode_small(&entry, self.generation) {
            self.free_row(old);
            return small;
        }
        let generation = if entry.head.is_some() { self.generation } else { NO_GENERATION };
        if let Some((mask, pair)) = Pair::of(&entry) {
            let row = self.set_pair(old, pair);
            return Packed56::new(Kind::Pair, generation, mask, row);
        }
        let Entry { head, older } = entry;
        let row = self.set_side(old, Side { head, older });
        Packed56::new(Kind::Side, generation, Mask::NONE, row)
    }

    fn set_pair(&mut self, old: Packed56, pair: Pair) -> u32 {
        if old.kind() == Kind::Pair {
            self.pairs.set(old.number(), pair);
            return old.number();
        }
        self.free_row(old);
        self.pairs.insert(pair)
    }

    fn set_side(&mut self, old: Packed56, side: Side) -> u32 {
        if old.kind() == Kind::Side {
            self.side[old.number() as usize] = side;
            return old.number();
        }
        self.free_row(old);
        self.insert_side(side)
    }

    fn insert_side(&mut self, side: Side) -> u32 {
        u32::try_from(self.side.insert(side)).expect("no more rows than clusters")
    }

    fn free_row(&mut self, old: Packed56) {
        match old.kind() {
            Kind::Pair => {
                self.pairs.remove(old.number());
            }
            Kind::Side => {
                self.side.remove(old.number() as usize);
            }
            _ => {}
        }
    }

    fn put_raw(&mut self, cluster: ClusterIndex, raw: Packed56) {
        let (page, at) = (cluster.0 as usize / PAGE_ENTRIES, cluster.0 as usize % PAGE_ENTRIES);
        let page = &mut self.pages[page];
        if page.is_none() && raw == Packed56::HOLE {
            return;
        }
        page.get_or_insert_with(Page::new).set(at, raw);
    }

    /// The open layer is closed and another one opened: every head part is an older part from now on.
    pub fn cut(&mut self) {
        self.generation = if self.generation == GENERATIONS { 1 } else { self.generation + 1 };
        self.head_clusters = 0;
        self.sweep();
    }

    /// Turns stale head parts of the next part of the map into older parts. How large a part is depends on what is left to
    /// do, not on the map: one that has grown meanwhile must not put the end off.
    fn sweep(&mut self) {
        let total = self.pages.len() * PAGE_ENTRIES;
        let end = self.sweep_at + (total - self.sweep_at).div_ceil(self.sweep_cuts);
        let mut at = self.sweep_at;
        while at < end {
            let page_end = end.min((at / PAGE_ENTRIES + 1) * PAGE_ENTRIES);
            self.sweep_entries(at..page_end);
            at = page_end;
        }
        (self.sweep_at, self.sweep_cuts) = (end, self.sweep_cuts - 1);
        if self.sweep_cuts == 0 {
            (self.sweep_at, self.sweep_cuts) = (0, SWEEP_CUTS);
        }
    }

    /// The same with entries of one page.
    fn sweep_entries(&mut self, entries: Range<usize>) {
        for index in entries {
            let Some(page) = &self.pages[index / PAGE_ENTRIES] else { return };
            if page.is_stale(index % PAGE_ENTRIES, self.generation) {
                self.forget_generation(ClusterIndex(u32::try_from(index).expect("a cluster's number")));
            }
        }
    }

    /// The head part of a past generation becomes an older part.
    fn forget_generation(&mut self, cluster: ClusterIndex) {
        let entry = self.get(cluster);
        let raw = self.encode(self.raw(cluster), entry);
        self.put_raw(cluster, raw);
    }

    /// Clusters of which there is anything, in order, from `from` on.
    pub fn mapped_from(&self, from: u64) -> impl Iterator<Item = ClusterIndex> {
        self.mapped_in(from..self.clusters)
    }

    /// Clusters of a range of which there is anything, in order.
    pub fn mapped_in(&self, clusters: Range<u64>) -> impl Iterator<Item = ClusterIndex> {
        let (mut at, end) = (clusters.start, clusters.end.min(self.clusters));
        std::iter::from_fn(move || {
            while at < end {
                let (page, inside) = (at as usize / PAGE_ENTRIES, at as usize % PAGE_ENTRIES);
                let Some(page) = &self.pages[page] else {
                    at += (PAGE_ENTRIES - inside) as u64;
                    continue;
                };
                at += 1;
                if page.get(inside) != Packed56::HOLE {
                    return Some(ClusterIndex(u32::try_from(at - 1).expect("a cluster's number")));
                }
            }
            None
        })
    }
}

/// The seven bytes for an entry without a row in the side table, if it needs none.
fn encode_small(entry: &Entry, generation: u8) -> Option<Packed56> {
    match (entry.head, &entry.older[..]) {
        (None, []) => Some(Packed56::HOLE),
        (None, [Source { cluster, shown, packed: None }]) => {
            Some(Packed56::new(Kind::Single, NO_GENERATION, *shown, cluster.0))
        }
        (Some(HeadPart { cluster: Some(cluster), data, zero: Mask::NONE }), []) => {
            Some(Packed56::new(Kind::Single, generation, data, cluster.0))
        }
        (Some(HeadPart { cluster: None, data: Mask::NONE, zero }), []) => {
            Some(Packed56::new(Kind::Zeroed, generation, zero, 0))
        }
        _ => None,
    }
}

/// Flattens layers, newest first, into a map of `clusters` clusters; the newest is its open layer.
///
/// # Errors
/// A record cannot be read, is damaged, or lies beyond the volume.
pub fn load(store: &dyn MetaStore, chain: &[LayerId], clusters: u64) -> Result<FlatMap, MetaError> {
    let mut map = FlatMap::new(clusters);
    for (depth, &layer) in chain.iter().enumerate().rev() {
        let range = map_range(layer);
        store.scan(&range.start, &range.end, &mut |key, value| {
            let (_, cluster, record) = decode_map(key, value)?;
            if !map.show(cluster, &record, depth == 0) {
                let text = format!("layer {layer} maps cluster {cluster} of a volume of {clusters}");
                return Err(MetaError::Damaged(text));
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(map)
}
