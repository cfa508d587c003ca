//! A cell's output on a standard stream, as text and values: bytes that are no UTF-8 are repaired, and the blocks in
//! which evcxr's protocol for values shows them are taken out.

use lacuna::progress::Transcript;

/// Begins a block: `EVCXR_BEGIN_CONTENT text/html`, lines of content, and [`END`].
const BEGIN: &[u8] = b"EVCXR_BEGIN_CONTENT ";
const END: &[u8] = b"EVCXR_END_CONTENT";

/// Bytes of text that travel together at most.
const CHUNK: usize = 32 << 10;

/// A piece of a stream, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// A line of progress, with its mark, without its newline.
    Progress(String),
    /// Blocks that came one behind another, each of another MIME type: one value.
    Value(Vec<(String, String)>),
}

/// The stream's state between two reads.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Bytes that may be the beginning of something.
    held: Vec<u8>,
    /// The last byte that was told was a newline, or there was none.
    is_inside_line: bool,
    /// The MIME type of the block that has begun, as it stood in the stream.
    block: Option<Vec<u8>>,
    value: Vec<(String, String)>,
}

impl Decoder {
    /// Takes bytes, and returns what is complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.held.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// Returns whether a part of the output is held back.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty() || !self.value.is_empty()
    }

    /// Returns what is held back, because nothing more came for a while: all but blocks and characters that have begun.
    pub(super) fn pause(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.end_value(&mut pieces);
        if self.block.is_none() && !self.held.is_empty() {
            let rest = unfinished(&self.held);
            let text: Vec<u8> = self.held.drain(..self.held.len() - rest).collect();
            self.text(&text, &mut pieces);
        }
        pieces
    }

    /// Returns all that is held back, because the stream's cell is over.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.end_value(&mut pieces);
        // A block without an end is text.
        let mut text = self.block.take().map(|mime| [BEGIN, &mime, b"\n"].concat()).unwrap_or_default();
        text.append(&mut self.held);
        self.text(&text, &mut pieces);
        self.is_inside_line = false;
        pieces
    }

    /// Takes the next thing out of what is held; whether there may be another one.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if let Some(mime) = &self.block {
            let Some((content, rest)) = content(&self.held) else { return false };
            let mime = String::from_utf8_lossy(mime).into_owned();
            let content = String::from_utf8_lossy(&self.held[..content]).into_owned();
            self.held.drain(..rest);
            self.block = None;
            if self.value.iter().any(|(other, _)| *other == mime) {
                self.end_value(pieces);
            }
            self.value.push((mime, content));
            return true;
        }
        let begin = find(&self.held, BEGIN);
        // A mark of progress is at the beginning of a line.
        let mark = match self.held.first() {
            Some(1) if !self.is_inside_line => Some(0),
            _ => self.held.windows(2).position(|pair| pair == b"\n\x01").map(|at| at + 1),
        };
        if let Some(mark) = mark.filter(|mark| begin.is_none_or(|begin| *mark < begin)) {
            return if mark > 0 { self.release(mark, pieces) } else { self.step_marked(pieces) };
        }
        if let Some(start) = begin {
            let Some(length) = self.held[start..].iter().position(|byte| *byte == b'\n') else {
                return self.release(start, pieces);
            };
            let line: Vec<u8> = self.held[start + BEGIN.len()..start + length].to_vec();
            let mime = line.strip_suffix(b"\r").unwrap_or(&line).to_vec();
            let is_mime = mime.contains(&b'/') && mime.iter().all(|byte| byte.is_ascii_graphic());
            self.release(if is_mime { start } else { start + length + 1 }, pieces);
            if is_mime {
                self.held.drain(..length + 1);
                self.block = Some(mime);
            }
            return true;
        }
        let begun = (1..BEGIN.len()).rev().find(|length| self.held.ends_with(&BEGIN[..*length])).unwrap_or(0);
        let kept = begun.max(unfinished(&self.held));
        self.release(self.held.len() - kept, pieces);
        false
    }

    /// Takes the line out of what is held that begins as one of progress.
    fn step_marked(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let Some(length) = self.held.iter().position(|byte| *byte == b'\n') else { return false };
        let line = String::from_utf8_lossy(&self.held[..length]).into_owned();
        if Transcript::line(&line).is_none() {
            return self.release(length + 1, pieces);
        }
        self.end_value(pieces);
        self.held.drain(..length + 1);
        pieces.push(Piece::Progress(line));
        true
    }

    /// Tells the first `length` bytes of what is held as text; whether there were any.
    fn release(&mut self, length: usize, pieces: &mut Vec<Piece>) -> bool {
        let text: Vec<u8> = self.held.drain(..length).collect();
        self.text(&text, pieces);
        length > 0
    }

    fn text(&mut self, bytes: &[u8], pieces: &mut Vec<Piece>) {
        let Some(last) = bytes.last() else { return };
        self.is_inside_line = *last != b'\n';
        self.end_value(pieces);
        let text = String::from_utf8_lossy(bytes);
        let mut rest = text.as_ref();
        while !rest.is_empty() {
            let (chunk, more) = rest.split_at(rest.floor_char_boundary(CHUNK));
            pieces.push(Piece::Text(chunk.to_owned()));
            rest = more;
        }
    }

    fn end_value(&mut self, pieces: &mut Vec<Piece>) {
        if !self.value.is_empty() {
            pieces.push(Piece::Value(std::mem::take(&mut self.value)));
        }
    }
}

/// The length of a block's content, and of the block with the line that ends it.
fn content(held: &[u8]) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let start = from + find(&held[from..], END)?;
        let after = &held[start + END.len()..];
        let length = if after.starts_with(b"\n") {
            1
        } else if after.starts_with(b"\r\n") {
            2
        } else {
            0
        };
        if length > 0 && (start == 0 || held[start - 1] == b'\n') {
            return Some((start.saturating_sub(1), start + END.len() + length));
        }
        from = start + 1;
    }
}

/// Bytes at the end that begin a character and do not finish it.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let start = tail.iter().rposition(|byte| *byte >= 0xC0);
    let open = start.map(|start| &tail[start..]).filter(|open| {
        std::str::from_utf8(open).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    });
    open.map_or(0, <[u8]>::len)
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    let first = pattern[0];
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|byte| *byte == first) {
        let at = from + at;
        if text[at..].starts_with(pattern) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All pieces of a stream that comes in parts of `size` bytes, neighbouring texts joined.
    fn decode(bytes: &[u8], size: usize) -> Vec<Piece> {
        let mut decoder = Decoder::default();
        let mut pieces: Vec<Piece> = bytes.chunks(size).flat_map(|part| decoder.push(part)).collect();
        pieces.extend(decoder.finish());
        assert!(!decoder.holds());
        let mut joined: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (joined.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
                (_, piece) => joined.push(piece),
            }
        }
        joined
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    fn value(parts: &[(&str, &str)]) -> Piece {
        Piece::Value(parts.iter().map(|(mime, content)| ((*mime).into(), (*content).into())).collect())
    }

    #[test]
    fn values_stand_between_texts() {
        let stream =
            b"a\nbEVCXR_BEGIN_CONTENT text/plain\nx\ny\nEVCXR_END_CONTENT\nEVCXR_BEGIN_CONTENT text/html\n<p>\n\
                       EVCXR_END_CONTENT\nEVCXR_BEGIN_CONTENT text/html\n\nEVCXR_END_CONTENT\nc\xe9 \xc3\xa9";
        let expected = [
            text("a\nb"),
            value(&[("text/plain", "x\ny"), ("text/html", "<p>")]),
            value(&[("text/html", "")]),
            text("c\u{fffd} é"),
        ];
        for size in [1, 2, 7, 1000] {
            assert_eq!(decode(stream, size), expected, "parts of {size}");
        }
    }

    #[test]
    fn what_only_looks_like_a_value_is_text() {
        for stream in [
            "EVCXR_BEGIN_CONTENT text/plain\nno end\nEVCXR_END_CONTENT of it\n",
            "EVCXR_BEGIN_CONTENT nothing\nEVCXR_END_CONTENT\n",
            "EVCXR_BEGIN_CONTENT ",
            "EVCXR_EXECUTION_COMPLETE\nEVCXR_PANIC_NOTIFICATION\n",
            "\u{1}lacuna: event {}\n\u{1}",
            "EVCXR_BEGIN_",
        ] {
            for size in [1, 3, 1000] {
                assert_eq!(decode(stream.as_bytes(), size), [text(stream)], "{stream:?}");
            }
        }
    }

    #[test]
    fn progress_is_told_apart_at_the_beginning_of_a_line() {
        let line = "\u{1}lacuna: progress ~ calibrate 1/2";
        let stream = format!("a\n{line}\nb {line}\n");
        let expected = [text("a\n"), Piece::Progress(line.into()), text(&format!("b {line}\n"))];
        for size in [1, 5, 1000] {
            assert_eq!(decode(stream.as_bytes(), size), expected);
        }
    }

    #[test]
    fn what_is_held_comes_when_nothing_follows() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"50% EVC"), [text("50% ")]);
        assert!(decoder.holds());
        assert_eq!(decoder.pause(), [text("EVC")]);
        assert_eq!(decoder.push(b"x\xc3"), [text("x")]);
        assert_eq!(decoder.pause(), [], "half a character waits for its other half");
        assert_eq!(decoder.push(b"\xa9"), [text("é")]);
    }

    proptest! {
        #[test]
        fn no_byte_of_text_is_lost(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 1usize..40) {
            let told: String = decode(&bytes, size).into_iter().map(|piece| match piece {
                Piece::Text(text) => text,
                other => panic!("{other:?}"),
            }).collect();
            prop_assert_eq!(told, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn parts_make_no_difference(
            words in proptest::collection::vec(proptest::sample::select(vec![
                "EVCXR_BEGIN_CONTENT text/plain\n", "EVCXR_BEGIN_CONTENT ", "EVCXR_END_CONTENT\n", "EVCXR_END_CONTENT", "\n", "é", "x",
                "\u{1}", "\u{1}lacuna: progress = a\n", "EVCXR_EXECUTION_COMPLETE\n",
            ]), 0..12),
            size in 1usize..9,
        ) {
            let stream = words.concat();
            prop_assert_eq!(decode(stream.as_bytes(), size), decode(stream.as_bytes(), stream.len().max(1)));
        }
    }
}
