//! Clusters that are asked for because they are damaged: who may ask, what may be asked, and answers that lie.

use blockd::control::Control;
use blockd::hash::{Value, cluster_value};
use blockd::snapshot::{mend, verify};
use blockd::sync::fetch::{Do, FETCH_STALL_MAX, Fetcher};
use blockd::sync::session::{IDLE_MAX, PING_INTERVAL, Side, proof};
use blockd::sync::wire::{Code, FETCH_CLUSTERS_MAX, Fetch, Found, Frame, Message};
use blockd::units::{CLUSTER_BYTES, ClusterIndex, HostId, Lineage, SnapshotUid};

use super::guests::{Visit, hello, link};
use super::lab::{CLUSTER, CLUSTERS, Lab, SIZE};
use sim_hosts::host::{Host, name};
use sim_hosts::sides::pin;

/// A cluster of `v@s1`, and its value.
fn right(lab: &mut Lab, cluster: u32) -> (Vec<u8>, Value) {
    let content = lab.a.read("v@s1", SIZE);
    let mut content = content[cluster as usize * CLUSTER..].to_vec();
    content.resize(CLUSTER, 0);
    let value = cluster_value(ClusterIndex(cluster), &content);
    (content, value)
}

fn fetch(lab: &mut Lab, clusters: Vec<(u32, Value)>) -> Fetch {
    let offered = lab.offer("s1").brought.offer;
    Fetch { lineage: offered.lineage, uid: offered.uid, clusters }
}

fn answers(said: &[Frame]) -> Vec<(u32, Found)> {
    let answer = |frame: &Frame| match &frame.message {
        Message::Fetched { cluster, found } => Some((*cluster, found.clone())),
        _ => None,
    };
    said.iter().filter_map(answer).collect()
}

/// What `host` answers to a peer.
fn answered(host: &mut Host, peer: HostId, fetch: &Fetch) -> Vec<(u32, Found)> {
    let mut visit = Visit::new(host, peer, [7; 32]);
    visit.greet();
    visit.say([Message::Fetch(fetch.clone())]);
    assert!(visit.side.target.is_idle(), "{:?}", visit.said.last());
    answers(&visit.said)
}

fn is_damaged(host: &mut Host) -> bool {
    let (reader, pinned) = (host.reader(), pin(host, &name("v", "s1")).expect("it exists"));
    let report = verify(&reader, &pinned, &mut |_, _| true).expect("readable");
    host.must(Control::Unpin { pin: pinned.pin });
    assert!(report.checked_bytes > 0);
    !report.damaged.is_empty()
}

#[test]
fn what_is_asked_for_comes_where_it_is_sound() {
    let mut lab = Lab::new();
    let ((first, value), (second, other)) = (right(&mut lab, 0), right(&mut lab, 1));
    let fetch = fetch(&mut lab, vec![(0, value), (1, other)]);
    let a = lab.a.id;
    let all = vec![(0, Found::Here(first.clone())), (1, Found::Here(second.clone()))];
    assert_eq!(answered(&mut lab.b, a, &fetch), all);
    // Another value is told from damage.
    let wrong = Fetch { clusters: vec![(0, other), (1, other)], ..fetch.clone() };
    assert_eq!(answered(&mut lab.b, a, &wrong), [(0, Found::Differs), (1, Found::Here(second.clone()))]);
    assert_eq!(lab.b.rot(&first[..4096]), 1);
    assert_eq!(answered(&mut lab.b, a, &fetch), [(0, Found::Damaged), (1, Found::Here(second))]);
    // Past the end, and where nothing was ever written.
    let far = Fetch { clusters: vec![(4, value), (6, value), (u32::MAX, value)], ..fetch };
    let found = [(4, Found::Differs), (6, Found::Missing), (u32::MAX, Found::Missing)];
    assert_eq!(answered(&mut lab.b, a, &far), found);
    assert_eq!(CLUSTERS, 6);
}

/// D4, I4: to whom it was never sent there is no such snapshot, whatever hashes he knows.
#[test]
fn who_has_nothing_to_do_with_a_snapshot_is_told_nothing() {
    let mut lab = Lab::new();
    let (content, value) = right(&mut lab, 0);
    let asked = fetch(&mut lab, vec![(0, value)]);
    let (a, b, missing) = (lab.a.id, lab.b.id, [(0, Found::Missing)]);
    assert_eq!(answered(&mut lab.b, HostId([9; 16]), &asked), missing, "another host than the source");
    assert_eq!(answered(&mut lab.a, b, &asked), missing, "no host has confirmed anything");
    // The newest snapshot that a host has is held for it.
    let hold = |reason: &str| Control::Hold { name: name("v", "s1"), reason: reason.to_owned() };
    lab.a.must(hold("base-OTHER"));
    assert_eq!(answered(&mut lab.a, b, &asked), missing, "another host has it");
    lab.a.must(hold("base-PEER"));
    assert_eq!(answered(&mut lab.a, b, &asked), [(0, Found::Here(content))]);
    let of_other = Fetch { lineage: Lineage([5; 16]), ..asked.clone() };
    assert_eq!(answered(&mut lab.b, a, &of_other), missing);
    let unknown = Fetch { uid: SnapshotUid([5; 16]), ..asked };
    assert_eq!(answered(&mut lab.b, a, &unknown), missing);
    lab.is_unharmed();
}

#[test]
fn questions_that_cannot_be_are_refused() {
    let mut lab = Lab::new();
    let (_, value) = right(&mut lab, 0);
    let good = fetch(&mut lab, vec![(0, value)]);
    let offered = Message::Offer(vec![lab.offered()]);
    let of = |clusters: Vec<(u32, Value)>| Message::Fetch(Fetch { clusters, ..good.clone() });
    let good = of(vec![(0, value)]);
    let cases = [
        (vec![of(vec![])], Code::BadManifest),
        (vec![of(vec![(1, value), (0, value)])], Code::BadManifest),
        (vec![of(vec![(1, value), (1, value)])], Code::BadManifest),
        // A session brings, or asks.
        (vec![good.clone(), offered.clone()], Code::BadFrame),
        (vec![offered, good.clone()], Code::BadFrame),
        (vec![good.clone(), Message::Publish], Code::BadFrame),
        (vec![Message::Fetched { cluster: 0, found: Found::Missing }], Code::BadFrame),
    ];
    for (messages, code) in cases {
        let mut visit = lab.visit();
        visit.say(messages.clone());
        assert_eq!(visit.refused(), code, "{messages:?}");
    }
    // The next one before the answer.
    let mut visit = lab.visit();
    visit.side.target.received(Frame::session(good.clone()), 0);
    visit.side.target.received(Frame::session(good), 0);
    visit.settle();
    assert_eq!(visit.refused(), Code::BadFrame);
    lab.is_unharmed();
    lab.goes_on();
}

/// The other side is a liar.
struct Asked {
    fetcher: Fetcher,
    said: Vec<Frame>,
    taken: Vec<(u32, Found)>,
    over: Option<Code>,
    now: u64,
}

impl Asked {
    fn new(asking: HostId, peer: HostId) -> Self {
        let fetcher = Fetcher::start(link(asking, peer, [7; 32]), 0);
        let mut asked = Self { fetcher, said: Vec::new(), taken: Vec::new(), over: None, now: 0 };
        asked.drain();
        let Message::Hello(theirs) = asked.said[0].message.clone() else { panic!("{:?}", asked.said) };
        let ours = hello(peer);
        let proof = proof(&[7; 32], Side::Target, 1, &theirs, &ours);
        asked.say(Message::Hello(ours));
        assert!(!asked.fetcher.is_ready(), "nothing is proved yet");
        asked.say(Message::Bind { version: 1, proof });
        assert!(asked.fetcher.is_ready(), "{:?}", asked.said);
        asked
    }

    fn drain(&mut self) {
        for action in self.fetcher.take() {
            assert!(self.over.is_none(), "{action:?} after the end");
            match action {
                Do::Send(frame) => self.said.push(frame),
                Do::Take { cluster, found } => self.taken.push((cluster, found)),
                Do::Over(refusal) => self.over = Some(refusal.code),
            }
        }
    }

    fn say(&mut self, message: Message) {
        self.fetcher.received(Frame::session(message), self.now);
        self.drain();
    }

    fn ask(&mut self, fetch: &Fetch) {
        self.fetcher.ask(fetch.clone(), self.now);
        self.drain();
        assert_eq!(self.said.last().map(|frame| &frame.message), Some(&Message::Fetch(fetch.clone())));
    }

    fn wait(&mut self, ms: u64, each: Option<&Message>) {
        for _ in 0..ms / 1000 {
            self.now += 1000;
            if let Some(message) = each.filter(|_| self.now.is_multiple_of(PING_INTERVAL)) {
                self.say(message.clone());
            }
            self.fetcher.tick(self.now);
            self.drain();
        }
    }
}

/// What a liar sends is not handed on, and if it were, it would not be written.
#[test]
fn bytes_that_are_not_right_are_not_written() {
    let mut lab = Lab::new();
    let (content, value) = right(&mut lab, 0);
    let (elsewhere, _) = right(&mut lab, 1);
    let fetch = fetch(&mut lab, vec![(0, value)]);
    assert_eq!(lab.b.rot(&content[4096..8192]), 1);
    assert!(is_damaged(&mut lab.b));
    let before = lab.b.pool();
    let mut flipped = content.clone();
    flipped[CLUSTER - 1] ^= 128;
    for lie in [flipped, elsewhere, vec![0; CLUSTER]] {
        let mut asked = Asked::new(lab.b.id, lab.a.id);
        asked.ask(&fetch);
        asked.say(Message::Fetched { cluster: 0, found: Found::Here(lie.clone()) });
        assert_eq!((asked.over, asked.taken.len()), (Some(Code::BadData), 0));
        let (reader, pinned) = (lab.b.reader(), pin(&mut lab.b, &name("v", "s1")).expect("it exists"));
        let written = mend(&reader, &pinned, ClusterIndex(0), &lie);
        assert!(written.unwrap_err().message.contains("not what its hash says"));
        lab.b.must(Control::Unpin { pin: pinned.pin });
        assert!(lab.b.pool() == before, "something was written");
    }
    // The truth is, and nothing but the block that was damaged.
    let mut asked = Asked::new(lab.b.id, lab.a.id);
    asked.ask(&fetch);
    asked.say(Message::Fetched { cluster: 0, found: Found::Here(content.clone()) });
    assert_eq!(asked.taken, [(0, Found::Here(content.clone()))]);
    assert!(asked.fetcher.is_ready());
    let (reader, pinned) = (lab.b.reader(), pin(&mut lab.b, &name("v", "s1")).expect("it exists"));
    mend(&reader, &pinned, ClusterIndex(0), &content).expect("it can be written");
    lab.b.must(Control::Unpin { pin: pinned.pin });
    let after = lab.b.pool();
    let changed = before.chunks(4096).zip(after.chunks(4096)).filter(|(a, b)| a != b);
    assert_eq!(changed.map(|(_, block)| block.to_vec()).collect::<Vec<_>>(), [content[4096..8192].to_vec()]);
    assert!(!is_damaged(&mut lab.b));
    lab.is_unharmed();
}

#[test]
fn answers_that_cannot_be_are_refused() {
    let mut lab = Lab::new();
    let ((content, value), (_, other)) = (right(&mut lab, 0), right(&mut lab, 1));
    let fetch = fetch(&mut lab, vec![(0, value), (1, other)]);
    let of = |cluster: u32, found: Found| Message::Fetched { cluster, found };
    let cases = [
        (vec![of(1, Found::Missing)], Code::BadManifest),
        (vec![of(7, Found::Here(content.clone()))], Code::BadManifest),
        (vec![of(0, Found::Missing), of(0, Found::Missing)], Code::BadManifest),
        (vec![of(0, Found::Missing), of(1, Found::Missing), of(2, Found::Missing)], Code::BadFrame),
        (vec![Message::Offer(vec![lab.offered()])], Code::BadFrame),
        (vec![Message::Published], Code::BadFrame),
    ];
    for (messages, code) in cases {
        let mut asked = Asked::new(lab.b.id, lab.a.id);
        asked.ask(&fetch);
        messages.into_iter().for_each(|message| asked.say(message));
        assert_eq!(asked.over, Some(code));
        assert!(asked.taken.iter().all(|(_, found)| *found == Found::Missing));
    }
    // Without a question, or before it is known who is there.
    let mut asked = Asked::new(lab.b.id, lab.a.id);
    asked.say(of(0, Found::Here(content)));
    assert_eq!((asked.over, asked.taken.len()), (Some(Code::BadFrame), 0));
    let mut early = Fetcher::start(link(lab.b.id, lab.a.id, [7; 32]), 0);
    early.received(Frame::session(of(0, Found::Missing)), 0);
    assert!(matches!(early.take().last(), Some(Do::Over(refusal)) if refusal.code == Code::BadFrame));
    let mut stranger = Fetcher::start(link(lab.b.id, lab.a.id, [7; 32]), 0);
    stranger.received(Frame::session(Message::Hello(hello(HostId([9; 16])))), 0);
    assert!(matches!(stranger.take().last(), Some(Do::Over(refusal)) if refusal.code == Code::BadBinding));
    lab.is_unharmed();
}

#[test]
fn who_does_not_answer_is_given_up() {
    let mut lab = Lab::new();
    let (_, value) = right(&mut lab, 0);
    let fetch = fetch(&mut lab, vec![(0, value)]);
    for (each, patience) in [(None, IDLE_MAX), (Some(Message::Ping), FETCH_STALL_MAX)] {
        let mut asked = Asked::new(lab.b.id, lab.a.id);
        // What was not asked is not waited for.
        asked.now += 10 * FETCH_STALL_MAX;
        asked.ask(&fetch);
        asked.wait(patience - 1000, each.as_ref());
        assert_eq!(asked.over, None, "{each:?}");
        asked.wait(1000, each.as_ref());
        assert_eq!(asked.over, Some(Code::Stalled), "{each:?}");
    }
    assert_eq!(FETCH_CLUSTERS_MAX as u64 * CLUSTER_BYTES, 1 << 20);
}
