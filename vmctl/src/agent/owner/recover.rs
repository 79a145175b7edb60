//! A new agent finds its VMs again.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::view::VmState;
use super::Owner;
use super::live::{Live, connect};
use crate::journal::Run;
use crate::qmp::types::RunState;
use crate::vm::launch::read_pid;
use crate::vm::process::Process;

/// How long a QEMU whose agent died while starting it may take to write its pid file.
const PID_FILE_TIME_MAX: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PID_FILE_PAUSE: Duration = Duration::from_millis(100);

impl Owner {
    /// Finds the QEMU of the record, or records that it is gone.
    pub(super) async fn recover(&mut self) {
        let Some(run) = self.record.run.clone() else { return };
        let found = match &run.process {
            Some(id) => Process::of_id(id),
            None => self.find_started().await,
        };
        match found {
            Ok(Some(process)) => self.take_over(process, &run).await,
            Ok(None) if run.process.is_some() => {
                let reason = "QEMU was gone when the agent came back";
                self.end_run(true, reason);
            }
            Ok(None) => self.end_run(false, "the agent ended while it started it"),
            // Not known to be gone: not started a second time.
            Err(error) => self
                .set_state(VmState::Unreachable, Some(format!("its process cannot be looked at: {error}"))),
        }
    }

    async fn take_over(&mut self, process: Process, run: &Run) {
        let link = connect(&run.qmp, &process).await;
        let pid = process.id.pid;
        let id = process.id.clone();
        let (link, lost) = match link {
            Ok(link) => (Some(link), None),
            Err(error) => (None, Some(error.to_string())),
        };
        self.live = Some(Live::new(process, link));
        if run.process.is_none() {
            self.note(|record| record.run = record.run.take().map(|run| Run { process: Some(id), ..run }));
        }
        match lost {
            Some(lost) => self.set_state(VmState::Unreachable, Some(lost)),
            None => {
                self.event("vm_found", format!("process {pid}"));
                if let Err(error) = self.ask_state().await {
                    self.set_state(VmState::Unreachable, Some(error.to_string()));
                }
                self.undo_half_start(run).await;
            }
        }
    }

    /// A start that was cut off before the guest ran is undone: nobody waits for it any more.
    async fn undo_half_start(&mut self, run: &Run) {
        if run.process.is_some() || self.is_held() {
            return;
        }
        let Ok(client) = self.client() else { return };
        let begun = client.query_status().await.is_ok_and(|status| status.status != RunState::Prelaunch);
        if !begun {
            if let Some(live) = &mut self.live {
                live.said = Some("the agent ended while it started it".to_owned());
            }
            self.quit().await;
        }
    }

    /// The QEMU that an agent was starting when it died.
    async fn find_started(&self) -> io::Result<Option<Process>> {
        let deadline = Instant::now() + PID_FILE_TIME_MAX;
        loop {
            if let Ok(pid) = read_pid(&self.places.pid_file())
                && let Some(process) = Process::of_pid(pid)?
            {
                // The file may be old and the number another's: the monitor tells whose it is.
                if connect(&self.places.qmp(), &process).await.is_ok() {
                    return Ok(Some(process));
                }
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            sleep(PID_FILE_PAUSE).await;
        }
    }
}
