//! A hostile target, our source. It cannot harm the source's volumes, which are only read; it could hold up a session,
//! and with it snapshots that are pinned, or break what reads them.

use blockd::sync::session::{PING_INTERVAL, SOURCE_STALL_MAX, Side, TARGET_WORK_BYTES_PER_MS, proof};
use blockd::sync::source::Flow;
use blockd::sync::wire::{
    Code, Frame, HaveVolume, Hello, Message, Mode, NewestSnapshot, Ready, Received, Wanted,
};
use blockd::units::{CLUSTER_BYTES, SnapshotUid};

use super::guests::{Call, hello};
use super::lab::{CLUSTERS, Lab, SIZE};
use sim_hosts::sides::SourceSide;

/// A cluster at a time, two on their way.
const FLOW: Flow = Flow { window_bytes: 2 * CLUSTER_BYTES as usize, batch_bytes: CLUSTER_BYTES as usize };

fn call(lab: &mut Lab) -> Call<'_> {
    let offers = vec![lab.offer("s2")];
    Call::new(&mut lab.a, lab.b.id, offers, FLOW)
}

fn ready(cursor: u64) -> Message {
    Message::Ready(Ready { token: [1; 16], cursor, complete: false })
}

/// It has nothing: all of the snapshot is sent.
fn nothing() -> Message {
    Message::Have(HaveVolume::default())
}

/// It has a snapshot that the source does not know: values are compared.
fn unknown() -> Message {
    let newest = NewestSnapshot { uid: SnapshotUid([9; 16]), root: [9; 32], size: SIZE };
    Message::Have(HaveVolume { newest: Some(newest), ..HaveVolume::default() })
}

fn each_is_refused(lab: &mut Lab, before: &[Message], cases: Vec<(&str, Message)>, code: Code) {
    for (what, message) in cases {
        let mut call = call(lab);
        call.say(before.iter().cloned());
        assert!(call.side.over.is_none(), "{:?}", call.said);
        call.say([message]);
        assert_eq!(call.refused().code, code, "{what}");
    }
}

#[test]
fn p5_answers_that_cannot_be_are_refused() {
    let mut lab = Lab::new();
    let known = |places: &[u16]| {
        let known = places.iter().map(|place| (*place, [1; 32])).collect();
        Message::Have(HaveVolume { known, ..HaveVolume::default() })
    };
    let candidates = u16::try_from(lab.offered().candidates.len()).expect("few");
    let haves = vec![
        ("not offered", known(&[candidates])),
        ("far from it", known(&[u16::MAX])),
        ("one a thousand times", known(&[0; 1000])),
    ];
    each_is_refused(&mut lab, &[], haves, Code::BadManifest);
    let cursors = [CLUSTERS + 1, 1 << 32, u64::MAX].map(|cursor| ("a cursor", ready(cursor))).to_vec();
    each_is_refused(&mut lab, &[nothing()], cursors, Code::BadResume);
    let confirmed = |cursor| ("a confirmation", Message::Confirmed(cursor));
    let confirmed = [0, 3, CLUSTERS, u64::MAX].map(confirmed).to_vec();
    each_is_refused(&mut lab, &[nothing(), ready(0)], confirmed, Code::BadManifest);
    let turns = vec![
        ("verified, what was not all sent", Message::Verified),
        ("published", Message::Published),
        ("ready twice", ready(0)),
        ("wanted, of what was not compared", Message::Wanted(Wanted { first: 0, differs: vec![] })),
        ("a source's word", Message::Publish),
    ];
    each_is_refused(&mut lab, &[nothing(), ready(0)], turns, Code::BadFrame);
    let mut other = call(&mut lab);
    other.say([nothing(), ready(0)]);
    other.side.source.received(Frame { volume: 1, message: Message::Confirmed(1) }, 0);
    other.say([]);
    assert_eq!(other.refused().code, Code::BadFrame, "of another volume");
    lab.goes_on();
}

/// An answer about other clusters than were asked of would have led past the snapshot's end, and the process with it.
#[test]
fn answers_about_clusters_that_were_not_asked_of_are_refused() {
    let mut lab = Lab::new();
    let wanted = |first, count| Message::Wanted(Wanted { first, differs: vec![true; count] });
    let clusters = CLUSTERS as usize;
    let cases = vec![
        ("past the end", wanted(CLUSTERS, 1)),
        ("far past the end", wanted(u64::MAX, 3)),
        ("one more", wanted(0, clusters + 1)),
        ("one less", wanted(0, clusters - 1)),
        ("others", wanted(1, clusters)),
        ("none", wanted(0, 0)),
    ];
    each_is_refused(&mut lab, &[unknown(), ready(0)], cases, Code::BadManifest);
    let mut call = call(&mut lab);
    call.say([unknown(), ready(0)]);
    assert!(matches!(call.last(), Message::Values(values) if values.values.len() == clusters));
    call.say([wanted(0, clusters)]);
    assert_eq!(call.count("Data"), 2, "as much as may be on its way");
    lab.goes_on();
}

#[test]
fn p6_a_targets_binding_of_another_link_is_refused() {
    let mut lab = Lab::new();
    let (a, b) = (lab.a.id, lab.b.id);
    let offers = vec![lab.offer("s2")];
    let refused = |theirs: Hello, secret: [u8; 32], version: u16| {
        let link = super::guests::link(a, b, [7; 32]);
        let mut source = SourceSide::start(link, offers.clone(), FLOW).source;
        let first = source.take();
        let [blockd::sync::source::Do::Send(Frame { message: Message::Hello(ours), .. })] = &first[..] else {
            panic!("{first:?}")
        };
        let proof = proof(&secret, Side::Target, version, ours, &hello(b));
        source.received(Frame::session(Message::Hello(theirs)), 0);
        source.received(Frame::session(Message::Bind { version, proof }), 0);
        match source.take().pop() {
            Some(blockd::sync::source::Do::Over(Err(refusal))) => refusal.code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(hello(b), [8; 32], 1), Code::BadBinding);
    assert_eq!(refused(hello(a), [7; 32], 1), Code::BadBinding);
    assert_eq!(refused(hello(b), [7; 32], 0), Code::BadBinding);
    // P7, the other direction.
    assert_eq!(refused(Hello { compression: 0, ..hello(b) }, [7; 32], 1), Code::BadBinding);
    assert_eq!(refused(Hello { version_max: 0, ..hello(b) }, [7; 32], 1), Code::VersionMismatch);
}

/// What a target says of an attempt may be wrong: then it has less than it said, and the root does not come out right.
#[test]
fn p8_a_made_up_attempt_harms_the_target_only() {
    let mut lab = Lab::new();
    let ((base, _), root) = (lab.begin().base.expect("it has one"), lab.new_root);
    for (base, cursor) in
        [(None, 3), (Some(base), 0), (Some(SnapshotUid([8; 16])), u64::MAX), (None, u64::MAX)]
    {
        let received = Some(Received { token: [1; 16], base, cursor });
        let mut call = call(&mut lab);
        call.say([Message::Have(HaveVolume { received, ..HaveVolume::default() })]);
        let Message::Begin(begin) = call.last().clone() else { panic!("{:?}", call.said) };
        assert_eq!((begin.mode, begin.base), (Mode::Changes, None), "only what both have is a base");
        call.say([ready(CLUSTERS)]);
        assert_eq!(call.last(), &Message::End { cursor: CLUSTERS, root });
    }
    lab.goes_on();
}

/// What is on its way is limited, whatever the target leaves unsaid.
#[test]
fn p9_a_target_that_never_confirms_is_given_up() {
    let mut lab = Lab::new();
    let mut silent = call(&mut lab);
    silent.say([nothing(), ready(0)]);
    let sent = silent.count("Data");
    silent.wait(SOURCE_STALL_MAX / 1000 - 1, Some(&Message::Ping));
    assert_eq!((silent.count("Data"), sent), (2, 2), "no more than the window");
    assert!(silent.side.over.is_none());
    silent.wait(1, Some(&Message::Ping));
    assert_eq!(silent.refused().code, Code::Stalled);
    lab.goes_on();
}

/// Who confirms the same again and again would have seemed to get on.
#[test]
fn a_confirmation_of_nothing_new_is_refused() {
    let mut lab = Lab::new();
    let mut call = call(&mut lab);
    call.say([nothing(), ready(0), Message::Confirmed(1)]);
    assert!(call.side.over.is_none(), "{:?}", call.said);
    call.say([Message::Confirmed(1)]);
    assert_eq!(call.refused().code, Code::BadManifest);
}

/// Who said for ever that it was still comparing the root would have kept the snapshot pinned for ever.
#[test]
fn p9_a_target_that_is_at_work_for_ever_is_given_up() {
    let mut lab = Lab::new();
    let limit = SOURCE_STALL_MAX + SIZE / TARGET_WORK_BYTES_PER_MS;
    for before in [vec![], vec![nothing()], vec![nothing(), ready(CLUSTERS)]] {
        let mut call = call(&mut lab);
        call.say(before);
        call.wait(limit / 1000, Some(&Message::Ping));
        assert!(call.side.over.is_none(), "{:?}", call.said);
        call.wait(1, Some(&Message::Ping));
        assert_eq!(call.refused().code, Code::Stalled);
    }
    lab.goes_on();
}

/// It says itself that it is there, while it waits.
#[test]
fn a_source_that_waits_shows_that_it_is_there() {
    let mut lab = Lab::new();
    let mut call = call(&mut lab);
    call.say([nothing(), ready(CLUSTERS)]);
    let before = call.count("Ping");
    call.wait(100, Some(&Message::Ping));
    assert_eq!(call.count("Ping") - before, 100_000 / PING_INTERVAL as usize);
}
