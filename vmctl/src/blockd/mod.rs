//! A client of blockd's control API (docs/api.md), as far as VMs need it. Answers may have more fields than we know; an error
//! of blockd is passed on with its kind and its words.

mod types;

pub use types::{
    HostInfo, HostsInfo, JobEnded, OwnHost, SnapshotInfo, StatusInfo, StoreInfo, SyncEnd, SyncLine,
    VolumeInfo, VolumeRole,
};

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use crate::error::{Error, Kind};
use crate::http::{HttpClient, HttpError, escape};

/// How long an ordinary answer may take: longer than any commit on a busy disk.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, Error>;

/// Talks to the blockd of this host.
#[derive(Clone, Debug)]
pub struct Blockd {
    http: HttpClient,
}

fn told<T>(answer: std::result::Result<T, HttpError>) -> Result<T> {
    answer.map_err(|error| {
        let error = error.of("blockd");
        match error.kind {
            Kind::Unreachable => {
                error.with_next("systemctl status blockd    (or name its socket: blockd_socket)")
            }
            _ => error,
        }
    })
}

impl Blockd {
    /// The daemon that listens there; nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { http: HttpClient::new(socket, ANSWER_TIME_MAX) }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        self.http.socket()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        told(self.http.get(path).await)
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<()> {
        told(self.http.post::<IgnoredAny>(path, body).await).map(drop)
    }

    /// The daemon and its store.
    ///
    /// # Errors
    /// `unreachable`, or what blockd says; here and below.
    pub async fn status(&self) -> Result<StatusInfo> {
        self.get("/v1/status").await
    }

    /// One volume.
    pub async fn volume(&self, name: &str) -> Result<VolumeInfo> {
        self.get(&format!("/v1/volumes/{}", escape(name))).await
    }

    /// What a volume is to other hosts: its role and epoch.
    pub async fn role(&self, name: &str) -> Result<VolumeRole> {
        self.get(&format!("/v1/replicas/{}", escape(name))).await
    }

    /// One snapshot, `VOLUME@SNAPSHOT`.
    pub async fn snapshot(&self, name: &str) -> Result<SnapshotInfo> {
        self.get(&format!("/v1/snapshots/{}", escape(name))).await
    }

    /// One instant across all of them; `VOLUME@SNAPSHOT` each.
    pub async fn create_snapshots(&self, names: &[String]) -> Result<()> {
        self.post("/v1/snapshots", &json!({ "names": names })).await
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, name: &str) -> Result<()> {
        told(self.http.delete::<IgnoredAny>(&format!("/v1/snapshots/{}", escape(name))).await).map(drop)
    }

    /// This host, and those it is paired with.
    pub async fn hosts(&self) -> Result<HostsInfo> {
        self.get("/v1/hosts").await
    }

    /// Brings volumes to a host, cut at one instant; how it ended at each target. `on_line` sees the progress. Takes as long
    /// as it takes; when it is dropped the run goes on at blockd.
    pub async fn sync(
        &self,
        volumes: &[String],
        to: &str,
        mut on_line: impl FnMut(&SyncLine),
    ) -> Result<Vec<JobEnded>> {
        let body = json!({ "volumes": volumes, "to": [to], "rate": null });
        let mut ended = Vec::new();
        let lines = self.http.post_lines("/v1/sync", &body, |line: SyncLine| {
            on_line(&line);
            match line {
                SyncLine::Ended(end) => {
                    ended.push(end);
                    Ok(None)
                }
                SyncLine::End(end) => Ok(Some(end)),
                SyncLine::Error(error) => Err(HttpError::Refused(error)),
                SyncLine::Started(_) | SyncLine::Progress(_) => Ok(None),
            }
        });
        let SyncEnd { failed } = told(lines.await)?;
        match ended.iter().find_map(|end| end.error.clone()) {
            Some(error) if failed > 0 => Err(error),
            _ => Ok(ended),
        }
    }
}
