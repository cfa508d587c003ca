//! Text and bytes as reports need them.

use anyhow::{Result, bail};

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

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding, as in RFC 4648.
pub(super) fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// Base64 with padding, as in RFC 4648; line breaks are allowed.
pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>> {
    let mut values = [None; 256];
    for (value, digit) in (0u32..).zip(DIGITS) {
        values[usize::from(*digit)] = Some(value);
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut group, mut bits) = (0u32, 0);
    for c in text.trim_end().trim_end_matches('=').bytes().filter(|c| !c.is_ascii_whitespace()) {
        let Some(value) = values[usize::from(c)] else { bail!("byte {c:#04x} does not occur in base64") };
        group = group << 6 | value;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((group >> bits) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (encoded, plain) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(decode_base64(encoded).unwrap(), plain.as_bytes());
            assert_eq!(encode_base64(plain.as_bytes()), encoded);
        }
        assert_eq!(decode_base64("//79\n").unwrap(), [0xff, 0xfe, 0xfd]);
        assert_eq!(encode_base64(&[0xff, 0xfe, 0xfd]), "//79");
        assert!(decode_base64("Zm9%").is_err());
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
