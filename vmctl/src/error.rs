//! The one error that travels: between agent and client as JSON, inside the agent as a value, out of blockd as it came.

pub use local_api::error::{ErrorAnswer, ErrorBody as Error, Kind};
