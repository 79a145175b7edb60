//! The cutover of a move: who may run the guest, decided by one record. Without I/O and without a clock: the agent, the model
//! and the simulator run the same code. docs/migration.md has the protocol, every crash point, and what was checked.
//!
//! ```text
//!        host A                                              host B
//!   ┌────────────┐    messages over a link that may lose,  ┌─────────────┐
//!   │  Source    │ ◄────── repeat, reorder, break ───────► │ Destination │
//!   └──┬──────┬──┘                                         └──┬───────┬──┘
//!   blockd A  QEMU S                                     blockd B   QEMU T
//!   Frozen ─► Released | Aborted                         Expected ─► Owned | Aborted
//! ```
//!
//! Three rules, from which all else follows:
//! 1. Only blockd A's record decides: *Released* (the guest goes on at B) or *Aborted* (it goes on at A). Whichever is written
//!    first stays.
//! 2. B takes the volumes (*Owned*) only after it learned that A has released; T is continued only after B's record says Owned.
//! 3. S is resumed, and B told to discard, only after A's record says Aborted.
//!
//! What QEMU says is advice; no timer is part of safety. What does not live here: blockd's API, QMP, the journal's files, the
//! link, and everything that happens while the guest still runs.

mod asked;
pub mod codec;
pub mod destination;
pub mod event;
pub mod ids;
pub mod known;
pub mod message;
pub mod record;
pub mod source;
