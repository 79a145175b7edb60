//! QEMU's text on its way to people.

/// Longest text that is passed on, in characters.
const SHOWN_CHARS_MAX: usize = 500;

/// The text without anything that a terminal would act upon, and not longer than a person reads.
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == SHOWN_CHARS_MAX {
            shown.push('…');
            break;
        }
        if c.is_control() || is_invisible(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Marks that change the order or the look of what stands around them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_reached() {
        assert_eq!(shown("a\x1b[2Jb\r\n"), "a\\u{1b}[2Jb\\r\\n");
        assert_eq!(shown("\u{202e}x"), "\\u{202e}x");
        assert_eq!(shown("Prüfung"), "Prüfung");
    }

    #[test]
    fn a_novel_is_cut() {
        assert_eq!(shown(&"x".repeat(10_000)).chars().count(), SHOWN_CHARS_MAX + 1);
    }
}
