//! What the client asks about jobs and retention.

use hyper::Method;
use serde::Serialize;

use super::{Client, Result, escape, unusable};
use crate::api::jobs::{ChangeJob, JobDetails, JobList, RunLine, Sync};
use crate::api::prune::{Prune, Pruned};
use crate::api::types::Done;
use crate::jobs::job::Job;

impl Client {
    /// All jobs, by name.
    ///
    /// # Errors
    /// See [`super::ClientError`], here and below.
    pub async fn jobs(&self) -> Result<JobList> {
        self.get("/v1/jobs").await
    }

    /// One job, and its last runs.
    pub async fn job(&self, name: &str, runs: usize) -> Result<JobDetails> {
        self.get(&format!("/v1/jobs/{}?runs={runs}", escape(name))).await
    }

    /// A new job.
    pub async fn add_job(&self, job: &Job) -> Result<()> {
        self.post("/v1/jobs", job).await
    }

    /// Forgets a job.
    pub async fn delete_job(&self, name: &str) -> Result<()> {
        self.ask::<Done>(Method::DELETE, &format!("/v1/jobs/{}", escape(name)), Vec::new()).await.map(drop)
    }

    /// `pause`, `resume` or `cancel`.
    pub async fn tell_job(&self, name: &str, verb: &str) -> Result<()> {
        let path = format!("/v1/jobs/{}/{verb}", escape(name));
        self.ask::<Done>(Method::POST, &path, Vec::new()).await.map(drop)
    }

    /// Changes a job, also for its runs under way.
    pub async fn change_job(&self, name: &str, change: &ChangeJob) -> Result<()> {
        let body = serde_json::to_vec(change).map_err(unusable)?;
        self.ask::<Done>(Method::PATCH, &format!("/v1/jobs/{}", escape(name)), body).await.map(drop)
    }

    /// Runs a job now; without `wait` only until the runs are on their way. The number of failed runs.
    pub async fn run_job(&self, name: &str, wait: bool, on_line: impl FnMut(RunLine)) -> Result<u64> {
        self.follow(&format!("/v1/jobs/{}/run?wait={wait}", escape(name)), &(), on_line).await
    }

    /// Brings volumes to a target once. The number of failed runs.
    pub async fn sync(&self, sync: &Sync, on_line: impl FnMut(RunLine)) -> Result<u64> {
        self.follow("/v1/sync", sync, on_line).await
    }

    async fn follow(
        &self,
        path: &str,
        body: &impl Serialize,
        mut on_line: impl FnMut(RunLine),
    ) -> Result<u64> {
        let body = serde_json::to_vec(body).map_err(unusable)?;
        let answer = self.http.send(Method::POST, path, body).await?;
        let failed = answer.lines(|line| match line {
            RunLine::End { failed } => Ok(Some(failed)),
            other => {
                on_line(other);
                Ok(None)
            }
        });
        Ok(failed.await?)
    }

    /// Judges a volume's snapshots, and unless it is a plan deletes those that may go.
    pub async fn prune(&self, volume: &str, wanted: &Prune) -> Result<Pruned> {
        let body = serde_json::to_vec(wanted).map_err(unusable)?;
        self.ask(Method::POST, &format!("/v1/volumes/{}/prune", escape(volume)), body).await
    }

    /// What Prometheus reads.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self.http.get_text("/v1/metrics").await?)
    }
}
