//! Names in requests.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use local_api::answer::Segment;
pub(crate) use local_api::answer::{Args, Body, Refusal};

use crate::error::Kind;
use crate::vm::name::VmName;

/// The path's one parameter, as a VM's name.
pub(crate) struct Name(pub(crate) VmName);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Segment(segment) = Segment::from_request_parts(parts, state).await?;
        segment.parse().map(Self).map_err(|why: String| Refusal::new(Kind::BadName, why))
    }
}
