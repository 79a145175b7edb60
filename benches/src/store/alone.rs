//! Scenarios with a store of their own. Each stands for itself, and gives its space back; what fails is recorded, and the
//! next one begins.

use super::daemon::Daemon;
use super::made::{self, Lies, Made};
use super::record::Recorder;
use super::room::Room;
use super::{Scenario, empty_store};
use super::{calls, delete_middle, diff, flushes, full, guest_view, paced, soak, space, tls, worst_memory};
use crate::interrupt::Interrupt;
use crate::plan::StorePlan;
use crate::trouble::Trouble;

/// A scenario on the daemon of an empty store.
type OnDaemon = fn(&Room<'_>, &mut Recorder, &Daemon) -> Result<(), Trouble>;

/// Those with an empty store; the longest last.
const ON_DAEMON: [(Scenario, &str, OnDaemon); 5] = [
    (Scenario::DeleteMiddle, delete_middle::NAME, delete_middle::run),
    (Scenario::Space, space::NAME, space::run),
    (Scenario::Flushes, flushes::NAME, flushes::run),
    (Scenario::GuestView, guest_view::NAME, guest_view::run),
    (Scenario::Soak, soak::NAME, soak::run),
];

/// Runs all of them that were asked for.
pub(super) fn run(plan: &StorePlan, recorder: &mut Recorder, interrupt: &Interrupt) {
    let mut alone = Alone { plan, recorder, interrupt };
    let small = plan.wants(Scenario::Diff) || plan.wants(Scenario::SnapshotCalls);
    alone.run(small, diff::NAME, diff_and_calls);
    alone.run(plan.wants(Scenario::FullStore), full::NAME, full::run);
    alone.run(plan.wants(Scenario::WorstMemory), worst_memory::NAME, worst_memory::run);
    alone.run(plan.wants(Scenario::Tls), tls::NAME, tls::run);
    for (scenario, name, work) in ON_DAEMON {
        alone.run(plan.wants(scenario), name, |room, recorder| {
            let daemon = empty_store(room)?;
            work(room, recorder, &daemon)?;
            daemon.stop()
        });
    }
}

struct Alone<'a> {
    plan: &'a StorePlan,
    recorder: &'a mut Recorder,
    interrupt: &'a Interrupt,
}

impl Alone<'_> {
    fn run(
        &mut self,
        wanted: bool,
        name: &'static str,
        scenario: impl FnOnce(&Room<'_>, &mut Recorder) -> Result<(), Trouble>,
    ) {
        if !wanted || self.interrupt.requested() {
            return;
        }
        let room = Room::new(self.plan, self.interrupt);
        let outcome = room.and_then(|room| scenario(&room, self.recorder));
        if let Err(trouble) = outcome
            && !self.interrupt.requested()
        {
            self.recorder.fail(name, "blockd", &trouble);
        }
    }
}

fn diff_and_calls(room: &Room<'_>, recorder: &mut Recorder) -> Result<(), Trouble> {
    let volumes = [diff::SMALL, diff::LARGE].map(|(name, bytes)| Made { name, bytes, lies: Lies::UnderBase });
    let data = room.new_image("made");
    made::make(&data, &volumes, made::SPARE_BYTES, room.interrupt)?;
    let daemon = Daemon::start(room, &data)?;
    if room.plan.wants(Scenario::Diff) {
        diff::run(room, recorder, &daemon)?;
    }
    if room.plan.wants(Scenario::SnapshotCalls) {
        let (volume, subject) = (diff::SMALL.0, full::subject(diff::SMALL.1));
        calls::run(room, recorder, &daemon, volume, &subject)?;
        paced::run(room, recorder, &daemon, (volume, &subject), &paced::WRITERS)?;
    }
    daemon.stop()
}
