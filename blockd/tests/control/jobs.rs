//! Jobs, `sync`, retention and metrics as people, scripts and monitors see them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use blockd::jobs::job::Job;
use serde_json::Value;

use crate::engine::TestEngine;
use crate::harness::Daemon;

fn populated() -> Daemon {
    let daemon = Daemon::start(TestEngine::default());
    daemon.ok("volume create web --size 64GiB");
    daemon.ok("volume create db --size 1T");
    daemon
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The words of a table's line, from a column on that does not change with time.
fn line<'a>(text: &'a str, begins: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("no {begins} in {text}"))
}

#[test]
fn one_line_makes_a_copy_without_any_configuration() {
    let daemon = populated();
    let out = daemon.ok("sync web --to B");
    assert!(
        out.starts_with("web-B→B  ok  3 MiB sent of 24 MiB that changed (87 % saved); @auto-web-B-"),
        "{out}"
    );
    let listed = daemon.ok("job list");
    assert_eq!(
        listed.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["JOB", "FROM→TO", "EVERY", "LAST", "POINT", "LAG", "SHIPPED", "STATE"]
    );
    let row = line(&listed, "web-B");
    assert!(row.contains("A→B") && row.contains("once") && row.ends_with("3 MiB  ok"), "{row}");
    let plan = daemon.ok("sync web --to B --plan");
    assert!(plan.starts_with("would bring web to B: what has changed since @auto-web-B-"), "{plan}");
    assert!(daemon.ok("check").ends_with("pool 90 % free, 1 job\n"));
}

#[test]
fn a_schedule_makes_a_job() {
    let daemon = populated();
    assert_eq!(
        daemon.ok("sync web db --to B --every 1h --plan"),
        "would add job web-B (1h); its first run brings web, db to B: all data, or what it does not have yet: no common \
         snapshot is on record\nNothing was changed. Run without --plan to do it.\n"
    );
    assert_eq!(daemon.ok("sync web db --to B --every 1h"), "added job web-B: web, db to B, every 1h\n");
    assert_eq!(daemon.run("sync web --to B --every 1h").0, 1, "the name is taken");
    let job = json(&daemon.ok("job show web-B -o json"));
    assert_eq!((&job["v"], &job["from"], &job["job"]["volumes"][1]), (&1.into(), &"A".into(), &"db".into()));
    assert_eq!(job["job"]["schedule"], "1h");
}

#[test]
fn a_job_through_its_life() {
    let daemon = populated();
    let add = "job add web --volume web --volume db --to B --to C --at hourly --keep-last 2 --keep-remote-daily 7 \
               --rate 40MB/s --rpo 90m";
    assert_eq!(daemon.ok(add), "added job web: web, db to B, C, at hourly\n");
    let out = daemon.ok("job run web");
    assert_eq!(out.lines().filter(|line| line.contains("  ok  ")).count(), 2, "{out}");
    let shown = daemon.ok("job show web");
    assert_eq!(line(&shown, "keeps there").split_whitespace().last(), Some("{\"daily\":7}"));
    assert!(line(&shown, "rate").ends_with("40 MiB/s") && line(&shown, "rpo").ends_with("1h30m"), "{shown}");
    assert!(line(&shown, "RUN").contains("RESULT") && shown.contains(&"a7".repeat(32)), "{shown}");
    daemon.ok("job set web --rate none --rpo 2h");
    let job = json(&daemon.ok("job show web -o json"));
    assert_eq!((&job["job"]["rate"], &job["job"]["rpo"]), (&Value::Null, &"2h".into()));
    assert_eq!(
        (&job["targets"][0]["limit_ms"], job["runs"].as_array().unwrap().len()),
        (&7_200_000.into(), 2)
    );
    assert_eq!(daemon.ok("job pause web"), "paused job web\n");
    let (code, _, stderr) = daemon.run("job run web");
    assert_eq!((code, stderr.lines().nth(1)), (5, Some("why:   job web is paused")));
    assert!(daemon.ok("job list").contains("paused"));
    daemon.ok("job resume web");
    assert_eq!(daemon.ok("job delete web"), "deleted job web; its snapshots stay\n");
    assert_eq!(daemon.run("job show web").0, 3);
    assert_eq!(daemon.ok("job list"), "no jobs; make one: blockctl sync NAME --to HOST --every 30s\n");
    let kinds: Vec<String> = daemon
        .ok("events -o jsonl")
        .lines()
        .map(|line| json(line)["kind"].as_str().unwrap().to_owned())
        .collect();
    for kind in ["job_added", "job_ok", "job_paused", "job_resumed", "job_deleted"] {
        assert!(kinds.iter().any(|told| told == kind), "{kind}: {kinds:?}");
    }
}

#[test]
fn failures_say_what_why_and_what_next() {
    let daemon = populated();
    for (words, code) in [
        ("sync web --to down", 7),
        ("sync web --to no", 5),
        ("sync nothing --to B", 3),
        ("job run nothing", 3),
        ("job add web --volume nothing --to B", 3),
        ("job add web --volume web --to B --every 0s", 2),
        ("job add web --volume web --to B --at 25:00", 2),
        ("job add web --volume web --volume web --to B", 2),
        ("snapshot prune web", 2),
        ("snapshot prune web --all", 2),
        ("snapshot prune nothing --keep-last 1", 3),
    ] {
        let (seen, stdout, stderr) = daemon.run(words);
        assert_eq!(seen, code, "{words}: {stderr}");
        let stderr: Vec<&str> = stderr.lines().filter(|line| !line.contains('→')).collect();
        assert_eq!(stderr.len(), 3, "{words}: {stderr:?}");
        assert!(stderr[0].starts_with("error: ") && stdout.is_empty(), "{words}: {stderr:?} {stdout}");
    }
    daemon.ok("job add both --volume web --to B --to down");
    assert_eq!(daemon.run("job run both").0, 6, "one of two");
    for words in [
        "job add web",
        "job add web --volume web --to B --every 5x",
        "job set web",
        "sync web --to B --once --every 5s",
    ] {
        assert_eq!(daemon.run(words).0, 2, "{words}");
    }
}

#[test]
fn monitors_are_told_what_is_behind_and_what_has_failed() {
    let daemon = populated();
    daemon.ok("job add good --volume web --to B");
    daemon.ok("job run good");
    assert_eq!(daemon.ok("check"), "OK - 2 volumes, 1 snapshot, pool 90 % free, 1 job\n");
    assert_eq!(daemon.run("sync db --to down").0, 7);
    assert_eq!(daemon.run("check").0, 0, "whoever ran it once was told");
    daemon.ok("job add mail --volume db --to down");
    assert_eq!(daemon.run("job run mail").0, 7);
    let (code, line, _) = daemon.run("check");
    assert_eq!(code, 1);
    assert_eq!(
        line,
        "WARNING - mail never: nobody answers at down; 2 volumes, 1 snapshot, pool 90 % free, 2 jobs\n"
    );
    daemon.ok("job add db --volume db --to no");
    assert_eq!(daemon.run("job run db").0, 5);
    let (code, line, _) = daemon.run("check");
    assert_eq!(code, 2);
    assert!(line.starts_with("CRITICAL - db failed: no does not know us; mail never: nobody"), "{line}");
    let status = daemon.ok("status");
    assert!(status.contains("jobs     3 jobs: 1 ok, 1 never, 1 failed; oldest point good→B, "), "{status}");
    let status = json(&daemon.ok("status -o json"));
    assert_eq!((&status["jobs"][0]["targets"][0]["state"], &status["v"]), (&"failed".into(), &1.into()));
    assert_eq!(status["store"]["volumes"], 2, "the rest is where it was");
}

#[test]
fn pruning_says_why_each_is_kept() {
    let daemon = populated();
    daemon.ok("snapshot create web@monday");
    daemon.ok("job add web --volume web --to B --keep-last 9");
    for _ in 0..4 {
        daemon.ok("job run web");
    }
    daemon.ok("job add late --volume web --to down");
    let names: Vec<String> = daemon
        .ok("snapshot list web -o jsonl")
        .lines()
        .map(|line| json(line)["name"].as_str().unwrap().to_owned())
        .collect();
    let [monday, first, second, third, last] = &names[..] else { panic!("{names:?}") };
    daemon.ok(&format!("snapshot hold web@{second} audit"));
    let plan = daemon.ok("snapshot prune web --keep-last 1 --plan");
    let width = last.len();
    assert_eq!(
        plan,
        format!(
            "@{last}  keep  last, newest, last common base with B\n@{third}  drop\n@{second}  keep  held: audit\n\
             @{first}  drop\n@{monday:width$}  keep  no rule speaks of it\n3 kept, 2 would be deleted\n\
             Nothing was changed. Run without --plan to do it.\n"
        )
    );
    assert!(
        daemon
            .ok("snapshot prune web -n")
            .ends_with("5 kept, 0 would be deleted\nNothing was changed. Run without --plan to do it.\n")
    );
    let done = json(&daemon.ok("snapshot prune web --keep-last 1 -o json"));
    assert_eq!((&done["kept"], &done["dropped"], &done["done"]), (&3.into(), &2.into(), &true.into()));
    let all = daemon.ok("snapshot prune web --all --keep-last 1");
    assert!(all.ends_with("2 kept, 1 deleted; their space is freed in the background\n"), "{all}");
    assert!(!daemon.ok("snapshot list web").contains("monday"));
}

#[test]
fn scripts_follow_runs_as_objects() {
    let daemon = populated();
    let lines = daemon.ok("sync web --to B -o jsonl");
    let events: Vec<Value> = lines.lines().map(json).collect();
    let end = events.last().unwrap();
    assert_eq!(
        (&end["event"], &end["v"], &end["report"]["bytes_sent"]),
        (&"ended".into(), &1.into(), &(3 << 20).into())
    );
    assert!(events.iter().all(|event| event["event"] == "progress" || event["event"] == "ended"), "{lines}");
}

#[test]
fn a_run_is_left_alone_or_ended() {
    let daemon = populated();
    daemon.ok("job add web --volume web --to slow");
    assert_eq!(daemon.ok("job run web --no-wait"), "job web is on its way; look: blockctl job show web\n");
    let running = || json(&daemon.ok("job show web -o json"))["targets"][0]["running"].clone();
    while running()["phase"] != "sending" {}
    assert!(line(&daemon.ok("job list"), "web").ends_with("sending 33 %"));
    daemon.ok("job cancel web");
    while !running().is_null() {}
    let job = json(&daemon.ok("job show web -o json"));
    assert_eq!((&job["targets"][0]["state"], &job["targets"][0]["failures"]), (&"never".into(), &0.into()));
}

/// What was begun by hand ends with it.
#[test]
fn ctrl_c_ends_a_sync() {
    let daemon = populated();
    let mut child = daemon
        .command("sync web --to slow -o jsonl")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while json(&lines.next().unwrap().unwrap())["phase"] != "web-slow→slow  sending" {}
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(daemon.ok("job list"), "no jobs; make one: blockctl sync NAME --to HOST --every 30s\n");
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let daemon = populated();
    daemon.ok("sync web --to B");
    daemon.ok("job add mail --volume db --to down --every 1h");
    let text = daemon.ok("metrics");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() && name.starts_with("blockd_"), "{line}");
    }
    for name in [
        "blockd_sync_lag_seconds{job=\"web-B\",to=\"B\"} ",
        "blockd_sync_last_success_timestamp_seconds{job=\"web-B\",to=\"B\"} ",
        "blockd_sync_shipped_bytes_total{job=\"web-B\",to=\"B\",kind=\"data\"} 3145728\n",
        "blockd_sync_shipped_bytes_total{job=\"web-B\",to=\"B\",kind=\"dedupe\"} 2097152\n",
        "blockd_sync_state{job=\"web-B\",to=\"B\",state=\"ok\"} 1\n",
        "blockd_io_read_bytes_total 12288\n",
        "blockd_snapshot_count 1\n",
    ] {
        assert!(text.contains(name), "{name}: {text}");
    }
    assert!(!text.contains("blockd_sync_lag_seconds{job=\"mail\""), "unknown is not a number");
    let heads: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let once: std::collections::BTreeSet<&&str> = heads.iter().collect();
    assert_eq!(heads.len(), once.len());
    let answer = daemon.http("GET", "/v1/metrics", "");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
}

#[test]
fn the_api_refuses_what_it_does_not_know() {
    let daemon = populated();
    let kind = |method: &str, path: &str, body: &str| {
        let answer = daemon.http(method, path, body);
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        json(body)["error"]["kind"].as_str().unwrap_or("none").to_owned()
    };
    let job = |more: &str| format!("{{\"name\":\"web\",\"volumes\":[\"web\"],\"to\":[\"B\"]{more}}}");
    assert_eq!(kind("POST", "/v1/jobs", &job(",\"freeze\":true")), "bad_request");
    assert_eq!(kind("POST", "/v1/jobs", &job(",\"schedule\":\"0s\"")), "bad_request");
    assert_eq!(kind("POST", "/v1/jobs", &job(",\"rate\":0")), "bad_value");
    assert_eq!(kind("POST", "/v1/jobs", &job(",\"from_config\":true")), "none");
    assert_eq!(kind("POST", "/v1/jobs", &job("")), "exists");
    assert_eq!(kind("PATCH", "/v1/jobs/web", "{\"rate\":1,\"name\":\"x\"}"), "bad_request");
    assert_eq!(kind("PATCH", "/v1/jobs/web", "{\"rpo\":null}"), "none");
    assert_eq!(kind("POST", "/v1/jobs/web/run?now=1", ""), "bad_request");
    assert_eq!(kind("GET", "/v1/jobs/nothing", ""), "not_found");
    assert_eq!(kind("POST", "/v1/sync", "{\"volumes\":[],\"to\":[\"B\"]}"), "bad_value");
    assert_eq!(kind("POST", "/v1/sync", "{\"volumes\":[\"web\"],\"to\":[\"../B\"]}"), "bad_value");
    assert_eq!(kind("POST", "/v1/volumes/web/prune", "{\"keep\":{}}"), "bad_value");
    assert_eq!(kind("POST", "/v1/volumes/web/prune", "{\"keep\":{\"last\":-1}}"), "bad_request");
    let job = json(&daemon.ok("job show web -o json"));
    assert_eq!(job["job"]["from_config"], false, "that is not for others to say");
}

#[test]
fn a_job_of_the_configuration_stays_there() {
    let job = Job { from_config: true, ..Job::new("cfg", vec!["web".to_owned()], vec!["B".to_owned()]) };
    let daemon = Daemon::with_jobs(TestEngine::default(), vec![job]);
    assert!(line(&daemon.ok("job show cfg"), "name").ends_with("(configuration file)"));
    let (code, _, stderr) = daemon.run("job delete cfg");
    assert_eq!(code, 5, "{stderr}");
}
