//! Between HTTP and our types: what a request must look like, and how refusals are told.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorAnswer, Kind};
use crate::vm::name::VmName;

/// A refusal or failure on its way to the client.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Error);

impl Refusal {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Error::new(kind, message.into()))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0.kind.status(), Json(ErrorAnswer { error: self.0 })).into_response()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
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

/// The path's one parameter, as a VM's name.
pub(crate) struct Name(pub(crate) VmName);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let bad = |error| Refusal::new(Kind::BadName, format!("the path names nothing: {error}"));
        let Path(segment): Path<String> = Path::from_request_parts(parts, state).await.map_err(bad)?;
        segment.parse().map(Self).map_err(|why: String| Refusal::new(Kind::BadName, why))
    }
}
