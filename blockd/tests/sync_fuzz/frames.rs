//! Frames that are legal as such: small numbers, so that they often fit what was said before.

use blockd::catalog::format::Point;
use blockd::sync::wire::{
    Begin, Code, Fetch, Found, Frame, HaveVolume, Hello, KeepWish, Message, Mode, NewestSnapshot,
    OfferedVolume, Ready, Received, Refusal, Values, Wanted,
};
use blockd::units::{CLUSTER_BYTES, HostId, Lineage, SnapshotUid};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..12_u64, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn uid() -> impl Strategy<Value = SnapshotUid> {
    (0..6_u8).prop_map(|uid| SnapshotUid([uid; 16]))
}

fn root() -> impl Strategy<Value = [u8; 32]> {
    (0..3_u8).prop_map(|root| [root; 32])
}

fn token() -> impl Strategy<Value = [u8; 16]> {
    (0..3_u8).prop_map(|token| [token; 16])
}

pub(crate) fn offered() -> impl Strategy<Value = OfferedVolume> {
    let name = prop_oneof![9 => "[a-z]{1,8}", 1 => ".{0,8}"];
    let size = prop_oneof![9 => (1..12_u64).prop_map(|c| c * CLUSTER_BYTES - 512), 1 => any::<u64>()];
    (any::<u8>(), name, uid(), [number(), number()], size, vec(uid(), 0..4)).prop_map(
        |(lineage, name, uid, [epoch, sequence], size, candidates)| OfferedVolume {
            lineage: Lineage([lineage; 16]),
            volume: name.clone(),
            uid,
            point: Point { epoch, sequence },
            name,
            size,
            created_ms: 1,
            candidates,
        },
    )
}

pub(crate) fn have() -> impl Strategy<Value = HaveVolume> {
    let known = vec((prop_oneof![9 => 0..4_u16, 1 => any::<u16>()], root()), 0..3);
    let newest = (uid(), root(), number()).prop_map(|(uid, root, size)| NewestSnapshot {
        uid,
        root,
        size: size.saturating_mul(CLUSTER_BYTES),
    });
    let received = (token(), option::of(uid()), number()).prop_map(|(token, base, cursor)| Received {
        token,
        base,
        cursor,
    });
    (known, option::of(newest), option::weighted(0.2, received)).prop_map(|(mut known, newest, received)| {
        known.sort_unstable();
        HaveVolume { known, newest, received }
    })
}

fn begin() -> impl Strategy<Value = Begin> {
    let base = option::of((uid(), root()));
    let resume = option::weighted(0.2, (token(), number()));
    let mode = proptest::sample::select(vec![Mode::Changes, Mode::Compare, Mode::Mirror]);
    (mode, base, resume).prop_map(|(mode, base, resume)| Begin { mode, base, resume })
}

fn hello() -> impl Strategy<Value = Hello> {
    ([0..3_u16, 0..3_u16], any::<u8>(), 0..3_u8).prop_map(
        |([version_min, version_max], compression, host)| Hello {
            version_min,
            version_max,
            compression,
            host: HostId([host; 16]),
            nonce: [3; 32],
        },
    )
}

pub(crate) fn message() -> impl Strategy<Value = Message> {
    let values = (number(), vec(option::of(root()), 0..12));
    let wanted = (number(), vec(any::<bool>(), 0..12));
    let refuse = (proptest::sample::select(Code::ALL.to_vec()), ".{0,20}");
    let ready = (token(), number(), any::<bool>());
    let fetch = (root(), uid(), vec((0..14_u32, root()), 0..4)).prop_map(|(lineage, uid, mut clusters)| {
        clusters.sort_unstable();
        Message::Fetch(Fetch { lineage: Lineage([lineage[0]; 16]), uid, clusters })
    });
    let found = prop_oneof![
        1 => Just(Found::Here(vec![0; CLUSTER_BYTES as usize])),
        3 => proptest::sample::select(vec![Found::Missing, Found::Damaged, Found::Differs]),
    ];
    let words = vec![Message::Verified, Message::Marked, Message::Publish, Message::Published, Message::Ping];
    prop_oneof![
        1 => hello().prop_map(Message::Hello),
        1 => (0..3_u16, root()).prop_map(|(version, proof)| Message::Bind { version, proof }),
        2 => vec(offered(), 0..3).prop_map(Message::Offer),
        3 => have().prop_map(Message::Have),
        1 => offered().prop_map(Message::Mark),
        3 => begin().prop_map(Message::Begin),
        3 => ready.prop_map(|(token, cursor, complete)| Message::Ready(Ready { token, cursor, complete })),
        6 => ([number(), number()], vec(any::<u8>(), 0..20))
            .prop_map(|([from, cursor], batch)| Message::Data { from, cursor, batch }),
        4 => number().prop_map(Message::Confirmed),
        3 => values.prop_map(|(first, values)| Message::Values(Values { first, values })),
        3 => wanted.prop_map(|(first, differs)| Message::Wanted(Wanted { first, differs })),
        3 => (number(), root()).prop_map(|(cursor, root)| Message::End { cursor, root }),
        1 => refuse.prop_map(|(code, text)| Message::Refuse(Refusal { code, text })),
        1 => (any::<[u32; 7]>(), number())
            .prop_map(|(counts, within_s)| Message::Keep(KeepWish { counts, within_s })),
        2 => fetch,
        1 => (0..14_u32, found).prop_map(|(cluster, found)| Message::Fetched { cluster, found }),
        5 => proptest::sample::select(words),
    ]
}

pub(crate) fn frame() -> impl Strategy<Value = Frame> {
    let volume = prop_oneof![9 => 0..3_u16, 1 => any::<u16>()];
    (volume, message()).prop_map(|(volume, message)| Frame { volume, message })
}
