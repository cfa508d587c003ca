//! The text that a cell prints, up to a bound: nobody reads a report that holds fifty megabytes of text.

use lacuna::format::thousands;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Bytes kept of the beginning of each stream of a cell.
pub(super) const HEAD: usize = 96 << 10;
/// Bytes kept of its end, where the reason of a failure stands.
pub(super) const TAIL: usize = 32 << 10;

/// The origin of a line of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// A value's representations by MIME type; binary content is base64.
pub(crate) type Bundle = BTreeMap<String, String>;

/// One output of a cell: printed text or a shown value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Text(Stream, String),
    /// A value that was shown between other outputs.
    Display(Bundle),
    /// The value of the cell's last expression.
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

/// All text of a stream.
pub(super) fn text(outputs: &[Output], stream: Stream) -> String {
    let of_stream = |output: &Output| match output {
        Output::Text(of, text) if *of == stream => Some(text.clone()),
        _ => None,
    };
    outputs.iter().filter_map(of_stream).collect()
}

/// Text and values of a cell in the order in which they came, the middle of long streams left out.
#[derive(Debug, Default)]
pub(super) struct Printed {
    outputs: Vec<Output>,
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
    /// Adds text. Returns how many of its bytes belong to the stream's beginning, the part that is shown as it comes.
    pub(super) fn push(&mut self, stream: Stream, text: &str) -> usize {
        let bounded = &mut self.streams[stream as usize];
        // Once something went to the tail, the head is closed: a short text must not overtake a long one.
        let room = if bounded.tail.is_empty() { HEAD - bounded.head } else { 0 };
        let (front, back) = text.split_at(text.floor_char_boundary(room));
        if !front.is_empty() {
            match self.outputs.last_mut() {
                Some(Output::Text(last, before)) if *last == stream => before.push_str(front),
                _ => self.outputs.push(Output::Text(stream, front.to_owned())),
            }
            bounded.head += front.len();
        }
        if !back.is_empty() {
            bounded.push_tail(back);
        }
        front.len()
    }

    /// Adds a value that is shown between texts, and returns its place.
    pub(super) fn show(&mut self, bundle: Bundle) -> usize {
        self.outputs.push(Output::Display(bundle));
        self.outputs.len() - 1
    }

    /// The value at a place.
    pub(super) fn shown(&self, place: usize) -> Option<&Bundle> {
        self.outputs.get(place)?.bundle()
    }

    /// Everything; what was left out is said in its place.
    pub(super) fn take(&mut self) -> Vec<Output> {
        let Printed { mut outputs, streams } = std::mem::take(self);
        for (stream, bounded) in [Stream::Stdout, Stream::Stderr].into_iter().zip(streams) {
            if bounded.tail.is_empty() {
                continue;
            }
            let mut text = String::with_capacity(bounded.tail_bytes + 100);
            if bounded.left_out > 0 {
                text.push_str(&left_out(bounded.left_out));
            }
            text.extend(bounded.tail);
            match outputs.last_mut() {
                Some(Output::Text(last, before)) if *last == stream => before.push_str(&text),
                _ => outputs.push(Output::Text(stream, text)),
            }
        }
        outputs
    }
}

impl Bounded {
    fn push_tail(&mut self, text: &str) {
        self.tail_bytes += text.len();
        self.tail.push_back(text.to_owned());
        while let Some(excess) = self.tail_bytes.checked_sub(TAIL).filter(|excess| *excess > 0)
            && let Some(first) = self.tail.front_mut()
        {
            let cut = first.ceil_char_boundary(excess.min(first.len()));
            first.drain(..cut);
            if first.is_empty() {
                self.tail.pop_front();
            }
            self.tail_bytes -= cut;
            self.left_out += cut;
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

/// Text without terminal escape sequences.
pub(crate) fn without_ansi(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            // CSI: parameters, then one letter.
            Some('[') => while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
            // OSC: up to a bell or a string terminator.
            Some(']') => {
                while let Some(c) = chars.next() {
                    if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stdout(lines: impl IntoIterator<Item = String>) -> String {
        let mut printed = Printed::default();
        for line in lines {
            printed.push(Stream::Stdout, &line);
        }
        let outputs = printed.take();
        assert!(outputs.iter().all(|output| matches!(output, Output::Text(Stream::Stdout, _))));
        text(&outputs, Stream::Stdout)
    }

    #[test]
    fn short_text_keeps_its_order() {
        let mut printed = Printed::default();
        for (stream, text) in
            [(Stream::Stdout, "a\n"), (Stream::Stdout, "\n"), (Stream::Stderr, "b\n"), (Stream::Stdout, "ç")]
        {
            assert_eq!(printed.push(stream, text), text.len());
        }
        printed.show(Bundle::new());
        printed.push(Stream::Stdout, "d");
        let text = |stream, text: &str| Output::Text(stream, text.to_owned());
        let expected = [
            text(Stream::Stdout, "a\n\n"),
            text(Stream::Stderr, "b\n"),
            text(Stream::Stdout, "ç"),
            Output::Display(Bundle::new()),
            text(Stream::Stdout, "d"),
        ];
        assert_eq!(printed.take(), expected);
        assert!(printed.take().is_empty());
    }

    #[test]
    fn up_to_the_bound_nothing_is_lost() {
        // Lines of 1 to 997 bytes: some of them end across the border of head and tail.
        let lines: Vec<String> = (0..)
            .map(|i| "é".repeat(i * 7 % 499) + "\n")
            .scan(0, |sum, line| {
                *sum += line.len();
                (*sum <= HEAD + TAIL - 4).then_some(line)
            })
            .collect();
        let expected = lines.concat();
        assert!(expected.len() > HEAD + TAIL - 1100);
        assert_eq!(stdout(lines), expected);
    }

    #[test]
    fn the_middle_of_long_text_is_counted() {
        let line = |i: usize| format!("line {i:07}\n");
        let text = stdout((0..100_000).map(line));
        assert!(text.len() < HEAD + TAIL + 200, "{}", text.len());
        assert!(text.starts_with("line 0000000\n") && text.ends_with("line 0099999\n"));
        let note = text.lines().find(|line| line.starts_with('[')).unwrap();
        let kept = text.len() - note.len() - 2;
        assert!(note.contains(&thousands((1_300_000 - kept) as i128)), "{note} {kept}");
    }

    #[test]
    fn one_long_line_keeps_its_ends() {
        let text = stdout([format!("<{}>\n", "ü".repeat(1 << 20))]);
        assert!(text.starts_with('<') && text.ends_with(">\n") && text.len() < HEAD + TAIL + 200);
        assert!(text.contains("bytes left out here"));
        let value = bounded(&format!("<{}>", "ü".repeat(1 << 20)));
        assert!(value.starts_with('<') && value.ends_with('>') && value.len() < HEAD + TAIL + 200);
    }
}
