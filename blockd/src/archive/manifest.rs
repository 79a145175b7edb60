//! Writes the pages of a snapshot: those of the snapshot before it, but for what has changed.

use std::collections::BTreeMap;

use super::page::{INNER_CLUSTERS, LEAF_CLUSTERS, Level, PAGE_BYTES_MAX, PLACES, Page, share};
use super::root::{Root, inner_count};
use super::storage::{Storage, page_name};
use super::{ArchiveError, Digest};
use crate::units::cluster_count;

/// A page that is to be written.
pub(super) struct NewPage {
    pub(super) name: Digest,
    pub(super) bytes: Vec<u8>,
}

/// The leaf that changes are made to.
struct OpenLeaf {
    number: u64,
    page: Page,
    clusters_before: u64,
    changed: bool,
}

/// See the module. Changes come in the order of clusters.
pub(super) struct Manifest {
    storage: Storage,
    size: u64,
    base: Option<Root>,
    /// The base's inner page that was read last.
    base_inner: Option<(u64, Page)>,
    open: Option<OpenLeaf>,
    leaves: BTreeMap<u64, Option<Digest>>,
    clusters: u64,
}

fn count(page: &Page) -> u64 {
    page.iter().count() as u64
}

impl Manifest {
    /// The pages of a volume of `size` bytes, beginning as `base`.
    ///
    /// # Panics
    /// When the base is larger: what lies beyond the end would have to be left out.
    pub(super) fn new(storage: Storage, size: u64, base: Option<Root>) -> Self {
        assert!(base.as_ref().is_none_or(|base| base.size <= size), "volumes do not shrink");
        let clusters = base.as_ref().map_or(0, |base| base.clusters);
        Self { storage, size, base, base_inner: None, open: None, leaves: BTreeMap::new(), clusters }
    }

    /// Notes what a cluster holds. Returns a page if one is complete by that.
    pub(super) async fn set(
        &mut self,
        cluster: u32,
        hash: Option<Digest>,
    ) -> Result<Option<NewPage>, ArchiveError> {
        let number = u64::from(cluster) / LEAF_CLUSTERS;
        let mut complete = None;
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            complete = self.close();
            self.open = Some(self.open_leaf(number).await?);
        }
        let open = self.open.as_mut().expect("just opened");
        let place = cluster as usize % PLACES;
        if open.page.get(place) != hash {
            open.page.set(place, hash);
            open.changed = true;
        }
        Ok(complete)
    }

    async fn open_leaf(&mut self, number: u64) -> Result<OpenLeaf, ArchiveError> {
        assert!(!self.leaves.contains_key(&number), "clusters come in order");
        let page = match self.base_leaf(number).await? {
            Some(digest) => {
                let clusters = self.base.as_ref().map_or(0, |base| cluster_count(base.size));
                self.read(digest, Level::Leaf, share(clusters, LEAF_CLUSTERS, number)).await?
            }
            None => Page::new(Level::Leaf),
        };
        let clusters_before = count(&page);
        Ok(OpenLeaf { number, page, clusters_before, changed: false })
    }

    async fn base_leaf(&mut self, number: u64) -> Result<Option<Digest>, ArchiveError> {
        let inner = number / PLACES as u64;
        let page = self.base_inner(inner).await?;
        Ok(page.and_then(|page| page.get((number % PLACES as u64) as usize)))
    }

    async fn base_inner(&mut self, number: u64) -> Result<Option<&Page>, ArchiveError> {
        let Some(base) = &self.base else { return Ok(None) };
        let Some(digest) = usize::try_from(number).ok().and_then(|at| *base.inner.get(at)?) else {
            return Ok(None);
        };
        if self.base_inner.as_ref().is_none_or(|(known, _)| *known != number) {
            let leaves = cluster_count(base.size).div_ceil(LEAF_CLUSTERS);
            let page = self.read(digest, Level::Inner, share(leaves, PLACES as u64, number)).await?;
            self.base_inner = Some((number, page));
        }
        Ok(self.base_inner.as_ref().map(|(_, page)| page))
    }

    async fn read(&self, digest: Digest, level: Level, places: u64) -> Result<Page, ArchiveError> {
        read_page(&self.storage, digest, level, places).await
    }

    fn close(&mut self) -> Option<NewPage> {
        let OpenLeaf { number, page, clusters_before, changed } = self.open.take()?;
        if !changed {
            return None;
        }
        self.clusters = self.clusters - clusters_before + count(&page);
        let new = new_page(&page);
        self.leaves.insert(number, new.as_ref().map(|new| new.name));
        new
    }

    /// The pages that are still to be written, the inner pages' hashes, and how many clusters have data.
    pub(super) async fn finish(mut self) -> Result<(Vec<NewPage>, Vec<Option<Digest>>, u64), ArchiveError> {
        let mut pages: Vec<NewPage> = self.close().into_iter().collect();
        let mut inner = Vec::new();
        let leaves = std::mem::take(&mut self.leaves);
        for number in 0..inner_count(self.size) {
            let from = number * INNER_CLUSTERS / LEAF_CLUSTERS;
            let mut changed = leaves.range(from..from + PLACES as u64).peekable();
            if changed.peek().is_none() {
                let base = self.base.as_ref().and_then(|base| *base.inner.get(number as usize)?);
                inner.push(base);
                continue;
            }
            let mut page = self.base_inner(number).await?.cloned().unwrap_or_else(|| Page::new(Level::Inner));
            changed.for_each(|(leaf, digest)| page.set((leaf - from) as usize, *digest));
            let new = new_page(&page);
            inner.push(new.as_ref().map(|new| new.name));
            pages.extend(new);
        }
        Ok((pages, inner, self.clusters))
    }
}

fn new_page(page: &Page) -> Option<NewPage> {
    if page.is_empty() {
        return None;
    }
    let bytes = page.encode();
    Some(NewPage { name: blake3::hash(&bytes).into(), bytes })
}

/// Reads and checks a page, of which the first `places` may have a hash.
pub(super) async fn read_page(
    storage: &Storage,
    digest: Digest,
    level: Level,
    places: u64,
) -> Result<Page, ArchiveError> {
    let object = page_name(&digest);
    let bytes = storage.get_named(&object, &digest, PAGE_BYTES_MAX).await?;
    let places = usize::try_from(places).unwrap_or(PLACES);
    Page::parse(&bytes, level, places).map_err(|why| ArchiveError::damaged(object, why))
}
