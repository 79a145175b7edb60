//! Ctrl-C and SIGTERM as a flag, so that a run ends by its ordinary way out: servers stopped, files removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::trouble::{OrTrouble, Trouble};

/// Exit code of a program that ended by Ctrl-C: 128 + SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Whether somebody asked us to stop. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
}

impl Interrupt {
    /// Starts listening for SIGINT and SIGTERM. The second signal ends the process at once.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn install() -> Result<Self, Trouble> {
        // The same flag, so that what waits in the fixtures is interrupted, too.
        let interrupt = Self { flag: fixtures::process::interrupt_flag() };
        let flag = Arc::clone(&interrupt.flag);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.or_trouble(what, NEXT)?;
        let (int, term) = runtime.block_on(async { listeners() }).or_trouble(what, NEXT)?;
        let watch = move || runtime.block_on(watch(int, term, flag));
        thread::Builder::new().name("signals".into()).spawn(watch).or_trouble(what, NEXT)?;
        Ok(interrupt)
    }

    /// Whether to stop.
    pub fn requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Stops the caller when asked to.
    ///
    /// # Errors
    /// Somebody asked to stop.
    pub fn check(&self) -> Result<(), Trouble> {
        if self.requested() {
            return Err(Trouble::new("complete the comparison", "interrupted", "start it again"));
        }
        Ok(())
    }
}

const NEXT: &str = "raise the limits on threads and open files (ulimit -a)";

fn what() -> String {
    "listen for Ctrl-C".into()
}

fn listeners() -> std::io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
}

async fn watch(mut int: Signal, mut term: Signal, flag: Arc<AtomicBool>) {
    loop {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_INTERRUPTED.into());
        }
        eprintln!("stopping; once more to stop at once");
    }
}
