//! The moves of the model, and what must hold.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cutover_sim::qemus::Alone;
use cutover_sim::twins::snapshot;
use stateright::{Checker, HasDiscoveries, Model, Property};
use vmctl::cutover::event::{DestinationEvent, DestinationQemu, SourceEvent, SourceQemu};
use vmctl::cutover::ids::Text;
use vmctl::cutover::message::Message;
use vmctl::cutover::record::{Commit, Stage};

use crate::settle::{heal, settle};
use crate::world::{Agent, Budget, ID, OLD, Said, Side, World};

/// Which processes may crash.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) agents: bool,
    pub(crate) blockds: bool,
    pub(crate) qemus: bool,
}

impl Faults {
    pub(crate) fn all() -> Self {
        Self { agents: true, blockds: true, qemus: true }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// The driver says `Begin` and starts the migration.
    Begin,
    /// A message, by its place in what was said; the agent crashes after so many actions.
    Deliver(Side, u32, Option<usize>),
    /// Messages of an old move, to both.
    DeliverOld,
    /// blockd does what was asked.
    Apply(Side, usize),
    /// The answer comes; the agent crashes after so many actions.
    Answer(Side, usize, Option<usize>),
    /// What an agent asked that has crashed since is done.
    Orphan(Side, usize),
    /// QEMU says how it is; the agent crashes after so many actions.
    Report(Side, Option<usize>),
    /// QEMU does something by itself.
    Alone(Alone),
    /// Time passes.
    Poke(Side),
    /// Somebody wants the move undone.
    Wish,
    /// The guest shuts down.
    Death,
    /// The guest writes, and is answered.
    Write,
    /// The link breaks, is noticed, comes back, is noticed.
    Cut,
    LinkDown,
    Heal,
    LinkUp,
    /// An agent crashes and is started again.
    CrashAgent(Side),
    /// A blockd does.
    CrashBlockd(Side),
    /// A QEMU is gone.
    CrashQemu(Side),
}

pub(crate) struct Cutover {
    budget: Budget,
    faults: Faults,
    /// Healed states that are known to come to a good end.
    good: Arc<Mutex<HashSet<u64>>>,
}

impl Model for Cutover {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.budget)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        self.machine_steps(world, steps);
        self.environment_steps(world, steps);
        self.fault_steps(world, steps);
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        if last.broken.is_some() {
            return None;
        }
        let mut world = last.clone();
        take(&mut world, step).then_some(())?;
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken by what an agent asks for", |_, world: &World| {
                world.broken.is_none()
            }),
            Property::always("one blockd accepts writes", |_, world: &World| {
                !(world.blockd_a.accepts() && world.blockd_b.accepts())
            }),
            Property::always("one guest runs that may write", |_, world: &World| {
                let s = world.qemus.s_runs() && world.blockd_a.accepts();
                let t = world.qemus.t == DestinationQemu::Running;
                let owned = world.stage_a() == Stage::Released && world.stage_b() == Stage::Owned;
                !t || (!s && owned)
            }),
            Property::always(
                "the guest does not run at the source once it was released",
                |_, world: &World| world.stage_a() != Stage::Released || !world.qemus.s_runs(),
            ),
            Property::always("the records do not contradict each other", |_, world: &World| {
                let (a, b) = (world.stage_a(), world.stage_b());
                !(a == Stage::Released && b == Stage::Aborted) && (b != Stage::Owned || a == Stage::Released)
            }),
            Property::always("the memory is lost only with a QEMU", |_, world: &World| {
                !world.qemus.cold || world.guest_hurt
            }),
            Property::always("once faults stop, it ends with one guest", |model, world: &World| {
                model.comes_to_a_good_end(world)
            }),
        ]
    }
}

impl Cutover {
    fn machine_steps(&self, world: &World, steps: &mut Vec<Step>) {
        if world.link {
            steps.push(Step::DeliverOld);
            for place in world.to_a.places() {
                self.with_crashes(world, |crash| Step::Deliver(Side::A, place, crash), steps);
            }
            for place in world.to_b.places() {
                self.with_crashes(world, |crash| Step::Deliver(Side::B, place, crash), steps);
            }
        }
        for (side, calls) in [(Side::A, &world.calls_a), (Side::B, &world.calls_b)] {
            for (place, call) in calls.iter().enumerate() {
                match &call.answer {
                    None => steps.push(Step::Apply(side, place)),
                    Some(_) => self.with_crashes(world, |crash| Step::Answer(side, place, crash), steps),
                }
            }
        }
        let (a, b) = (matches!(world.a, Agent::Moves(_)), matches!(world.b, Agent::Moves(_)));
        for (side, _) in [(Side::A, a), (Side::B, b)].into_iter().filter(|(_, moves)| *moves) {
            self.with_crashes(world, |crash| Step::Report(side, crash), steps);
            steps.push(Step::Poke(side));
        }
    }

    /// The step, and with a crash of the agent after each of its actions but the last one's next: before the first one it is
    /// [`Step::CrashAgent`].
    fn with_crashes(&self, world: &World, step: impl Fn(Option<usize>) -> Step, steps: &mut Vec<Step>) {
        steps.push(step(None));
        if world.budget.crashes > 0 && self.faults.agents {
            let count = actions_of(&mut world.clone(), &step(None), None);
            steps.extend((1..=count).map(|count| step(Some(count))));
        }
    }

    fn environment_steps(&self, world: &World, steps: &mut Vec<Step>) {
        if world.source_is("prepared") {
            steps.push(Step::Begin);
        }
        let alone =
            [Alone::SStops, Alone::SCompletes, Alone::SFails, Alone::SIoError, Alone::TLoads, Alone::TExits];
        let (stream, accepts) = (world.stream && world.link, world.blockd_a.accepts());
        let may = alone.into_iter().filter(|&alone| world.qemus.may(alone, stream, accepts));
        steps.extend(may.map(Step::Alone));
        if world.budget.writes > 0 && world.qemus.s_runs() && world.blockd_a.accepts() {
            steps.push(Step::Write);
        }
        for place in 0..world.orphans_a.len() {
            steps.push(Step::Orphan(Side::A, place));
        }
        for place in 0..world.orphans_b.len() {
            steps.push(Step::Orphan(Side::B, place));
        }
        steps.push(if world.link { Step::LinkUp } else { Step::LinkDown });
    }

    fn fault_steps(&self, world: &World, steps: &mut Vec<Step>) {
        let Budget { crashes, cuts, wishes, deaths, .. } = world.budget;
        if wishes > 0 {
            steps.push(Step::Wish);
        }
        if deaths > 0 && world.qemus.s_runs() {
            steps.push(Step::Death);
        }
        if cuts > 0 && world.link {
            steps.push(Step::Cut);
        }
        if !world.link {
            steps.push(Step::Heal);
        }
        for side in [Side::A, Side::B].into_iter().filter(|_| crashes > 0) {
            if self.faults.agents {
                steps.push(Step::CrashAgent(side));
            }
            if self.faults.blockds {
                steps.push(Step::CrashBlockd(side));
            }
            if self.faults.qemus {
                steps.push(Step::CrashQemu(side));
            }
        }
    }

    fn comes_to_a_good_end(&self, world: &World) -> bool {
        if world.broken.is_some() {
            return true;
        }
        let mut way = Vec::new();
        let result = settle(heal(world), |world| {
            let mark = fingerprint(world);
            way.push(mark);
            self.good.lock().expect("nobody panics with it").contains(&mark)
        });
        match result {
            Ok(()) => {
                self.good.lock().expect("nobody panics with it").extend(way);
                true
            }
            Err(text) => {
                eprintln!("{text}");
                false
            }
        }
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Takes a step of an agent; how many actions it asks for. It crashes after `crash` of them.
fn actions_of(world: &mut World, step: &Step, crash: Option<usize>) -> usize {
    match *step {
        Step::Deliver(Side::A, place, _) => world.on_a(SourceEvent::Message(ID, Said::get(place)), crash),
        Step::Deliver(Side::B, place, _) => {
            world.on_b(DestinationEvent::Message(ID, Said::get(place)), crash)
        }
        Step::Answer(Side::A, place, _) => {
            let (kind, answer) = world.take_call(Side::A, place);
            world.on_a(SourceEvent::Blockd(kind, answer), crash)
        }
        Step::Answer(Side::B, place, _) => {
            let (kind, answer) = world.take_call(Side::B, place);
            world.on_b(DestinationEvent::Blockd(kind, answer), crash)
        }
        Step::Report(Side::A, _) => world.on_a(SourceEvent::Qemu(world.qemus.s), crash),
        Step::Report(Side::B, _) => world.on_b(DestinationEvent::Qemu(world.qemus.t), crash),
        _ => 0,
    }
}

/// `false`: it cannot be taken.
fn take(world: &mut World, step: Step) -> bool {
    match step {
        Step::Deliver(_, _, crash) | Step::Answer(_, _, crash) | Step::Report(_, crash) => {
            world.budget.crashes -= u8::from(crash.is_some());
            actions_of(world, &step, crash);
        }
        Step::Begin => world.begin(),
        Step::DeliverOld => deliver_old(world),
        Step::Apply(side, place) => return world.apply(side, place),
        Step::Orphan(side, place) => world.apply_orphan(side, place),
        Step::Poke(Side::A) => {
            world.on_a(SourceEvent::Poke, None);
        }
        Step::Poke(Side::B) => {
            world.on_b(DestinationEvent::Poke, None);
        }
        step => return environment(world, step),
    }
    true
}

/// What a move before said may come now: to those who mean another one it says nothing.
fn deliver_old(world: &mut World) {
    let (snapshots, epoch) = (snapshot(world.blockd_b.content), world.blockd_a.epoch);
    let commit = Commit { epoch, snapshots };
    if let Agent::Moves(_) = world.b {
        world.on_b(DestinationEvent::Message(OLD, Message::Commit { commit }), None);
        world.on_b(DestinationEvent::Message(OLD, Message::Abort {}), None);
    }
    world.on_a(SourceEvent::Message(OLD, Message::Loaded {}), None);
    world.on_a(SourceEvent::Message(OLD, Message::Running {}), None);
}

fn environment(world: &mut World, step: Step) -> bool {
    match step {
        Step::Alone(alone) => world.qemus.happens(alone),
        Step::Wish => {
            world.budget.wishes -= 1;
            world.on_a(SourceEvent::Abort(Text::new("wish")), None);
        }
        Step::Death => {
            world.budget.deaths -= 1;
            world.guest_hurt = true;
            world.qemus.s = SourceQemu::Shutdown;
        }
        Step::Write => {
            world.budget.writes -= 1;
            world.blockd_a.content += 1;
        }
        Step::Cut => {
            world.budget.cuts -= 1;
            world.link = false;
            world.stream = false;
        }
        Step::LinkDown => {
            world.on_a(SourceEvent::LinkDown, None);
            world.on_b(DestinationEvent::LinkDown, None);
        }
        Step::Heal => world.link = true,
        Step::LinkUp => {
            world.on_a(SourceEvent::LinkUp, None);
        }
        step => crash(world, step),
    }
    true
}

fn crash(world: &mut World, step: Step) {
    world.budget.crashes -= 1;
    match step {
        Step::CrashAgent(Side::A) => world.crash_a(),
        Step::CrashAgent(Side::B) => world.crash_b(),
        Step::CrashBlockd(side) => world.crash_blockd(side),
        Step::CrashQemu(Side::A) => {
            world.guest_hurt = true;
            world.qemus.s = SourceQemu::Gone;
        }
        Step::CrashQemu(Side::B) => {
            world.guest_hurt = true;
            world.qemus.t = DestinationQemu::Gone;
        }
        _ => unreachable!("no crash: {step:?}"),
    }
}

/// Every state that can be reached.
pub(crate) fn check(name: &str, budget: Budget, faults: Faults) {
    let began = Instant::now();
    let model = Cutover { budget, faults, good: Arc::default() };
    let good = Arc::clone(&model.good);
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    println!(
        "{name}: {} states ({} steps), longest way {}, {} states on ways to the end, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        good.lock().expect("nobody panics with it").len(),
        began.elapsed().as_secs_f64()
    );
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let way: Vec<String> = path.clone().into_actions().iter().map(|step| format!("  {step:?}")).collect();
        panic!("{name}: fails: {property}\n{}\n{:#?}", way.join("\n"), path.last_state());
    }
}
