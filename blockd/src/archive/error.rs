//! What can go wrong with an archive.

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The storage failed, or said no.
    #[error("{object}: {source}")]
    Storage {
        /// Its name in the archive.
        object: String,
        /// The storage's word.
        source: object_store::Error,
    },
    /// It is not there.
    #[error("there is no {0} in the archive")]
    NotFound(String),
    /// What is stored is not what was written, or was written by somebody without the key.
    #[error("{object}: {why}")]
    Damaged {
        /// Its name in the archive.
        object: String,
        /// What does not fit.
        why: String,
    },
    /// It would break a rule: a name taken, a key that is not the archive's, HTTP to another host.
    #[error("{0}")]
    Refused(String),
    /// A key file that cannot be used.
    #[error("key file {file}: {why}")]
    Key {
        /// The file.
        file: String,
        /// Why not.
        why: String,
    },
    /// The address of the archive means nothing.
    #[error("{0}")]
    Address(String),
    /// More than this version handles.
    #[error("{0}")]
    TooLarge(String),
    /// A thread of ours ended early, or the receiver went away.
    #[error("{0}")]
    Stopped(String),
}

impl ArchiveError {
    /// Damage of an object.
    pub(crate) fn damaged(object: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), why: why.into() }
    }
}

impl From<tokio::task::JoinError> for ArchiveError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Stopped(format!("a thread ended early: {error}"))
    }
}
