//! Exit codes: a contract, scripts depend on them.

/// Success.
pub(crate) const OK: u8 = 0;
/// It failed.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// Something named does not exist.
pub(crate) const NOT_FOUND: u8 = 3;
/// Something is in use.
pub(crate) const BUSY: u8 = 4;
/// Refused by policy or permission.
pub(crate) const REFUSED: u8 = 5;
