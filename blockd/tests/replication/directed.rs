//! What is sent, and what is not: one session after the other, without trouble.

use blockd::control::replication::Replication;
use blockd::control::{Answer, Control};
use blockd::sync::offer::offer;
use blockd::sync::source::Flow;
use blockd::units::CLUSTER_BYTES;
use fastrand::Rng;

use sim_hosts::exchange::{Exchange, Trouble, Watched};
use sim_hosts::host::{Host, name};

const BLOCK: usize = 4096;
const CLUSTERS: u64 = 12;
const SIZE: u64 = CLUSTERS * CLUSTER_BYTES + 1536;
/// What a batch adds to its data: its own head, and what says of each run where it belongs.
const OVERHEAD: u64 = 300;

struct Pair {
    a: Host,
    b: Host,
    snapshots: u32,
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

impl Pair {
    fn new(seed: u64) -> Self {
        Self { a: Host::new(1, seed), b: Host::new(2, seed + 1), snapshots: 0 }
    }

    /// A volume whose first clusters hold noise.
    fn create(&mut self, volume: &str, seed: u64, clusters: u64) {
        self.a.must(Control::CreateVolume { name: volume.to_owned(), size: SIZE });
        let bytes = noise(seed, usize::try_from(clusters * CLUSTER_BYTES).expect("a small volume"));
        self.a.write(volume, 0, &bytes).expect("a sound disk");
    }

    fn cut(&mut self, volume: &str) -> String {
        self.snapshots += 1;
        let snapshot = format!("s{}", self.snapshots);
        self.a.must(Control::CreateSnapshots { names: vec![name(volume, &snapshot)] });
        snapshot
    }

    /// Cuts and brings a volume; bytes of batches that it took, and what was seen.
    fn sync(&mut self, volume: &str) -> (u64, Watched) {
        let snapshot = self.cut(volume);
        let all = match self.a.must(Control::Replication(Replication::Identify { volume: None })) {
            Answer::Identities(all) => all,
            other => panic!("{other:?}"),
        };
        let offers = vec![offer(&all, &name(volume, &snapshot), None).expect("it was taken")];
        let mut watched = Watched::default();
        let (trouble, flow) = (Trouble::default(), Flow::default());
        let seed = u64::from(self.snapshots);
        Exchange::new(&mut self.a, &mut self.b, offers, flow, trouble, &mut watched, seed)
            .run()
            .expect("nothing is in the way");
        let shown = name(volume, &snapshot).to_string();
        let size = SIZE;
        assert!(self.a.read(&shown, size) == self.b.read(&shown, size), "{shown} differs");
        (watched.data_bytes, watched)
    }
}

#[test]
fn only_what_changed_is_sent() {
    let mut pair = Pair::new(1);
    pair.create("v", 1, 10);
    let (bytes, _) = pair.sync("v");
    assert!((10 * CLUSTER_BYTES..10 * CLUSTER_BYTES + OVERHEAD * 2).contains(&bytes), "{bytes}");
    let (bytes, watched) = pair.sync("v");
    assert_eq!((bytes, watched.counts.get("over a base")), (0, Some(&1)), "nothing has changed");
    pair.a.write("v", 5 * CLUSTER_BYTES, &noise(2, BLOCK)).unwrap();
    let (bytes, _) = pair.sync("v");
    assert!(bytes < BLOCK as u64 + OVERHEAD, "{bytes} bytes for one block");
}

#[test]
fn what_was_written_again_as_it_was_is_not_sent() {
    let mut pair = Pair::new(2);
    pair.create("v", 1, 4);
    pair.sync("v");
    let mut same = noise(1, usize::try_from(4 * CLUSTER_BYTES).unwrap());
    same[9 * BLOCK] ^= 1;
    pair.a.write("v", 0, &same).unwrap();
    let (bytes, _) = pair.sync("v");
    assert!(bytes < BLOCK as u64 + OVERHEAD, "{bytes} bytes for one changed block of 64");
}

#[test]
fn zeroes_are_told_and_not_sent() {
    let mut pair = Pair::new(3);
    pair.create("v", 1, 8);
    pair.sync("v");
    pair.a.zero("v", 0, 3 * CLUSTER_BYTES).unwrap();
    pair.a.write("v", 4 * CLUSTER_BYTES, &vec![0; usize::try_from(2 * CLUSTER_BYTES).unwrap()]).unwrap();
    let (bytes, _) = pair.sync("v");
    assert!(bytes < OVERHEAD, "{bytes} bytes for zeroes");
}

/// Two images that were made apart and hold the same.
#[test]
fn what_another_replica_holds_is_copied_there() {
    let mut pair = Pair::new(4);
    pair.create("master", 1, 10);
    pair.create("twin", 1, 10);
    pair.a.write("twin", 3 * CLUSTER_BYTES, &noise(9, BLOCK)).unwrap();
    pair.sync("master");
    let (bytes, _) = pair.sync("twin");
    assert!(bytes < CLUSTER_BYTES + 20 * OVERHEAD, "{bytes} bytes for one cluster that is new");
}

#[test]
fn without_a_common_snapshot_only_what_differs_is_sent() {
    let mut pair = Pair::new(5);
    pair.create("v", 1, 10);
    pair.sync("v");
    pair.a.write("v", 7 * CLUSTER_BYTES, &noise(2, BLOCK)).unwrap();
    pair.a.zero("v", 2 * CLUSTER_BYTES, CLUSTER_BYTES).unwrap();
    pair.a.must(Control::DeleteSnapshot { name: name("v", "s1") });
    let (bytes, watched) = pair.sync("v");
    assert_eq!(watched.counts.get("compared"), Some(&1));
    assert!(bytes < CLUSTER_BYTES + 2 * OVERHEAD, "{bytes} bytes for one cluster and zeroes");
}

#[test]
fn a_clone_costs_what_it_does_not_share() {
    let mut pair = Pair::new(6);
    pair.create("v", 1, 10);
    pair.sync("v");
    pair.a.must(Control::Clone { from: name("v", "s1"), to: "c".to_owned() });
    pair.a.write("c", 0, &noise(3, 2 * BLOCK)).unwrap();
    let (bytes, _) = pair.sync("c");
    assert!(bytes < 2 * BLOCK as u64 + OVERHEAD, "{bytes} bytes for two blocks");
}

#[test]
fn a_volume_that_has_grown_is_brought() {
    let mut pair = Pair::new(7);
    pair.create("v", 1, 12);
    pair.sync("v");
    let size = SIZE + 3 * CLUSTER_BYTES;
    pair.a.must(Control::ResizeVolume { name: "v".to_owned(), size });
    pair.a.write("v", size - 512, &noise(4, 512)).unwrap();
    let (bytes, _) = pair.sync("v");
    assert!(bytes < BLOCK as u64 + OVERHEAD, "{bytes} bytes");
    let tail = |host: &mut Host| host.read("v@s2", size)[usize::try_from(size - 512).unwrap()..].to_vec();
    assert_eq!(tail(&mut pair.a), noise(4, 512));
    assert_eq!(tail(&mut pair.b), noise(4, 512));
}
