//! Between HTTP and our types: what a request must look like, and how refusals are told.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::types::{ErrorAnswer, ErrorBody, Kind};
use crate::control::{ControlError, ErrorKind, SnapshotName, is_valid_name};

/// A refusal or failure on its way to the client.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) ErrorBody);

impl Refusal {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(ErrorBody::new(kind, message))
    }

    /// The same, with the next command to type, unless that is said already.
    pub(crate) fn with_next(mut self, next: impl Into<String>) -> Self {
        self.0.next.get_or_insert_with(|| next.into());
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0.kind.status(), Json(ErrorAnswer { error: self.0 })).into_response()
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self(error.into())
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(Kind::BadRequest, rejection.body_text())
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Kind::BadRequest, rejection.body_text())
    }
}

/// A JSON body; a wrong one is refused in our own form.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let Json(body) = Json::from_request(request, state).await?;
        Ok(Self(body))
    }
}

/// The query; a wrong one is refused in our own form.
pub(crate) struct Args<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Args<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Query(args) = Query::from_request_parts(parts, state).await?;
        Ok(Self(args))
    }
}

/// The path's one parameter, whatever it is.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let bad = |error| Refusal::new(Kind::BadName, format!("the path names nothing: {error}"));
        let Path(segment) = Path::from_request_parts(parts, state).await.map_err(bad)?;
        Ok(Self(segment))
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
