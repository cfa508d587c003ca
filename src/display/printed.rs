//! Values as `Debug` prints them, up to a length that can be read.

use std::fmt::{self, Debug, Write};

/// Characters that are shown of a value.
const CHARACTERS: usize = 4_000;
/// Longer structures are spread over lines.
const LINE: usize = 120;

/// A value as `{:?}` writes it, up to [`CHARACTERS`].
pub(super) fn line(value: &dyn Debug) -> String {
    Limited::of(format_args!("{value:?}")).with_rest()
}

/// A value as `{:?}` writes it, over several lines where one is too long, up to [`CHARACTERS`].
pub(super) fn text(value: &dyn Debug) -> String {
    let short = Limited::of(format_args!("{value:?}"));
    let is_structure = short.text.contains('{') && !short.text.starts_with(['[', '"']);
    let is_long = is_structure && short.text.chars().nth(LINE).is_some() && !short.text.contains('\n');
    if is_long { Limited::of(format_args!("{value:#?}")) } else { short }.with_rest()
}

/// The beginning of what is written, and the number of characters that follow.
struct Limited {
    text: String,
    left: usize,
    more: usize,
}

impl Limited {
    fn of(written: fmt::Arguments<'_>) -> Limited {
        let mut limited = Limited { text: String::new(), left: CHARACTERS, more: 0 };
        // Writing to a string cannot fail; a value that says so itself is shown as far as it came.
        let _ = limited.write_fmt(written);
        limited
    }

    fn with_rest(mut self) -> String {
        if self.more > 0 {
            self.text.push_str(&format!("… {} more characters", crate::format::thousands(self.more as i128)));
        }
        self.text
    }
}

impl Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let at = text.char_indices().nth(self.left).map_or(text.len(), |(at, _)| at);
        self.text.push_str(&text[..at]);
        self.left -= text[..at].chars().count();
        self.more += text[at..].chars().count();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_shown_in_part() {
        let shown = text(&"é".repeat(5_000));
        assert_eq!(shown.chars().take_while(|c| *c != '…').count(), CHARACTERS);
        assert!(shown.ends_with("… 1,002 more characters"), "{shown}");
        assert_eq!(text(&(1, "a", [0.5])), r#"(1, "a", [0.5])"#);
        assert!(
            text(&crate::stats::Interval { low: 0.1, high: 1.0 / 3.0, level: 0.95, resamples: 10_000, seed: 1 << 60 })
                .lines()
                .count()
                == 1
        );
    }
}
