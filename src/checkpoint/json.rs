//! JSON files of a checkpoint, as Python writes them and as editors and downloads leave them.

use crate::error::{Error, Remedy, Result};
use crate::files::stranger;
use serde_json::{Map, Value};
use std::path::Path;

/// The text of a JSON file, without the mark that some editors put before it.
///
/// # Errors
/// [`Error::File`] when it is no text, or a text that stands in place of the file.
pub(super) fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    if let Some(what) = stranger(bytes) {
        return Err(Error::file(path, what));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::file(
            path,
            "is UTF-16, and JSON is UTF-8".remedy("convert it with `iconv -f utf-16 -t utf-8`"),
        ));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|e| {
        Error::file(
            path,
            format!("is not UTF-8 (byte {}), and JSON is", e.valid_up_to()).remedy("convert it with `iconv -t utf-8`"),
        )
    })
}

/// Reads a JSON object. `Infinity` and `NaN`, which Python writes and JSON does not have, become what transformers 5 writes
/// for them, `{"__float__": "Infinity"}`: a field that is read does not take them for a number, others may hold them.
///
/// # Errors
/// [`Error::File`] when it is no JSON object.
pub(super) fn object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    let text = text(path, bytes)?;
    let parsed = serde_json::from_str(text).or_else(|error| match with_tagged_floats(text) {
        Some(tagged) => serde_json::from_str(&tagged),
        None => Err(error),
    });
    parsed.map_err(|e| Error::file(path, format!("not a JSON object ({e})")))
}

/// The text with a tagged string in place of each number that JSON does not have; `None` if there is none.
fn with_tagged_floats(text: &str) -> Option<String> {
    let mut tagged = String::with_capacity(text.len() + 64);
    let (mut rest, mut found, mut quoted) = (text, false, false);
    while let Some(c) = rest.chars().next() {
        let token = ["Infinity", "-Infinity", "NaN"].into_iter().find(|token| !quoted && rest.starts_with(token));
        if let Some(token) = token {
            tagged.push_str(&format!("{{\"__float__\": \"{token}\"}}"));
            found = true;
            rest = &rest[token.len()..];
            continue;
        }
        // What follows a backslash ends no string.
        let end = if quoted && c == '\\' {
            rest.char_indices().nth(2).map_or(rest.len(), |(at, _)| at)
        } else {
            quoted ^= c == '"';
            c.len_utf8()
        };
        tagged.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    found.then_some(tagged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(bytes: &[u8]) -> Result<Map<String, Value>> {
        object(Path::new("config.json"), bytes)
    }

    #[test]
    fn what_python_and_editors_write_is_read() {
        let float = |text: &str| json!({"__float__": text});
        let read =
            parse(br#"{"a": Infinity, "b": [-Infinity, NaN, 1], "c": "NaN \" Infinity", "d": {"NaN": 2}}"#).unwrap();
        let expected = json!({
            "a": float("Infinity"), "b": [float("-Infinity"), float("NaN"), 1], "c": "NaN \" Infinity", "d": {"NaN": 2},
        });
        assert_eq!(Value::Object(read), expected);
        assert_eq!(parse(b"\xef\xbb\xbf{\"a\": 1}\r\n").unwrap()["a"], 1);
    }

    #[test]
    fn what_is_no_json_is_told_apart() {
        for (bytes, says) in [
            (&b""[..], "is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (b"<!DOCTYPE html>\n<html>", "web page"),
            (b"\xff\xfe{\0}\0", "UTF-16"),
            (b"{\"a\": \"\xe4\"}", "not UTF-8 (byte 7)"),
            (b"[1]", "not a JSON object"),
            (b"{\"a\": Infinit}", "not a JSON object"),
            (b"{\"a\": \"\\", "not a JSON object"),
            (b"{\"a\": NaN, \"\\\xc3\xa4", "not a JSON object"),
        ] {
            let error = parse(bytes).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(says), "{says}: {error}");
        }
    }
}
