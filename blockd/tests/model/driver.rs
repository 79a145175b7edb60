//! One case: what happens is drawn from the seed, what comes of it is held against the reference.
//!
//! | file | what it does |
//! |---|---|
//! | `draw` | what happens next: requests, commands, faults, clients that come and go, crashes |
//! | `requests` | requests are drawn, and their replies checked |
//! | `commands` | commands are drawn |
//! | `effects` | what commands have done, by their answers |
//! | `pins` | snapshots are pinned; what a pin promises is checked |
//! | `contents` | what volumes and snapshots read as |
//! | `restart` | power cuts and stops, and what is found after them |
//! | `finish` | the end of a case, when everything is deleted |
//! | `seen` | counts what has happened |

/// Tells what happens, when one case is looked at. Stands before the modules, which use it.
macro_rules! trace {
    ($case:expr, $($text:tt)*) => {
        if $case.trace {
            eprintln!("{:>5} {}", $case.time, format_args!($($text)*));
        }
    };
}

mod commands;
mod contents;
mod draw;
mod effects;
mod finish;
mod pins;
mod requests;
mod restart;
mod seen;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use blockd::control::SnapshotName;
use blockd::store::Token;
use blockd::units::LayerId;
use fastrand::Rng;
use nbd_server::disk::ExportIndex;

use crate::reference::Reference;
use crate::world::{PackedRecord, World};

use pins::Pin;
pub(crate) use seen::Seen;

const KIB: u64 = 1024;

/// A request under way.
struct Pending {
    volume: String,
    kind: Kind,
    cells: Range<usize>,
    issued: u64,
}

enum Kind {
    Read,
    Write {
        stamp: u64,
        fua: bool,
    },
    Flush,
    /// A read of a whole snapshot.
    Check {
        name: (String, String),
    },
}

/// A command under way.
#[derive(Debug)]
enum Asked {
    Create { name: String, size: u64 },
    Grow { name: String, size: u64 },
    Rename { from: String, to: String },
    DeleteVolume { name: String },
    Cut { names: Vec<SnapshotName>, requested: u64 },
    DeleteSnapshot { name: (String, String) },
    Rollback { name: (String, String) },
    Clone { from: (String, String), to: String },
    Other,
}

struct Case {
    world: World,
    reference: Reference,
    pending: HashMap<u32, Pending>,
    asked: BTreeMap<Token, Asked>,
    /// Commands that have failed with an I/O error: whether they had their effect is seen after a crash.
    doubtful: Vec<Asked>,
    time: u64,
    next_id: u32,
    next_name: u32,
    faults: u64,
    /// What was packed when somebody last looked.
    packed: Vec<PackedRecord>,
    children: BTreeMap<LayerId, LayerId>,
    /// Exports that somebody is connected to, each once for each.
    connected: Vec<ExportIndex>,
    /// Volumes one of whose FLUSHes has failed since the store was opened.
    failed: Vec<String>,
    pins: Vec<Pin>,
    seen: Seen,
    /// Draws what does not change what else is drawn.
    fate: Rng,
    /// The last crash was one of the process only: what it had answered must be there.
    kept: bool,
    /// Faults are drawn in this case.
    with_faults: bool,
    /// All requests are for the same few blocks, and many are FLUSHes.
    hot: bool,
    /// Tell what happens.
    trace: bool,
}

pub(crate) fn run_case(seed: u64, hot: bool) {
    println!("{:?}", run_case_counting(seed, hot, true));
}

pub(crate) fn run_case_counting(seed: u64, hot: bool, trace: bool) -> Seen {
    let mut world = World::new(seed);
    let with_faults = world.rng.bool();
    let steps = world.rng.usize(50..400);
    let mut case = Case {
        world,
        reference: Reference::default(),
        pending: HashMap::new(),
        asked: BTreeMap::new(),
        doubtful: Vec::new(),
        time: 1,
        next_id: 0,
        next_name: 0,
        faults: 0,
        packed: Vec::new(),
        children: BTreeMap::new(),
        connected: Vec::new(),
        failed: Vec::new(),
        pins: Vec::new(),
        seen: Seen::default(),
        fate: Rng::with_seed(!seed),
        kept: false,
        with_faults,
        hot,
        trace,
    };
    case.create();
    case.settle();
    for _ in 0..steps {
        if hot {
            case.hot_step();
        } else {
            case.step();
        }
        case.collect();
    }
    case.finish();
    case.seen
}

impl Case {
    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    fn faults_hit(&self) -> u64 {
        self.faults + self.world.disk.faults_hit() + self.world.meta.faults_hit()
    }

    /// Takes what has been answered.
    fn collect(&mut self) {
        for reply in self.world.take_replies() {
            self.reply(reply);
        }
        for (token, answer) in self.world.take_answers() {
            let asked = self.asked.remove(&token).expect("an answer to a command");
            self.answered(asked, answer);
        }
    }

    /// Everything under way ends, and is looked at.
    fn settle(&mut self) {
        self.world.disk.heal();
        for _ in 0..4 {
            self.world.settle();
            self.collect();
            self.world.tick(6000);
        }
        self.world.settle();
        self.collect();
        assert!(self.pending.is_empty(), "{} requests were never answered", self.pending.len());
        assert!(self.asked.is_empty(), "{} commands were never answered", self.asked.len());
        self.look_at_packed();
    }
}
