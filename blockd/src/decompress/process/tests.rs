//! What the daemon makes of the answers of a process that lies, hangs or trickles.

use std::thread;

use super::*;

const LENGTH: usize = 100;
const SOON: Duration = Duration::from_millis(300);
/// So long that a test would not end well, if it were waited for.
const LATER: Duration = Duration::from_secs(20);

/// What is made of this answer; the other end says nothing more, and stays.
fn answered(limit: Duration, answer: &[u8]) -> Result<Result<Vec<u8>, DecompressError>, Lost> {
    let (own, mut other) = UnixStream::pair().unwrap();
    other.write_all(answer).unwrap();
    exchange(&own, limit, b"stored", LENGTH)
}

/// An answer that claims this.
fn claim(status: u8, length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[status][..], &length.to_be_bytes(), bytes].concat()
}

#[test]
fn what_was_asked_is_answered() {
    let answer = claim(status::OK, 100, &[7; LENGTH]);
    assert_eq!(answered(LATER, &answer).unwrap().unwrap(), [7; LENGTH]);
    let refused = claim(status::REFUSED, 9, b"\x1b[31mno\n\xff");
    let Ok(Err(DecompressError::Bad(why))) = answered(LATER, &refused) else { panic!("it was refused") };
    assert_eq!(why, "?[31mno??", "it goes into the log, and to the other host");
}

/// P11: nothing is allocated, and nothing more is read, for an answer that cannot be one.
#[test]
fn a_lie_about_the_length_is_found_before_anything_is_allocated() {
    for (status, length) in [
        (status::OK, 99),
        (status::OK, 101),
        (status::OK, 0),
        (status::OK, u32::MAX),
        (status::REFUSED, 501),
        (2, 100),
    ] {
        let answer = claim(status, length, &[]);
        let lost = answered(LATER, &answer).expect_err("a lie");
        assert!(matches!(lost, Lost::Lied(_)), "{status} {length}: {lost:?}");
    }
}

#[test]
fn an_end_is_noticed() {
    let (own, other) = UnixStream::pair().unwrap();
    drop(other);
    assert!(matches!(exchange(&own, LATER, b"stored", LENGTH), Err(Lost::Ended(_))));
}

#[test]
fn an_answer_that_does_not_come_is_not_waited_for() {
    assert!(matches!(answered(SOON, &[]), Err(Lost::Late)));
    assert!(matches!(answered(SOON, &claim(status::OK, 100, &[7; 99])), Err(Lost::Late)));
    // Nor is somebody who does not even listen.
    let (own, _other) = UnixStream::pair().unwrap();
    assert!(matches!(exchange(&own, SOON, &vec![0; 1 << 20], LENGTH), Err(Lost::Late)));
}

#[test]
fn an_answer_that_trickles_is_late() {
    let (own, mut other) = UnixStream::pair().unwrap();
    let trickle = thread::spawn(move || {
        for byte in claim(status::OK, 100, &[7; LENGTH]) {
            if other.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    let lost = exchange(&own, SOON, b"stored", LENGTH);
    assert!(matches!(lost, Err(Lost::Late)), "{lost:?}");
    drop(own);
    trickle.join().unwrap();
}
