//! What a client asks about unfinished code: what could follow, what something is, whether a cell has come to its end.

use super::message::Request;
use crate::kernel::session::Session;
use serde_json::{Value, json};

/// Whether Enter should run the code or begin another line.
pub(super) fn answer(code: &str) -> Value {
    match open_brackets(code) {
        0 => json!({"status": "complete"}),
        depth => json!({"status": "incomplete", "indent": "    ".repeat(depth)}),
    }
}

/// Brackets that are still open at the end, outside of strings, characters and comments; an open string or comment
/// counts as one.
fn open_brackets(code: &str) -> usize {
    let mut depth = 0_usize;
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = if let Some(comment) = rest.strip_prefix("//") {
            comment.split_once('\n').map_or("", |(_, rest)| rest)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            match comment.split_once("*/") {
                Some((_, rest)) => rest,
                None => return depth + 1,
            }
        } else if c == '"' {
            match after_string(after) {
                Some(rest) => rest,
                None => return depth + 1,
            }
        } else if let Some((hashes, raw)) = raw_string(rest) {
            match raw.split_once(&format!("\"{hashes}")) {
                Some((_, rest)) => rest,
                None => return depth + 1,
            }
        } else if c == '\'' {
            after_character(after)
        } else if c.is_alphanumeric() || c == '_' {
            // A name that ends in r does not begin a raw string.
            after.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_')
        } else {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            after
        };
    }
    depth
}

fn after_string(text: &str) -> Option<&str> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(&text[at + 1..]),
            _ => {}
        }
    }
    None
}

/// The hashes of a raw string that begins here, and what follows its quote.
fn raw_string(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    Some((&rest[..hashes], rest[hashes..].strip_prefix('"')?))
}

/// Behind a character (`'a'`, `'\''`), or behind the quote of a lifetime.
fn after_character(text: &str) -> &str {
    let mut characters = text.char_indices();
    let closed = match characters.next() {
        Some((_, '\\')) => {
            characters.next().and_then(|(at, c)| Some((at + c.len_utf8(), text[at + c.len_utf8()..].find('\'')?)))
        }
        Some((at, c)) => text[at + c.len_utf8()..].starts_with('\'').then_some((at + c.len_utf8(), 0)),
        None => None,
    };
    closed.map_or(text, |(at, more)| &text[at + more + 1..])
}

/// The number of code points before a byte, as the protocol counts.
fn code_points(code: &str, byte: usize) -> usize {
    code.char_indices().take_while(|(at, _)| *at < byte).count()
}

/// What could stand at the cursor.
pub(super) fn completions(session: &mut Session, request: &Request) -> Value {
    let code = request.code();
    match session.context().completions(code, request.cursor()) {
        Ok(found) => {
            let (start, end) = (code_points(code, found.start_offset), code_points(code, found.end_offset));
            let matches: Vec<&str> = found.completions.iter().map(|completion| completion.code.as_str()).collect();
            let types: Vec<Value> = found
                .completions
                .iter()
                .map(|c| json!({"text": c.label, "type": c.kind, "start": start, "end": end}))
                .collect();
            json!({
                "status": "ok", "matches": matches, "cursor_start": start, "cursor_end": end,
                "metadata": {"_jupyter_types_experimental": types},
            })
        }
        // Half a cell often cannot be analysed; that is no news to who types it.
        Err(_) => {
            let cursor = code_points(code, request.cursor());
            json!({"status": "ok", "matches": [], "cursor_start": cursor, "cursor_end": cursor, "metadata": {}})
        }
    }
}

/// The documentation of what stands at the cursor.
pub(super) fn inspection(session: &mut Session, request: &Request) -> Value {
    match session.context().hover_at(request.code(), request.cursor()) {
        Ok((plain, html)) if plain != "No documentation found" => {
            json!({"status": "ok", "found": true, "data": {"text/plain": plain, "text/html": html}, "metadata": {}})
        }
        _ => json!({"status": "ok", "found": false, "data": {}, "metadata": {}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_end_when_their_brackets_do() {
        for code in [
            "",
            "1 + 1",
            "fn f<'a>(x: &'a str) -> char { '{' }",
            "let s = \"a \\\" { b\";",
            "let r = r#\"say \"{\"#; // {",
            "let var = br\"\\\"; /* ( */",
            "let q = '\\''; let u = '\\u{7d}';",
            "a)",
        ] {
            assert_eq!(open_brackets(code), 0, "{code}");
        }
        for (code, depth) in
            [("fn f() {", 1), ("vec![(1,", 2), ("let s = \"a", 1), ("/* (", 1), ("f({ r#\"\" ", 3), ("'{' {", 1)]
        {
            assert_eq!(open_brackets(code), depth, "{code}");
        }
        assert_eq!(answer("if x {"), json!({"status": "incomplete", "indent": "    "}));
    }

    #[test]
    fn positions_are_code_points() {
        assert_eq!(code_points("é = x", 3), 2);
        assert_eq!(code_points("abc", 9), 3);
    }
}
