//! What happens once nothing goes wrong any more: from any state, to the end of the move. All that was on its way is lost, the
//! link holds, blockd answers, QEMU does what it should; agents say and ask again. One fixed order.

use cutover_sim::qemus::Alone;
use vmctl::cutover::event::{DestinationEvent, DestinationQemu, SourceEvent, SourceQemu};
use vmctl::cutover::ids::Text;
use vmctl::cutover::record::Stage;

use crate::world::{Agent, Budget, ID, Said, Side, World};

/// Rounds until the end, at most; the longest that is needed is far shorter.
const ROUNDS_MAX: usize = 60;

/// The faults stop.
pub(crate) fn heal(world: &World) -> World {
    let mut world = world.clone();
    // What might still have gone wrong plays no part any more.
    world.budget = Budget { crashes: 0, cuts: 0, wishes: 0, deaths: 0, writes: 0 };
    world.link = true;
    world.to_a.clear();
    world.to_b.clear();
    while !world.orphans_a.is_empty() {
        world.apply_orphan(Side::A, 0);
    }
    while !world.orphans_b.is_empty() {
        world.apply_orphan(Side::B, 0);
    }
    world.on_a(SourceEvent::LinkUp, None);
    world.on_b(DestinationEvent::LinkUp, None);
    world
}

/// Goes on until the move has ended on both sides. `good`: a healed state from which that is known already.
///
/// # Errors
/// It does not end, or not as it must.
pub(crate) fn settle(mut world: World, mut seen: impl FnMut(&World) -> bool) -> Result<(), String> {
    for _ in 0..ROUNDS_MAX {
        if seen(&world) {
            return Ok(());
        }
        if let Some(text) = world.broken {
            return Err(format!("while it settles: {text}"));
        }
        if is_over(&world) {
            return judge(&world);
        }
        round(&mut world);
    }
    Err(format!("it does not come to an end: {world:#?}"))
}

fn round(world: &mut World) {
    while !world.calls_a.is_empty() {
        world.apply(Side::A, 0);
        let (kind, answer) = world.take_call(Side::A, 0);
        world.on_a(SourceEvent::Blockd(kind, answer), None);
    }
    while !world.calls_b.is_empty() {
        world.apply(Side::B, 0);
        let (kind, answer) = world.take_call(Side::B, 0);
        world.on_b(DestinationEvent::Blockd(kind, answer), None);
    }
    for place in world.to_b.places() {
        world.to_b.remove(place);
        world.on_b(DestinationEvent::Message(ID, Said::get(place)), None);
    }
    for place in world.to_a.places() {
        world.to_a.remove(place);
        world.on_a(SourceEvent::Message(ID, Said::get(place)), None);
    }
    qemus(world);
    if world.source_is("prepared") {
        world.begin();
    }
    // The driver's part: memory does not get over, or not in time.
    if world.source_is("armed") && world.qemus.s == SourceQemu::Running {
        world.on_a(SourceEvent::Abort(Text::new("memory")), None);
    }
    world.on_a(SourceEvent::Poke, None);
    world.on_b(DestinationEvent::Poke, None);
}

fn qemus(world: &mut World) {
    let accepts = world.blockd_a.accepts();
    let ok = [Alone::TLoads, Alone::SStops, Alone::SCompletes, Alone::SIoError];
    // QEMU fails only where nothing else can come of it.
    let is_alone = world.qemus.t == DestinationQemu::Gone || !world.stream;
    let fails = is_alone.then_some(Alone::SFails);
    let may = |alone: &Alone| world.qemus.may(*alone, world.stream, accepts);
    if let Some(alone) = ok.into_iter().chain(fails).find(may) {
        world.qemus.happens(alone);
    }
    world.on_a(SourceEvent::Qemu(world.qemus.s), None);
    world.on_b(DestinationEvent::Qemu(world.qemus.t), None);
}

fn is_over(world: &World) -> bool {
    let b_is_out = match &world.b {
        Agent::Idle => world.stage_a() == Stage::Aborted,
        Agent::Ended(_) => true,
        Agent::Moves(_) => false,
    };
    matches!(world.a, Agent::Ended(_)) && b_is_out && world.calls_a.is_empty() && world.calls_b.is_empty()
}

/// One owner, and there the one guest; or none, if it has died.
fn judge(world: &World) -> Result<(), String> {
    let (a, b) = (world.blockd_a.accepts(), world.blockd_b.accepts());
    let (s, t) = (world.qemus.s_runs(), world.qemus.t == DestinationQemu::Running);
    let there = world.stage_a() == Stage::Released && world.stage_b() == Stage::Owned && !a && b && !s;
    let here = world.stage_a() == Stage::Aborted && world.stage_b() != Stage::Owned && a && !b && !t;
    let dead = world.guest_hurt;
    if (there && (t || dead)) || (here && (s || dead)) {
        return Ok(());
    }
    Err(format!("it ends wrongly: {world:#?}"))
}
