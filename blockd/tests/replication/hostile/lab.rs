//! Two hosts: `a` has written and taken two snapshots of `v`; `b` has the first one, honestly sent.

use blockd::control::replication::{Replication, VolumeIdentity};
use blockd::control::{Answer, Control};
use blockd::hash::{Value, cluster_value};
use blockd::snapshot::hash;
use blockd::sync::batch::{Packer, run_hash};
use blockd::sync::offer::{Offer, offer};
use blockd::sync::source::Flow;
use blockd::sync::wire::{Begin, Message, Mode, OfferedVolume, Refusal};
use blockd::units::{CLUSTER_BYTES, ClusterIndex};
use fastrand::Rng;

use super::guests::Visit;
use sim_hosts::exchange::{Exchange, Trouble, Watched};
use sim_hosts::host::{Host, name};
use sim_hosts::sides::{blocking, pin};

pub(super) const CLUSTER: usize = CLUSTER_BYTES as usize;
/// Of `v`: six clusters, the last one not whole.
pub(super) const SIZE: u64 = 5 * CLUSTER_BYTES + 2 * 4096 + 512;
pub(super) const CLUSTERS: u64 = 6;

pub(super) struct Lab {
    pub(super) a: Host,
    pub(super) b: Host,
    /// What `v@s1` and `v@s2` hold.
    old: Vec<u8>,
    pub(super) new: Vec<u8>,
    /// Their roots.
    pub(super) old_root: Value,
    pub(super) new_root: Value,
}

fn content(host: &mut Host, snapshot: &str) -> Vec<u8> {
    host.read(&name("v", snapshot).to_string(), SIZE)
}

fn root(host: &mut Host, snapshot: &str) -> Value {
    let pinned = pin(host, &name("v", snapshot)).expect("it exists");
    let reader = host.reader();
    let root = blocking(host, |submit| hash(&reader, &pinned, submit, &mut |_, _| true)).expect("sound");
    host.must(Control::Unpin { pin: pinned.pin });
    root
}

pub(super) fn identities(host: &mut Host) -> Vec<VolumeIdentity> {
    match host.must(Control::Replication(Replication::Identify { volume: None })) {
        Answer::Identities(all) => all,
        other => panic!("{other:?}"),
    }
}

fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    Rng::with_seed(seed).fill(&mut all);
    all
}

impl Lab {
    pub(super) fn new() -> Self {
        let (mut a, b) = (Host::new(1, 11), Host::new(2, 12));
        a.must(Control::CreateVolume { name: "v".to_owned(), size: SIZE });
        let cut = |host: &mut Host, snapshot: &str| {
            host.must(Control::CreateSnapshots { names: vec![name("v", snapshot)] });
        };
        a.write("v", 0, &random(1, 2 * CLUSTER)).expect("a sound disk");
        cut(&mut a, "s1");
        a.write("v", CLUSTER_BYTES, &random(2, 4096)).expect("a sound disk");
        a.write("v", 2 * CLUSTER_BYTES, &random(3, CLUSTER)).expect("a sound disk");
        cut(&mut a, "s2");
        let (old, new) = (content(&mut a, "s1"), content(&mut a, "s2"));
        let (old_root, new_root) = (root(&mut a, "s1"), root(&mut a, "s2"));
        let mut lab = Self { a, b, old, new, old_root, new_root };
        lab.bring("s1");
        lab.is_unharmed();
        lab
    }

    pub(super) fn offer(&mut self, snapshot: &str) -> Offer {
        offer(&identities(&mut self.a), &name("v", snapshot), None).expect("it exists")
    }

    /// `v@s2`, as it would be offered honestly.
    pub(super) fn offered(&mut self) -> OfferedVolume {
        self.offer("s2").brought.offer
    }

    /// An honest session, which succeeds.
    fn bring(&mut self, snapshot: &str) {
        self.try_to_bring(snapshot).unwrap_or_else(|refusal| panic!("{snapshot} does not come: {refusal}"));
    }

    pub(super) fn try_to_bring(&mut self, snapshot: &str) -> Result<(), Refusal> {
        let offers = vec![self.offer(snapshot)];
        let mut watched = Watched::default();
        let flow = Flow::default();
        let exchange =
            Exchange::new(&mut self.a, &mut self.b, offers, flow, Trouble::default(), &mut watched, 5);
        exchange.run()
    }

    /// `b` shows what it has shown, and nothing else.
    pub(super) fn is_unharmed(&mut self) {
        let all = identities(&mut self.b);
        let v = all.iter().find(|volume| volume.name == "v").expect("it is there");
        let shown: Vec<&str> = v.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
        assert_eq!((shown, v.published.clone()), (vec!["s1"], Some(name("v", "s1"))));
        assert!(content(&mut self.b, "s1") == self.old, "v@s1 has changed");
        let exports: Vec<_> = self.b.store.replicas().map(|(_, info)| info.name).collect();
        assert_eq!(exports, ["v"]);
        assert!(self.b.find_export("v@s2").is_none());
    }

    /// The next honest session is served.
    pub(super) fn goes_on(&mut self) {
        self.bring("s2");
        assert!(content(&mut self.b, "s2") == self.new, "v@s2 is not what was sent");
        assert!(content(&mut self.b, "s1") == self.old, "v@s1 has changed");
    }

    /// A session with `b` over a link of `a`; nothing is offered yet.
    pub(super) fn visit(&mut self) -> Visit<'_> {
        let mut visit = Visit::new(&mut self.b, self.a.id, [7; 32]);
        visit.greet();
        visit
    }

    /// A session in which the data of `v@s2` may come.
    pub(super) fn receiving(&mut self) -> Visit<'_> {
        let (offered, begin) = (self.offered(), self.begin());
        let mut visit = self.visit();
        visit.say([Message::Offer(vec![offered]), Message::Begin(begin)]);
        let ready = visit.said.last().map(|frame| &frame.message);
        assert!(matches!(ready, Some(Message::Ready(_))), "{ready:?}");
        visit
    }

    /// As an honest source begins: over `v@s1`.
    pub(super) fn begin(&mut self) -> Begin {
        let base = self.offer("s1").brought.offer.uid;
        Begin { mode: Mode::Changes, base: Some((base, self.old_root)), resume: None }
    }

    /// The differences between `v@s1` and `v@s2`, in one batch.
    pub(super) fn data(&self) -> Message {
        let (first, whole) = (&self.new[CLUSTER..CLUSTER + 4096], &self.new[2 * CLUSTER..3 * CLUSTER]);
        let mut packer = Packer::new(true);
        let [one, two] = [1, 2].map(ClusterIndex);
        packer.data(one, 0, first, run_hash(one, 0, first));
        packer.data(two, 0, whole, cluster_value(two, whole));
        Message::Data { from: 0, cursor: 3, batch: packer.finish() }
    }
}
