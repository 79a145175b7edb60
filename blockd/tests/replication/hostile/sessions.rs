//! A hostile source, our target: sessions (P6 to P10).

use blockd::control::replication::Replication;
use blockd::control::{Answer, Control};
use blockd::sync::session::{IDLE_MAX, Side, TARGET_STALL_MAX, proof};
use blockd::sync::target::{APPLYING_MAX, EARLY_PINGS_MAX};
use blockd::sync::wire::{
    Begin, Code, Frame, HEADER_BYTES, Header, Hello, Message, Mode, OfferedVolume, WireError,
};
use blockd::units::{HostId, Lineage, SnapshotUid};

use super::guests::{Visit, hello};
use super::lab::{CLUSTER, CLUSTERS, Lab, SIZE, identities};
use super::words::{data, each_is_refused, each_offer_is_refused, raw, zero_run, zeroes};
use sim_hosts::host::name;

/// What was recorded on one link is worth nothing on another.
#[test]
fn p6_a_binding_of_another_link_is_refused() {
    let mut lab = Lab::new();
    let a = lab.a.id;
    let recorded = |their: &[Frame], secret: [u8; 32]| {
        let Message::Hello(theirs) = &their[0].message else { panic!("{their:?}") };
        Message::Bind { version: 1, proof: proof(&secret, Side::Source, 1, &hello(a), theirs) }
    };
    let mut visit = Visit::new(&mut lab.b, a, [8; 32]);
    let bind = recorded(&visit.said, [7; 32]);
    visit.say([Message::Hello(hello(a)), bind]);
    assert_eq!(visit.refused(), Code::BadBinding);
    // Its own words, sent back.
    let mut visit = Visit::new(&mut lab.b, a, [8; 32]);
    visit.say([Message::Hello(hello(a))]);
    let echo = visit.last().clone();
    assert_eq!(echo.name(), "Bind");
    visit.say([echo]);
    assert_eq!(visit.refused(), Code::BadBinding);
    // Another host than the link's.
    let mut visit = Visit::new(&mut lab.b, a, [8; 32]);
    visit.say([Message::Hello(hello(HostId([9; 16])))]);
    assert_eq!(visit.refused(), Code::BadBinding);
    // Without a binding nothing else is heard.
    let offered = lab.offered();
    for early in [Message::Offer(vec![offered]), Message::Publish, Message::End { cursor: 0, root: [0; 32] }]
    {
        let mut visit = Visit::new(&mut lab.b, a, [8; 32]);
        visit.say([early]);
        assert_eq!(visit.refused(), Code::BadFrame);
    }
    lab.is_unharmed();
    lab.goes_on();
}

/// Frames that were lost or came in another order: what was left out was taken for clusters that have not changed, and
/// was confirmed; the next session went on behind it, and all had to be sent again. (SYNC_SEED=361)
#[test]
fn data_that_leave_something_out_are_refused() {
    let mut lab = Lab::new();
    let cases = vec![
        ("from cluster 1", zeroes(2)),
        ("from the end", Message::Data { from: CLUSTERS, cursor: CLUSTERS, batch: vec![] }),
        ("past all numbers", Message::Data { from: u64::MAX, cursor: u64::MAX, batch: vec![] }),
    ];
    each_is_refused(&mut lab, cases, Code::BadManifest);
    lab.is_unharmed();
    let root = lab.new_root;
    for (left_out, after) in [(2, zeroes(3)), (2, Message::End { cursor: 2, root }), (1, lab.data())] {
        // What a session before has confirmed would be gone on with.
        let mut lab = Lab::new();
        let mut visit = lab.receiving();
        visit.say([zeroes(1)]);
        assert_eq!(visit.last(), &Message::Confirmed(1));
        visit.say([after]);
        assert_eq!(visit.refused(), Code::BadManifest, "without {left_out}");
        lab.is_unharmed();
    }
}

/// Two sessions for one volume: the later one has it, and what the earlier one still says changes nothing.
#[test]
fn p6_a_session_that_was_taken_over_is_told_so() {
    let mut lab = Lab::new();
    let (honest, root) = (lab.data(), lab.new_root);
    let [offered, begin] = [Message::Offer(vec![lab.offered()]), Message::Begin(lab.begin())];
    let first = [offered.clone(), begin.clone(), honest.clone()];
    let until = |lab: &mut Lab, messages: &[Message]| {
        let mut visit = lab.visit();
        visit.say(messages.iter().cloned());
        visit.side
    };
    let later = zeroes(4);
    let whole: Vec<Message> = first.iter().cloned().chain([Message::End { cursor: 3, root }]).collect();
    let cases = [
        (&first[..2], honest.clone()),
        (&first[..], later),
        (&first[..], Message::End { cursor: 3, root }),
        (&whole[..], Message::Publish),
    ];
    for (said, then) in cases {
        let mut lab = Lab::new();
        let side = until(&mut lab, said);
        // Another one begins with the same snapshot.
        until(&mut lab, &first[..2]);
        let mut visit = lab.visit();
        visit.side = side;
        visit.said.clear();
        visit.say([then.clone()]);
        assert_eq!(visit.refused(), Code::SessionExists, "{}", then.name());
        lab.is_unharmed();
        lab.goes_on();
    }
}

#[test]
fn p6_what_is_older_or_was_said_already_is_refused() {
    let mut lab = Lab::new();
    let shown = lab.offer("s1").brought.offer;
    each_offer_is_refused(&mut lab, |offer| offer.point.epoch = 0, "epoch 0", Code::StaleEpoch);
    each_offer_is_refused(&mut lab, |offer| offer.point = shown.point, "a point", Code::StaleSnapshot);
    each_offer_is_refused(&mut lab, |offer| offer.point.sequence = 0, "before all", Code::StaleSnapshot);
    let honest = lab.data();
    each_is_refused(&mut lab, vec![("out of turn", Message::Publish)], Code::BadFrame);
    let offered = lab.offered();
    let mut visit = lab.visit();
    visit.say([Message::Offer(vec![offered]), Message::Publish]);
    assert_eq!(visit.refused(), Code::BadFrame, "before anything was begun");
    let mut visit = lab.receiving();
    visit.say([honest.clone()]);
    visit.side.target.received(Frame::session(honest.clone()), 0);
    assert!(visit.side.target.is_over(), "data that came already are not even looked at");
    visit.settle();
    assert_eq!(visit.refused(), Code::BadManifest);
    let mut visit = lab.receiving();
    visit.side.target.received(Frame { volume: 1, message: honest }, 0);
    visit.settle();
    assert_eq!(visit.refused(), Code::BadFrame, "of another volume");
    lab.is_unharmed();
    // The publication of what is shown already, again and again: nothing happens.
    let mut visit = lab.visit();
    for _ in 0..3 {
        visit.say([Message::Offer(vec![shown.clone()]), Message::Publish]);
        assert_eq!(visit.last(), &Message::Published);
    }
    lab.is_unharmed();
    lab.goes_on();
    let mut visit = lab.visit();
    visit.say([Message::Publish]);
    assert_eq!(visit.refused(), Code::BadFrame, "twice");
}

#[test]
fn p7_a_downgrade_is_noticed() {
    let mut lab = Lab::new();
    let a = lab.a.id;
    let greeted = |lab: &mut Lab, hello: Hello| {
        let mut visit = Visit::new(&mut lab.b, a, [7; 32]);
        visit.say([Message::Hello(hello)]);
        visit.refused()
    };
    let older = Hello { version_min: 0, version_max: 0, ..hello(a) };
    assert_eq!(greeted(&mut lab, older), Code::VersionMismatch);
    let newer = Hello { version_min: 2, version_max: 9, ..hello(a) };
    assert_eq!(greeted(&mut lab, newer), Code::VersionMismatch);
    // Who is between changes what was said of versions and compression: the proof is of what was really said.
    let said = hello(a);
    let heard = [
        Hello { version_min: 0, ..said.clone() },
        Hello { version_max: 7, ..said.clone() },
        Hello { compression: 0, ..said.clone() },
        Hello { nonce: [0; 32], ..said.clone() },
    ];
    for heard in heard {
        let mut visit = Visit::new(&mut lab.b, a, [7; 32]);
        let Message::Hello(theirs) = visit.last().clone() else { panic!("{:?}", visit.said) };
        let proof = proof(&[7; 32], Side::Source, 1, &said, &theirs);
        visit.say([Message::Hello(heard), Message::Bind { version: 1, proof }]);
        assert_eq!(visit.refused(), Code::BadBinding);
    }
    let mut visit = Visit::new(&mut lab.b, a, [7; 32]);
    let Message::Hello(theirs) = visit.last().clone() else { panic!("{:?}", visit.said) };
    let proof = proof(&[7; 32], Side::Source, 0, &said, &theirs);
    visit.say([Message::Hello(said), Message::Bind { version: 0, proof }]);
    assert_eq!(visit.refused(), Code::BadBinding, "another version than what was found");
    lab.is_unharmed();
    lab.goes_on();
}

#[test]
fn p8_a_resumption_that_was_tampered_with_is_refused() {
    let mut lab = Lab::new();
    let (honest, begin, offered) = (lab.data(), lab.begin(), lab.offered());
    // Another volume of the same peer, on its way as well.
    let other = OfferedVolume { lineage: Lineage([5; 16]), volume: "w".to_owned(), ..offered.clone() };
    let mut visit = lab.visit();
    visit.say([Message::Offer(vec![other]), Message::Begin(begin.clone())]);
    let Message::Ready(ready) = visit.last() else { panic!("{:?}", visit.said) };
    let of_other = ready.token;
    let mut visit = lab.receiving();
    visit.say([honest]);
    assert_eq!(visit.last(), &Message::Confirmed(3));
    let token = visit.side.attempts[&0];
    let mut tampered = token;
    tampered[15] ^= 1;
    let base = begin.base;
    let cases = [
        (base, (tampered, 3)),
        (base, (of_other, 3)),
        (base, (of_other, 0)),
        (base, (token, 4)),
        (base, (token, CLUSTERS)),
        (base, (token, CLUSTERS + 1)),
        (base, (token, u64::MAX)),
        (None, (token, 3)),
    ];
    for (base, resume) in cases {
        let begin = Begin { mode: Mode::Changes, base, resume: Some(resume) };
        let mut visit = lab.visit();
        visit.say([Message::Offer(vec![offered.clone()]), Message::Begin(begin)]);
        assert_eq!(visit.refused(), Code::BadResume, "{resume:?}");
    }
    let mut visit = lab.visit();
    let resume = Some((token, 3));
    visit.say([Message::Offer(vec![offered]), Message::Begin(Begin { resume, ..begin })]);
    assert!(matches!(visit.last(), Message::Ready(ready) if ready.cursor == 3), "{:?}", visit.said);
    lab.is_unharmed();
    lab.goes_on();
}

#[test]
fn p9_a_source_that_only_shows_that_it_is_there_is_given_up() {
    let mut lab = Lab::new();
    // As fast as it can.
    let mut visit = lab.receiving();
    visit.say(std::iter::repeat_n(Message::Ping, EARLY_PINGS_MAX as usize + 1));
    assert!(!visit.side.target.is_over());
    visit.say([Message::Ping]);
    assert_eq!(visit.refused(), Code::Stalled);
    // Now and then, for ever.
    let mut visit = lab.receiving();
    visit.wait(TARGET_STALL_MAX / 1000 - 1, Some(&Message::Ping));
    assert!(!visit.side.target.is_over());
    visit.wait(1, Some(&Message::Ping));
    assert_eq!(visit.refused(), Code::Stalled);
    // Not a word.
    let mut visit = lab.receiving();
    visit.wait(IDLE_MAX / 1000 - 1, None);
    assert!(!visit.side.target.is_over());
    visit.wait(1, None);
    assert_eq!(visit.refused(), Code::Stalled);
    lab.is_unharmed();
    lab.goes_on();
}

#[test]
fn p9_a_source_sends_no_more_than_the_volume_has() {
    let mut lab = Lab::new();
    // One frame a minute is slow, and comes to an end: at the volume's.
    let mut visit = lab.receiving();
    for cursor in 1..=CLUSTERS {
        visit.wait(IDLE_MAX / 1000 - 1, None);
        visit.say([zeroes(cursor)]);
        assert_eq!(visit.last(), &Message::Confirmed(cursor));
    }
    let batch = raw(0, 0, &[&zero_run(0, 0, 1)], &[]);
    visit.say([Message::Data { from: CLUSTERS, cursor: CLUSTERS + 1, batch }]);
    assert_eq!(visit.refused(), Code::BadManifest);
    let stays = vec![("no progress", data(0, raw(0, 0, &[&zero_run(0, 0, 1)], &[])))];
    each_is_refused(&mut lab, stays, Code::BadManifest);
    // What it has sent is wrong; an honest session for the same snapshot goes on with it, finds that out, and begins anew.
    assert_eq!(lab.try_to_bring("s2").map_err(|refusal| refusal.code), Err(Code::RootMismatch));
    lab.is_unharmed();
    lab.goes_on();
}

/// Who sends faster than is written fills a few places, and waits.
#[test]
fn p9_frames_wait_while_batches_are_written() {
    let mut lab = Lab::new();
    let size = 64 * CLUSTER as u64;
    let offered = OfferedVolume { size, ..lab.offered() };
    let begin = lab.begin();
    let mut visit = lab.visit();
    visit.say([Message::Offer(vec![offered]), Message::Begin(begin)]);
    let mut taken = 0;
    while visit.side.target.wants_frames() && taken < 60 {
        taken += 1;
        visit.side.target.received(Frame::session(zeroes(taken)), 0);
        visit.route();
    }
    assert_eq!((taken, visit.side.todo.len()), (APPLYING_MAX as u64, APPLYING_MAX));
    visit.settle();
    assert!(visit.side.target.wants_frames());
    assert_eq!(visit.last(), &Message::Confirmed(taken));
    lab.is_unharmed();
}

/// No message says: become a primary, follow, delete. These are all that there are.
#[test]
fn p10_no_message_promotes_or_deletes() {
    let mut lab = Lab::new();
    let known: Vec<u16> = (0..=u16::MAX).filter(|kind| is_known(*kind)).collect();
    // Keep can only have more kept; Fetch and Fetched are of content that has a recorded value; Mark and Marked are of an attempt.
    assert_eq!(known, (1..=21).collect::<Vec<u16>>());
    // A source of a later epoch does not take a primary over: neither one that was made here,
    lab.b.must(Control::CreateVolume { name: "own".to_owned(), size: SIZE });
    let own = identities(&mut lab.b).into_iter().find(|volume| volume.name == "own").expect("made");
    let takes = |offer: &mut OfferedVolume| (offer.lineage, offer.point.epoch) = (own.lineage, 99);
    each_offer_is_refused(&mut lab, takes, "own", Code::NotAReplica);
    // nor is what follows one host taken over by another,
    let (offered, begin) = (lab.offered(), lab.begin());
    let mut visit = Visit::new(&mut lab.b, HostId([3; 16]), [7; 32]);
    visit.greet();
    visit.say([Message::Offer(vec![offered]), Message::Begin(Begin { base: None, ..begin })]);
    assert_eq!(visit.refused(), Code::NotAReplica);
    // nor a replica that was promoted.
    lab.is_unharmed();
    lab.b.must(Control::Replication(Replication::Promote { volume: "v".to_owned() }));
    let (mut offered, begin) = (lab.offered(), lab.begin());
    offered.point.epoch = 1000;
    let mut visit = lab.visit();
    visit.say([Message::Offer(vec![offered]), Message::Begin(begin)]);
    assert_eq!(visit.refused(), Code::NotAReplica);
    assert!(lab.b.find_export("v@s1").is_some(), "its snapshots are there");
}

fn is_known(kind: u16) -> bool {
    let mut head = [0; HEADER_BYTES];
    head[4..6].copy_from_slice(&kind.to_be_bytes());
    let header = Header::decode(head).expect("short");
    !matches!(Frame::decode(header, Vec::new()), Err(WireError::UnknownKind(_)))
}

/// Whatever a source offers, what came before stays: nothing but an administrator deletes it.
#[test]
fn p10_a_source_cannot_make_a_replica_forget() {
    let mut lab = Lab::new();
    let (honest, begin, root, offered) = (lab.data(), lab.begin(), lab.new_root, lab.offered());
    // The same name as the snapshot that is there; nothing of it; another epoch, over no base.
    let mut same_name = offered.clone();
    same_name.name = "s1".to_owned();
    let mut visit = lab.visit();
    visit.say([
        Message::Offer(vec![same_name]),
        Message::Begin(begin),
        honest,
        Message::End { cursor: 3, root },
    ]);
    visit.say([Message::Publish]);
    assert_eq!(visit.last(), &Message::Published);
    let later = OfferedVolume { uid: SnapshotUid([8; 16]), ..offered };
    let later = OfferedVolume { point: blockd::catalog::format::Point { epoch: 7, sequence: 9 }, ..later };
    let mut visit = lab.visit();
    let begin = Begin { mode: Mode::Changes, base: None, resume: None };
    visit.say([Message::Offer(vec![later]), Message::Begin(begin)]);
    let all = identities(&mut lab.b);
    assert_eq!(all[0].snapshots.len(), 2, "{:?}", all[0].snapshots);
    assert!(lab.b.find_export(&name("v", "s1").to_string()).is_some());
}

/// A source that names the last epoch there is would have kept its replica from ever being promoted: the next one is
/// none, and the process ended.
#[test]
fn the_last_epoch_is_refused() {
    let mut lab = Lab::new();
    for epoch in [u64::MAX, u64::MAX - 1, 1 << 63] {
        each_offer_is_refused(&mut lab, |offer| offer.point.epoch = epoch, "an epoch", Code::BadManifest);
        let new = Lineage([6; 16]);
        let of_new = |offer: &mut OfferedVolume| {
            (offer.lineage, offer.volume, offer.point.epoch) = (new, "n".to_owned(), epoch);
        };
        each_offer_is_refused(&mut lab, of_new, "of a new volume", Code::BadManifest);
    }
    let Answer::Done = lab.b.must(Control::Replication(Replication::Promote { volume: "v".to_owned() }))
    else {
        panic!("it is promoted")
    };
}

/// While this side is at work for hours, an honest source shows every few seconds that it is there: that is no flood.
#[test]
fn signs_of_life_in_their_time_are_never_too_many() {
    let mut lab = Lab::new();
    let (honest, root) = (lab.data(), lab.new_root);
    let mut visit = lab.receiving();
    visit.say([honest]);
    visit.side.target.received(Frame::session(Message::End { cursor: 3, root }), 0);
    visit.route();
    assert_eq!(visit.side.todo.len(), 1, "it is to be verified");
    for second in (0..100_000).step_by(5) {
        visit.side.target.received(Frame::session(Message::Ping), second * 1000);
        visit.side.target.tick(second * 1000);
        visit.route();
    }
    assert!(!visit.side.target.is_over());
    visit.settle();
    assert_eq!(visit.last(), &Message::Verified);
}
