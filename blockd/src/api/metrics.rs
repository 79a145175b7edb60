//! `GET /v1/metrics`: what Prometheus reads.

use std::fmt::{Display, Write};

use axum::extract::State as Extract;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::answer::Refusal;
use super::routes::{Context, unexpected};
use crate::control::{Answer, Control, Health, StoreStatus};
use crate::jobs::desk::Overview;
use crate::jobs::view::{JobView, State, TargetView};

/// Prometheus' text format, version 0.0.4.
const CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) async fn metrics(Extract(state): Context) -> Result<Response, Refusal> {
    let store = match state.service.call(Control::Status).await? {
        Answer::Status(store) => *store,
        other => return Err(unexpected(&other)),
    };
    let jobs = match &state.service.jobs {
        Some(jobs) => Some(jobs.list().await?),
        None => None,
    };
    let mut text = Text::default();
    text.store(&store);
    text.exports(state.service.door.registry());
    if let Some(overview) = &jobs {
        text.jobs(overview);
    }
    Ok(([(CONTENT_TYPE, CONTENT)], text.into_text()).into_response())
}

#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn into_text(self) -> String {
        self.0
    }

    pub(super) fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    pub(super) fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        self.push(format_args!("{name}{labels} {value}"));
    }

    fn push(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        self.0.write_fmt(line).and_then(|()| self.0.write_char('\n')).expect("memory takes text");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.value(name, "", value);
    }

    fn store(&mut self, store: &StoreStatus) {
        let counters = &store.counters;
        for (name, help, value) in [
            ("blockd_io_read_bytes_total", "Bytes that clients have read.", counters.read_bytes),
            ("blockd_io_written_bytes_total", "Bytes that clients have written.", counters.written_bytes),
            ("blockd_io_reads_total", "Reads.", counters.reads),
            ("blockd_io_writes_total", "Writes.", counters.writes),
            ("blockd_io_zeroes_total", "Ranges that were zeroed or trimmed.", counters.zeroes),
            ("blockd_io_flushes_total", "Flushes.", counters.flushes),
            ("blockd_io_errors_total", "Requests that were answered with an error.", counters.errors),
            ("blockd_commits_total", "Commits.", counters.commits),
            ("blockd_syncs_total", "Syncs of the pool.", counters.syncs),
        ] {
            self.one(name, "counter", help, value);
        }
        for (name, help, value) in [
            ("blockd_pool_bytes", "Bytes that the pool may hold.", store.pool_bytes),
            ("blockd_pool_used_bytes", "Bytes of it in use.", store.used_bytes),
            (
                "blockd_pool_pending_free_bytes",
                "Freed bytes that wait for a commit.",
                store.pending_free_bytes,
            ),
            ("blockd_uncommitted_records", "Map records that wait for a commit.", store.uncommitted),
            ("blockd_layers_to_reclaim", "Layers that are to be merged or dropped.", store.layers_to_reclaim),
            ("blockd_volume_count", "Volumes.", store.volumes),
            ("blockd_snapshot_count", "Snapshots.", store.snapshots),
            ("blockd_clients", "NBD clients connected.", store.clients),
            (
                "blockd_healthy",
                "1: no volume is damaged, no sync has failed.",
                u64::from(store.health == Health::Ok),
            ),
        ] {
            self.one(name, "gauge", help, value);
        }
    }

    fn jobs(&mut self, overview: &Overview) {
        let gauges: [(&str, &str, Gauge); 4] = [
            ("blockd_sync_lag_seconds", "Age of the last verified point.", |target| {
                target.lag_ms.map(seconds)
            }),
            ("blockd_sync_limit_seconds", "How old it may become.", |target| target.limit_ms.map(seconds)),
            ("blockd_sync_last_success_timestamp_seconds", "When the last point was verified.", |target| {
                target.last_success_ms.map(seconds)
            }),
            ("blockd_sync_failures", "Failed runs since then.", |target| Some(target.failures.to_string())),
        ];
        for (name, help, value) in gauges {
            self.head(name, "gauge", help);
            for (job, target) in targets(overview) {
                if let Some(value) = value(target) {
                    self.value(name, &labels(job, target, ""), value);
                }
            }
        }
        const STATES: [State; 5] = [State::Ok, State::Never, State::Behind, State::Failed, State::Paused];
        self.by(
            "blockd_sync_state",
            "gauge",
            "1 for the state that it is in.",
            "state",
            overview,
            |target| STATES.map(|state| (state.to_string(), u64::from(state == target.state))).into(),
        );
        let help = "Bytes brought to targets, by how.";
        self.by("blockd_sync_shipped_bytes_total", "counter", help, "kind", overview, |target| {
            let totals = &target.totals;
            let kinds =
                [("data", totals.bytes_sent), ("zero", totals.bytes_zero), ("dedupe", totals.bytes_deduped)];
            kinds.map(|(kind, bytes)| (kind.to_owned(), bytes)).into()
        });
        self.by(
            "blockd_sync_runs_total",
            "counter",
            "Runs, by how they ended.",
            "result",
            overview,
            |target| {
                let (runs, failed) = (target.totals.runs, target.totals.failed);
                vec![("ok".to_owned(), runs.saturating_sub(failed)), ("failed".to_owned(), failed)]
            },
        );
    }

    /// A metric with one more label, and a value for each of its words.
    fn by(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        overview: &Overview,
        values: impl Fn(&TargetView) -> Vec<(String, u64)>,
    ) {
        self.head(name, kind, help);
        for (job, target) in targets(overview) {
            for (word, value) in values(target) {
                self.value(name, &labels(job, target, &format!(",{label}=\"{word}\"")), value);
            }
        }
    }
}

/// What a gauge says of a target; `None`: nothing.
type Gauge = fn(&TargetView) -> Option<String>;

fn targets(overview: &Overview) -> impl Iterator<Item = (&JobView, &TargetView)> {
    overview.jobs.iter().flat_map(|job| job.targets.iter().map(move |target| (job, target)))
}

/// Names have no characters that would have to be escaped.
fn labels(job: &JobView, target: &TargetView, more: &str) -> String {
    format!("{{job=\"{}\",to=\"{}\"{more}}}", job.job.name, target.to)
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}
