//! The order of measurements.

use std::time::Duration;

use crate::client::Client;
use crate::fio::Measurement;
use crate::jobs::Job;
use crate::plan::Plan;
use crate::results::Run;
use crate::servers::{Class, ServerId};

/// Where one measurement stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) server: ServerId,
    pub(super) job: &'static Job,
    pub(super) client: Client,
    pub(super) round: u32,
}

pub(super) fn turns(plan: &Plan) -> Vec<Turn> {
    let mut turns = Vec::new();
    for class in Class::ALL {
        for &job in &plan.jobs {
            for round in 1..=plan.rounds {
                turns.extend(
                    plan.clients.iter().flat_map(|&client| round_of(plan, class, job, client, round)),
                );
            }
        }
    }
    turns
}

fn round_of(
    plan: &Plan,
    class: Class,
    job: &'static Job,
    client: Client,
    round: u32,
) -> impl Iterator<Item = Turn> {
    let takes_part = move |server: &&ServerId| server.class() == class && client.can_run(**server, job);
    plan.servers.iter().filter(takes_part).map(move |&server| Turn { server, job, client, round })
}

pub(super) fn to_run(turn: Turn, measurement: Measurement, spent: Option<Duration>) -> Run {
    let requests = measurement.ios + measurement.flushes;
    let by_request = |spent: Duration| spent.as_secs_f64() * 1e6 / requests.max(1) as f64;
    Run {
        server: turn.server,
        class: turn.server.class(),
        job: turn.job.name,
        client: turn.client,
        round: turn.round,
        measurement,
        cpu_s: spent.map(|spent| spent.as_secs_f64()),
        cpu_us_per_request: spent.map(by_request),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::Options;

    #[test]
    fn flushes_are_requests_too() {
        let measurement = Measurement {
            iops: 1.0,
            mib_per_s: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            max_us: 1.0,
            ios: 600,
            flushes: 400,
        };
        let turn = Turn { server: ServerId::Ours, job: &crate::jobs::JOBS[0], client: Client::Fio, round: 1 };
        let run = to_run(turn, measurement, Some(Duration::from_millis(10)));
        assert_eq!(run.cpu_us_per_request, Some(10.0));
    }

    #[test]
    fn servers_take_turns_within_a_job_and_classes_do_not_mix() {
        let options = Options::try_parse_from(["compare", "--rounds", "2", "--only", "read-1m-qd8"]).unwrap();
        let plan = Plan {
            servers: vec![ServerId::Ours, ServerId::NbdkitNull, ServerId::QemuNbd],
            ..Plan::bare(&options)
        };
        let both = Plan { clients: vec![Client::Ours, Client::Fio], rounds: 1, ..plan.clone() };
        let clients: Vec<Client> = turns(&both).iter().map(|turn| turn.client).collect();
        assert_eq!(clients[..4], [Client::Ours, Client::Ours, Client::Fio, Client::Fio]);
        let order: Vec<(ServerId, u32)> = turns(&plan).iter().map(|turn| (turn.server, turn.round)).collect();
        assert_eq!(
            order,
            [
                (ServerId::Ours, 1),
                (ServerId::QemuNbd, 1),
                (ServerId::Ours, 2),
                (ServerId::QemuNbd, 2),
                (ServerId::NbdkitNull, 1),
                (ServerId::NbdkitNull, 2),
            ]
        );
        assert_eq!(order.len(), plan.run_count());
    }
}
