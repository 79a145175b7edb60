//! The agent's client, typed.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;

use crate::agent::events::EventsPage;
use crate::agent::view::{AdoptVm, Console, DefineVm, Done, StartVm, StatusView, StopVm, VmList, VmView};
use crate::http::{HttpClient, Result};
use crate::vm::name::VmName;

/// How long an ordinary answer may take: a start opens disks, whose server may be on its way up.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);

/// Talks to the agent behind a socket.
#[derive(Clone, Debug)]
pub struct AgentClient {
    http: HttpClient,
}

impl AgentClient {
    /// The agent that listens there; nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { http: HttpClient::new(socket, ANSWER_TIME_MAX) }
    }

    /// The agent as a whole.
    ///
    /// # Errors
    /// See [`HttpError`](crate::http::HttpError), here and below.
    pub async fn status(&self) -> Result<StatusView> {
        self.http.get("/v1/status").await
    }

    /// All VMs, by name.
    pub async fn vms(&self) -> Result<Vec<VmView>> {
        Ok(self.http.get::<VmList>("/v1/vms").await?.vms)
    }

    /// One VM.
    pub async fn vm(&self, name: &VmName) -> Result<VmView> {
        self.http.get(&format!("/v1/vms/{name}")).await
    }

    /// Makes a VM.
    pub async fn define(&self, request: &DefineVm) -> Result<VmView> {
        self.http.post("/v1/vms", request).await
    }

    /// Starts one.
    pub async fn start(&self, name: &VmName, request: &StartVm) -> Result<VmView> {
        self.http.post(&format!("/v1/vms/{name}/start"), request).await
    }

    /// Ends one; answered when it is gone.
    pub async fn stop(&self, name: &VmName, request: &StopVm) -> Result<()> {
        let time_max = Duration::from_millis(request.timeout_ms) + ANSWER_TIME_MAX;
        self.http.post_within::<Done>(time_max, &format!("/v1/vms/{name}/stop"), request).await.map(drop)
    }

    /// Forgets one.
    pub async fn delete(&self, name: &VmName) -> Result<()> {
        self.http.delete::<Done>(&format!("/v1/vms/{name}")).await.map(drop)
    }

    /// Makes a running QEMU one.
    pub async fn adopt(&self, request: &AdoptVm) -> Result<VmView> {
        self.http.post("/v1/adopt", request).await
    }

    /// Where its serial console is.
    pub async fn console(&self, name: &VmName) -> Result<Console> {
        self.http.get(&format!("/v1/vms/{name}/console")).await
    }

    /// Events after a number; waits for one if there is none.
    pub async fn events(&self, after: u64, wait: Duration) -> Result<EventsPage> {
        let path = format!("/v1/events?after={after}&wait_ms={}", wait.as_millis());
        self.http.ask(wait + ANSWER_TIME_MAX, Method::GET, &path, Vec::new()).await
    }
}
