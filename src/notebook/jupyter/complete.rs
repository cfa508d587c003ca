//! Answers to a client about unfinished code: completions, inspections, and whether a cell is complete.

use super::cursor::{self, TokenKind};
use super::documentation::Documentation;
use super::message::Request;
use crate::notebook::session::Session;
use serde_json::{Value, json};

/// Tells whether Enter should run the code or begin another line.
pub(super) fn answer(code: &str) -> Value {
    match open_brackets(code) {
        0 => json!({"status": "complete"}),
        depth => json!({"status": "incomplete", "indent": "    ".repeat(depth)}),
    }
}

/// Brackets that are still open at the end, outside of strings, characters and comments; an open string or comment
/// counts as one.
fn open_brackets(code: &str) -> usize {
    cursor::tokens(code).iter().fold(0, |depth: usize, token| match token.kind {
        TokenKind::Unfinished | TokenKind::Mark('(' | '[' | '{') => depth + 1,
        TokenKind::Mark(')' | ']' | '}') => depth.saturating_sub(1),
        _ => depth,
    })
}

/// The number of code points before a byte, as the protocol counts.
fn code_points(code: &str, byte: usize) -> usize {
    code.char_indices().take_while(|(at, _)| *at < byte).count()
}

/// Names that evcxr and this kernel give to what they put around cells.
fn is_internal(name: &str) -> bool {
    let name = name.trim_start_matches("r#");
    ["evcxr", "lacuna_cell_", "LACUNA_CELL_", "__lacuna"].iter().any(|prefix| name.starts_with(prefix))
}

/// The completions at the cursor.
pub(super) fn completions(session: &mut Session, request: &Request) -> Value {
    let code = request.code();
    match session.context().completions(code, request.cursor()) {
        Ok(found) => {
            let (start, end) = (code_points(code, found.start_offset), code_points(code, found.end_offset));
            let mut completions = found.completions;
            completions.retain(|completion| !is_internal(&completion.code));
            if completions.iter().all(|completion| completion.kind == "magic") {
                // They come in no order.
                completions.sort_by(|a, b| a.code.cmp(&b.code));
            }
            let matches: Vec<&str> = completions.iter().map(|completion| completion.code.as_str()).collect();
            // JupyterLab inserts this text, and not that of the matches.
            let types: Vec<Value> = completions
                .iter()
                .map(|c| json!({"text": c.code, "type": c.kind, "signature": c.label, "start": start, "end": end}))
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
    for piece in cursor::pieces(request.code(), request.cursor()) {
        if let Ok((plain, html)) = session.context().hover_at(&piece, piece.len())
            && plain != "No documentation found"
        {
            let Documentation { plain, markdown, html } = Documentation::of(&html);
            let data = json!({"text/plain": plain, "text/markdown": markdown, "text/html": html});
            return json!({"status": "ok", "found": true, "data": data, "metadata": {}});
        }
    }
    json!({"status": "ok", "found": false, "data": {}, "metadata": {}})
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
