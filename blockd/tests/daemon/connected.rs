//! Commands about volumes that clients are connected to.

use std::time::Duration;

use fixtures::nbd::client::{ClientError, reply_type};
use fixtures::process::{ProcessError, wait_until};

use crate::place::Place;

/// Until the daemon has noticed that a client has gone.
pub(crate) fn ok_soon(place: &Place, words: &str) {
    let mut last = String::new();
    let done = wait_until(words, Duration::from_secs(5), || {
        let (code, _, stderr) = place.ctl(words);
        last = stderr;
        Ok::<_, ProcessError>((code == 0).then_some(()))
    });
    assert!(done.is_ok(), "{words}: {last}");
}

#[test]
fn what_has_clients_is_not_renamed_deleted_or_rolled_back() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    place.ok("snapshot create web@a");
    let mut client = place.client("web");
    client.write(0, &[1; 4096]).unwrap();
    for words in ["volume rename web other", "snapshot rollback web@a --yes", "volume delete web --yes"] {
        let why = place.not_ok(words, 4);
        assert!(why.contains("clients"), "{why}");
    }
    let mut reader = place.client("web@a");
    // Who has just been told to go is counted a moment later; whoever has read is.
    assert_eq!(reader.read(0, 4096).unwrap(), [0; 4096]);
    place.not_ok("snapshot delete web@a", 4);
    assert_eq!(reader.read(0, 4096).unwrap(), [0; 4096]);
    reader.leave().unwrap();
    assert_eq!(client.read(0, 4096).unwrap(), [1; 4096], "it was not harmed");
    client.leave().unwrap();

    ok_soon(&place, "volume rename web other");
    assert!(matches!(place.no_client("web"), ClientError::Refused(reply_type::ERR_UNKNOWN)));
    assert_eq!(place.client("other").read(0, 4096).unwrap(), [1; 4096]);
    assert_eq!(place.client("other@a").read(0, 4096).unwrap(), [0; 4096]);
    place.not_ok("volume delete other --yes", 5);
    ok_soon(&place, "snapshot delete other@a");
    ok_soon(&place, "volume delete other --yes");
    for export in ["other", "other@a"] {
        assert!(matches!(place.no_client(export), ClientError::Refused(reply_type::ERR_UNKNOWN)));
    }
}

#[test]
fn new_connections_see_the_new_size() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 1M");
    let mut old = place.client("web");
    old.write(0, &[5; 4096]).unwrap();
    place.ok("volume resize web --size 3M");
    place.not_ok("volume resize web --size 2M", 2);
    let mut new = place.client("web");
    assert_eq!((old.size(), new.size()), (1 << 20, 3 << 20));
    assert_eq!(new.read(1 << 20, 2 << 20).unwrap(), vec![0; 2 << 20]);
    new.write((3 << 20) - 512, &[6; 512]).unwrap();
    assert_eq!(old.read(0, 4096).unwrap(), [5; 4096]);
    new.flush().unwrap();
    daemon.kill();
    let _daemon = place.serve();
    let mut client = place.client("web");
    assert_eq!(client.size(), 3 << 20);
    assert_eq!(client.read((3 << 20) - 512, 512).unwrap(), [6; 512]);
}
