//! Links between paired hosts: their secret, their limits, and how they end.

use std::time::{Duration, SystemTime};

use blockd::peer::{PeerErrorKind, PeerLimits};
use tokio::io::AsyncReadExt;

use crate::host::{Host, PATIENCE, echo, pair};

#[tokio::test]
async fn both_ends_have_the_same_secret_and_no_other_link_has_it() {
    let (a, mut b) = pair().await;
    let first = a.peers.connect("B").await.unwrap();
    let second = a.peers.connect("B").await.unwrap();
    assert_ne!(first.exporter, second.exporter);
    for link in [&first, &second] {
        let (name, exporter) = b.served.recv().await.unwrap();
        assert_eq!((name.as_str(), exporter), ("A", link.exporter));
        assert_eq!((link.host, link.name.as_str()), (b.peers.host_id(), "B"));
    }
    assert_eq!(a.peers.list()[0].1, 2);
    drop(first);
    assert_eq!(a.peers.list()[0].1, 1);
}

#[tokio::test]
async fn a_look_at_a_host_tells_its_name_and_the_way_there() {
    let (a, b) = pair().await;
    let check = a.peers.check("B").await.unwrap();
    assert_eq!((check.remote_name.as_str(), check.address), ("B", b.address.to_string()));
    assert!(check.round_trip <= check.link_time);
    assert_eq!(a.peers.check("C").await.unwrap_err().kind, PeerErrorKind::NotFound);
}

/// On either side; for whoever reads, whoever writes and whoever waits.
#[tokio::test]
async fn a_removed_host_is_out_at_once() {
    for b_removes in [true, false] {
        let (a, b) = pair().await;
        let mut links = Vec::new();
        for _ in 0..2 {
            links.push(a.peers.connect("B").await.unwrap());
            echo(links.last_mut().unwrap()).await.unwrap();
        }
        let mut waiting = links.pop().unwrap();
        let waiter = tokio::spawn(async move { waiting.stream.read_u8().await.is_err() });
        tokio::task::yield_now().await;
        let (by, whom) = if b_removes { (&b, "A") } else { (&a, "B") };
        by.peers.remove(whom).await.unwrap();
        assert!(tokio::time::timeout(PATIENCE, waiter).await.unwrap().unwrap());
        let mut link = links.pop().unwrap();
        assert!(echo(&mut link).await.is_err());
        if !b_removes {
            assert!(link.closed.is_closed());
            link.closed.wait().await;
        }
        let error = a.peers.connect("B").await.unwrap_err();
        let kind = if b_removes { PeerErrorKind::Refused } else { PeerErrorKind::NotFound };
        assert_eq!(error.kind, kind, "{error}");
        assert!(by.event("host_removed").await.starts_with(whom));
        assert_eq!(by.peers.remove(whom).await.unwrap_err().kind, PeerErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_host_that_is_not_trusted_any_more_is_out_until_it_is_again() {
    let (a, b) = pair().await;
    let mut link = a.peers.connect("B").await.unwrap();
    echo(&mut link).await.unwrap();
    b.peers.trust("A", false, None).await.unwrap();
    assert!(echo(&mut link).await.is_err());
    let error = a.peers.connect("B").await.unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Refused);
    assert!(error.to_string().contains("does not trust this host"), "{error}");
    assert_eq!(b.peers.connect("A").await.unwrap_err().kind, PeerErrorKind::Refused, "nor the other way");
    assert!(b.event("host_revoked").await.starts_with('A'));
    b.peers.trust("A", true, None).await.unwrap();
    echo(&mut a.peers.connect("B").await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn one_host_cannot_take_all_places() {
    let limits = PeerLimits { links_max: 3, links_per_host_max: 2, ..PeerLimits::default() };
    let b = Host::with_limits("B", limits).await;
    let (a, c) = (Host::new("A").await, Host::new("C").await);
    a.pair_with(&b).await;
    c.pair_with(&b).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(a.peers.connect("B").await.unwrap());
    }
    let error = a.peers.connect("B").await.unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Busy);
    assert!(error.to_string().contains("as many as one may have"), "{error}");
    let mut last = c.peers.connect("B").await.unwrap();
    echo(&mut last).await.unwrap();
    let error = c.peers.connect("B").await.unwrap_err();
    assert!(error.to_string().contains("all hosts together"), "{error}");
    drop(held);
    // Its end travels to the other side first.
    let again = async {
        while c.peers.connect("B").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the places of links that ended are given back");
}

#[tokio::test]
async fn a_renewed_certificate_is_the_same_host() {
    let (a, b) = pair().await;
    let mut link = a.peers.connect("B").await.unwrap();
    let certificate = || std::fs::read(b.dir.path().join("peer/host.crt")).unwrap();
    let (before, id) = (certificate(), b.peers.host_id());
    let year = Duration::from_secs(365 * 86_400);
    let now = SystemTime::now();
    assert!(!b.peers.renew_if_due(now + year * 2 / 3 - Duration::from_secs(7200)).unwrap());
    assert_eq!(certificate(), before);
    assert!(b.peers.renew_if_due(now + year * 2 / 3 + Duration::from_secs(7200)).unwrap());
    assert_ne!(certificate(), before);
    echo(&mut link).await.unwrap();
    for (from, to) in [(&a, "B"), (&b, "A")] {
        echo(&mut from.peers.connect(to).await.unwrap()).await.unwrap();
    }
    assert_eq!(b.peers.host_id(), id);
    let dir = b.stop();
    let b = Host::at(dir, "B", PeerLimits::default()).await;
    assert_eq!(b.peers.host_id(), id);
    echo(&mut b.peers.connect("A").await.unwrap()).await.unwrap();
}
