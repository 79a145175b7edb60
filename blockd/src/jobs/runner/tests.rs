//! Jobs over hours and years of paused time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::*;
use crate::jobs::carrier::RunErrorKind as Kind;
use crate::jobs::desk::Change;
use crate::jobs::job::TARGETS_MAX;
use crate::jobs::keep::Keep;
use crate::jobs::view::{Severity, State};

mod world;

use world::{BEGIN_MS, Step, World, job};

const YEARS_10_MS: i64 = 3652 * 86_400_000;

#[tokio::test(start_paused = true)]
async fn a_job_runs_every_so_often_and_says_how_old_its_point_is() {
    let world = World::new();
    world.jobs.add(job("web", "15s")).await.unwrap();
    assert_eq!(world.target("web").await.state, State::Never);
    assert_eq!(world.target("web").await.lag_ms, None);
    world.pass(62).await;
    let begun = world.begun();
    assert!(begun[0] <= 1, "the first run does not wait long: {begun:?}");
    let gaps: Vec<u64> = begun.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps, [15, 15, 15, 15]);
    let target = world.target("web").await;
    assert_eq!((target.state, target.totals.runs, target.shipped_bytes), (State::Ok, 5, Some(1000)));
    assert!(target.lag_ms.unwrap() < 15_000 && target.limit_ms == Some(45_000), "{target:?}");
    let history = world.jobs.history("web", 3).await.unwrap();
    assert_eq!(history.iter().map(|run| run.run).collect::<Vec<_>>(), [3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_run_is_tried_again_after_1_2_4_seconds_and_so_on() {
    let world = World::scripted(&[Step::Ok(0)]);
    world.then(&[Step::Fail(Kind::Unreachable); 12]);
    world.jobs.add(job("web", "60s")).await.unwrap();
    world.pass(3000).await;
    let begun = world.begun();
    let gaps: Vec<u64> = begun.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let expected = [60, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300];
    for (gap, expected) in gaps.iter().zip(expected) {
        assert!(*gap <= expected + 1 && gap + 2 >= expected / 5 * 4, "{gaps:?}");
    }
    assert_eq!(gaps.last(), Some(&60), "all is well again");
    assert_eq!(world.target("web").await.state, State::Ok);
    assert_eq!(world.told(), ["job_added", "job_ok", "job_behind", "job_ok"], "once for each change");
}

#[tokio::test(start_paused = true)]
async fn behind_says_why_and_when_it_is_tried_next() {
    let world = World::scripted(&[Step::Ok(0)]);
    world.then(&[Step::Fail(Kind::Unreachable); 50]);
    world.jobs.add(job("web", "60s")).await.unwrap();
    world.pass(1000).await;
    let view = world.jobs.show("web").await.unwrap();
    let target = &view.targets[0];
    assert_eq!((target.state, target.reason.as_deref()), (State::Behind, Some("unreachable")));
    let wait_ms = target.next_try_ms.unwrap() - world.clock.now().wall_ms;
    assert!(wait_ms <= 300_000, "{wait_ms}");
    assert!(target.lag_ms.unwrap() > 900_000 && target.failures >= 8);
    assert_eq!(view.severity(target), Severity::Warning);
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_person_is_failed_and_looked_at_every_five_minutes() {
    for kind in [Kind::Refused, Kind::Verification, Kind::Damaged, Kind::NoSpace, Kind::NotFound] {
        let world = World::scripted(&[Step::Fail(kind)]);
        world.jobs.add(job("web", "15s")).await.unwrap();
        world.pass(100).await;
        let view = world.jobs.show("web").await.unwrap();
        assert_eq!(view.targets[0].state, State::Failed, "{kind}");
        assert_eq!(view.severity(&view.targets[0]), Severity::Critical);
        assert_eq!(world.begun().len(), 1);
        world.pass(250).await;
        assert_eq!(world.target("web").await.state, State::Ok, "somebody has put it right");
    }
}

#[tokio::test(start_paused = true)]
async fn runs_that_were_missed_while_one_was_slow_become_one() {
    let world = World::scripted(&[Step::Ok(100_000)]);
    world.jobs.add(job("web", "15s")).await.unwrap();
    world.pass(105).await;
    let begun = world.begun();
    assert_eq!(begun.len(), 2, "{begun:?}");
    assert_eq!(world.script.at_once_max.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_set_clock_neither_stops_jobs_nor_makes_points_look_young() {
    let world = World::new();
    world.jobs.add(job("web", "60s")).await.unwrap();
    world.jobs.add(job("cal", "*:0/5")).await.unwrap();
    world.pass(610).await;
    let of = |name: &str| world.orders().iter().filter(|order| order.job == name).count();
    assert_eq!((of("web"), of("cal")), (11, 2));
    world.clock.set_by(YEARS_10_MS);
    world.pass(600).await;
    assert_eq!((of("web"), of("cal")), (21, 5), "one more for all that was passed over");
    world.clock.set_by(-2 * YEARS_10_MS);
    let lag_ms = world.target("web").await.lag_ms.unwrap();
    assert!(lag_ms < 61_000, "{lag_ms}");
    world.then(&[Step::Hang; 2]);
    world.pass(300).await;
    let lag_ms = world.target("web").await.lag_ms.unwrap();
    assert!(lag_ms >= 240_000, "its clock shows 20 years earlier, and it is {lag_ms} ms old");
    world.jobs.cancel("web").await.unwrap();
    world.jobs.cancel("cal").await.unwrap();
    world.pass(3600).await;
    assert!(of("cal") >= 15 && of("cal") <= 19, "{}", of("cal"));
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_the_truth() {
    let world = World::scripted(&[Step::Ok(2000)]);
    world.jobs.add(job("web", "1h")).await.unwrap();
    world.pass(1000).await;
    let before = world.target("web").await;
    assert!(before.lag_ms.unwrap() >= 990_000);
    world.clock.set_by(-YEARS_10_MS);
    let world = world.restarted(&[]).await;
    world.pass(100).await;
    let after = world.target("web").await;
    assert!(after.lag_ms.unwrap() >= before.lag_ms.unwrap() + 100_000, "{after:?}");
    assert_eq!((after.last_snapshot, after.totals), (before.last_snapshot, before.totals));
    assert!(world.begun().is_empty(), "it is not due before its hour");
    world.pass(2600).await;
    assert_eq!(world.begun().len(), 1);
    assert_eq!(world.orders()[0].run_id, 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_record_means_an_unknown_lag_unless_the_target_knows() {
    let world = World::new();
    world.jobs.add(job("web", "1h")).await.unwrap();
    world.pass(100).await;
    let state = world.dir.path().join("jobs-state/web.json");
    std::fs::write(&state, "{\"version\":1,").unwrap();
    let world = world.restarted(&[Step::Hang]).await;
    let target = world.target("web").await;
    assert_eq!((target.state, target.lag_ms), (State::Never, None));
    assert!(world.told().contains(&"job_record_lost".to_owned()));
    world.jobs.stop().await;
    std::fs::remove_file(&state).unwrap_or(());
    let found = crate::jobs::carrier::FoundPoint { point_ms: BEGIN_MS, snapshot: "s".to_owned(), root: None };
    let world = World::with(world.dir, Vec::new(), &[Step::Hang]);
    *world.script.found.lock().unwrap() = Some(found);
    world.pass(50).await;
    assert!(world.target("web").await.lag_ms.unwrap() >= 50_000);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_run_of_a_calendar_job_is_made_up_for_after_the_restart() {
    let world = World::scripted(&[Step::Hang]);
    world.jobs.add(job("web", "daily 14:04")).await.unwrap();
    world.pass(120).await;
    assert_eq!(world.begun().len(), 1);
    let world = world.restarted(&[Step::Fail(Kind::Unreachable); 20]).await;
    world.pass(1).await;
    assert_eq!(world.begun()[0], 120, "as due as it was");
    let world = world.restarted(&[]).await;
    world.pass(5).await;
    assert_eq!(world.begun().len(), 1, "what had failed is tried again");
    assert_eq!(world.target("web").await.state, State::Ok);
    let world = world.restarted(&[]).await;
    world.pass(3600).await;
    assert!(world.begun().is_empty(), "once a day");
    // The time comes while nobody is there.
    world.jobs.add(job("late", "daily 16:00")).await.unwrap();
    world.jobs.stop().await;
    world.pass(7200).await;
    let world = world.restarted(&[]).await;
    world.pass(60).await;
    assert_eq!(world.orders().iter().filter(|order| order.job == "late").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_the_run_and_resuming_goes_on() {
    let world = World::scripted(&[Step::Hang]);
    world.jobs.add(job("web", "15s")).await.unwrap();
    world.pass(5).await;
    let started = world.jobs.run("web").await.unwrap();
    assert_eq!(world.begun().len(), 1, "the one under way is joined");
    world.jobs.pause("web", true).await.unwrap();
    assert!(started[0].watch.ended().await.is_err());
    world.pass(600).await;
    assert_eq!(world.begun().len(), 1);
    let target = world.target("web").await;
    assert_eq!((target.state, target.failures, target.next_try_ms), (State::Paused, 0, None));
    assert_eq!(world.jobs.run("web").await.err().unwrap().kind, ErrorKind::Refused);
    let world = world.restarted(&[]).await;
    world.pass(600).await;
    assert!(world.begun().is_empty(), "still paused");
    world.jobs.pause("web", false).await.unwrap();
    world.pass(1).await;
    assert_eq!(world.begun().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_job_is_gone_and_a_new_one_of_its_name_waits_for_its_end() {
    let world = World::scripted(&[Step::Ok(0), Step::Deaf]);
    world.jobs.add(job("web", "15s")).await.unwrap();
    world.pass(20).await;
    assert_eq!(world.begun().len(), 2);
    world.jobs.delete("web").await.unwrap();
    assert_eq!(world.jobs.show("web").await.unwrap_err().kind, ErrorKind::NotFound);
    assert!(!world.dir.path().join("jobs-state/web.json").exists());
    world.jobs.add(job("web", "15s")).await.unwrap();
    world.pass(600).await;
    assert_eq!(world.begun().len(), 2, "one run at a time for a job and target");
    assert_eq!(world.target("web").await.totals.runs, 0, "what the other one did does not count");
}

#[tokio::test(start_paused = true)]
async fn an_end_of_a_deleted_job_brings_nothing_back() {
    let world = World::scripted(&[Step::Ok(30_000)]);
    world.jobs.add(job("web", "15s")).await.unwrap();
    world.pass(5).await;
    world.jobs.delete("web").await.unwrap();
    world.pass(60).await;
    assert_eq!(world.script.at_once.load(Ordering::Relaxed), 0);
    assert!(!world.dir.path().join("jobs-state/web.json").exists());
    assert!(world.jobs.list().await.unwrap().jobs.is_empty());
}

#[tokio::test(start_paused = true)]
async fn few_runs_at_once_and_all_get_their_turn() {
    let world = World::scripted(&[Step::Ok(10_000); 40]);
    for number in 0..20 {
        world.jobs.add(job(&format!("job-{number}"), "1h")).await.unwrap();
    }
    world.pass(100).await;
    assert_eq!(world.script.at_once_max.load(Ordering::Relaxed), RUNS_MAX);
    assert_eq!(world.begun().len(), 20);
    assert!(world.begun().iter().all(|&at| at < 70), "{:?}", world.begun());
}

#[tokio::test(start_paused = true)]
async fn runs_to_several_targets_make_snapshots_of_their_own() {
    let world = World::new();
    let to = (0..TARGETS_MAX).map(|number| format!("host-{number}")).collect();
    world.jobs.add(Job { to, ..job("web", "manual") }).await.unwrap();
    world.jobs.run("web").await.unwrap();
    world.pass(5).await;
    let names: std::collections::BTreeSet<String> =
        world.orders().into_iter().map(|order| order.snapshot).collect();
    assert_eq!(names.len(), TARGETS_MAX);
    let groups: std::collections::BTreeSet<_> =
        world.orders().into_iter().map(|order| order.together.id().unwrap()).collect();
    assert_eq!(groups.len(), 1, "they may all bring what one of them cuts");
}

#[tokio::test(start_paused = true)]
async fn targets_that_are_out_of_step_come_together_again() {
    // The second target fails at first, and is tried again between the others' times.
    let steps = [Step::Ok(100), Step::Fail(RunErrorKind::Unreachable), Step::Fail(RunErrorKind::Unreachable)];
    let world = World::scripted(&steps);
    world.jobs.add(Job { to: vec!["B".to_owned(), "C".to_owned()], ..job("web", "60s") }).await.unwrap();
    world.pass(400).await;
    let orders = world.orders();
    let alone: Vec<_> = orders.iter().filter(|order| order.together.id().is_none()).collect();
    assert!((1..=3).contains(&alone.len()), "{alone:?}");
    assert!(alone.iter().all(|order| order.to == "C"));
    let last: Vec<_> = orders.iter().rev().take(4).collect();
    for pair in last.chunks(2) {
        assert!(
            pair[0].together.id().is_some() && pair[0].together.id() == pair[1].together.id(),
            "{pair:?}"
        );
    }
    // Nobody is brought more often for it.
    assert!(orders.iter().filter(|order| order.to == "B").count() <= 400 / 60 + 2);
}

#[tokio::test(start_paused = true)]
async fn there_is_a_limit_on_jobs() {
    let configured: Vec<Job> = (0..JOBS_MAX - 1)
        .map(|number| Job { from_config: true, ..job(&format!("job-{number}"), "manual") })
        .collect();
    let world = World::with(tempfile::tempdir().unwrap(), configured, &[]);
    world.jobs.add(job("last", "manual")).await.unwrap();
    let refused = world.jobs.add(job("more", "manual")).await.unwrap_err();
    assert_eq!((refused.kind, refused.message.as_str()), (ErrorKind::Refused, "there are 1000 jobs already"));
    assert_eq!(world.jobs.once(job("more", "manual")).await.err().unwrap().kind, ErrorKind::Refused);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_told_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.json");
    std::fs::write(&path, "{\"version\":1,\"jobs\":[{\"name\"").unwrap();
    let configured = vec![Job { from_config: true, ..job("cfg", "15s") }];
    let world = World::with(dir, configured, &[]);
    let overview = world.jobs.list().await.unwrap();
    assert!(overview.problem.unwrap().starts_with(&format!("{} is damaged: ", path.display())));
    assert_eq!(world.jobs.add(job("web", "15s")).await.unwrap_err().kind, ErrorKind::Damaged);
    world.pass(60).await;
    assert!(world.begun().len() >= 3, "what stands in the configuration runs");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"version\":1,\"jobs\":[{\"name\"");
}

#[tokio::test(start_paused = true)]
async fn jobs_of_the_configuration_are_changed_there() {
    let configured = || vec![Job { from_config: true, ..job("cfg", "15s") }];
    let world = World::with(tempfile::tempdir().unwrap(), configured(), &[]);
    assert_eq!(world.jobs.delete("cfg").await.unwrap_err().kind, ErrorKind::Refused);
    assert_eq!(world.jobs.add(job("cfg", "15s")).await.unwrap_err().kind, ErrorKind::Exists);
    world.jobs.pause("cfg", true).await.unwrap();
    world.jobs.add(job("own", "15s")).await.unwrap();
    world.jobs.stop().await;
    let world = World::with(world.dir, configured(), &[]);
    let view = world.jobs.show("cfg").await.unwrap();
    assert!(view.job.from_config && view.job.paused, "a pause outlives the daemon");
    let stored = std::fs::read_to_string(world.dir.path().join("jobs.json")).unwrap();
    assert!(stored.contains("own") && !stored.contains("cfg"), "{stored}");
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_changed_while_it_runs() {
    let world = World::scripted(&[Step::Hang]);
    world.jobs.add(Job { rate: Some(1000), ..job("web", "15s") }).await.unwrap();
    world.pass(5).await;
    let started = world.jobs.run("web").await.unwrap();
    assert_eq!(started[0].watch.rate(), Some(1000));
    world.jobs.change("web", Change { rate: Some(Some(7)), rpo: None }).await.unwrap();
    assert_eq!(started[0].watch.rate(), Some(7));
    let bad = world.jobs.change("web", Change { rate: Some(Some(0)), rpo: None }).await;
    assert_eq!(bad.unwrap_err().kind, ErrorKind::BadValue);
    world.jobs.change("web", Change { rate: Some(None), rpo: None }).await.unwrap();
    assert_eq!(started[0].watch.rate(), None);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_panics_is_a_failed_run() {
    let world = World::scripted(&[Step::Panic]);
    world.jobs.add(job("web", "15s")).await.unwrap();
    world.pass(10).await;
    assert_eq!(world.target("web").await.state, State::Failed);
    world.pass(400).await;
    assert_eq!(world.target("web").await.state, State::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_the_deaf() {
    let world = World::scripted(&[Step::Hang, Step::Deaf]);
    world.jobs.add(job("a", "15s")).await.unwrap();
    world.jobs.add(job("b", "15s")).await.unwrap();
    world.pass(5).await;
    let began = Instant::now();
    timeout(Duration::from_secs(6), world.jobs.stop()).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), STOP_TIME_MAX.as_secs());
    assert_eq!(world.script.at_once.load(Ordering::Relaxed), 0);
    assert_eq!(world.jobs.list().await.unwrap_err().kind, ErrorKind::Stopping);
}

#[tokio::test(start_paused = true)]
async fn snapshots_go_after_a_run_but_never_the_common_base() {
    let world = World::new();
    world.store.cut(&["web".to_owned()], "monday", BEGIN_MS);
    let keep = Keep { last: 2, ..Keep::default() };
    world.jobs.add(Job { keep, ..job("web", "15s") }).await.unwrap();
    world.pass(100).await;
    let base = world.target("web").await.last_snapshot.unwrap();
    let names = world.store.names();
    assert_eq!((names.len(), names[0].as_str()), (3, "monday"));
    assert!(names.contains(&base));
    // Another job's own runs do not take this one's base, however old it becomes.
    world.jobs.pause("web", true).await.unwrap();
    world.jobs.add(Job { keep, ..job("other", "15s") }).await.unwrap();
    world.pass(100).await;
    assert!(world.store.names().contains(&base));
}

#[tokio::test(start_paused = true)]
async fn what_ran_once_is_remembered_for_its_base() {
    let world = World::new();
    let started = world.jobs.once(job("web-B", "manual")).await.unwrap();
    let report = started[0].watch.ended().await.unwrap();
    let guards = world.jobs.protection("web").await.unwrap().guards;
    assert_eq!(guards[0].base.as_ref(), Some(&report.snapshot));
    let world = world.restarted(&[]).await;
    assert_eq!(world.jobs.protection("web").await.unwrap().guards[0].base, Some(report.snapshot));
    let view = world.jobs.show("web-B").await.unwrap();
    assert!(view.once && view.targets[0].lag_ms.is_some());
    // It becomes a job of its own, with what it knows.
    world.jobs.add(job("web-B", "1h")).await.unwrap();
    assert!(world.target("web-B").await.lag_ms.is_some());
    let other = Job { to: vec!["C".to_owned()], ..job("web-B", "manual") };
    assert_eq!(world.jobs.once(other).await.err().unwrap().kind, ErrorKind::Exists);
}

#[tokio::test(start_paused = true)]
async fn what_ran_once_and_failed_leaves_nothing() {
    let world = World::scripted(&[Step::Fail(Kind::Refused)]);
    let started = world.jobs.once(job("web-B", "manual")).await.unwrap();
    assert_eq!(started[0].watch.ended().await.unwrap_err().kind, Kind::Refused);
    assert!(world.jobs.list().await.unwrap().jobs.is_empty());
    assert!(world.jobs.list().await.unwrap().problem.is_none());
}

#[tokio::test(start_paused = true)]
async fn monitors_are_not_told_of_what_somebody_ran_once() {
    let world = World::scripted(&[Step::Ok(0), Step::Fail(Kind::Refused)]);
    for _ in 0..2 {
        let started = world.jobs.once(job("web-B", "manual")).await.unwrap();
        drop(started[0].watch.ended().await);
    }
    let view = world.jobs.show("web-B").await.unwrap();
    assert_eq!((view.targets[0].state, view.severity(&view.targets[0])), (State::Failed, Severity::Ok));
}

#[tokio::test(start_paused = true)]
async fn monitors_are_warned_before_the_objective_is_missed() {
    let world = World::scripted(&[Step::Ok(0), Step::Hang]);
    let rpo = Some("100s".parse().unwrap());
    world.jobs.add(Job { rpo, ..job("web", "1h") }).await.unwrap();
    world.pass(12).await;
    let cut_ms = world.target("web").await.last_point_ms.unwrap();
    let mut seen = Vec::new();
    for lag_s in [70, 81, 101] {
        let target_ms = cut_ms + lag_s * 1000;
        world.pass((target_ms - world.clock.now().wall_ms).div_ceil(1000)).await;
        let view = world.jobs.show("web").await.unwrap();
        seen.push((view.targets[0].state, view.severity(&view.targets[0])));
    }
    assert_eq!(
        seen,
        [(State::Ok, Severity::Ok), (State::Ok, Severity::Warning), (State::Behind, Severity::Warning)]
    );
}
