//! The agent's client, typed.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;

use crate::agent::events::EventsPage;
use crate::agent::view::{
    AdoptVm, Begun, Console, DefineVm, Done, Migrate, MoveList, MovePlan, RecoverAnswer, Rollback, StartVm,
    StatusView, StopVm, VmList, VmView,
};
use crate::cutover::ids::MoveId;
use crate::http::{self, HttpClient, Result};
use crate::moves::record::MoveRecord;
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
        Self { http: http::client(socket, ANSWER_TIME_MAX) }
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

    /// Begins to move a VM.
    pub async fn migrate(&self, name: &VmName, request: &Migrate) -> Result<Begun> {
        self.http.post(&format!("/v1/vms/{name}/migrate"), request).await
    }

    /// What a move would be.
    pub async fn migrate_plan(&self, name: &VmName, request: &Migrate) -> Result<MovePlan> {
        self.http.post(&format!("/v1/vms/{name}/migrate-plan"), request).await
    }

    /// Gives a move up.
    pub async fn abort(&self, name: &VmName) -> Result<Begun> {
        self.http.post(&format!("/v1/vms/{name}/abort"), &serde_json::json!({})).await
    }

    /// Brings a VM back.
    pub async fn rollback(&self, name: &VmName, request: &Rollback) -> Result<Begun> {
        self.http.post(&format!("/v1/vms/{name}/rollback"), request).await
    }

    /// Moves, oldest first; of one VM or of all.
    pub async fn moves(&self, name: Option<&VmName>) -> Result<Vec<MoveRecord>> {
        let query = name.map(|name| format!("?vm={name}")).unwrap_or_default();
        Ok(self.http.get::<MoveList>(&format!("/v1/moves{query}")).await?.moves)
    }

    /// One move.
    pub async fn a_move(&self, id: MoveId) -> Result<MoveRecord> {
        self.http.get(&format!("/v1/moves/{id}")).await
    }

    /// Finishes or undoes what a crash has left.
    pub async fn recover(&self) -> Result<RecoverAnswer> {
        self.http.post("/v1/recover", &serde_json::json!({})).await
    }
}
