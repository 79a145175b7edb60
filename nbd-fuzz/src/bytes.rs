//! Numbers as they stand in a stream, read by another hand than the server's.

/// The 16 bits at that place.
///
/// # Panics
/// When they pass the end.
pub fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// The 32 bits at that place.
///
/// # Panics
/// When they pass the end.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The 64 bits at that place.
///
/// # Panics
/// When they pass the end.
pub fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
