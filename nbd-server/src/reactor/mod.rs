//! One thread, one io_uring: sockets and disk files together. The only room with unsafe code.
//!
//! What lives here: buffers ([`buffer`]), the table of operations that the kernel works on (`in_flight`, `message`),
//! the server's ring (`ring`), and the loop that turns completions into engine events and engine actions into
//! operations (`run`, and `idle` for its patience); a ring of sockets for clients ([`SocketRing`]); beside it, for want
//! of a better place, mapped files (`file_map`), the heap (`heap`), and what other programs inherit (`descriptors`).
//! What does not: any decision about a request; that is the engine's.

pub mod buffer;
mod descriptors;
mod file_map;
mod heap;
mod idle;
mod in_flight;
mod message;
mod outgoing;
mod ring;
mod run;
mod socket_ring;

pub use descriptors::keep_descriptors;
pub use file_map::FileMap;
pub use heap::{give_back_freed_memory, keep_freed_memory};
pub use ring::{OpenFile, RingOptions};
pub use run::{
    Admits, BuildBackend, BuildExport, ExportSpec, Mailbox, Reactor, ReactorConfig, ReactorSpec,
    ReactorStats, Waker,
};
pub use socket_ring::{Outgoing, Room, SocketDone, SocketRing};
