//! The option phase, under libFuzzer.

#![no_main]
#![forbid(unsafe_code)]

use std::alloc::System;

use cap::Cap;
use nbd_fuzz::targets::Target;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

libfuzzer_sys::fuzz_target!(|input: &[u8]| nbd_fuzz::heap::run(&HEAP, Target::Handshake, input));
