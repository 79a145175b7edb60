//! A carrier that brings nothing anywhere: the target's name says what becomes of a run.

use std::sync::Arc;

use blockd::control::{Control, SnapshotName};
use blockd::events::now_ms;
use blockd::jobs::carrier::{
    Carrier, Carrying, Outcome, Phase, RunError, RunErrorKind, RunOrder, RunReport, RunWatch,
};
use blockd::service::Engine;
use tokio::sync::oneshot;

use crate::engine::TestEngine;

/// `down` cannot be reached, `no` refuses, `slow` takes until it is cancelled; all others get what is sent.
pub(crate) struct TestCarrier(pub(crate) Arc<TestEngine>);

impl Carrier for TestCarrier {
    fn run(&self, order: RunOrder, watch: Arc<RunWatch>) -> Carrying<Outcome> {
        let engine = Arc::clone(&self.0);
        Box::pin(async move {
            match order.to.as_str() {
                "down" => return Err(RunError::new(RunErrorKind::Unreachable, "nobody answers at down")),
                "no" => return Err(RunError::new(RunErrorKind::Refused, "no does not know us")),
                _ => {}
            }
            watch.about_to_cut();
            let point_ms = now_ms();
            let name =
                |volume: &String| SnapshotName { volume: volume.clone(), snapshot: order.snapshot.clone() };
            let (sender, cut) = oneshot::channel();
            engine
                .submit(Control::CreateSnapshots { names: order.volumes.iter().map(name).collect() }, sender);
            cut.await.unwrap().unwrap();
            watch.update(|progress| {
                (progress.phase, progress.bytes_total, progress.bytes_done) =
                    (Phase::Sending, 24 << 20, 8 << 20);
            });
            if order.to == "slow" {
                watch.cancelled().await;
                return Err(RunError::new(RunErrorKind::Cancelled, "it was told to end"));
            }
            Ok(RunReport {
                bytes_shared: 0,
                point_ms,
                snapshot: order.snapshot,
                root: Some("a7".repeat(32)),
                bytes_changed: 24 << 20,
                bytes_sent: 3 << 20,
                bytes_zero: 1 << 20,
                bytes_deduped: 2 << 20,
                bytes_compressed_saved: 4 << 20,
            })
        })
    }
}
