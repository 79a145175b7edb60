//! Between HTTP and our types: what a request must look like, and how refusals are told.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::error::{ErrorAnswer, ErrorBody, Kind};

/// A refusal or failure on its way to the client.
#[derive(Debug)]
pub struct Refusal(pub ErrorBody);

impl Refusal {
    /// A refusal of that kind, in those words.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(ErrorBody::new(kind, message))
    }

    /// The same, with the next command to type, unless that is said already.
    #[must_use]
    pub fn with_next(self, next: impl Into<String>) -> Self {
        Self(self.0.with_next(next))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0.kind.status(), Json(ErrorAnswer { error: self.0 })).into_response()
    }
}

impl From<ErrorBody> for Refusal {
    fn from(error: ErrorBody) -> Self {
        Self(error)
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
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let Json(body) = Json::from_request(request, state).await?;
        Ok(Self(body))
    }
}

/// The query; a wrong one is refused in our own form.
pub struct Args<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Args<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Query(args) = Query::from_request_parts(parts, state).await?;
        Ok(Self(args))
    }
}

/// The path's one parameter, whatever it is.
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let bad = |error| Refusal::new(Kind::BadName, format!("the path names nothing: {error}"));
        let Path(segment) = Path::from_request_parts(parts, state).await.map_err(bad)?;
        Ok(Self(segment))
    }
}
