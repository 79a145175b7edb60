//! From the tree of one snapshot to that of a later one: the values of changed clusters go in, in order; the root comes
//! out.
//!
//! ```text
//!  open:   top page ─► page ─► page of the cluster     each was read and compared with the value above it; closed when
//!                                                     the next cluster lies elsewhere: zeroes filled in, written,
//!                                                     merged into the page above
//! ```
//!
//! Memory is that of one page for each group. Without a tree before, all that is not changed is zeroes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::before::{Before, Values, read, root_of};
use crate::hash::pages::{Place, SLOTS, Shape};
use crate::hash::{Value, Zeroes, merge_all};

/// Why an update has ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::snapshot) enum Trouble {
    /// The file does not hold what it should.
    #[error("the page at byte {0} does not make the value above it")]
    Page(u64),
    /// It cannot be read.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// Nobody waits any more.
    #[error("stopped")]
    Stopped,
}

/// Zeroes, and how they are hashed.
pub(in crate::snapshot) struct Hashes<'a> {
    pub(in crate::snapshot) zeroes: &'a Zeroes,
    pub(in crate::snapshot) threads: usize,
}

/// See the module.
pub(in crate::snapshot) struct Update<'a> {
    before: Before,
    shape: Shape,
    /// Where pages are kept.
    file: Option<&'a File>,
    /// It could not be written.
    failed: bool,
    hashes: Hashes<'a>,
    /// From the top page to that of the cluster whose turn it is.
    open: Vec<Page>,
    /// The page that makes the root alone, and is closed before the end: pages that make it are open at the end otherwise.
    single: Option<Place>,
    part: Option<(Place, Values)>,
}

struct Page {
    place: Place,
    values: Values,
    /// The values that there are.
    known: u32,
    changed: bool,
}

/// Told up to which cluster zeroes were hashed; whether to go on.
pub(in crate::snapshot) type Step<'a> = dyn FnMut(u64) -> bool + 'a;

impl<'a> Update<'a> {
    /// From that tree, which is no larger, to one of that shape, of two clusters at least.
    pub(in crate::snapshot) fn new(
        before: Before,
        shape: Shape,
        file: Option<&'a File>,
        hashes: Hashes<'a>,
    ) -> Self {
        assert!(shape.clusters() > 1 && before.shape.size <= shape.size, "{:?} to {shape:?}", before.shape);
        let single = match shape.parts()[..] {
            [(place, SLOTS)] => Some(place),
            _ => None,
        };
        Self { before, shape, file, failed: false, hashes, open: Vec::new(), single, part: None }
    }

    /// From now on the file stays as it is.
    pub(in crate::snapshot) fn keep_nothing(&mut self) {
        self.failed = true;
    }

    /// A changed cluster's value. Clusters come in order. Where the volume has grown, the cluster that held its end is
    /// one of them.
    pub(in crate::snapshot) fn set(
        &mut self,
        cluster: u64,
        value: Value,
        step: &mut Step<'_>,
    ) -> Result<(), Trouble> {
        self.seek(cluster, step)?;
        let page = self.open.last_mut().expect("the cluster's");
        let slot = usize::try_from(cluster - page.place.clusters().start).expect("a slot of the page");
        page.put(slot, value);
        Ok(())
    }

    /// The root, and whether the file holds the tree now; `tail` is the value of the last cluster up to the end, if that
    /// cuts it short.
    pub(in crate::snapshot) fn finish(
        mut self,
        tail: Option<Value>,
        step: &mut Step<'_>,
    ) -> Result<(Value, bool), Trouble> {
        self.seek(self.shape.whole, step)?;
        let mut parts = Vec::new();
        while let Some(page) = self.open.pop() {
            parts.push((page.place, self.write(page, step)?));
        }
        parts.extend(self.part);
        let find = |place| &parts.iter().find(|(at, _)| *at == place).expect("it was open").1;
        Ok((root_of(self.shape, tail, &find), self.file.is_some() && !self.failed))
    }

    /// Opens the pages above a cluster, and closes those that lie before.
    fn seek(&mut self, cluster: u64, step: &mut Step<'_>) -> Result<(), Trouble> {
        if self.open.is_empty() {
            let top = Place { group: self.shape.top(), index: 0 };
            let page = self.load(top, step)?;
            self.open.push(page);
            if cluster > 0 && self.single.is_some() {
                self.seek(0, step)?;
            }
        }
        while let Some(page) = self.open.pop_if(|page| !page.place.clusters().contains(&cluster)) {
            self.close(page, step)?;
        }
        while let Some(below) = self.open.last().expect("the top page").place.group.checked_sub(1) {
            let page = self.load(Place::of(cluster, below), step)?;
            self.open.push(page);
        }
        Ok(())
    }

    /// A page as it was before.
    fn load(&mut self, place: Place, step: &mut Step<'_>) -> Result<Page, Trouble> {
        let slots = place.slots_before(self.before.shape.whole);
        let known = u32::try_from((1u64 << slots) - 1).expect("a bit for each slot");
        let page = |values| Page { place, values, known, changed: false };
        if slots == 0 {
            return Ok(page(Values::default()));
        }
        if let Some(values) = self.before.trusted.get(&place) {
            return Ok(page(*values));
        }
        let file = self.file.ok_or(Trouble::Page(place.offset()))?;
        let mut values = read(file, place).map_err(Trouble::Io)?;
        if values == Values::default() {
            // Never written: nothing but zeroes, or so the value above must say.
            values = self.zeroes(place, 0, SLOTS, step)?.try_into().expect("a page's values");
        }
        let (parent, slot) = place.parent();
        let above = self.open.last().filter(|page| page.place == parent);
        if above.is_none_or(|page| page.values[slot] != merge_all(&values)) {
            return Err(Trouble::Page(place.offset()));
        }
        Ok(page(values))
    }

    fn zeroes(
        &self,
        place: Place,
        from: usize,
        to: usize,
        step: &mut Step<'_>,
    ) -> Result<Vec<Value>, Trouble> {
        let Hashes { zeroes, threads } = self.hashes;
        let (first, count) = (place.slot(from).start, (to - from) as u64);
        zeroes.subtrees(first, place.level(), count, threads, step).ok_or(Trouble::Stopped)
    }

    /// A page of which no cluster is to come.
    fn close(&mut self, page: Page, step: &mut Step<'_>) -> Result<(), Trouble> {
        let place = page.place;
        let changed = page.changed || page.known != u32::MAX;
        let values = self.write(page, step)?;
        let (parent, slot) = place.parent();
        let above = self.open.last_mut().expect("only the top page has none above");
        assert_eq!(above.place, parent, "pages are open from the top to the bottom");
        if changed {
            above.put(slot, merge_all(&values));
        }
        if self.single == Some(place) {
            self.part = Some((place, values));
        }
        Ok(())
    }

    /// Fills in zeroes, and writes the page if it has changed.
    fn write(&mut self, mut page: Page, step: &mut Step<'_>) -> Result<Values, Trouble> {
        let end = page.place.slots_before(self.shape.whole);
        let mut slot = 0;
        while slot < end {
            let run = (slot..end).take_while(|&slot| page.known >> slot & 1 == 0).count();
            if run > 0 {
                assert!(
                    page.place.slot(slot).start >= self.before.shape.clusters(),
                    "{:?}: what held the end was not given",
                    page.place
                );
                let zeroes = self.zeroes(page.place, slot, slot + run, step)?;
                (slot..).zip(zeroes).for_each(|(slot, value)| page.put(slot, value));
            }
            slot += run.max(1);
        }
        if page.changed
            && !self.failed
            && let Some(file) = self.file
            && let Err(error) = file.write_all_at(page.values.as_flattened(), page.place.offset())
        {
            tracing::warn!(%error, "the tree cache cannot be written: the next hash is made from the start");
            self.failed = true;
        }
        Ok(page.values)
    }
}

impl Page {
    fn put(&mut self, slot: usize, value: Value) {
        self.changed = true;
        self.known |= 1 << slot;
        self.values[slot] = value;
    }
}
