//! How it was measured, for the page.

use crate::client::Client;
use crate::migrate;
use crate::results::{Results, Settings};
use crate::store::StoreResults;
use crate::sync::SyncResults;

pub(super) fn method_body(results: &Results) -> String {
    let settings = &results.settings;
    let command = format!("```console\n$ {}\n```\n", settings.command);
    let servers = (!results.servers.is_empty()).then(|| servers_method(results));
    let store = results.store.as_ref().map(store_method);
    let sync = results.sync.as_ref().map(sync_method);
    let moves = results.migrate.as_ref().map(migrate::report::method);
    [Some(command), servers, store, sync, moves].into_iter().flatten().collect::<Vec<String>>().join("\n")
}

fn store_method(store: &StoreResults) -> String {
    format!(
        "- The store: volumes and peers of {} MiB, {} round(s), {} s a job; {} GiB mapped without data in `full-store`. \
         Before each measurement the disk is flushed and nothing is dirty in any page cache.\n",
        store.image_mib, store.rounds, store.runtime_s, store.large_gib
    )
}

fn sync_method(sync: &SyncResults) -> String {
    format!(
        "- Replication: a volume of {} MiB, completely written with what nothing compresses, large ones of {} GiB; {} round(s); \
         the schedule watched for {} s. All daemons and peers of a step in a network of their own, whose loopback device \
         counts the bytes. Before each measurement nothing is dirty in any page cache.\n",
        sync.size_mib, sync.large_gib, sync.runs, sync.watch_s
    )
}

fn servers_method(results: &Results) -> String {
    let settings = &results.settings;
    let pinned = if settings.pinned {
        "the server tied to CPU 0, the client to CPU 1"
    } else {
        "free to use all CPUs"
    };
    format!(
        "- One image of {} MiB, completely written, for all servers; {} round(s) of {} s a job, server by server in turn, \
         each freshly started; {pinned}.\n{}{METHOD}",
        settings.image_mib,
        settings.rounds,
        settings.runtime_s,
        clients_method(settings)
    )
}

fn clients_method(settings: &Settings) -> String {
    let one = |client: &Client| format!("- Client {}: {}\n", client.label(), client.described());
    let all: String = settings.clients.iter().map(one).collect();
    let note = "- The targets of the servers are held against what the first client measured; no ratio has two clients in it.\n";
    if settings.clients.len() > 1 { all + note } else { all }
}

const METHOD: &str = "\
- Cached class: the image is in the page cache and nothing is dirty before each run. Direct class: the page cache is \
dropped before each run. Memory servers are written once before they are measured.
- CPU: user and system time of the server, its threads and its children over the whole run, by the number of requests, \
flushes included.
- Classes are never mixed in a ratio. `fio-file` is fio's io_uring engine on the image itself, without a server; \
`nbdkit-null` has no data. Both are limits, not peers.
";
