//! Background work leaves clients their speed: after each step it rests, the longer the more the step has cost them.
//!
//! ```text
//!  latency     quiet ─────┐ ┌── during ──┐                             ┌────
//!                         └─┤            └──────── quiet ──────────────┤
//!  background               │◄── step ──►│◄───────── rest ────────────►│ step
//!
//!  lost = step × (1 − quiet ÷ during)              rest = lost × LOST_PARTS
//! ```
//!
//! A client that keeps a number of requests under way gets `quiet ÷ during` of its speed during a step; so `lost` is the
//! time that the step has taken from it, and over a step and its rest it loses less than one part in `LOST_PARTS`, unless
//! the rest would be longer than `REST_MAX`.
//!
//! **Latency** is Little's law: the requests under way, summed over time, by those that have ended. That takes no time
//! stamp of any request, and counts those that have not ended.
//!
//! No rest is taken while no client is there, and none while clusters are short: then space matters more.

use std::time::Duration;

use nbd_server::connection::Nanos;

use super::Store;
use crate::units::CLUSTER_BYTES;

/// A rest is so many times what the step has taken from clients: they lose less than one part in so many of their speed.
/// Without it merging takes half of it for as long as it lasts.
const LOST_PARTS: u32 = 12;
/// A rest is at least so many times the step. What a step leaves behind, pages to be written above all, makes the rest
/// slow and is measured as if that were usual: the more it costs, the less it would seem to.
const REST_PARTS_MIN: u32 = 3;
/// The longest rest, even if clients lose more then. Without it a step that stops them altogether would put the next one off
/// for as long as they stay: so 256 records are moved in this and the time of a step, some hundred MiB within a minute.
const REST_MAX: Duration = Duration::from_millis(500);
/// A client counts as there so long after a request. One that has a request at a time leaves gaps between them, and
/// would get the next step into each.
const CLIENTS_STAY: Duration = Duration::from_millis(100);
/// What is usual is measured over so long, about, a second: longer, and it would be another load's.
const QUIET_WINDOW_NS: u64 = 1_000_000_000;
/// Clusters are short when fewer than one in so many is left: writes would fail while the work that frees some rests.
const SHORT_PARTS: u64 = 16;
/// And never while so many are left, 1 GiB: in a pool of many TiB a small part is not short.
const SHORT_CLUSTERS_MAX: u64 = 16_384;

/// How clients fared for a while. Plain nanoseconds: it is added to in every turn of the reactor.
#[derive(Debug, Default)]
struct Window {
    time_ns: u64,
    /// The time that each request was under way, all added up.
    waited_ns: u64,
    ended: u64,
}

impl Window {
    fn add(&mut self, time_ns: u64, under_way: u64, ended: u64) {
        self.time_ns = self.time_ns.saturating_add(time_ns);
        self.waited_ns = self.waited_ns.saturating_add(time_ns.saturating_mul(under_way));
        self.ended += ended;
    }

    /// What is long ago counts half.
    fn fade(&mut self) {
        if self.time_ns >= QUIET_WINDOW_NS {
            (self.time_ns, self.waited_ns, self.ended) =
                (self.time_ns / 2, self.waited_ns / 2, self.ended / 2);
        }
    }

    /// Where nothing has ended, what was waited in vain.
    fn latency_ns(&self) -> u64 {
        self.waited_ns / self.ended.max(1)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Throttle {
    /// Clients' requests under way that wait for no commit.
    requests: u64,
    /// Requests that have come since the last look.
    came: u64,
    /// When somebody looked last, and what was under way then.
    looked_at: Nanos,
    under_way: u64,
    working: bool,
    quiet: Window,
    step: Window,
    /// Its rest begins when its last moments are measured, too.
    step_ended: bool,
    /// Clients count as there until then.
    clients_until: Nanos,
    rests_until: Nanos,
}

impl Throttle {
    /// A client's request has come.
    pub(super) fn request_came(&mut self) {
        self.came += 1;
        self.requests += 1;
    }

    /// It was answered, or waits for a commit, which counts it.
    pub(super) fn request_left(&mut self) {
        self.requests -= 1;
    }

    /// A step of the background work has ended with its commits. One that took no time costs nothing.
    pub(super) fn step_ended(&mut self) {
        self.step_ended = self.step.time_ns > 0;
    }

    /// Whether no step should begin.
    fn rests(&self, now: Nanos) -> bool {
        now < self.clients_until && (self.step_ended || now < self.rests_until)
    }

    /// When one may begin, unless clients come or go.
    fn rest_ends(&self) -> Nanos {
        self.rests_until.min(self.clients_until)
    }

    /// Time has passed. So many requests wait for a commit.
    fn look(&mut self, now: Nanos, committing: u64) {
        let under_way = self.requests + committing;
        let ended = (self.under_way + std::mem::take(&mut self.came)).saturating_sub(under_way);
        let window = if self.working { &mut self.step } else { &mut self.quiet };
        window.add(now.0.saturating_sub(self.looked_at.0), self.under_way, ended);
        self.quiet.fade();
        if under_way > 0 || ended > 0 {
            self.clients_until = now.after(CLIENTS_STAY);
        }
        if std::mem::take(&mut self.step_ended) {
            self.rests_until = now.after(self.rest());
            self.step = Window::default();
        }
        (self.looked_at, self.under_way) = (now, under_way);
    }

    /// How long to rest after the step that was measured.
    fn rest(&self) -> Duration {
        let (quiet, during) = (self.quiet.latency_ns(), self.step.latency_ns());
        let step = Duration::from_nanos(self.step.time_ns).min(REST_MAX);
        let lost = step.as_nanos() * u128::from(during.saturating_sub(quiet)) / u128::from(during.max(1));
        let lost = Duration::from_nanos(u64::try_from(lost).expect("no longer than the longest rest"));
        (lost * LOST_PARTS).max(step * REST_PARTS_MIN).min(REST_MAX)
    }
}

impl Store {
    /// Whether no step of the background work may begin.
    pub(super) fn must_rest(&self) -> bool {
        self.throttle.rests(self.now) && !self.is_short_of_clusters()
    }

    /// Looks how clients fare.
    pub(super) fn look_at_load(&mut self) {
        self.throttle.look(self.now, self.commits.requests());
    }

    /// Whether clients may soon have to wait for clusters, or do.
    fn is_short_of_clusters(&self) -> bool {
        let capacity = self.pool.capacity();
        let growth = if self.pool.full { 0 } else { self.room / CLUSTER_BYTES };
        let left = (capacity - self.pool.used()).min(self.pool.free_now() + growth);
        !self.starved.is_empty() || left < SHORT_CLUSTERS_MAX.min(capacity / SHORT_PARTS)
    }

    /// When background work will have something to do, unless something else happens before. Whatever could begin has
    /// begun.
    pub(super) fn background_at(&mut self) -> Option<Nanos> {
        self.throttle.working = self.reclaim.is_working() || self.pack.is_busy();
        let rest_ends = self.must_rest().then(|| self.throttle.rest_ends());
        let pack = self.pack.next_at().map(|at| rest_ends.map_or(at, |end| end.max(at)));
        [rest_ends, pack, self.reclaim.next_at(self.now)].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    /// Requests of the client, all of them always under way.
    const DEPTH: u32 = 16;

    /// A client beside background work that never ends, a millisecond at a time.
    struct World {
        throttle: Throttle,
        now: Nanos,
        /// Requests that end in a millisecond: while a step is under way, and else.
        speed: (u64, u64),
        step_takes: Duration,
        /// How much of the step under way is left.
        left: Option<Duration>,
        ended: u64,
        steps: u64,
        longest_rest: Duration,
    }

    impl World {
        fn new(speed: (u64, u64), step_takes: Duration) -> Self {
            let mut world = Self {
                throttle: Throttle::default(),
                now: Nanos(0),
                speed,
                step_takes,
                left: None,
                ended: 0,
                steps: 0,
                longest_rest: Duration::ZERO,
            };
            (0..DEPTH).for_each(|_| world.throttle.request_came());
            world.throttle.look(world.now, 0);
            world
        }

        fn client(&mut self) {
            let speed = if self.left.is_some() { self.speed.0 } else { self.speed.1 };
            self.ended += speed;
            for _ in 0..speed {
                self.throttle.request_left();
                self.throttle.request_came();
            }
        }

        fn background(&mut self) {
            self.left = self.left.map(|left| left.saturating_sub(MILLISECOND));
            if self.left == Some(Duration::ZERO) {
                self.throttle.step_ended();
                (self.left, self.steps) = (None, self.steps + 1);
            }
        }

        /// Lets so much time pass; background work is done if `works`.
        fn run(&mut self, time: Duration, works: bool) {
            let mut rested = Duration::ZERO;
            for _ in 0..time.as_millis() {
                self.now = self.now.after(MILLISECOND);
                self.client();
                self.background();
                self.throttle.look(self.now, 0);
                let rests = self.throttle.rests(self.now);
                rested = if rests { rested + MILLISECOND } else { Duration::ZERO };
                self.longest_rest = self.longest_rest.max(rested);
                if works && self.left.is_none() && !rests {
                    self.left = Some(self.step_takes);
                }
                self.throttle.working = self.left.is_some();
            }
        }

        /// What is left of the client's speed beside background work, percent, over ten seconds.
        fn percent_left(&mut self) -> u64 {
            self.run(Duration::from_secs(2), false);
            (self.ended, self.steps) = (0, 0);
            self.run(Duration::from_secs(10), true);
            self.ended * 100 / (self.speed.1 * 10_000)
        }
    }

    #[test]
    fn a_client_keeps_nine_tenths_of_its_speed() {
        for during in [0, 1, 10, 20, 30, 39] {
            for step in [2, 10, 30, 45] {
                let mut world = World::new((during, 40), step * MILLISECOND);
                let left = world.percent_left();
                assert!(
                    left >= 90,
                    "{left} % are left of a client that steps of {step} ms slow to {during} of 40"
                );
            }
        }
    }

    #[test]
    fn what_costs_clients_little_rests_little() {
        let steps = |during| {
            let mut world = World::new((during, 40), 30 * MILLISECOND);
            world.percent_left();
            world.steps
        };
        assert!(steps(40) >= 75, "{} steps that cost nothing in ten seconds", steps(40));
        assert!(steps(20) >= 40 && steps(20) < steps(40), "{} steps that cost half", steps(20));
    }

    #[test]
    fn work_goes_on_however_slow_clients_are() {
        for step in [100, 1000, 3000] {
            let mut world = World::new((0, 1), step * MILLISECOND);
            world.percent_left();
            let most = world.longest_rest;
            assert!(most <= REST_MAX, "a rest of {most:?} after steps of {step} ms");
            let expected = 10_000 / (u64::from(step) + 500);
            assert!(world.steps >= expected, "{} steps of {step} ms in ten seconds", world.steps);
        }
    }

    #[test]
    fn without_clients_there_is_no_rest() {
        let mut world = World::new((20, 40), 30 * MILLISECOND);
        world.run(Duration::from_secs(1), true);
        assert!(world.longest_rest > Duration::ZERO);
        (0..DEPTH).for_each(|_| world.throttle.request_left());
        world.speed = (0, 0);
        world.run(CLIENTS_STAY + world.step_takes, true);
        (world.steps, world.longest_rest) = (0, Duration::ZERO);
        world.run(Duration::from_secs(3), true);
        assert_eq!((world.steps, world.longest_rest), (100, Duration::ZERO));
    }

    #[test]
    fn a_rest_ends_when_the_client_goes() {
        let mut throttle = Throttle::default();
        throttle.request_came();
        throttle.look(Nanos(0), 0);
        throttle.working = true;
        throttle.step_ended();
        assert!(!throttle.rests(Nanos(0)), "a step that took no time");
        let end = Nanos(0).after(Duration::from_millis(200));
        throttle.look(end, 0);
        throttle.step_ended();
        assert!(throttle.rests(end), "before all of the step is measured");
        throttle.request_left();
        throttle.look(end, 0);
        let gone = end.after(CLIENTS_STAY);
        assert!(throttle.rests(end) && throttle.rest_ends() == gone);
        throttle.look(gone, 0);
        assert!(!throttle.rests(gone), "nobody is there");
    }

    #[test]
    fn requests_that_wait_for_a_commit_count() {
        let mut throttle = Throttle::default();
        throttle.request_came();
        throttle.request_left();
        throttle.look(Nanos(0), 1);
        throttle.working = true;
        throttle.look(Nanos(5_000_000), 1);
        assert_eq!((throttle.step.latency_ns(), throttle.step.ended), (5_000_000, 0));
        throttle.look(Nanos(5_000_000), 0);
        assert_eq!(throttle.step.ended, 1);
    }
}
