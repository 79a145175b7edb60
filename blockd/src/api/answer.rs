//! Names in requests, and the store's errors as refusals.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
pub(crate) use local_api::answer::{Args, Body, Refusal, Segment};

use crate::control::{ControlError, ErrorKind, SnapshotName, is_valid_name};

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self(error.into())
    }
}

/// The path's parameter, as a volume's name.
pub(crate) struct VolumeName(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for VolumeName {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Segment(name) = Segment::from_request_parts(parts, state).await?;
        check_name(&name)?;
        Ok(Self(name))
    }
}

/// The path's parameter, as `VOLUME@SNAPSHOT`.
pub(crate) struct Snap(pub(crate) SnapshotName);

impl<S: Send + Sync> FromRequestParts<S> for Snap {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Segment(name) = Segment::from_request_parts(parts, state).await?;
        Ok(Self(name.parse()?))
    }
}

/// Refuses what cannot be a volume's name or a hold's reason, before it travels any further.
pub(crate) fn check_name(name: &str) -> Result<(), ControlError> {
    if is_valid_name(name) {
        return Ok(());
    }
    let message = format!("{name:?} is no name: 1 to 255 of A-Z a-z 0-9 . _ -, not beginning with . or -");
    Err(ControlError::new(ErrorKind::BadName, message))
}
