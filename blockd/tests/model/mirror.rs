//! Mirrored volumes at the store: what is answered is at the other host, and what is cut there is what is cut here.
//!
//! The other host is an array of bytes to which batches are written at some time before they are said to be.

use std::collections::BTreeMap;

use blockd::catalog::format::{Handover, Point};
use blockd::control::mirror::{Mirror, MirrorContent, MirrorId, MirrorRun, Mirrored, Mirroring};
use blockd::control::moves::{Handed, Move};
use blockd::control::replication::{Incoming, Mark, Patch, Replication};
use blockd::control::{Answer, Control, ControlError, ErrorKind, SnapshotName};
use blockd::store::{MIRROR_BATCHES_MAX, MIRROR_STALL_MAX, Token};
use blockd::units::{HostId, Lineage, MoveId, SnapshotUid};
use nbd_server::disk::ExportIndex;
use nbd_server::export::{Command, Extent, Payload};

use crate::directed::{BLOCK, CLUSTER, create, export, request, snapshot, snapshot_name, write};
use crate::world::World;

const CLUSTERS: u64 = 6;
const SIZE: u64 = CLUSTERS * CLUSTER;

fn newest(world: &mut World) -> SnapshotUid {
    let asked = Replication::Identify { volume: Some("v".to_owned()) };
    let Answer::Identities(all) = crate::directed::command(world, Control::Replication(asked)) else {
        panic!("no identity")
    };
    all[0].snapshots.iter().max_by_key(|snapshot| snapshot.point).expect("it has one").uid
}

fn content(world: &mut World, name: &str) -> Vec<u8> {
    let shown = export(world, name);
    let buf = world.buffers.take(SIZE as usize);
    bytes(request(world, shown, 0, SIZE, Command::Read { buf, holes: false }).expect("a read succeeds"))
}

fn bytes(payload: Payload) -> Vec<u8> {
    let extents = match payload {
        Payload::Data(buf) => return buf.to_vec(),
        Payload::Extents(extents) => extents,
        Payload::None | Payload::Status(_) => panic!("nothing was read"),
    };
    let extent = |extent| match extent {
        Extent::Data(buf) => buf.to_vec(),
        Extent::Hole(bytes) => vec![0; bytes as usize],
    };
    extents.into_iter().flat_map(extent).collect()
}

/// A request of a client that has not been answered.
struct Asked {
    range: std::ops::Range<u64>,
    /// What all of the range holds afterwards.
    value: u8,
    /// Another one has touched the same bytes meanwhile.
    disputed: bool,
}

struct Case {
    world: World,
    client: ExportIndex,
    id: MirrorId,
    base: Vec<u8>,
    /// What the other host has.
    there: Vec<u8>,
    take: Option<Token>,
    /// Batches that were taken, and whether they are written there.
    on_way: BTreeMap<u64, (Vec<MirrorRun>, bool)>,
    backlog: u64,
    asked: BTreeMap<u32, Asked>,
    next: u32,
    cut: Option<(Token, SnapshotName)>,
    /// What the other host had when it was told of the cut.
    at_cut: Option<Vec<u8>>,
    cuts: u32,
    answered: u32,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let client = create(&mut world, "v", SIZE);
        world.connect(client);
        for cluster in 0..CLUSTERS {
            if world.rng.bool() {
                write(&mut world, client, cluster * CLUSTER, CLUSTER, 1).expect("a write");
            }
        }
        snapshot(&mut world, "v", "base");
        let there = content(&mut world, "v@base");
        let mut case = Self {
            world,
            client,
            id: MirrorId(0),
            base: there.clone(),
            there,
            take: None,
            on_way: BTreeMap::new(),
            backlog: 0,
            asked: BTreeMap::new(),
            next: 1,
            cut: None,
            at_cut: None,
            cuts: 0,
            answered: 0,
        };
        // What differs from the base before the mirror begins, and what is under way then.
        for _ in 0..case.world.rng.u32(0..6) {
            case.change();
        }
        crate::directed::some_steps(&mut case.world, 8);
        case.begin();
        // Whether these are answered with the mirror or before it nobody can tell.
        case.asked.values_mut().for_each(|asked| asked.disputed = true);
        case
    }

    fn begin(&mut self) {
        let base = {
            let token = self.world.command(Control::Replication(Replication::Identify { volume: None }));
            let Answer::Identities(all) = self.answer_of(token).expect("an answer") else {
                panic!("no identity")
            };
            all[0].snapshots[0].uid
        };
        let Mirroring { id, backlog } = loop {
            let token = self.world.command(Control::Mirror(Mirror::Begin { volume: "v".to_owned(), base }));
            match self.answer_of(token) {
                Ok(Answer::Mirroring(mirroring)) => break mirroring,
                Err(error) if error.kind == ErrorKind::Busy => {
                    crate::directed::some_steps(&mut self.world, 4);
                }
                other => panic!("{other:?}"),
            }
        };
        (self.id, self.backlog) = (id, backlog);
    }

    /// Of a command that is answered at once.
    fn answer_of(&mut self, token: Token) -> Result<Answer, ControlError> {
        let answers = self.world.take_answers();
        answers.into_iter().find(|(found, _)| *found == token).expect("an answer").1
    }

    fn range(&mut self) -> std::ops::Range<u64> {
        let rng = &mut self.world.rng;
        let unit = if rng.u8(..4) == 0 { 512 } else { BLOCK };
        let length = if rng.u8(..8) == 0 { rng.u64(1..2 * CLUSTER / unit) } else { rng.u64(1..9) } * unit;
        let start = rng.u64(..=(SIZE - length) / unit) * unit;
        start..start + length
    }

    /// A client changes something.
    fn change(&mut self) {
        let range = self.range();
        let (value, fua) = (self.world.rng.u8(2..), self.world.rng.u8(..5) == 0);
        let zero = self.world.rng.u8(..5) == 0;
        let overlaps = |other: &Asked| range.start < other.range.end && other.range.start < range.end;
        let mut disputed = false;
        for other in self.asked.values_mut().filter(|other| overlaps(other)) {
            (other.disputed, disputed) = (true, true);
        }
        let length = (range.end - range.start) as usize;
        let command = if zero {
            Command::Trim { fua }
        } else {
            let mut buf = self.world.buffers.take(length);
            buf.fill(value);
            Command::Write { buf, fua }
        };
        let id = self.next;
        self.next += 1;
        let value = if zero { 0 } else { value };
        self.asked.insert(id, Asked { range: range.clone(), value, disputed });
        self.world.start(self.client, id, range.start, u32::try_from(length).expect("short"), command);
    }

    fn take(&mut self) {
        if self.take.is_none() && self.on_way.len() < MIRROR_BATCHES_MAX && self.at_cut.is_none() {
            self.take = Some(self.world.command(Control::Mirror(Mirror::Take { id: self.id })));
        }
    }

    /// A batch arrives; or one that has is said to have.
    fn deliver(&mut self) {
        let numbers: Vec<u64> = self.on_way.keys().copied().collect();
        let Some(number) = self.world.rng.choice(numbers) else { return };
        let (runs, written) = self.on_way.get_mut(&number).expect("chosen");
        if !std::mem::replace(written, true) {
            for run in runs {
                let at = run.cluster.start() as usize + usize::from(run.first) * BLOCK as usize;
                match &run.content {
                    MirrorContent::Data(bytes) => self.there[at..at + bytes.len()].copy_from_slice(bytes),
                    MirrorContent::Zero(blocks) => {
                        self.there[at..at + *blocks as usize * BLOCK as usize].fill(0);
                    }
                }
            }
            return;
        }
        self.on_way.remove(&number);
        let written = Mirror::Written { id: self.id, batch: number };
        let token = self.world.command(Control::Mirror(written));
        let mut answers = self.world.take_answers();
        let at = answers.iter().position(|(found, _)| *found == token).expect("answered at once");
        assert!(matches!(answers.remove(at).1, Ok(Answer::Done)));
        answers.into_iter().for_each(|(token, answer)| self.answered(token, answer));
    }

    fn cut(&mut self) {
        if self.cut.is_some() || self.at_cut.is_some() || self.backlog > 0 {
            return;
        }
        self.cuts += 1;
        let name = snapshot_name("v", &format!("cut-{}", self.cuts));
        let token = self.world.command(Control::Mirror(Mirror::Cut { names: vec![name.clone()] }));
        self.cut = Some((token, name));
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, ControlError>) {
        if Some(token) == self.take {
            self.take = None;
            match answer.expect("the mirror lives") {
                Answer::Mirrored(Mirrored::Batch { batch, runs, backlog }) => {
                    self.backlog = backlog;
                    self.on_way.insert(batch, (runs, false));
                }
                Answer::Mirrored(Mirrored::Cut { name, last }) => {
                    assert!(!last && self.on_way.is_empty());
                    assert_eq!(Some(&name), self.cut.as_ref().map(|(_, name)| name));
                    self.at_cut = Some(self.there.clone());
                }
                other => panic!("{other:?}"),
            }
        } else if self.cut.as_ref().is_some_and(|(cut, _)| *cut == token) {
            assert!(matches!(answer, Ok(Answer::Done)), "{answer:?}");
        }
    }

    /// What the other host was told to be the snapshot is the snapshot.
    fn compare_cut(&mut self) {
        if self.at_cut.is_none() {
            return;
        }
        // The commit that carries it.
        while self.world.meta_step() || self.world.disk_step() {}
        self.collect();
        let (_, name) = self.cut.take().expect("it was asked for");
        let shown = export(&self.world, &name.to_string());
        let buf = self.world.buffers.take(SIZE as usize);
        self.world.start(shown, 0, 0, SIZE as u32, Command::Read { buf, holes: false });
        while self.world.disk_step() || self.world.meta_step() {}
        let replies = self.world.take_replies();
        let mut found = None;
        for reply in replies {
            match (reply.id.index, reply.outcome.expect("nothing fails")) {
                (0, payload) => found = Some(bytes(payload)),
                (id, _) => self.reply(id),
            }
        }
        let (found, there) = (found.expect("a reply"), self.at_cut.take().expect("asked above"));
        let first = found.iter().zip(&there).position(|(a, b)| a != b);
        assert_eq!(first, None, "the other host has something else than {name}");
        let token = self.world.command(Control::Mirror(Mirror::GoOn { id: self.id }));
        let answers = self.world.take_answers();
        for (found, answer) in answers {
            if found != token {
                self.answered(found, answer);
            }
        }
    }

    fn reply(&mut self, id: u32) {
        let Some(Asked { range, value, disputed }) = self.asked.remove(&id) else { return };
        self.answered += 1;
        if !disputed {
            let there = &self.there[range.start as usize..range.end as usize];
            assert!(there.iter().all(|byte| *byte == value), "answered, and not there: {range:?}");
        }
    }

    fn collect(&mut self) {
        for (token, answer) in self.world.take_answers() {
            self.answered(token, answer);
        }
        for reply in self.world.take_replies() {
            reply.outcome.expect("nothing fails");
            self.reply(reply.id.index);
        }
    }

    fn step(&mut self) {
        match self.world.rng.u8(..16) {
            0..3 if self.asked.len() < 12 => self.change(),
            3..5 => self.take(),
            5..9 => self.deliver(),
            9 if self.world.rng.u8(..4) == 0 => self.cut(),
            10 => self.compare_cut(),
            11 => self.world.tick(1),
            12 => {
                self.world.meta_step();
            }
            _ => {
                self.world.disk_step();
            }
        }
        self.collect();
    }

    /// All that was asked for is answered.
    fn finish(&mut self) {
        for _ in 0..2000 {
            self.take();
            self.deliver();
            self.compare_cut();
            while self.world.disk_step() || self.world.meta_step() {}
            self.collect();
        }
        assert!(self.asked.is_empty() && self.on_way.is_empty(), "{} are not answered", self.asked.len());
        let found = content(&mut self.world, "v");
        assert!(found == self.there, "the other host has something else in the end");
    }
}

/// R, "what is answered is there": with whatever is under way when it begins, changed on the way, cut in between.
#[test]
fn what_is_answered_and_what_is_cut_is_what_the_other_host_has() {
    let (mut cuts, mut answered, mut changed) = (0, 0, 0);
    for seed in 1..=600 {
        let outcome = std::panic::catch_unwind(|| {
            let mut case = Case::new(seed);
            for _ in 0..400 {
                case.step();
            }
            case.finish();
            (case.cuts, case.answered, u32::from(case.there != case.base))
        });
        match outcome {
            Ok((some, of_it, differs)) => {
                (cuts, answered, changed) = (cuts + some, answered + of_it, changed + differs);
            }
            Err(cause) => {
                eprintln!("violation with seed {seed}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{cuts} cuts, {answered} changes, {changed} contents");
    assert!(cuts > 300 && answered > 10_000 && changed > 500, "{cuts} {answered} {changed}");
}

/// A volume with a snapshot, its client, and a mirror that has nothing to do.
fn mirrored(seed: u64) -> (World, ExportIndex, MirrorId) {
    let mut world = World::new(seed);
    let client = create(&mut world, "v", SIZE);
    world.connect(client);
    snapshot(&mut world, "v", "base");
    let base = newest(&mut world);
    world.settle();
    let begun = crate::directed::command(&mut world, begin(base));
    let Answer::Mirroring(Mirroring { id, backlog: 0 }) = begun else { panic!("{begun:?}") };
    (world, client, id)
}

fn begin(base: SnapshotUid) -> Control {
    Control::Mirror(Mirror::Begin { volume: "v".to_owned(), base })
}

fn kind(world: &mut World, command: Control) -> ErrorKind {
    let token = world.command(command);
    world.settle();
    let answers = world.take_answers();
    answers.into_iter().find(|(found, _)| *found == token).expect("an answer").1.expect_err("refused").kind
}

fn begin_write(world: &mut World, client: ExportIndex) {
    let mut buf = world.buffers.take(BLOCK as usize);
    buf.fill(7);
    world.start(client, 1, 0, BLOCK as u32, Command::Write { buf, fua: false });
    world.settle();
}

#[test]
fn a_mirror_that_does_not_move_is_in_nobodys_way() {
    let (mut world, client, id) = mirrored(1);
    begin_write(&mut world, client);
    let taken = world.command(Control::Mirror(Mirror::Take { id }));
    world.settle();
    assert!(world.take_answers().iter().any(|(token, answer)| *token == taken && answer.is_ok()));
    let patience = u64::try_from(MIRROR_STALL_MAX.as_millis()).expect("short");
    world.tick(patience - 1);
    assert!(world.take_replies().is_empty(), "it waits for the other host");
    world.tick(1);
    let replies = world.take_replies();
    assert!(matches!(&replies[..], [reply] if reply.outcome.is_ok()), "latency, not an error");
    assert_eq!(kind(&mut world, Control::Mirror(Mirror::Take { id })), ErrorKind::Stale);
    write(&mut world, client, 0, BLOCK, 8).expect("as any other volume");
}

#[test]
fn who_waits_is_answered_when_the_mirror_ends_and_when_the_daemon_stops() {
    for stops in [false, true] {
        let (mut world, client, id) = mirrored(2);
        begin_write(&mut world, client);
        assert!(world.take_replies().is_empty());
        if stops {
            world.stop();
        } else {
            crate::directed::command(&mut world, Control::Mirror(Mirror::End { id }));
        }
        world.settle();
        assert_eq!(world.take_replies().len(), 1);
    }
}

#[test]
fn what_a_mirror_is_told_out_of_turn_is_refused() {
    let (mut world, client, id) = mirrored(3);
    let base = newest(&mut world);
    assert_eq!(kind(&mut world, begin(base)), ErrorKind::Busy);
    assert_eq!(kind(&mut world, Control::Mirror(Mirror::Written { id, batch: 1 })), ErrorKind::BadValue);
    let waiting = world.command(Control::Mirror(Mirror::Take { id }));
    assert_eq!(kind(&mut world, Control::Mirror(Mirror::Take { id })), ErrorKind::Busy);
    begin_write(&mut world, client);
    let answers = world.take_answers();
    assert!(matches!(&answers[..], [(token, Ok(Answer::Mirrored(_)))] if *token == waiting));
    for _ in 1..MIRROR_BATCHES_MAX {
        begin_write(&mut world, client);
    }
    let other = snapshot_name("w", "x");
    create(&mut world, "w", SIZE);
    assert_eq!(kind(&mut world, Control::Mirror(Mirror::Cut { names: vec![other] })), ErrorKind::Stale);
    crate::directed::command(&mut world, Control::Mirror(Mirror::End { id }));
    assert_eq!(kind(&mut world, Control::Mirror(Mirror::End { id })), ErrorKind::Stale);
    write(&mut world, client, 0, BLOCK, 8).expect("as any other volume");
    snapshot(&mut world, "v", "later");
    assert_eq!(kind(&mut world, begin(base)), ErrorKind::Refused, "the newest snapshot is the base");
}

/// The last cut of a move is told as that, and what is released is mirrored no more.
#[test]
fn a_frozen_volume_is_cut_for_the_last_time() {
    let (mut world, client, id) = mirrored(4);
    let (of, peer) = (MoveId([1; 16]), HostId([8; 16]));
    let freeze = Move::Freeze { id: of, peer, volumes: vec!["v".to_owned()] };
    crate::directed::command(&mut world, Control::Move(freeze));
    let take = world.command(Control::Mirror(Mirror::Take { id }));
    let name = snapshot_name("v", "last");
    world.command(Control::Mirror(Mirror::Cut { names: vec![name.clone()] }));
    world.settle();
    let told = Answer::Mirrored(Mirrored::Cut { name: name.clone(), last: true });
    let answers = world.take_answers();
    let found = answers.iter().find(|(token, _)| *token == take).expect("told").1.as_ref().expect("a cut");
    assert_eq!(format!("{found:?}"), format!("{told:?}"));
    let release = Move::Release { id: of, snapshots: vec![(name, [1; 32])] };
    crate::directed::command(&mut world, Control::Move(release));
    assert_eq!(kind(&mut world, Control::Mirror(Mirror::Take { id })), ErrorKind::Stale);
    assert!(request(&mut world, client, 0, BLOCK, Command::Trim { fua: false }).is_err());
}

/// The door at the other host: open while the volume is expected from there, for one attempt, and never after it is owned.
#[test]
fn the_door_of_a_mirror_is_open_while_the_volume_is_expected_and_no_longer() {
    let peer = HostId([8; 16]);
    let lineage = Lineage([3; 16]);
    let incoming = |number: u8, base: Option<u8>| Incoming {
        lineage,
        peer,
        volume: "v".to_owned(),
        uid: SnapshotUid([number; 16]),
        point: Point { epoch: 1, sequence: u64::from(number) },
        name: format!("s{number}"),
        size: SIZE,
        created_ms: 1,
        base: base.map(|number| SnapshotUid([number; 16])),
        token: [number; 16],
    };
    let mut world = World::new(5);
    let ask = |world: &mut World, command| {
        let token = world.command(Control::Replication(command));
        world.settle();
        let answers = world.take_answers();
        answers
            .into_iter()
            .find(|(found, _)| *found == token)
            .expect("an answer")
            .1
            .map_err(|error| error.kind)
    };
    let apply = |token: u8, value: u8| {
        let patches = vec![Patch::Data { offset: 0, bytes: vec![value; BLOCK as usize] }];
        Replication::Apply { lineage, token: [token; 16], patches }
    };
    let show = |token: u8| {
        let token = [token; 16];
        [Replication::Stage { lineage, token }, Replication::Publish { staged: vec![(lineage, token)] }]
    };
    for command in [Replication::Receive(incoming(1, None)), apply(1, 1)].into_iter().chain(show(1)) {
        ask(&mut world, command).expect("the first snapshot");
    }
    let mirrored = || Replication::ReceiveMirrored(incoming(2, Some(1)));
    assert_eq!(ask(&mut world, mirrored()).unwrap_err(), ErrorKind::Refused, "it is not expected");
    let (id, volumes) = (MoveId([1; 16]), vec!["v".to_owned()]);
    crate::directed::command(&mut world, Control::Move(Move::Expect { id, peer, volumes }));
    let other = Incoming { peer: HostId([9; 16]), ..incoming(2, Some(1)) };
    let refused = ask(&mut world, Replication::ReceiveMirrored(other)).unwrap_err();
    assert_eq!(refused, ErrorKind::Refused, "it is expected from somebody else");
    let another = Replication::ReceiveMirrored(incoming(2, Some(7)));
    assert_eq!(ask(&mut world, another).unwrap_err(), ErrorKind::NotFound, "what is shown is the base");
    ask(&mut world, mirrored()).expect("it is expected");
    ask(&mut world, apply(2, 2)).expect("the door is open");
    // Another one has it now.
    let mark = Mark {
        uid: SnapshotUid([4; 16]),
        point: Point { epoch: 1, sequence: 9 },
        name: "last".to_owned(),
        size: SIZE,
        created_ms: 1,
    };
    ask(&mut world, Replication::ReceiveMirrored(incoming(3, Some(1)))).expect("one at a time");
    assert_eq!(ask(&mut world, apply(2, 9)).unwrap_err(), ErrorKind::Stale);
    ask(&mut world, apply(3, 3)).expect("the door is open");
    let marked =
        |token: u8, mark: &Mark| Replication::Mark { lineage, token: [token; 16], mark: mark.clone() };
    let older = Mark { point: Point { epoch: 1, sequence: 1 }, ..mark.clone() };
    assert_eq!(ask(&mut world, marked(3, &older)).unwrap_err(), ErrorKind::Stale, "no older one is shown");
    let larger = Mark { size: SIZE + BLOCK, ..mark.clone() };
    assert_eq!(ask(&mut world, marked(3, &larger)).unwrap_err(), ErrorKind::BadValue);
    ask(&mut world, marked(3, &mark)).expect("all of it has come");
    for command in show(3) {
        ask(&mut world, command).expect("it is shown");
    }
    let handover = Handover { uid: mark.uid, root: [1; 32] };
    let own = vec![Handed { volume: "v".to_owned(), epoch: 2, handover }];
    crate::directed::command(&mut world, Control::Move(Move::Own { id, volumes: own }));
    assert_eq!(crate::directed::read_block(&mut world, "v", 0), 3);
    assert_eq!(ask(&mut world, apply(3, 9)).unwrap_err(), ErrorKind::Stale, "the old token");
    let again = Replication::ReceiveMirrored(incoming(10, Some(4)));
    assert_eq!(ask(&mut world, again).unwrap_err(), ErrorKind::Refused, "it is this host's");
}
