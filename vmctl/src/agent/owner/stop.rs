//! Ending a QEMU: the guest is asked, then QEMU, then the kernel.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::view::VmState;
use super::{Owner, answer};
use crate::error::{Error, Kind};
use crate::qmp::Client;

/// How long QEMU may take to end once it was told to.
const QUIT_TIME_MAX: Duration = Duration::from_secs(5);
/// Clients that wait for one end.
const WAITING_MAX: usize = 16;

/// A stop under way.
pub(super) struct Stopping {
    replies: Vec<oneshot::Sender<Result<(), Error>>>,
    deadline: Instant,
    /// What comes at the deadline.
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The guest goes on.
    GiveUp,
    /// QEMU is told to end.
    Quit,
    /// Its process is killed.
    Kill,
}

impl Owner {
    pub(super) async fn stop(
        &mut self,
        timeout: Duration,
        force: bool,
        by: Option<&str>,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        if let Err(error) = self.check_stopper(by) {
            return answer(reply, Err(error));
        }
        if self.live.is_none() {
            return answer(reply, Ok(()));
        }
        let asked = self.stopping.is_some() || self.can_be_asked();
        if !asked && !force {
            let name = &self.record.definition.name;
            let message = format!("{name} is {}: its guest cannot be asked to power off", self.state.name());
            return answer(
                reply,
                Err(Error::one_line(Kind::Refused, message)
                    .with_next(format!("vmctl vm stop {name} --force"))),
            );
        }
        let then = if force { Then::Quit } else { Then::GiveUp };
        let wait = if asked { timeout } else { Duration::ZERO };
        let deadline = Instant::now() + wait;
        match &mut self.stopping {
            Some(stopping) if stopping.replies.len() >= WAITING_MAX => {
                return answer(
                    reply,
                    Err(Error::one_line(Kind::Overloaded, "too many wait for its end already")),
                );
            }
            Some(stopping) => {
                stopping.replies.push(reply);
                if force && stopping.then == Then::GiveUp {
                    (stopping.then, stopping.deadline) = (then, deadline);
                }
            }
            None => self.stopping = Some(Stopping { replies: vec![reply], deadline, then }),
        }
        if !wait.is_zero() {
            self.press_power_button().await;
        }
        self.push_stop().await;
    }

    /// Whether there is a guest that runs, or one that has ended already.
    fn can_be_asked(&self) -> bool {
        matches!(self.state, VmState::Running | VmState::Shutdown)
    }

    async fn press_power_button(&mut self) {
        if self.state != VmState::Running {
            return;
        }
        let pressed = match self.client() {
            Ok(client) => client.system_powerdown().await.map_err(Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = pressed {
            self.event("vm_stop", format!("the power button cannot be pressed: {error}"));
        }
    }

    /// Takes a stop further whose time is up.
    pub(super) async fn push_stop(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if Instant::now() < stopping.deadline {
            return;
        }
        match stopping.then {
            Then::GiveUp => self.give_up_stop(),
            Then::Quit => {
                (stopping.then, stopping.deadline) = (Then::Kill, Instant::now() + QUIT_TIME_MAX);
                self.quit().await;
            }
            Then::Kill => self.kill(),
        }
    }

    fn give_up_stop(&mut self) {
        let Some(stopping) = self.stopping.take() else { return };
        let name = &self.record.definition.name;
        let message = format!("the guest of {name} did not power off in time; it goes on");
        let error =
            Error::one_line(Kind::Timeout, message).with_next(format!("vmctl vm stop {name} --force"));
        for reply in stopping.replies {
            answer(reply, Err(error.clone()));
        }
    }

    /// Tells QEMU to end.
    pub(super) async fn quit(&mut self) {
        let result = match self.client() {
            Ok(client) => client.quit().await.map_err(Error::from),
            Err(error) => Err(error),
        };
        // A QEMU that ends at once may not have answered; its process tells.
        if let Err(error) = result {
            tracing::info!(name = %self.record.definition.name, %error, "quit was not answered");
        }
    }

    fn kill(&mut self) {
        let Some(live) = &self.live else { return };
        let killed = live.process.kill();
        self.event("vm_killed", "QEMU did not end in time");
        if let (Err(error), Some(stopping)) = (killed, self.stopping.take()) {
            let error = Error::one_line(Kind::Io, format!("QEMU cannot be killed: {error}"));
            for reply in stopping.replies {
                answer(reply, Err(error.clone()));
            }
        } else if let Some(stopping) = &mut self.stopping {
            stopping.deadline = Instant::now() + QUIT_TIME_MAX;
        }
    }

    /// Tells those who waited that QEMU is gone.
    pub(super) fn finish_stop(&mut self) {
        for reply in self.stopping.take().into_iter().flat_map(|stopping| stopping.replies) {
            answer(reply, Ok(()));
        }
    }

    /// The monitor's client.
    pub(super) fn client(&self) -> Result<Client, Error> {
        let link = self.live.as_ref().and_then(|live| live.link.as_ref());
        let name = &self.record.definition.name;
        link.map(|link| link.client.clone()).ok_or_else(|| {
            let message = format!("the monitor of {name} does not answer");
            Error::one_line(Kind::Unreachable, message).with_next(format!("vmctl vm stop {name} --force"))
        })
    }
}
