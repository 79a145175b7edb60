//! What the volume may show: which writes were answered, which are durable, and which may have come to something or not.

use std::collections::BTreeSet;

use blockd::units::BLOCK_BYTES;

/// Of a block: names what was written to it. 0: nothing was.
pub(crate) type Tag = u32;

pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;

/// What a block holds after the write of that name.
pub(crate) fn block_of(tag: Tag) -> Vec<u8> {
    tag.to_le_bytes().repeat(BLOCK / 4)
}

#[derive(Clone, Debug)]
struct Block {
    /// What it may show now.
    now: BTreeSet<Tag>,
    /// What it may show after a power cut.
    after: BTreeSet<Tag>,
}

/// The blocks that the guest writes to.
#[derive(Debug)]
pub(crate) struct Ledger {
    blocks: Vec<Block>,
    tags: Tag,
}

impl Ledger {
    pub(crate) fn new(blocks: usize) -> Self {
        let nothing = BTreeSet::from([0]);
        Self { blocks: vec![Block { now: nothing.clone(), after: nothing }; blocks], tags: 0 }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// A write of so many blocks begins.
    pub(crate) fn begin(&mut self, first: usize, count: usize) -> Tag {
        self.tags += 1;
        for block in &mut self.blocks[first..first + count] {
            block.now.insert(self.tags);
            block.after.insert(self.tags);
        }
        self.tags
    }

    /// It was answered; `durable`: and would not have been before it was durable.
    pub(crate) fn answered(&mut self, first: usize, count: usize, tag: Tag, durable: bool) {
        for block in &mut self.blocks[first..first + count] {
            block.now = BTreeSet::from([tag]);
            if durable {
                block.after = block.now.clone();
            }
        }
    }

    /// What was answered is durable.
    pub(crate) fn all_is_durable(&mut self) {
        for block in &mut self.blocks {
            block.after = block.now.clone();
        }
    }

    /// The power of the host was gone that wrote last. Whether that may have taken anything.
    pub(crate) fn power_cut(&mut self) -> bool {
        let lost = self.blocks.iter().any(|block| block.now != block.after);
        for block in &mut self.blocks {
            block.now = block.after.clone();
        }
        lost
    }

    /// Holds what is seen against what may be. What was seen stays, but of blocks `in_doubt`, to which somebody may still be
    /// writing. Answered: how many blocks show something that was never answered.
    ///
    /// # Panics
    /// When something else is seen.
    pub(crate) fn hold_against(&mut self, content: &[u8], in_doubt: &[usize]) -> usize {
        let mut surprises = 0;
        for (place, block) in self.blocks.iter_mut().enumerate() {
            let bytes = &content[place * BLOCK..(place + 1) * BLOCK];
            let found = block.now.iter().copied().find(|tag| bytes == block_of(*tag));
            let Some(found) = found else {
                let shown = Tag::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
                panic!("block {place} shows write {shown}, and may show {:?}", block.now);
            };
            surprises += usize::from(block.now.len() > 1 && block.now.last() == Some(&found));
            if !in_doubt.contains(&place) {
                block.now = BTreeSet::from([found]);
            }
        }
        surprises
    }
}
