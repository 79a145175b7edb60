//! Tables for people, JSON for scripts. Every object carries `"v":1`; fields are added, never changed.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::exit_code;
use crate::failure::Failure;

/// The version of the JSON output.
const VERSION: u64 = 1;
/// What a failure says when nobody reads our output any more (`… | head`).
const READER_GONE: &str = "the reader of the output is gone";

/// Writes bytes to standard output.
///
/// # Errors
/// Standard output takes no more, here and below.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| failure(&error))
}

/// Writes a line to standard output.
pub fn line(text: impl Display) -> Result<(), Failure> {
    write(format!("{text}\n").as_bytes())
}

/// The failure of our own output.
pub fn failure(error: &io::Error) -> Failure {
    let why =
        if error.kind() == io::ErrorKind::BrokenPipe { READER_GONE.to_owned() } else { error.to_string() };
    Failure::new(exit_code::FAILED, "cannot write the output", why, "df -h .")
}

/// Whether that is why it failed.
pub fn is_reader_gone(failure: &Failure) -> bool {
    failure.why == READER_GONE
}

/// Writes one object: `{"v":1, …fields}`.
pub fn object(value: &impl Serialize) -> Result<(), Failure> {
    line(versioned(value)?)
}

/// Writes a list: one object that holds it under `key`, or, `each_alone`, one object an item.
pub fn list<T: Serialize>(each_alone: bool, key: &str, items: &[T]) -> Result<(), Failure> {
    if each_alone {
        return items.iter().try_for_each(object);
    }
    let items = serde_json::to_value(items).map_err(|error| failure(&error.into()))?;
    object(&Map::from_iter([(key.to_owned(), items)]))
}

fn versioned(value: &impl Serialize) -> Result<Value, Failure> {
    let value = serde_json::to_value(value).map_err(|error| failure(&error.into()))?;
    let mut object = Map::from_iter([("v".to_owned(), VERSION.into())]);
    match value {
        Value::Object(fields) => object.extend(fields),
        other => {
            object.insert("value".to_owned(), other);
        }
    }
    Ok(Value::Object(object))
}

/// A table without lines; columns named in `right` are numbers.
pub fn table(head: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        // Cells touch the left edge and stand two apart.
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    line(text.join("\n"))
}

/// Names and values, one a line, values under each other.
pub fn pairs(pairs: &[(&str, String)]) -> Result<(), Failure> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let text: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name:width$}  {value}").trim_end().to_owned()).collect();
    line(text.join("\n"))
}

/// `1 snapshot`, `2 snapshots`.
pub fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_begin_with_their_version() {
        #[derive(Serialize)]
        struct Item {
            name: &'static str,
        }
        assert_eq!(versioned(&Item { name: "web" }).unwrap().to_string(), r#"{"name":"web","v":1}"#);
        assert_eq!(versioned(&3).unwrap().to_string(), r#"{"v":1,"value":3}"#);
    }
}
