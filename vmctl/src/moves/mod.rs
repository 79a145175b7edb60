//! Moves of running VMs between hosts: what the two agents do, and what they say to each other.
//!
//! ```text
//!  host A: source.rs                                                 host B: destination.rs
//!   cutover::Source ◄─ events ─┬─ link ══ tunnel: control, by blockd ══ link ─┬─ events ─► cutover::Destination
//!                              ├─ disk (blockd's API)          blockd's API ──┤
//!                              ├─ QEMU S ══ memory: tunnel, by blockd ═ QEMU T ┤
//!                              └─ journal                          journal ───┘
//! ```
//!
//! The cutover's state machines decide; what is here does what they say, in their order, and tells them what came of it.
//! Around them: checks, the first copy and the rounds (`rounds`), the gate (`forecast`), and what people are shown (`record`).
//! docs/migration.md describes it.

pub mod answers;
pub mod record;

pub mod stream;

mod disk;
mod experience;
mod files;
mod forecast;
mod former;
mod link;
mod memory;
mod qemu;
mod quiet;

mod destination;
mod hub;
mod judge;
mod offers;
mod opening;
mod reception;
mod rounds;
mod source;
mod stair;
mod trial;

pub use hub::{Moves, reason_text};
pub use judge::Check;
