//! The encodings that editors write notebooks in.

use anyhow::{Result, bail};

/// The encoding of a file's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// With or without a byte order mark.
    Utf8(bool),
    Utf16 {
        is_big: bool,
        has_mark: bool,
    },
}

impl Encoding {
    /// The text of a file, and how it is written there.
    ///
    /// # Errors
    /// Fails when it is in neither of UTF-8 and UTF-16; the message says which encoding it may be.
    pub(super) fn decode(bytes: &[u8]) -> Result<(String, Encoding)> {
        const SAVE: &str = "save it in UTF-8";
        if bytes.is_empty() {
            bail!("it is empty");
        }
        if bytes.starts_with(&[0xff, 0xfe, 0, 0]) || bytes.starts_with(&[0, 0, 0xfe, 0xff]) {
            bail!("it is in UTF-32; {SAVE}");
        }
        for (start, what) in
            [(&b"\x1f\x8b"[..], "a gzip archive"), (b"PK\x03\x04", "a zip archive"), (b"%PDF", "a PDF")]
        {
            if bytes.starts_with(start) {
                bail!("it is {what}");
            }
        }
        if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
            return Ok((utf8(rest)?, Encoding::Utf8(true)));
        }
        // A JSON text begins with an ASCII character; the zero beside it tells.
        let wide = match bytes {
            [0xff, 0xfe, ..] => Some((false, true)),
            [0xfe, 0xff, ..] => Some((true, true)),
            [0, first, ..] if *first != 0 => Some((true, false)),
            [first, 0, ..] if *first != 0 => Some((false, false)),
            _ => None,
        };
        let Some((is_big, has_mark)) = wide else { return Ok((utf8(bytes)?, Encoding::Utf8(false))) };
        let rest = if has_mark { &bytes[2..] } else { bytes };
        let (pairs, odd) = rest.as_chunks::<2>();
        let unit = if is_big { u16::from_be_bytes } else { u16::from_le_bytes };
        let units = pairs.iter().map(|pair| unit(*pair));
        let text: Result<String, _> = char::decode_utf16(units).collect();
        match text {
            Ok(text) if odd.is_empty() => Ok((text, Encoding::Utf16 { is_big, has_mark })),
            _ => bail!("it looks like UTF-16, and is damaged"),
        }
    }

    /// The bytes of a text.
    pub(super) fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Encoding::Utf8(has_mark) => [if has_mark { "\u{feff}" } else { "" }, text].concat().into_bytes(),
            Encoding::Utf16 { is_big, has_mark } => {
                let units = has_mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
                units.flat_map(|unit| if is_big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
            }
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let at = error.valid_up_to();
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            bail!(
                "byte {:#04x} at {at} (line {line}) is not UTF-8; it may be in Latin-1 or Windows-1252, so save it in UTF-8",
                bytes[at]
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_go_and_come_back() {
        let text = "{\"ä\": \"🍎\"}";
        let mut all = vec![Encoding::Utf8(false), Encoding::Utf8(true)];
        for is_big in [false, true] {
            all.extend([false, true].map(|has_mark| Encoding::Utf16 { is_big, has_mark }));
        }
        for encoding in all {
            assert_eq!(Encoding::decode(&encoding.encode(text)).unwrap(), (text.to_owned(), encoding));
        }
    }

    #[test]
    fn others_are_named() {
        for (bytes, expected) in [
            (&b"{\n\"a\": \"caf\xe9\"}"[..], "byte 0xe9 at 11 (line 2) is not UTF-8; it may be in Latin-1"),
            (b"\xff\xfe\0\0{\0\0\0", "UTF-32"),
            (b"\0\0\xfe\xff\0\0\0{", "UTF-32"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"{\0\"", "damaged"),
            (b"\xff\xfe\0\xd8{\0", "damaged"),
            (b"", "empty"),
        ] {
            let error = Encoding::decode(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
