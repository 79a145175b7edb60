//! The heap of a fuzzing process, counted.

use std::alloc::System;
use std::panic;
use std::sync::Once;

use cap::Cap;

use crate::targets::Target;

static FIRST: Once = Once::new();

/// Carries an input out with no more heap than the target may have. Whoever asks for more ends the process.
///
/// # Panics
/// The server has broken a rule.
pub fn run(heap: &'static Cap<System>, target: Target, input: &[u8]) {
    FIRST.call_once(|| explain_panics(heap));
    let limit = heap.allocated() + target.heap_bytes_max();
    heap.set_limit(limit).expect("more than there is");
    let verdict = target.run(input);
    heap.set_limit(usize::MAX).expect("more than there is");
    if let Err(broken) = verdict {
        panic!("{broken}");
    }
}

/// A panic needs memory to be told of; without, it would be waited for.
fn explain_panics(heap: &'static Cap<System>) {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        heap.set_limit(usize::MAX).expect("more than there is");
        tell(info);
    }));
}
