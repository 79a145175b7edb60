//! Lines of JSON out of received bytes, without I/O.

use serde_json::{Map, Value};

use super::text::shown;

/// Longest line that is taken from QEMU; its longest answers (block nodes, machines) have some 100 KiB.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Why the bytes are no QMP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// No end within [`LINE_BYTES_MAX`].
    #[error("a line of more than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// Not a JSON object, or one that is nested deeper than serde_json's 128.
    #[error("a line that is no JSON object: {0}")]
    NotAnObject(String),
}

/// Gathers bytes and gives whole lines; holds at most one line and what was received with it.
#[derive(Debug, Default)]
pub struct LineCodec {
    gathered: Vec<u8>,
    /// No line ends before this one: bytes are looked at once.
    looked: usize,
}

impl LineCodec {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
    }

    /// The next whole line as an object; empty lines are skipped. `None`: more bytes are needed.
    ///
    /// # Errors
    /// See [`LineError`]; the connection cannot be used any more.
    pub fn next_object(&mut self) -> Result<Option<Map<String, Value>>, LineError> {
        loop {
            let Some(at) = self.gathered[self.looked..].iter().position(|&byte| byte == b'\n') else {
                self.looked = self.gathered.len();
                return if self.looked > LINE_BYTES_MAX { Err(LineError::TooLong) } else { Ok(None) };
            };
            let end = self.looked + at;
            if end > LINE_BYTES_MAX {
                return Err(LineError::TooLong);
            }
            let line: Vec<u8> = self.gathered.drain(..=end).collect();
            self.looked = 0;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let object = serde_json::from_slice(&line);
            return object.map(Some).map_err(|error| LineError::NotAnObject(shown(&error.to_string())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_given_however_they_arrive() {
        let mut codec = LineCodec::default();
        for byte in b"\r\n{\"a\":1}\r\n{\"b\"" {
            codec.push(&[*byte]);
        }
        assert_eq!(codec.next_object().unwrap().unwrap()["a"], 1);
        assert_eq!(codec.next_object(), Ok(None));
        codec.push(b":2}\n");
        assert_eq!(codec.next_object().unwrap().unwrap()["b"], 2);
    }

    #[test]
    fn a_giant_line_is_refused_with_and_without_its_end() {
        let giant = vec![b' '; LINE_BYTES_MAX + 1];
        let mut codec = LineCodec::default();
        codec.push(&giant);
        assert_eq!(codec.next_object(), Err(LineError::TooLong));
        let mut codec = LineCodec::default();
        codec.push(&giant);
        codec.push(b"\n");
        assert_eq!(codec.next_object(), Err(LineError::TooLong));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut codec = LineCodec::default();
        codec.push(format!("{{\"a\":{}\n", "[".repeat(100_000)).as_bytes());
        assert!(matches!(codec.next_object(), Err(LineError::NotAnObject(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hoard(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..50)) {
            let mut codec = LineCodec::default();
            for chunk in chunks {
                codec.push(&chunk);
                while let Ok(Some(_)) = codec.next_object() {}
                prop_assert!(codec.gathered.len() <= LINE_BYTES_MAX + 200);
            }
        }

        #[test]
        fn what_was_written_is_read(values in prop::collection::vec("\\PC{0,20}", 1..10), cut in 1usize..30) {
            let text: String = values.iter().map(|value| format!("{}\n", serde_json::json!({"v": value}))).collect();
            let mut codec = LineCodec::default();
            let mut read = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                codec.push(piece);
                while let Some(object) = codec.next_object().unwrap() {
                    read.push(object["v"].as_str().unwrap().to_owned());
                }
            }
            prop_assert_eq!(read, values);
        }
    }
}
