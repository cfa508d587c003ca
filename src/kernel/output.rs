//! What a cell gives, in order. Of what it prints only so much: a report that holds fifty megabytes of text is read by
//! nobody.

use lacuna::report::thousands;
use std::collections::{BTreeMap, VecDeque};

/// Bytes kept of the beginning of each stream of a cell.
pub(super) const HEAD: usize = 96 << 10;
/// Bytes kept of its end, where the reason of a failure stands.
pub(super) const TAIL: usize = 32 << 10;

/// Where a line of text came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Its name in notebooks and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Representations of one value by MIME type; binary content is base64.
pub(crate) type Bundle = BTreeMap<String, String>;

/// One of the things that a cell gives while it runs and at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// What it printed, up to the next output.
    Text(Stream, String),
    /// A value that it showed: `display_data` in a notebook.
    Display(Bundle),
    /// The value of its last expression: `execute_result` in a notebook.
    Result(Bundle),
}

impl Output {
    /// The value, if it is one.
    pub(crate) fn bundle(&self) -> Option<&Bundle> {
        match self {
            Output::Text(..) => None,
            Output::Display(bundle) | Output::Result(bundle) => Some(bundle),
        }
    }
}

/// Text of a cell in the order in which it came, the middle of long streams left out.
#[derive(Debug, Default)]
pub(super) struct Printed {
    parts: Vec<(Stream, String)>,
    streams: [Bounded; 2],
}

#[derive(Debug, Default)]
struct Bounded {
    head: usize,
    tail: VecDeque<String>,
    tail_bytes: usize,
    left_out: usize,
}

impl Printed {
    /// Adds a line, which comes without its newline.
    pub(super) fn push(&mut self, stream: Stream, line: &str) {
        let bounded = &mut self.streams[stream as usize];
        let room = HEAD - bounded.head;
        let fits = line.floor_char_boundary(room.saturating_sub(1));
        // Once something went to the tail, the head is closed: a short line must not overtake a long one.
        let (front, back) = if bounded.tail.is_empty() { line.split_at(fits) } else { ("", line) };
        let whole = back.is_empty() && room > 0 && bounded.tail.is_empty();
        if whole || !front.is_empty() {
            let end = if whole { "\n" } else { "" };
            match self.parts.last_mut() {
                Some((last, text)) if *last == stream => text.extend([front, end]),
                _ => self.parts.push((stream, format!("{front}{end}"))),
            }
            bounded.head += front.len() + usize::from(whole);
        }
        if !whole {
            bounded.push_tail(back);
        }
    }

    /// Whether the next line of the stream goes to its beginning, the part that is shown as it comes.
    pub(super) fn is_open(&self, stream: Stream) -> bool {
        let bounded = &self.streams[stream as usize];
        bounded.tail.is_empty() && bounded.head < HEAD
    }

    /// The text; what was left out is said in its place.
    pub(super) fn take(&mut self) -> Vec<(Stream, String)> {
        let Printed { mut parts, streams } = std::mem::take(self);
        for (stream, bounded) in [Stream::Stdout, Stream::Stderr].into_iter().zip(streams) {
            if bounded.tail.is_empty() {
                continue;
            }
            let mut text = String::with_capacity(bounded.tail_bytes + 100);
            if bounded.left_out > 0 {
                text.push_str(&left_out(bounded.left_out));
            }
            text.extend(bounded.tail);
            match parts.last_mut() {
                Some((last, before)) if *last == stream => before.push_str(&text),
                _ => parts.push((stream, text)),
            }
        }
        parts
    }
}

impl Bounded {
    fn push_tail(&mut self, text: &str) {
        let cut = text.ceil_char_boundary((text.len() + 1).saturating_sub(TAIL));
        self.left_out += cut;
        self.tail_bytes += text.len() - cut + 1;
        self.tail.push_back(format!("{}\n", &text[cut..]));
        while self.tail_bytes > TAIL
            && let Some(first) = self.tail.pop_front()
        {
            self.tail_bytes -= first.len();
            self.left_out += first.len();
        }
    }
}

/// A value's text within the same bound.
pub(super) fn bounded(text: &str) -> String {
    if text.len() <= HEAD + TAIL {
        return text.to_owned();
    }
    let front = text.floor_char_boundary(HEAD);
    let back = text.ceil_char_boundary(text.len() - TAIL);
    format!("{}{}{}", &text[..front], left_out(back - front), &text[back..])
}

fn left_out(bytes: usize) -> String {
    format!("\n[lacuna: {} bytes left out here; print less, or write them to a file]\n", thousands(bytes as i128))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stdout(lines: impl IntoIterator<Item = String>) -> String {
        let mut printed = Printed::default();
        for line in lines {
            printed.push(Stream::Stdout, &line);
        }
        let parts = printed.take();
        assert!(parts.iter().all(|(stream, _)| *stream == Stream::Stdout));
        parts.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn short_text_keeps_its_order() {
        let mut printed = Printed::default();
        for (stream, line) in
            [(Stream::Stdout, "a"), (Stream::Stdout, ""), (Stream::Stderr, "b"), (Stream::Stdout, "ç")]
        {
            assert!(printed.is_open(stream));
            printed.push(stream, line);
        }
        let expected = [(Stream::Stdout, "a\n\n"), (Stream::Stderr, "b\n"), (Stream::Stdout, "ç\n")];
        assert_eq!(printed.take(), expected.map(|(stream, text)| (stream, text.to_owned())));
        assert!(printed.take().is_empty());
    }

    #[test]
    fn up_to_the_bound_nothing_is_lost() {
        // Lines of 1 to 997 bytes: some of them end across the border of head and tail.
        let lines: Vec<String> = (0..)
            .map(|i| "é".repeat(i * 7 % 499))
            .scan(0, |sum, line| {
                *sum += line.len() + 1;
                (*sum <= HEAD + TAIL - 4).then_some(line)
            })
            .collect();
        let expected: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert!(expected.len() > HEAD + TAIL - 1100);
        assert_eq!(stdout(lines), expected);
    }

    #[test]
    fn the_middle_of_long_text_is_counted() {
        let line = |i: usize| format!("line {i:07}");
        let text = stdout((0..100_000).map(line));
        assert!(text.len() < HEAD + TAIL + 200, "{}", text.len());
        assert!(text.starts_with("line 0000000\n") && text.ends_with("line 0099999\n"));
        let note = text.lines().find(|line| line.starts_with('[')).unwrap();
        let kept = text.len() - note.len() - 2;
        assert!(note.contains(&thousands((1_300_000 - kept) as i128)), "{note} {kept}");
    }

    #[test]
    fn one_long_line_keeps_its_ends() {
        let text = stdout([format!("<{}>", "ü".repeat(1 << 20))]);
        assert!(text.starts_with('<') && text.ends_with(">\n") && text.len() < HEAD + TAIL + 200);
        assert!(text.contains("bytes left out here"));
        let value = bounded(&format!("<{}>", "ü".repeat(1 << 20)));
        assert!(value.starts_with('<') && value.ends_with('>') && value.len() < HEAD + TAIL + 200);
    }
}
