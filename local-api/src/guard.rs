//! Limits on what a client may send, before any handler sees it.

use std::error::Error;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::answer::Refusal;
use crate::error::Kind;

/// Largest body of a request.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a client may take for a request's header, and again for its body.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Reads the whole body, within its limits of size and time: handlers never wait for a client.
pub async fn whole_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let told = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if told.is_some_and(|bytes: u64| bytes > BODY_BYTES_MAX as u64) {
        return too_large();
    }
    match tokio::time::timeout(REQUEST_TIME_MAX, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(Err(error)) if is_too_large(&error) => too_large(),
        Ok(Err(error)) => {
            Refusal::new(Kind::BadRequest, format!("the body broke off: {error}")).into_response()
        }
        Err(_) => Refusal::new(Kind::Timeout, "the body did not arrive within 10 s").into_response(),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    error.source().is_some_and(<dyn Error>::is::<http_body_util::LengthLimitError>)
}

fn too_large() -> Response {
    Refusal::new(Kind::TooLarge, "the body has more than 1 MiB").into_response()
}
