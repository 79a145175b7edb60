//! `blockctl status`, `top`, `check` and `events`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;

use crate::api::client::ClientError;
use crate::api::jobs::JobList;
use crate::api::replicas::ReplicaInfo;
use crate::api::types::Status;
use crate::control::{Counters, Health, VolumeInfo};
use crate::events::Event;
use crate::exit_code;
use crate::failure::Failure;
use crate::jobs::view::{JobView, Severity};
use crate::nbd_door::NbdLimits;
use crate::size::Size;

use super::args::{EventsArgs, TopArgs};
use super::context::{Context, Trying};
use super::volume::health;
use super::{output, progress, replica, standing, time};

/// How long a monitor waits for an answer.
const CHECK_TIME_MAX: Duration = Duration::from_secs(10);
/// How long one request for events waits for the next one.
const EVENTS_WAIT: Duration = Duration::from_secs(30);
/// A monitor warns when less than this part of the pool is free …
const FREE_PERCENT_WARNING: u64 = 10;
/// … and is alarmed below this.
const FREE_PERCENT_CRITICAL: u64 = 3;
/// Volumes on one page of `top`.
const TOP_VOLUMES_MAX: usize = 30;
/// A screen of our own, without a cursor.
const SCREEN_ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// The screen as it was.
const SCREEN_LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// From the upper left corner on; the rest is cleared.
const SCREEN_HOME: &str = "\x1b[H\x1b[J";

pub(super) async fn status(context: &Context) -> Result<(), Failure> {
    let status = context.client.status().await.trying(|| "cannot ask for the status".to_owned())?;
    let jobs = standing::jobs(&context.client).await.trying(|| "cannot ask for the jobs".to_owned())?;
    let replicas = context.client.replicas_if_any().await;
    let replicas = replicas.trying(|| "cannot ask for the replicas".to_owned())?;
    if !context.for_people() {
        let jobs = jobs.map(|list| list.jobs);
        return output::object(&StatusAndMore { status: &status, jobs, replicas });
    }
    output::write(page(&status).as_bytes())?;
    output::line(limits(&status.nbd_limits))?;
    if let Some(trouble) = &status.nbd_tls_trouble {
        output::line(format!("NBD TLS  {trouble}; the last good certificates are in use"))?;
    }
    if let Some(summary) = replica::summary(&replicas) {
        output::line(format!("replicas {summary}"))?;
    }
    match jobs {
        Some(list) if !list.jobs.is_empty() => output::line(format!("jobs     {}", standing::summary(&list))),
        _ => Ok(()),
    }
}

/// What `status -o json` prints.
#[derive(Serialize)]
struct StatusAndMore<'a> {
    #[serde(flatten)]
    status: &'a Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<Vec<JobView>>,
    replicas: Vec<ReplicaInfo>,
}

pub(super) async fn metrics(context: &Context) -> Result<(), Failure> {
    let text = context.client.metrics().await.trying(|| "cannot ask for the metrics".to_owned())?;
    output::write(text.as_bytes())
}

fn page(status: &Status) -> String {
    let store = &status.store;
    let up = status.now_ms.saturating_sub(status.started_ms);
    let counters = &store.counters;
    let mut lines = vec![
        format!("blockd {}  up {}  health {}", status.version, time::span(up), health(store.health)),
        format!(
            "pool     {} of {} used ({} %), {} being freed",
            Size(store.used_bytes),
            Size(store.pool_bytes),
            percent(store.used_bytes, store.pool_bytes),
            Size(store.pending_free_bytes)
        ),
        format!(
            "objects  {}, {}, {}",
            output::count(store.volumes, "volume"),
            output::count(store.snapshots, "snapshot"),
            output::count(store.clients, "client")
        ),
        format!(
            "served   {} reads ({}), {} writes ({}), {} flushes, {} errors",
            counters.reads,
            Size(counters.read_bytes),
            counters.writes,
            Size(counters.written_bytes),
            counters.flushes,
            counters.errors
        ),
        format!("commits  last {}, {} records waiting", store.commit, store.uncommitted),
    ];
    if store.layers_to_reclaim > 0 {
        lines.push(format!("behind   {} to reclaim", output::count(store.layers_to_reclaim, "layer")));
    }
    if !store.recent_log {
        lines.push("recent   no log: what is not flushed would be lost with the daemon".to_owned());
    }
    lines.join("\n") + "\n"
}

/// What bounds NBD clients, on a line.
fn limits(limits: &NbdLimits) -> String {
    let NbdLimits { connections, connections_per_client, requests, payload_bytes, .. } = limits;
    let (handshake, stall) = (limits.handshake_seconds, limits.stall_seconds);
    format!(
        "limits   {connections} connections, {connections_per_client} a client; {requests} requests and {} in flight; \
         {handshake}s for a handshake, {stall}s without reading",
        Size(*payload_bytes)
    )
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

/// What a monitor is told: Nagios' line and exit code.
struct Verdict {
    code: u8,
    line: String,
}

/// What `check -o json` prints.
#[derive(Serialize)]
struct Checked<'a> {
    code: u8,
    message: &'a str,
}

/// Always exits 0, 1 or 2, whatever happens: that is how monitors read it.
pub(super) async fn check(context: &Context) -> Result<(), Failure> {
    let client = context.client.clone().with_answer_time_max(CHECK_TIME_MAX);
    let asking = async { Ok((client.status().await?, standing::jobs(&client).await?)) };
    let answer = tokio::time::timeout(CHECK_TIME_MAX, asking).await;
    let verdict = judge(answer.unwrap_or(Err(ClientError::Late(CHECK_TIME_MAX))));
    if context.for_people() {
        output::line(&verdict.line)?;
    } else {
        output::object(&Checked { code: verdict.code, message: &verdict.line })?;
    }
    // The line is the whole message: a monitor shows it, and three more on standard error would only confuse.
    if verdict.code == exit_code::OK { Ok(()) } else { std::process::exit(i32::from(verdict.code)) }
}

fn judge(answer: Result<(Status, Option<JobList>), ClientError>) -> Verdict {
    let (store, jobs) = match answer {
        Ok((status, jobs)) => {
            (status.store, jobs.filter(|list| !list.jobs.is_empty() || list.problem.is_some()))
        }
        Err(error) => return Verdict { code: 2, line: format!("CRITICAL - {error}") },
    };
    let (severity, mut told) = jobs.as_ref().map_or((Severity::Ok, String::new()), standing::judge);
    if !told.is_empty() {
        told += "; ";
    }
    let count =
        jobs.map(|list| format!(", {}", output::count(list.jobs.len() as u64, "job"))).unwrap_or_default();
    let free = 100 - percent(store.used_bytes, store.pool_bytes).min(100);
    let (volumes, snapshots) =
        (output::count(store.volumes, "volume"), output::count(store.snapshots, "snapshot"));
    let facts = format!("{volumes}, {snapshots}, pool {free} % free{count}");
    let (code, word, problem) = match store.health {
        Health::Damaged => (2, "CRITICAL", "a volume is damaged; "),
        Health::SyncFailed => (2, "CRITICAL", "a sync has failed; "),
        Health::Ok if free < FREE_PERCENT_CRITICAL => (2, "CRITICAL", "the pool is full; "),
        Health::Ok if free < FREE_PERCENT_WARNING => (1, "WARNING", "the pool is nearly full; "),
        Health::Ok => (0, "OK", ""),
    };
    let (code, word) = match severity {
        Severity::Critical => (2, "CRITICAL"),
        Severity::Warning if code < 1 => (1, "WARNING"),
        _ => (code, word),
    };
    Verdict { code, line: format!("{word} - {problem}{told}{facts}") }
}

/// What `top -o jsonl` prints a time.
#[derive(Serialize)]
struct Rates<'a> {
    time_ms: u64,
    interval_ms: u64,
    reads_per_s: u64,
    read_bytes_per_s: u64,
    writes_per_s: u64,
    written_bytes_per_s: u64,
    flushes_per_s: u64,
    commits_per_s: u64,
    status: &'a Status,
}

impl<'a> Rates<'a> {
    fn between(before: &Status, status: &'a Status) -> Self {
        let interval_ms = status.now_ms.saturating_sub(before.now_ms).max(1);
        let (old, new) = (before.store.counters, status.store.counters);
        let rate = |of: fn(&Counters) -> u64| {
            // A daemon that was restarted in between counts from zero.
            let more = u128::from(of(&new).saturating_sub(of(&old)));
            u64::try_from(more * 1000 / u128::from(interval_ms)).unwrap_or(u64::MAX)
        };
        Self {
            time_ms: status.now_ms,
            interval_ms,
            reads_per_s: rate(|counters| counters.reads),
            read_bytes_per_s: rate(|counters| counters.read_bytes),
            writes_per_s: rate(|counters| counters.writes),
            written_bytes_per_s: rate(|counters| counters.written_bytes),
            flushes_per_s: rate(|counters| counters.flushes),
            commits_per_s: rate(|counters| counters.commits),
            status,
        }
    }
}

/// Leaves the terminal as it was, however we end.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, Failure> {
        output::write(SCREEN_ENTER.as_bytes())?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = std::io::stdout();
        if stdout.write_all(SCREEN_LEAVE.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            // The terminal is gone: there is nothing to leave sane.
        }
    }
}

pub(super) async fn top(context: &Context, args: &TopArgs) -> Result<(), Failure> {
    tokio::select! {
        result = watch(context, args) => result,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(|error| output::failure(&error)),
    }
}

async fn watch(context: &Context, args: &TopArgs) -> Result<(), Failure> {
    let on_screen = context.for_people() && !args.once && std::io::stdout().is_terminal();
    let what = || "cannot watch the store".to_owned();
    let mut before = context.client.status().await.trying(what)?;
    let _screen = on_screen.then(Screen::enter).transpose()?;
    loop {
        let pause = if args.once { Duration::from_secs(1) } else { Duration::from_secs(args.interval) };
        tokio::time::sleep(pause).await;
        let status = context.client.status().await.trying(what)?;
        let rates = Rates::between(&before, &status);
        if context.for_people() {
            let volumes = context.client.volumes().await.trying(what)?;
            let home = if on_screen { SCREEN_HOME } else { "" };
            output::write(format!("{home}{}{}", top_page(&rates), top_volumes(volumes)).as_bytes())?;
        } else {
            output::object(&rates)?;
        }
        if args.once {
            return Ok(());
        }
        before = status;
    }
}

fn top_page(rates: &Rates<'_>) -> String {
    format!(
        "{}now      {} reads/s ({}/s), {} writes/s ({}/s), {} flushes/s, {} commits/s\n\n",
        page(rates.status),
        rates.reads_per_s,
        Size(rates.read_bytes_per_s),
        rates.writes_per_s,
        Size(rates.written_bytes_per_s),
        rates.flushes_per_s,
        rates.commits_per_s
    )
}

/// Those with clients first, then the large ones.
fn top_volumes(mut volumes: Vec<VolumeInfo>) -> String {
    volumes.sort_by_key(|volume| std::cmp::Reverse((volume.clients, volume.own_bytes)));
    let left_off = volumes.len().saturating_sub(TOP_VOLUMES_MAX);
    let mut text = format!("{:<24} {:>10} {:>10} {:>8}  HEALTH\n", "VOLUME", "SIZE", "OWN", "CLIENTS");
    for volume in volumes.iter().take(TOP_VOLUMES_MAX) {
        let own = volume.own_bytes.map_or_else(|| "–".to_owned(), |own| Size(own).to_string());
        let size = Size(volume.size).to_string();
        let name = &volume.name;
        text +=
            &format!("{name:<24} {size:>10} {own:>10} {:>8}  {}\n", volume.clients, health(volume.health));
    }
    if left_off > 0 {
        text += &format!("… and {left_off} more\n");
    }
    text
}

pub(super) async fn events(context: &Context, args: &EventsArgs) -> Result<(), Failure> {
    tokio::select! {
        result = follow(context, args) => result,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(|error| output::failure(&error)),
    }
}

async fn follow(context: &Context, args: &EventsArgs) -> Result<(), Failure> {
    let mut after = args.after;
    let mut started_ms = None;
    loop {
        let wait = if args.follow { EVENTS_WAIT } else { Duration::ZERO };
        let page = context.client.events(after, wait).await.trying(|| "cannot follow events".to_owned())?;
        if started_ms.is_some_and(|started| started != page.started_ms) {
            progress::note("note: the daemon was restarted; events are numbered anew")?;
        }
        if page.lost > 0 {
            progress::note(&format!("note: {} are forgotten already", output::count(page.lost, "event")))?;
        }
        started_ms = Some(page.started_ms);
        page.events.iter().try_for_each(|event| tell_event(context, event))?;
        if page.events.is_empty() && !args.follow {
            return Ok(());
        }
        after = page.next_after;
    }
}

/// One a line in every form: events have no end that a single object could wait for.
fn tell_event(context: &Context, event: &Event) -> Result<(), Failure> {
    if !context.for_people() {
        return output::object(event);
    }
    let Event { time_ms, kind, subject, message, .. } = event;
    output::line(format!("{}  {kind}  {subject}  {message}", time::utc(*time_ms)).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::StoreStatus;

    fn status(used: u64, health: Health) -> Status {
        let store = StoreStatus {
            pool_bytes: 100 << 30,
            used_bytes: used << 30,
            pending_free_bytes: 0,
            commit: 7,
            uncommitted: 0,
            layers_to_reclaim: 1,
            volumes: 2,
            snapshots: 1,
            clients: 0,
            counters: Counters::default(),
            recent_log: true,
            health,
        };
        let (version, nbd_limits) = ("0.1.0".to_owned(), NbdLimits::default());
        Status { version, started_ms: 0, now_ms: 65_000, store, nbd_limits, nbd_tls_trouble: None }
    }

    #[test]
    fn monitors_get_a_line_and_a_code() {
        let verdict = |used, health| {
            let verdict = judge(Ok((status(used, health), None)));
            (verdict.code, verdict.line)
        };
        assert_eq!(verdict(50, Health::Ok), (0, "OK - 2 volumes, 1 snapshot, pool 50 % free".to_owned()));
        assert_eq!(verdict(91, Health::Ok).0, 1);
        assert_eq!(verdict(98, Health::Ok).0, 2);
        assert_eq!(verdict(0, Health::SyncFailed).0, 2);
        assert_eq!(judge(Err(ClientError::Late(CHECK_TIME_MAX))).code, 2);
    }

    #[test]
    fn the_page_is_short() {
        assert_eq!(
            page(&status(50, Health::Ok)),
            "blockd 0.1.0  up 1m 5s  health ok
pool     50 GiB of 100 GiB used (50 %), 0 B being freed
objects  2 volumes, 1 snapshot, 0 clients
served   0 reads (0 B), 0 writes (0 B), 0 flushes, 0 errors
commits  last 7, 0 records waiting
behind   1 layer to reclaim
"
        );
    }

    #[test]
    fn rates_survive_a_restart() {
        let (mut before, after) = (status(0, Health::Ok), status(0, Health::Ok));
        before.store.counters.reads = 9;
        assert_eq!(Rates::between(&before, &after).reads_per_s, 0);
    }
}
