//! Text and bytes as reports need them.

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};

/// A fenced block; the fence is longer than any in the text. Nothing for a blank text.
pub(super) fn fence(language: &str, text: &str) -> String {
    let text = text.trim_matches('\n').trim_end();
    if text.is_empty() {
        return String::new();
    }
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{text}\n{fence}\n\n")
}

/// A relative path as a Markdown link's target.
pub(super) fn link(path: &str) -> String {
    let mut target = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '%' | ' ' | '(' | ')' | '#' | '?' | '<' | '>' => target.push_str(&format!("%{:02X}", c as u32)),
            c => target.push(c),
        }
    }
    target
}

/// The path behind a link's target; other targets (an address, a place in the text) have none.
pub(super) fn unlink(target: &str) -> Option<String> {
    let has_scheme =
        target.split_once(':').is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric()));
    if has_scheme || target.starts_with(['#', '/']) || target.is_empty() {
        return None;
    }
    let (mut bytes, mut rest) = (Vec::new(), target.bytes());
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().and_then(|c| char::from(c).to_digit(16));
        match byte {
            b'%' => bytes.push((digit()? * 16 + digit()?) as u8),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Text as a terminal would show it at its end: what `\r`, backspaces and movements of the cursor have overwritten is gone,
/// and so are all other escape sequences.
pub(super) fn on_terminal(text: &str) -> String {
    // Most text moves nothing.
    if !text.replace("\r\n", "\n").contains(['\r', '\u{8}', '\u{1b}']) {
        return text.replace("\r\n", "\n");
    }
    let (mut rows, mut row, mut column): (Vec<Vec<char>>, usize, usize) = (vec![Vec::new()], 0, 0);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => {
                row += 1;
                column = 0;
                if row == rows.len() {
                    rows.push(Vec::new());
                }
            }
            '\r' => column = 0,
            '\u{8}' => column = column.saturating_sub(1),
            '\u{1b}' if chars.next_if_eq(&'[').is_some() => {
                let mut parameters = String::new();
                while let Some(c) = chars.next_if(|c| !('\u{40}'..='\u{7e}').contains(c)) {
                    parameters.push(c);
                }
                let first = parameters.split(';').next().unwrap_or_default();
                let count = first.parse::<usize>().unwrap_or(1).max(1);
                let line = &mut rows[row];
                match chars.next().unwrap_or_default() {
                    'A' | 'F' => row = row.saturating_sub(count),
                    'B' | 'E' => row = row.saturating_add(count).min(rows.len() - 1),
                    // No further than there is text: how wide the terminal was, nobody knows.
                    'C' => column = column.saturating_add(count).min(line.len().max(column)),
                    'D' => column = column.saturating_sub(count),
                    'G' => column = (count - 1).min(line.len().max(column)),
                    'K' => match first {
                        "1" => line.iter_mut().take(column + 1).for_each(|c| *c = ' '),
                        "2" => line.clear(),
                        _ => line.truncate(column),
                    },
                    'J' if matches!(first, "2" | "3") => (rows, row, column) = (vec![Vec::new()], 0, 0),
                    'J' if first != "1" => {
                        line.truncate(column);
                        rows.truncate(row + 1);
                    }
                    _ => {}
                }
            }
            '\u{1b}' => {
                // OSC: up to a bell or a string terminator.
                if chars.next() == Some(']') {
                    while let Some(c) = chars.next() {
                        if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
            }
            c => {
                let line = &mut rows[row];
                if line.len() < column {
                    line.resize(column, ' ');
                }
                match line.get_mut(column) {
                    Some(there) => *there = c,
                    None => line.push(c),
                }
                column += 1;
            }
        }
    }
    rows.into_iter().map(String::from_iter).collect::<Vec<String>>().join("\n")
}

/// Bytes of base64 with or without padding; line breaks are allowed.
pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>> {
    let text: String = text.split_ascii_whitespace().collect();
    Ok(BASE64_STANDARD_NO_PAD.decode(text.trim_end_matches('='))?)
}

#[cfg(test)]
mod tests {
    use super::super::super::output::without_ansi;
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (encoded, plain) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(decode_base64(encoded).unwrap(), plain.as_bytes());
        }
        assert_eq!(decode_base64("//79\n").unwrap(), [0xff, 0xfe, 0xfd]);
        assert!(decode_base64("Zm9%").is_err());
    }

    #[test]
    fn progress_leaves_its_last_state() {
        for (text, expected) in [
            ("10%\r50%\r100%\nend\n", "100%\nend\n"),
            ("100%\r50%", "50%%"),
            ("abc\u{8}\u{8}\u{8}\u{8}x\n", "xbc\n"),
            ("a\r\nb\r\n", "a\nb\n"),
            ("long line\r\u{1b}[Kx\n", "x\n"),
            ("one\u{1b}[2K\rtwo", "two"),
            ("a\nb\nc\n\u{1b}[3A1\n2\n\u{1b}[1B", "1\n2\nc\n"),
            ("\u{1b}[31mred\u{1b}[0m\u{1b}]8;;http://x\u{7}!", "red!"),
            ("ab\u{1b}[999999999999C\u{1b}[18446744073709551615Bc\u{1b}[99999999Gd", "abcd"),
            ("gone\n\u{1b}[2Jnew", "new"),
            ("ä🍎\rö", "ö🍎"),
            ("\u{1b}[", ""),
            ("\u{1b}", ""),
            ("\r", ""),
        ] {
            assert_eq!(on_terminal(text), expected, "{text:?}");
        }
        let plain = "\u{1b}[1mA\u{1b}[0m\n\n b \n";
        assert_eq!(on_terminal(plain), without_ansi(plain), "what moves nothing comes out as before");
    }

    #[test]
    fn escape_sequences_go() {
        assert_eq!(
            without_ansi("\u{1b}[1;31mred\u{1b}[0m \u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{7}."),
            "red link."
        );
    }

    #[test]
    fn fences_are_longer_than_those_inside() {
        assert_eq!(fence("rust", "// ```\nlet x = 1;\n"), "````rust\n// ```\nlet x = 1;\n````\n\n");
        assert_eq!(fence("text", "\n \n"), "");
    }

    #[test]
    fn links_go_and_come_back() {
        for path in ["a b (c)/100%.svg", "a#b?.svg", "plain.png", "ä.svg"] {
            assert_eq!(unlink(&link(path)).as_deref(), Some(path));
        }
        for target in ["https://x.org/a.png", "data:image/png;base64,xx", "#top", "/a.png", "", "%f", "%zz"] {
            assert_eq!(unlink(target), None, "{target}");
        }
    }
}
