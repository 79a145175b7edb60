//! One virtual machine on this host: what it is, QEMU's command line, its process.
//!
//! ```text
//! definition (TOML, checked) ─► machine (versioned) ─┐
//!             devices (fixed addresses) ─────────────┼─► command_line ─► launch ─► process
//!             version, accel (what this QEMU can) ───┘
//! adopt: the way back, from a running QEMU to a definition
//! ```
//!
//! What deliberately does not live here: who owns a VM and what becomes of it over time (`agent`), and how it is kept on
//! disk (`journal`).

pub mod definition;
pub mod name;

pub mod machine;
pub mod version;

pub mod accel;
pub mod command_line;
pub mod devices;

pub mod launch;
pub mod places;
pub mod process;
pub mod qemu;

pub mod adopt;

pub use devices::nic_id;
