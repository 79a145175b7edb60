//! Where other hosts' agents come in: `RUN/peer.sock`, which blockd leads them to.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::destination::ended_answer;
use super::hub::Moves;
use super::link::{receive_one, say};
use super::record::{MoveRecord, Side};
use super::stream::{Purpose, greet};
use crate::cutover::ids::MoveId;
use crate::cutover::known::source_answer;
use crate::cutover::message::Message;
use crate::cutover::record::Plan;
use crate::error::{Error, Kind};

/// Streams of other agents at once.
const STREAMS_MAX: usize = 128;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long who asks about an ended move is listened to.
const ENDED_TIME_MAX: Duration = Duration::from_secs(10);

impl Moves {
    /// Takes other agents in, until it is dropped.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn receive(&self, listener: StdListener) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
        let failed = |error| Error::one_line(Kind::Io, format!("other agents' socket: {error}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        Ok(accept(self.clone(), listener))
    }
}

async fn accept(moves: Moves, listener: UnixListener) {
    let permits = Arc::new(Semaphore::new(STREAMS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept another agent");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let own = rustix::process::geteuid().as_raw();
        let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
        let Some(permit) = Arc::clone(&permits).try_acquire_owned().ok().filter(|_| allowed) else {
            tracing::warn!(allowed, "a stream of another agent is turned away");
            continue;
        };
        let moves = moves.clone();
        tokio::spawn(async move {
            moves.serve(stream).await;
            drop(permit);
        });
    }
}

impl Moves {
    async fn serve(&self, mut stream: UnixStream) {
        let (who, purpose) = match greet(&mut stream).await {
            Ok(greeted) => greeted,
            Err(error) => return tracing::warn!(%error, "a stream of another agent"),
        };
        match purpose {
            Purpose::Control { id } => self.control(&who.host, id, stream).await,
            Purpose::Memory { id } => self.memory(&who.host, id, stream).await,
            Purpose::Ask(question) => {
                if let Err(error) = self.answer(&who.host, *question, &mut stream).await {
                    tracing::debug!(%error, "an answer was not heard");
                }
            }
        }
    }

    /// What blockd says of a move that this agent has forgotten.
    async fn record_of(&self, id: MoveId) -> Option<crate::cutover::record::Record> {
        super::disk::Disk::new(self.0.host.blockd.clone(), id, "", Vec::new()).query().await
    }
}

/// Answers about a move that nobody works on, by what is known of it. A plan: it is one that begins.
pub(super) async fn answer_ended(
    moves: &Moves,
    from: &str,
    id: MoveId,
    record: Option<MoveRecord>,
    stream: &mut UnixStream,
) -> Option<Plan> {
    let talk = async {
        loop {
            match receive_one(stream).await {
                Ok(Some(envelope)) if envelope.id == id => {
                    if let (Message::Prepare { plan }, None) = (&envelope.message, &record) {
                        return Some(plan.clone());
                    }
                    let answer = match record.as_ref().map(|record| record.side) {
                        Some(Side::Destination) => ended_answer(&envelope.message, record.as_ref()),
                        Some(Side::Source) => {
                            let ended = record.as_ref().and_then(|record| record.source_end.as_ref());
                            source_answer(&envelope.message, ended, None)
                        }
                        None if matches!(envelope.message, Message::Query {}) => {
                            let known = moves.record_of(id).await;
                            source_answer(&envelope.message, None, known.as_ref())
                        }
                        None => ended_answer(&envelope.message, None),
                    };
                    if let Some(answer) = answer
                        && let Err(error) = say(stream, id, answer).await
                    {
                        tracing::debug!(%error, from, "an answer was not heard");
                        return None;
                    }
                }
                Ok(_) => {}
                Err(why) => {
                    tracing::debug!(why, from, "who asked about a move has gone");
                    return None;
                }
            }
        }
    };
    timeout(ENDED_TIME_MAX, talk).await.ok().flatten()
}
