//! The agent of a host: it keeps the VMs' records, starts their QEMUs, follows what becomes of them, and answers clients.
//!
//! ```text
//! API (tokio) ─► Registry ─► one owner task a VM: commands in, answers out; the only one that touches its QEMU and record
//! ```
//!
//! QEMUs are in the background and outlive the agent, however it ends; the next one finds them again by process and
//! monitor, not by their word.

pub use local_api::events;
pub mod view;

pub mod owner;
pub mod registry;

pub mod api;

mod daemon;

pub use daemon::run;
pub use owner::{Lent, News, Owner, Request, VmHandle};
pub use registry::{Host, Registry};
