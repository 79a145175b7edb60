//! Meta contexts in the option phase: row N13, and what good clients rely on.

use std::sync::Arc;

use fixtures::nbd::client::{ClientError, context_data, option, reply_type};
use fixtures::nbd::codec::{command, errno};
use nbd_server::client::Client;
use nbd_server::disk::ExportIndex;
use nbd_server::export::ExportInfo;
use nbd_server::handshake::{Directory, ExportAddress, Offer};
use nbd_server::memory_export::MemoryExport;
use nbd_server::reactor::{ExportSpec, ReactorSpec};
use nbd_server::server::{Server, ServerConfig};
use nbd_server::status::{CONTEXTS_MAX, ContextKey, MetaContext};

use crate::exports::memory;
use crate::harness::TestServer;

const ALLOCATION: &str = "base:allocation";
const BOTH: [u32; 2] = [option::LIST_META_CONTEXT, option::SET_META_CONTEXT];

fn two() -> TestServer {
    TestServer::of(vec![memory("disk", 1 << 20), memory("other", 1 << 20)])
}

/// Exports with as many contexts as their names say.
struct Contextual;

impl Directory for Contextual {
    fn list(&self, _client: &Client) -> Vec<ExportInfo> {
        vec![ExportInfo::new("3", 1 << 20), ExportInfo::new("100", 1 << 20)]
    }

    fn find(&self, client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        let found = self.list(client).into_iter().find(|export| export.name.as_bytes() == name)?;
        Some((ExportAddress { reactor: 0, index: ExportIndex(0) }, found))
    }

    fn contexts(&self, _client: &Client, name: &[u8]) -> Vec<MetaContext> {
        let count: u64 = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()).unwrap_or(0);
        (0..count).map(|key| MetaContext { name: format!("x-test:c{key}"), key: ContextKey(key) }).collect()
    }
}

pub(crate) fn contextual() -> TestServer {
    TestServer::start_with(|| {
        let memory = MemoryExport::new(1 << 20).expect("a small export");
        let spec = ExportSpec { files: Vec::new(), build: Box::new(move |_| Box::new(memory)) };
        let reactor = ReactorSpec::separate(vec![spec]);
        let server = Server::start_with(vec![reactor], Arc::new(Contextual), ServerConfig::default());
        server.expect("the server starts")
    })
}

#[test]
fn n13_contexts_need_structured_replies() {
    let server = two();
    let mut client = server.negotiation();
    for number in BOTH {
        let reply = client.ask_one(number, &context_data(b"disk", &[ALLOCATION])).unwrap();
        assert_eq!(reply.kind, reply_type::ERR_INVALID, "option {number}");
    }
    assert!(client.go(b"disk").unwrap().read(0, 512).is_ok());
}

#[test]
fn n13_lies_about_lengths_and_counts() {
    let server = two();
    let good = context_data(b"disk", &[ALLOCATION, "base:"]);
    let with = |at: usize, bytes: &[u8]| {
        let mut data = good.clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        data
    };
    let mut lies = vec![
        with(0, &u32::MAX.to_be_bytes()),
        with(0, &5_u32.to_be_bytes()),
        with(8, &1_000_000_u32.to_be_bytes()),
        with(8, &u32::MAX.to_be_bytes()),
        with(8, &3_u32.to_be_bytes()),
        with(8, &1_u32.to_be_bytes()),
        with(8, &0_u32.to_be_bytes()),
        with(12, &u32::MAX.to_be_bytes()),
        with(12, &16_u32.to_be_bytes()),
        [&good[..], &[0]].concat(),
    ];
    lies.extend((0..good.len()).map(|length| good[..length].to_vec()));
    for (number, lie) in BOTH.iter().flat_map(|number| lies.iter().map(move |lie| (*number, lie))) {
        let mut client = server.negotiation();
        client.structured().unwrap();
        let reply = client.ask_one(number, lie).unwrap();
        assert_eq!(reply.kind, reply_type::ERR_INVALID, "option {number} with {lie:x?}");
    }
    server.assert_healthy();
}

#[test]
fn n13_too_many_queries_and_too_long_ones() {
    let server = two();
    let mut client = server.negotiation();
    client.structured().unwrap();
    let long = format!("base:{}", "x".repeat(4092));
    for (queries, kind) in [
        (vec![ALLOCATION; 65], reply_type::ERR_TOO_BIG),
        (vec![""; 16_000], reply_type::ERR_TOO_BIG),
        (vec![&*long], reply_type::ERR_TOO_BIG),
        (vec![&long[..4096]; 3], reply_type::ACK),
        (vec!["x-none:a"; 64], reply_type::ACK),
    ] {
        for number in BOTH {
            let reply = client.ask_one(number, &context_data(b"disk", &queries)).unwrap();
            assert_eq!(reply.kind, kind, "option {number}, {} queries", queries.len());
        }
    }
    assert!(client.go(b"disk").unwrap().read(0, 512).is_ok());
}

#[test]
fn n13_a_choice_for_another_export_is_dropped() {
    let server = two();
    for (chosen, entered, counts) in
        [("disk", "disk", true), ("", "", true), ("disk", "other", false), ("", "disk", false)]
    {
        let mut client = server.negotiation();
        client.structured().unwrap();
        assert_eq!(client.choose_contexts(chosen.as_bytes(), &[ALLOCATION]).unwrap().len(), 1);
        let mut client = client.go(entered.as_bytes()).unwrap();
        match client.block_status(0, 0, 1 << 20) {
            Ok(told) if counts => assert_eq!(told[0].extents, [(1 << 20, 3)]),
            Err(ClientError::Failed(errno::EINVAL)) if !counts => {}
            other => panic!("{chosen:?}, then {entered:?}: {other:?}"),
        }
    }
}

/// Also where it fails, and where it matches nothing.
#[test]
fn n13_every_set_replaces_the_one_before() {
    let server = two();
    let nothing: [(&[u8], &[&str]); 4] =
        [(b"disk", &[]), (b"disk", &["base:other"]), (b"none", &[ALLOCATION]), (b"disk", &["base:"])];
    let malformed = context_data(b"disk", &[ALLOCATION])[..20].to_vec();
    let replaced = nothing.map(|(name, queries)| context_data(name, queries));
    for second in replaced.iter().chain([&malformed]) {
        let mut client = server.negotiation();
        client.structured().unwrap();
        client.choose_contexts(b"disk", &[ALLOCATION]).unwrap();
        client.ask_one(option::SET_META_CONTEXT, second).unwrap();
        let mut client = client.go(b"disk").unwrap();
        assert_eq!(client.call(0, command::BLOCK_STATUS, 0, 4096).unwrap(), Err(errno::EINVAL));
        client.leave().unwrap();
    }
}

#[test]
fn a_choice_survives_other_options() {
    let server = two();
    let mut client = server.negotiation();
    client.structured().unwrap();
    client.choose_contexts(b"disk", &[ALLOCATION]).unwrap();
    client.list_contexts(b"other", &[]).unwrap();
    client.ask(option::LIST, &[]).unwrap();
    assert_eq!(client.go(b"disk").unwrap().block_status(0, 0, 4096).unwrap()[0].extents, [(4096, 3)]);
}

/// As clients of the old days enter, with an option of new ones.
#[test]
fn a_choice_counts_after_export_name() {
    let server = two();
    let mut client = server.negotiation();
    client.structured().unwrap();
    client.choose_contexts(b"other", &[ALLOCATION]).unwrap();
    let mut client = client.export_name(b"other", false).unwrap();
    client.expect_contexts(1);
    assert_eq!(client.block_status(0, 512, 4096).unwrap()[0].extents, [(4096, 3)]);
}

#[test]
fn queries_and_what_they_find() {
    let server = contextual();
    let mut client = server.negotiation();
    client.structured().unwrap();
    let all = ["x-test:c0", "x-test:c1", "x-test:c2"];
    let rows: [(&[&str], &[&str], &[&str]); 8] = [
        (&[], &all, &[]),
        (&["x-test:"], &all, &[]),
        (&["x-test:c1"], &all[1..2], &all[1..2]),
        (&["x-test:c2", "x-test:c0", "x-test:c2"], &["x-test:c0", "x-test:c2"], &["x-test:c0", "x-test:c2"]),
        (&["x-test:c"], &[], &[]),
        (&["base:", "base:allocation", "qemu:", "x-test"], &[], &[]),
        (&["", ":", "x-test:\u{e9}"], &[], &[]),
        (&["none:none", "x-test:c0"], &all[..1], &all[..1]),
    ];
    for (queries, listed, chosen) in rows {
        assert_eq!(client.list_contexts(b"3", queries).unwrap(), listed, "{queries:?}");
        let told = client.choose_contexts(b"3", queries).unwrap();
        let numbered: Vec<_> = (1..).zip(chosen).map(|(id, name)| (id, (*name).to_owned())).collect();
        assert_eq!(told, numbered, "{queries:?}");
    }
}

#[test]
fn more_contexts_than_one_client_may_choose() {
    let server = contextual();
    let mut client = server.negotiation();
    client.structured().unwrap();
    assert_eq!(client.list_contexts(b"100", &[]).unwrap().len(), 100);
    let names: Vec<_> = (0..=CONTEXTS_MAX).map(|number| format!("x-test:c{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let refused = client.choose_contexts(b"100", &names);
    assert!(matches!(refused, Err(ClientError::Refused(reply_type::ERR_TOO_BIG))), "{refused:?}");
    assert_eq!(client.choose_contexts(b"100", &names[1..]).unwrap().len(), CONTEXTS_MAX);
}

#[test]
fn contexts_of_an_export_that_is_missing() {
    let server = two();
    let mut client = server.negotiation();
    client.structured().unwrap();
    for number in BOTH {
        let reply = client.ask_one(number, &context_data(b"none", &[])).unwrap();
        assert_eq!(reply.kind, reply_type::ERR_UNKNOWN, "option {number}");
    }
}

#[test]
fn contexts_can_be_switched_off() {
    let offer = Offer { meta_contexts: false, ..Offer::default() };
    let config = ServerConfig { offer, ..ServerConfig::default() };
    let server = TestServer::of_with(vec![memory("disk", 1 << 20)], config);
    let mut client = server.negotiation();
    client.structured().unwrap();
    for number in BOTH {
        let reply = client.ask_one(number, &context_data(b"disk", &[ALLOCATION])).unwrap();
        assert_eq!(reply.kind, reply_type::ERR_UNSUP, "option {number}");
    }
    assert!(client.go(b"disk").unwrap().read(0, 512).is_ok());
}
