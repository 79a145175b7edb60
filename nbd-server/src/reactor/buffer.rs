//! Buffers that the kernel may write to and read from while nobody else can touch them.
//!
//! A [`Buf`] is an exclusive view of a range of one aligned block. Ownership is the safety argument of
//! the whole data path: an operation that is submitted to the ring *moves* its `Buf` into the reactor's
//! table and gets it back with the completion, so there is no moment at which safe code holds a `Buf`
//! that the kernel still uses, and none at which the memory is freed under it (the class of bug of a
//! cancelled read whose buffer was dropped with its future).
//!
//! Two `Buf`s may share a block only through [`Buf::split_to`], which hands out disjoint ranges; so
//! `&mut [u8]` views never overlap.
//!
//! Blocks come from 2 MiB slabs in power-of-two classes and go back to their class when the last view
//! is dropped; larger ones are mapped and unmapped one by one. A pool belongs to one thread (it is not
//! `Send`), so nothing here takes a lock. Memory is zero when it is first mapped, not when it is
//! reused: whoever sends a buffer must have filled it.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use memmap2::{Advice, MmapMut};

/// Alignment of every buffer: enough for direct I/O on any medium that Linux serves.
pub const BUFFER_ALIGN_BYTES: usize = 4096;
/// Bytes of a slab, the unit of allocation and of registration with the ring.
pub const SLAB_BYTES: usize = 2 << 20;
/// Size classes: 4 KiB doubled up to a whole slab.
const CLASSES: usize = 10;

/// One block of memory: a part of a slab, which the pool owns, or a mapping of its own.
struct Block {
    memory: NonNull<u8>,
    bytes: usize,
    home: Home,
}

enum Home {
    /// The slab that the block was cut from.
    Slab(u32),
    /// Never read: it keeps the memory mapped until the block is dropped.
    Own { _mapping: MmapMut },
}

/// Anonymous memory: zero, not touched yet, aligned to pages.
///
/// # Panics
/// When the system has no memory left: there is nothing to go on with.
fn map(bytes: usize) -> (MmapMut, NonNull<u8>) {
    let mut mapping = MmapMut::map_anon(bytes).expect("memory for buffers");
    if bytes >= SLAB_BYTES
        && !cfg!(miri)
        && let Err(error) = mapping.advise(Advice::HugePage)
    {
        tracing::trace!(%error, "no huge pages for buffers");
    }
    let memory = NonNull::new(mapping.as_mut_ptr()).expect("a mapping is not at address zero");
    (mapping, memory)
}

struct Shared {
    free: [RefCell<Vec<Rc<Block>>>; CLASSES],
    slabs: RefCell<Vec<Slab>>,
    bytes_in_use: Cell<usize>,
}

struct Slab {
    memory: NonNull<u8>,
    /// Never read: unmapped with the pool. Every `Buf` holds an Rc of its pool, so none is left then.
    _mapping: MmapMut,
}

impl Shared {
    /// Cuts a new slab into blocks of `class`.
    fn grow(&self, class: usize) {
        let (mapping, memory) = map(SLAB_BYTES);
        let mut slabs = self.slabs.borrow_mut();
        let slab = u32::try_from(slabs.len()).expect("fewer slabs than 2^32");
        slabs.push(Slab { memory, _mapping: mapping });
        let bytes = BUFFER_ALIGN_BYTES << class;
        let mut free = self.free[class].borrow_mut();
        for at in (0..SLAB_BYTES).step_by(bytes) {
            // SAFETY: `at` is below SLAB_BYTES, so the pointer stays inside the slab's mapping.
            let memory = unsafe { memory.add(at) };
            free.push(Rc::new(Block { memory, bytes, home: Home::Slab(slab) }));
        }
    }
}

/// Where buffers come from; one per reactor.
#[derive(Clone)]
pub struct Pool {
    shared: Rc<Shared>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool {
    /// An empty pool; it grows by slabs as buffers are asked for.
    pub fn new() -> Self {
        let free = std::array::from_fn(|_| RefCell::new(Vec::new()));
        Self { shared: Rc::new(Shared { free, slabs: RefCell::default(), bytes_in_use: Cell::new(0) }) }
    }

    /// A buffer of exactly `bytes` bytes, aligned to [`BUFFER_ALIGN_BYTES`]. Its content is whatever it was
    /// last used for; it is initialised memory, but not zero.
    pub fn take(&self, bytes: usize) -> Buf {
        let block = self.block(bytes);
        self.shared.bytes_in_use.set(self.shared.bytes_in_use.get() + block.bytes);
        Buf { block, start: 0, len: bytes, pool: Rc::clone(&self.shared) }
    }

    /// A buffer of `bytes` zero bytes.
    pub fn take_zeroed(&self, bytes: usize) -> Buf {
        let mut buf = self.take(bytes);
        buf.fill(0);
        buf
    }

    fn block(&self, bytes: usize) -> Rc<Block> {
        let rounded = bytes.max(1).next_power_of_two().max(BUFFER_ALIGN_BYTES);
        let class = (rounded / BUFFER_ALIGN_BYTES).trailing_zeros() as usize;
        if class >= CLASSES {
            let bytes = bytes.next_multiple_of(BUFFER_ALIGN_BYTES);
            let (mapping, memory) = map(bytes);
            return Rc::new(Block { memory, bytes, home: Home::Own { _mapping: mapping } });
        }
        loop {
            if let Some(block) = self.shared.free[class].borrow_mut().pop() {
                return block;
            }
            self.shared.grow(class);
        }
    }

    /// Bytes of all blocks that are out of the pool now.
    pub fn bytes_in_use(&self) -> usize {
        self.shared.bytes_in_use.get()
    }

    /// Addresses of the slabs made so far, oldest first; each is [`SLAB_BYTES`] long. For registration.
    pub(super) fn slab(&self, index: usize) -> Option<NonNull<u8>> {
        self.shared.slabs.borrow().get(index).map(|slab| slab.memory)
    }
}

/// An exclusive view of part of a block.
pub struct Buf {
    block: Rc<Block>,
    start: usize,
    len: usize,
    pool: Rc<Shared>,
}

impl Buf {
    /// Splits off the first `at` bytes: the two views share the block and never overlap.
    ///
    /// # Panics
    /// When `at` passes the end.
    pub fn split_to(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split at {at} of {}", self.len);
        let head =
            Self { block: Rc::clone(&self.block), start: self.start, len: at, pool: Rc::clone(&self.pool) };
        self.start += at;
        self.len -= at;
        head
    }

    /// The slab that the memory lies in, for operations on registered buffers.
    pub(super) fn slab(&self) -> Option<u32> {
        match self.block.home {
            Home::Slab(slab) => Some(slab),
            Home::Own { .. } => None,
        }
    }

    /// Address of the first byte, for the kernel. Valid for `len` bytes as long as this `Buf` exists.
    pub(super) fn address(&self) -> *mut u8 {
        // SAFETY: `start` is within the block (kept by `take` and `split_to`), so the result stays in its
        // mapping.
        unsafe { self.block.memory.as_ptr().add(self.start) }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the block, is initialised (mapped as zeroes), and no other view overlaps
        // it: `split_to` hands out disjoint ranges only, and the ring holds whole `Buf`s, not pointers into ours.
        unsafe { std::slice::from_raw_parts(self.address(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` excludes every other reference to this view.
        unsafe { std::slice::from_raw_parts_mut(self.address(), self.len) }
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if Rc::strong_count(&self.block) != 1 {
            return;
        }
        self.pool.bytes_in_use.set(self.pool.bytes_in_use.get() - self.block.bytes);
        if self.slab().is_some() {
            let class = (self.block.bytes / BUFFER_ALIGN_BYTES).trailing_zeros() as usize;
            self.pool.free[class].borrow_mut().push(Rc::clone(&self.block));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_as_long_as_asked() {
        let pool = Pool::new();
        for bytes in [0, 1, 512, 4096, 4097, 65_536, SLAB_BYTES, SLAB_BYTES + 1, 5 << 20] {
            let buf = pool.take(bytes);
            assert_eq!(buf.len(), bytes);
            assert_eq!(buf.address() as usize % BUFFER_ALIGN_BYTES, 0);
        }
        assert_eq!(pool.bytes_in_use(), 0);
    }

    #[test]
    fn split_views_are_disjoint_and_outlive_each_other() {
        let pool = Pool::new();
        let mut tail = pool.take_zeroed(8192);
        let mut head = tail.split_to(4096);
        head.fill(1);
        tail.fill(2);
        assert!(head.iter().all(|&b| b == 1));
        drop(head);
        assert!(tail.iter().all(|&b| b == 2), "the block lives while one view does");
        assert_eq!(pool.bytes_in_use(), 8192);
        drop(tail);
        assert_eq!(pool.bytes_in_use(), 0);
    }

    #[test]
    fn a_block_is_not_handed_out_while_a_view_of_it_lives() {
        let pool = Pool::new();
        let mut held = pool.take(SLAB_BYTES);
        let part = held.split_to(1);
        drop(held);
        let other = pool.take(SLAB_BYTES);
        assert_ne!(part.address(), other.address());
    }

    #[test]
    fn blocks_are_reused() {
        let pool = Pool::new();
        let first = pool.take(SLAB_BYTES).address();
        assert_eq!(pool.take(SLAB_BYTES).address(), first);
    }

    #[test]
    fn a_buffer_may_outlive_its_pool_handle() {
        let pool = Pool::new();
        let mut buf = pool.take(4096);
        drop(pool);
        buf.fill(7);
        assert_eq!(buf[4095], 7);
    }
}
