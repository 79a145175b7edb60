//! What `blockctl job show` says of a job with one target.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// How a replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    /// `ok`, `behind` and others.
    pub(super) state: String,
    /// Why it is not `ok`.
    pub(super) reason: Option<String>,
    /// The snapshot that the target had verified last.
    pub(super) snapshot: String,
    /// When that was cut: milliseconds since 1970.
    pub(super) point_ms: u64,
    /// How old it is.
    pub(super) lag: Duration,
    /// Bytes that the last successful run has sent, as the job says.
    pub(super) shipped: u64,
    /// Runs that have failed since the last good one.
    pub(super) failures: u64,
    /// A run waits or is under way.
    pub(super) is_running: bool,
}

impl Standing {
    /// Reads the answer of `job show -o json`; there must be a verified point.
    pub(super) fn read(answer: &Value) -> Result<Self> {
        parse(answer).with_context(|| format!("blockctl job show said {answer}"))
    }

    /// The last run went well, and the copy is no older than `lag`.
    pub(super) fn is_fresh(&self, lag: Duration) -> bool {
        self.state == "ok" && self.lag <= lag
    }
}

fn parse(answer: &Value) -> Option<Standing> {
    let [target] = answer.get("targets")?.as_array()?.as_slice() else { return None };
    let number = |key: &str| target.get(key)?.as_u64();
    let text = |key: &str| Some(target.get(key)?.as_str()?.to_owned());
    Some(Standing {
        state: text("state")?,
        reason: text("reason"),
        snapshot: text("last_snapshot")?,
        point_ms: number("last_point_ms")?,
        lag: Duration::from_millis(number("lag_ms")?),
        shipped: number("shipped_bytes")?,
        failures: number("failures")?,
        is_running: !target.get("running")?.is_null(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        let target = json!({
            "to": "B", "state": "behind", "reason": "127.0.0.1:1: the connection broke off", "last_snapshot": "s-1",
            "last_point_ms": 1000, "lag_ms": 7500, "shipped_bytes": 42, "failures": 2, "running": null
        });
        json!({"v": 1, "from": "A", "job": {"name": "web-B"}, "targets": [target], "runs": []})
    }

    #[test]
    fn a_standing_is_read() {
        let standing = Standing::read(&answer()).unwrap();
        let expected = Standing {
            state: "behind".into(),
            reason: Some("127.0.0.1:1: the connection broke off".into()),
            snapshot: "s-1".into(),
            point_ms: 1000,
            lag: Duration::from_millis(7500),
            shipped: 42,
            failures: 2,
            is_running: false,
        };
        assert_eq!(standing, expected);
        let mut running = answer();
        running["targets"][0]["running"] = json!({"phase": "connecting"});
        assert!(Standing::read(&running).unwrap().is_running);
        assert!(Standing::read(&json!({"targets": []})).is_err());
    }

    #[test]
    fn fresh_is_in_order_and_young() {
        let mut standing = Standing::read(&answer()).unwrap();
        let lag = Duration::from_secs(8);
        assert!(!standing.is_fresh(lag), "it is behind");
        standing.state = "ok".into();
        assert!(standing.is_fresh(lag) && !standing.is_fresh(Duration::from_secs(7)));
    }
}
