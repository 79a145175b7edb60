//! Exit codes of `blockd`, `blockctl` and `vmctl`: a contract, scripts depend on them.

/// Success.
pub const OK: u8 = 0;
/// It failed.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 2;
/// Something named does not exist.
pub const NOT_FOUND: u8 = 3;
/// Something is in use.
pub const BUSY: u8 = 4;
/// Refused by policy or permission.
pub const REFUSED: u8 = 5;
/// Some of it was done.
pub const PARTIAL: u8 = 6;
/// Nobody answers.
pub const UNREACHABLE: u8 = 7;
/// What is stored is not what was written.
pub const VERIFICATION_FAILED: u8 = 8;
