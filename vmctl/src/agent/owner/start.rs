//! From a record to a QEMU.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::events::now_ms;
use super::super::view::VmState;
use super::Owner;
use super::live::{Live, connect};
use crate::error::{Error, Kind};
use crate::journal::Run;
use crate::vm::command_line::{Beginning, Surroundings, command_line};
use crate::vm::launch::launch;
use crate::vm::qemu::Qemu;

/// How long a volume's last client may take to be gone: blockd notices the end of a QEMU a moment after us.
const CLIENTS_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks.
const CLIENTS_PAUSE: Duration = Duration::from_millis(100);

impl Owner {
    /// Starts QEMU, and its processors if `run`.
    pub(super) async fn start(
        &mut self,
        beginning: Beginning,
        run: bool,
        by: Option<&str>,
    ) -> Result<(), Error> {
        self.check_holder(by)?;
        let name = self.record.definition.name.clone();
        if self.live.is_some() {
            return Err(Error::one_line(
                Kind::Busy,
                format!("{name} has a QEMU: it is {}", self.state.name()),
            ));
        }
        if self.record.adopted.is_some() {
            let message = format!("{name} was adopted: what its QEMU could not tell would be missing");
            let next = "vmctl vm define FILE --replace    (vmctl vm show tells what is known)";
            return Err(Error::one_line(Kind::Refused, message).with_next(next));
        }
        let exports = self.check_volumes(beginning).await?;
        self.set_state(VmState::Starting, None);
        self.publish();
        let result = self.start_checked(beginning, run, exports).await;
        if let Err(error) = &result {
            self.undo_start(error);
        }
        result
    }

    /// What blockd can tell before QEMU is started, in better words than QEMU's; the exports to open.
    async fn check_volumes(&self, beginning: Beginning) -> Result<Vec<String>, Error> {
        let mut exports = Vec::new();
        for volume in self.record.definition.volumes() {
            let deadline = Instant::now() + CLIENTS_TIME_MAX;
            loop {
                let info = self.host.blockd.volume(volume).await?;
                // A destination's volume is still a replica, and blockd refuses its writes until it is its own.
                if beginning == Beginning::Incoming {
                    exports.push(format!("{volume}:{}", info.epoch + 1));
                    break;
                }
                if !info.is_writable() {
                    let message = format!("volume {volume} is a {} ({})", info.role, info.health);
                    let next = format!("blockctl replica show {volume}");
                    return Err(Error::one_line(Kind::Refused, message).with_next(next));
                }
                if info.clients == 0 {
                    exports.push(format!("{volume}:{}", info.epoch));
                    break;
                }
                if Instant::now() >= deadline {
                    let message = format!("volume {volume} has {} NBD clients already", info.clients);
                    let next = format!("blockctl export show {volume}");
                    return Err(Error::one_line(Kind::Busy, message).with_next(next));
                }
                sleep(CLIENTS_PAUSE).await;
            }
        }
        Ok(exports)
    }

    async fn start_checked(
        &mut self,
        beginning: Beginning,
        run: bool,
        exports: Vec<String>,
    ) -> Result<(), Error> {
        let config = &self.host.config;
        let qemu = Qemu::ask(&config.qemu).await?;
        let accel = self.host.accel.accel(&config.qemu).await?;
        self.check_machine(&qemu)?;
        let around = Surroundings {
            places: self.places.clone(),
            nbd_socket: config.nbd_socket.clone(),
            reconnect_delay_s: config.reconnect_delay_s,
            accel,
            abilities: qemu.abilities,
            exports,
        };
        self.places.prepare()?;
        let arguments = command_line(&self.record.definition, &around, beginning);
        tracing::debug!(name = %self.record.definition.name, ?arguments, "QEMU");
        let begun = Run {
            process: None,
            qmp: self.places.qmp(),
            qemu: qemu.version,
            accel,
            incoming: beginning == Beginning::Incoming,
            started_ms: now_ms(),
        };
        // Before QEMU is there: should we die now, the next agent looks for it.
        self.write(|record| record.run = Some(begun))?;
        let process = launch(&self.host.config.qemu, &arguments, &self.places).await?;
        let id = process.id.clone();
        self.live = Some(Live::new(process, None));
        self.write(|record| {
            record.run = record.run.take().map(|begun| Run { process: Some(id), ..begun });
        })?;
        self.connect().await?;
        if run && beginning == Beginning::Boot {
            self.client()?.cont().await?;
        }
        self.event("vm_started", format!("QEMU {} with {}", qemu.version, accel.name()));
        self.ask_state().await
    }

    fn check_machine(&self, qemu: &Qemu) -> Result<(), Error> {
        let machine = self.record.definition.machine.as_deref().unwrap_or_default();
        if qemu.machines.iter().any(|known| known.name == machine) {
            return Ok(());
        }
        let message = format!("QEMU {} has no machine {machine}", qemu.version);
        Err(Error::one_line(Kind::Refused, message).with_next("qemu-system-x86_64 -machine help"))
    }

    /// Connects to the monitor of the process that is there.
    pub(super) async fn connect(&mut self) -> Result<(), Error> {
        let none = || Error::one_line(Kind::Io, "there is no QEMU");
        let socket = self.record.run.as_ref().map(|run| run.qmp.clone()).ok_or_else(none)?;
        let live = self.live.as_mut().ok_or_else(none)?;
        live.link = Some(connect(&socket, &live.process).await?);
        Ok(())
    }

    /// Takes back what a failed start has left.
    fn undo_start(&mut self, error: &Error) {
        if let Some(live) = self.live.take()
            && let Err(error) = live.process.kill()
        {
            tracing::error!(pid = live.process.id.pid, %error, "a QEMU whose start failed cannot be ended");
        }
        let name = self.record.definition.name.clone();
        tracing::warn!(%name, %error, "not started");
        let last_end = Self::last_end(false, format!("its start failed: {error}"));
        self.note(|record| {
            record.run = None;
            record.last_end = Some(last_end);
        });
        self.state = VmState::Stopped;
        self.settle();
    }
}
