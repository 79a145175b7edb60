//! Tables for people, JSON for scripts, in the form that was asked for.

pub(super) use local_api::output::{failure, is_reader_gone, line, object, pairs, table, write};
use serde::Serialize;

use super::args::Format;
use crate::failure::Failure;

/// Writes a list: one object that holds it under `key`, or one object an item.
pub(super) fn list<T: Serialize>(format: Format, key: &str, items: &[T]) -> Result<(), Failure> {
    local_api::output::list(format == Format::Jsonl, key, items)
}
