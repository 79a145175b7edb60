//! Every frame comes back as it was; nothing makes the decoder panic or keep more than it was given.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn decode(bytes: &[u8]) -> Result<Frame, WireError> {
    let (head, payload) = bytes.split_first_chunk().ok_or(WireError::Malformed("no header"))?;
    let header = Header::decode(*head)?;
    assert!(header.length <= PAYLOAD_BYTES_MAX);
    if header.length != payload.len() {
        return Err(WireError::Malformed("cut"));
    }
    Frame::decode(header, payload.to_vec())
}

fn text() -> impl Strategy<Value = String> {
    "[a-z]{0,30}"
}

fn uid() -> impl Strategy<Value = SnapshotUid> {
    any::<[u8; 16]>().prop_map(SnapshotUid)
}

fn offered() -> impl Strategy<Value = OfferedVolume> {
    (any::<[u8; 16]>(), text(), uid(), any::<[u64; 4]>(), text(), vec(uid(), 0..4)).prop_map(
        |(lineage, volume, uid, [epoch, sequence, size, created_ms], name, candidates)| OfferedVolume {
            lineage: Lineage(lineage),
            volume,
            uid,
            point: Point { epoch, sequence },
            name,
            size,
            created_ms,
            candidates,
        },
    )
}

fn have() -> impl Strategy<Value = HaveVolume> {
    let newest = (uid(), any::<[u8; 32]>(), any::<u64>()).prop_map(|(uid, root, size)| NewestSnapshot {
        uid,
        root,
        size,
    });
    let received = (any::<[u8; 16]>(), proptest::option::of(uid()), any::<u64>())
        .prop_map(|(token, base, cursor)| Received { token, base, cursor });
    let known = vec((any::<u16>(), any::<[u8; 32]>()), 0..4);
    (known, proptest::option::of(newest), proptest::option::of(received))
        .prop_map(|(known, newest, received)| HaveVolume { known, newest, received })
}

fn begin() -> impl Strategy<Value = Begin> {
    let base = proptest::option::of((uid(), any::<[u8; 32]>()));
    let resume = proptest::option::of((any::<[u8; 16]>(), any::<u64>()));
    let mode = proptest::sample::select(vec![Mode::Changes, Mode::Compare, Mode::Mirror]);
    (mode, base, resume).prop_map(|(mode, base, resume)| Begin { mode, base, resume })
}

fn message() -> impl Strategy<Value = Message> {
    let hello = (any::<[u16; 2]>(), any::<u8>(), any::<[u8; 16]>(), any::<[u8; 32]>()).prop_map(
        |([version_min, version_max], compression, host, nonce)| {
            Message::Hello(Hello { version_min, version_max, compression, host: HostId(host), nonce })
        },
    );
    let values = (any::<u64>(), vec(proptest::option::of(any::<[u8; 32]>()), 0..20));
    let wanted = (any::<u64>(), vec(any::<bool>(), 0..20));
    let refuse = (proptest::sample::select(Code::ALL.to_vec()), ".{0,40}");
    let fetch = (any::<[u8; 16]>(), uid(), vec(any::<(u32, [u8; 32])>(), 0..FETCH_CLUSTERS_MAX + 1));
    let found = prop_oneof![
        any::<u8>().prop_map(|byte| Found::Here(vec![byte; CLUSTER_BYTES as usize])),
        proptest::sample::select(vec![Found::Missing, Found::Damaged, Found::Differs]),
    ];
    prop_oneof![
        hello,
        (any::<u16>(), any::<[u8; 32]>()).prop_map(|(version, proof)| Message::Bind { version, proof }),
        vec(offered(), 0..3).prop_map(Message::Offer),
        have().prop_map(Message::Have),
        offered().prop_map(Message::Mark),
        begin().prop_map(Message::Begin),
        (any::<[u8; 16]>(), any::<u64>(), any::<bool>())
            .prop_map(|(token, cursor, complete)| Message::Ready(Ready { token, cursor, complete })),
        (any::<[u64; 2]>(), vec(any::<u8>(), 0..50)).prop_map(|([from, cursor], batch)| Message::Data {
            from,
            cursor,
            batch
        }),
        any::<u64>().prop_map(Message::Confirmed),
        values.prop_map(|(first, values)| Message::Values(Values { first, values })),
        wanted.prop_map(|(first, differs)| Message::Wanted(Wanted { first, differs })),
        (any::<u64>(), any::<[u8; 32]>()).prop_map(|(cursor, root)| Message::End { cursor, root }),
        (any::<[u32; 7]>(), any::<u64>())
            .prop_map(|(counts, within_s)| Message::Keep(KeepWish { counts, within_s })),
        fetch.prop_map(|(lineage, uid, clusters)| {
            Message::Fetch(Fetch { lineage: Lineage(lineage), uid, clusters })
        }),
        (any::<u32>(), found).prop_map(|(cluster, found)| Message::Fetched { cluster, found }),
        refuse.prop_map(|(code, text)| Message::Refuse(Refusal { code, text })),
        proptest::sample::select(vec![
            Message::Verified,
            Message::Marked,
            Message::Publish,
            Message::Published,
            Message::Ping
        ]),
    ]
}

proptest! {
    #[test]
    fn a_frame_comes_back_as_it_was(volume in any::<u16>(), message in message()) {
        let frame = Frame { volume, message };
        prop_assert_eq!(frame.bytes(), frame.encode().len() as u64);
        prop_assert_eq!(decode(&frame.encode()), Ok(frame));
    }

    /// There are no two ways to say one thing.
    #[test]
    fn damaged_bytes_are_another_frame_or_none(
        message in message(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Frame::session(message).encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // An unknown code is a failure, whatever its number.
        if let Ok(frame) = decode(&bytes) && !matches!(frame.message, Message::Refuse(_)) {
            prop_assert_eq!(&frame.encode(), &bytes);
        }
        let cut = cut.index(bytes.len());
        prop_assert!(decode(&bytes[..cut]).is_err());
    }

    #[test]
    fn any_bytes_are_judged(kind in 0..20_u16, payload in vec(any::<u8>(), 0..200)) {
        let header = Header { length: payload.len(), kind, volume: 0 };
        if let Ok(frame) = Frame::decode(header, payload.clone()) && !matches!(frame.message, Message::Refuse(_)) {
            prop_assert_eq!(&frame.encode()[HEADER_BYTES..], &payload[..]);
        }
    }
}

#[test]
fn a_length_is_judged_before_anything_is_read() {
    for length in [PAYLOAD_BYTES_MAX as u32 + 1, 1 << 31, u32::MAX] {
        let mut head = [0; HEADER_BYTES];
        head[..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(Header::decode(head), Err(WireError::TooLong(length)));
    }
}

#[test]
fn more_items_than_there_may_be_are_refused() {
    let count = |kind: u16, before: usize, count: u16| {
        let mut payload = vec![0; before];
        payload.extend(count.to_be_bytes());
        payload.resize(before + 2 + 200_000, 0);
        Frame::decode(Header { length: payload.len(), kind, volume: 0 }, payload)
    };
    let cases = [
        (kind::OFFER, 0, 65),
        (kind::HAVE, 0, 1025),
        (kind::VALUES, 8, 4097),
        (kind::WANTED, 8, 4097),
        (kind::FETCH, 32, 17),
    ];
    for (kind, before, items) in cases {
        let expected = WireError::Malformed("more items than there may be");
        assert_eq!(count(kind, before, items), Err(expected), "{kind}");
    }
}

#[test]
fn the_bytes_are_as_drawn() {
    let frame = Frame { volume: 3, message: Message::Confirmed(0x0102) };
    assert_eq!(frame.encode(), [0, 0, 0, 8, 0, 8, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2]);
    let refusal = Refusal::new(Code::RootMismatch, "no");
    let frame = Frame::session(Message::Refuse(refusal));
    assert_eq!(frame.encode(), [0, 0, 0, 6, 0, 15, 0, 0, 0, 9, 0, 2, b'n', b'o']);
    let values = Values { first: 1, values: vec![None, Some([7; 32]), None] };
    let bytes = Frame::session(Message::Values(values)).encode();
    assert_eq!(bytes[8..19], [0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0b101]);
    assert_eq!(bytes[19..], [7; 32]);
}

#[test]
fn texts_are_cut_between_characters() {
    let refusal = Refusal::new(Code::Failed, "ä".repeat(400));
    let Ok(Frame { message: Message::Refuse(back), .. }) =
        decode(&Frame::session(Message::Refuse(refusal)).encode())
    else {
        panic!("it decodes")
    };
    assert_eq!(back.text, "ä".repeat(256));
}
