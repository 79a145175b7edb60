//! A client of blockd's control API (docs/api.md), as far as VMs need it. Answers may have more fields than we know; an error
//! of blockd is passed on with its kind and its words.

mod types;

pub use types::{
    HashEnd, HashLine, HostDistance, HostInfo, HostsInfo, JobEnded, MirrorInfo, MirrorStage, MirrorsInfo,
    MoveInfo, MovedVolume, MovesInfo, OwnHost, SnapshotInfo, SnapshotsPage, StatusInfo, StoreInfo, SyncEnd,
    SyncLine, VolumeInfo, VolumeRole,
};

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use crate::cutover::ids::MoveId;
use crate::error::{Error, Kind};
use crate::http::{self, HttpClient, HttpError, escape};

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
        let error = http::error_of(error, "blockd");
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
        Self { http: http::client(socket, ANSWER_TIME_MAX) }
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

    /// Takes back a reason not to delete a snapshot.
    pub async fn release_hold(&self, name: &str, reason: &str) -> Result<()> {
        let path = format!("/v1/snapshots/{}/release", escape(name));
        self.post(&path, &json!({ "reason": reason })).await
    }

    /// Deletes a volume that has no snapshots and no clients.
    pub async fn delete_volume(&self, name: &str) -> Result<()> {
        told(self.http.delete::<IgnoredAny>(&format!("/v1/volumes/{}", escape(name))).await).map(drop)
    }

    /// The newest snapshot of a volume, if it has any.
    pub async fn newest_snapshot(&self, volume: &str) -> Result<Option<SnapshotInfo>> {
        let mut newest = None;
        self.each_page(volume, |page| newest = page.into_iter().last().or(newest.take())).await?;
        Ok(newest)
    }

    /// All of a volume, oldest first.
    pub async fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotInfo>> {
        let mut all = Vec::new();
        self.each_page(volume, |page| all.extend(page)).await?;
        Ok(all)
    }

    async fn each_page(&self, volume: &str, mut take: impl FnMut(Vec<SnapshotInfo>)) -> Result<()> {
        let mut after = String::new();
        loop {
            let page: SnapshotsPage =
                self.get(&format!("/v1/snapshots?volume={}{after}", escape(volume))).await?;
            take(page.snapshots);
            match page.next {
                Some(next) => after = format!("&after={}", escape(&next)),
                None => return Ok(()),
            }
        }
    }

    /// BLAKE3 of a snapshot's content; at once where blockd has it already.
    pub async fn hash(&self, name: &str) -> Result<String> {
        let path = format!("/v1/snapshots/{}/hash", escape(name));
        let body = json!({});
        let hash = self.http.post_lines(&path, &body, |line: HashLine| match line {
            HashLine::Progress(_) => Ok(None),
            HashLine::End(end) => Ok(Some(end.hash)),
            HashLine::Error(error) => Err(HttpError::Refused(error)),
        });
        told(hash.await)
    }

    /// What blockd's records say of all moves.
    pub async fn moves(&self) -> Result<Vec<MoveInfo>> {
        Ok(self.get::<MovesInfo>("/v1/moves").await?.moves)
    }

    /// What blockd's record says of a move.
    pub async fn moved(&self, id: MoveId) -> Result<MoveInfo> {
        self.get(&format!("/v1/moves/{id}")).await
    }

    /// Source: from now on writes are held, then refused.
    pub async fn freeze(&self, id: MoveId, peer: &str, volumes: &[String]) -> Result<()> {
        self.post(&format!("/v1/moves/{id}/freeze"), &json!({ "peer": peer, "volumes": volumes })).await
    }

    /// Source: the commit record. `VOLUME@SNAPSHOT` and root each.
    pub async fn release(&self, id: MoveId, snapshots: &[(String, String)]) -> Result<()> {
        let one = |(name, root): &(String, String)| json!({ "name": name, "root": root });
        let snapshots: Vec<_> = snapshots.iter().map(one).collect();
        self.post(&format!("/v1/moves/{id}/release"), &json!({ "snapshots": snapshots })).await
    }

    /// Destination: replicas are going to be this host's.
    pub async fn expect(&self, id: MoveId, peer: &str, volumes: &[String]) -> Result<()> {
        self.post(&format!("/v1/moves/{id}/expect"), &json!({ "peer": peer, "volumes": volumes })).await
    }

    /// Destination: they are. Volume, epoch, uid and root each.
    pub async fn own(&self, id: MoveId, volumes: &[(String, u64, String, String)]) -> Result<()> {
        let one = |(volume, epoch, uid, root): &(String, u64, String, String)| json!({ "volume": volume, "epoch": epoch, "uid": uid, "root": root });
        let volumes: Vec<_> = volumes.iter().map(one).collect();
        self.post(&format!("/v1/moves/{id}/own"), &json!({ "volumes": volumes })).await
    }

    /// Either: the move is given up, also before it began.
    pub async fn abort(&self, id: MoveId, peer: &str, volumes: &[String]) -> Result<()> {
        self.post(&format!("/v1/moves/{id}/abort"), &json!({ "peer": peer, "volumes": volumes })).await
    }

    /// Either: one whose agent knows nothing of it.
    pub async fn abort_unknown(&self, id: MoveId) -> Result<()> {
        self.post(&format!("/v1/moves/{id}/abort"), &json!({})).await
    }

    /// From now on what is written to a volume is at another host, too, before it is answered.
    pub async fn mirror(&self, volume: &str, to: &str) -> Result<()> {
        self.post("/v1/mirrors", &json!({ "volume": volume, "to": to })).await
    }

    /// Mirrored volumes.
    pub async fn mirrors(&self) -> Result<Vec<MirrorInfo>> {
        Ok(self.get::<MirrorsInfo>("/v1/mirrors").await?.mirrors)
    }

    /// No mirror any more; one that there is not is no error.
    pub async fn end_mirror(&self, volume: &str) -> Result<()> {
        match told(self.http.delete::<IgnoredAny>(&format!("/v1/mirrors/{}", escape(volume))).await) {
            Err(error) if error.kind == Kind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// How far another host is.
    pub async fn distance(&self, host: &str) -> Result<HostDistance> {
        told(self.http.post(&format!("/v1/hosts/{}/check", escape(host)), &json!({})).await)
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
