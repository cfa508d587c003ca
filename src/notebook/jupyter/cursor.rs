//! The item under a cursor, as a piece of code that ends with it: that is what evcxr can be asked about.

use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Word,
    Number,
    Lifetime,
    /// A string, a character or a comment.
    Quoted,
    /// One of these that does not end.
    Unfinished,
    Mark(char),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The tokens of code, without white space.
pub(super) fn tokens(code: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while let Some(c) = code[start..].chars().next() {
        let rest = &code[start..];
        let (kind, length) = match c {
            _ if c.is_whitespace() => {
                start += c.len_utf8();
                continue;
            }
            _ if rest.starts_with("//") => (TokenKind::Quoted, rest.find('\n').unwrap_or(rest.len())),
            _ if rest.starts_with("/*") => closed(block_comment(rest), rest),
            '"' => closed(string(rest), rest),
            '\'' => character(rest),
            _ if c.is_ascii_digit() => (TokenKind::Number, number(rest)),
            _ if is_part(c) => word(rest),
            _ => (TokenKind::Mark(c), c.len_utf8()),
        };
        tokens.push(Token { kind, start, end: start + length });
        start += length;
    }
    tokens
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn closed(length: Option<usize>, rest: &str) -> (TokenKind, usize) {
    length.map_or((TokenKind::Unfinished, rest.len()), |length| (TokenKind::Quoted, length))
}

/// Comments of this kind may hold others.
fn block_comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0, 0);
    loop {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next()?.len_utf8();
        }
    }
}

fn string(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// A character, or a lifetime.
fn character(text: &str) -> (TokenKind, usize) {
    let inside = &text[1..];
    let mut characters = inside.chars();
    match characters.next() {
        Some('\\') => {
            let escaped = characters.next().map_or(0, char::len_utf8);
            match inside[1 + escaped..].find('\'') {
                Some(more) => (TokenKind::Quoted, 1 + 1 + escaped + more + 1),
                None => (TokenKind::Unfinished, text.len()),
            }
        }
        Some(c) if characters.next() == Some('\'') => (TokenKind::Quoted, 2 + c.len_utf8()),
        Some(c) if is_part(c) => (TokenKind::Lifetime, 1 + inside.find(|c| !is_part(c)).unwrap_or(inside.len())),
        _ => (TokenKind::Mark('\''), 1),
    }
}

/// A number ends before `..` and before a method.
fn number(text: &str) -> usize {
    let whole = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let fraction = text[whole..].strip_prefix('.').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    whole + fraction.map_or(0, |rest| 1 + rest.find(|c| !is_part(c)).unwrap_or(rest.len()))
}

/// A name, or the quoted text that it is the prefix of.
fn word(text: &str) -> (TokenKind, usize) {
    let length = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(length);
    if matches!(name, "b" | "c") && rest.starts_with('"') {
        return closed(string(rest).map(|more| length + more), text);
    }
    if name == "b" && rest.starts_with('\'') {
        let (kind, more) = character(rest);
        return (kind, length + more);
    }
    if matches!(name, "r" | "br" | "cr") {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        if let Some(raw) = rest[hashes..].strip_prefix('"') {
            let end = format!("\"{}", &rest[..hashes]);
            return closed(raw.find(&end).map(|more| length + hashes + 1 + more + end.len()), text);
        }
        if name == "r" && hashes == 1 && rest[1..].starts_with(is_part) {
            let more = rest[1..].find(|c| !is_part(c)).unwrap_or(rest.len() - 1);
            return (TokenKind::Word, length + 1 + more);
        }
    }
    (TokenKind::Word, length)
}

const KEYWORDS: [&str; 40] = [
    "_", "as", "async", "await", "break", "const", "continue", "crate", "dyn", "else", "enum", "extern", "false", "fn",
    "for", "gen", "if", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub", "ref", "return", "self",
    "static", "struct", "super", "trait", "true", "type", "union", "unsafe", "use", "where", "while",
];

/// Behind these stands the name of what is being defined.
const DEFINES: [&str; 8] = ["const", "enum", "fn", "mod", "static", "struct", "trait", "type"];

/// Pieces of code that end with the item at byte `cursor`, with all around it that its meaning depends on; the first of which
/// something is known is the right one. None where there is no item.
pub(super) fn pieces(code: &str, cursor: usize) -> Vec<String> {
    // Commands and what a shell runs stand in front, and are not Rust.
    let is_other = |line: &str| {
        let line = line.trim_start();
        line.is_empty() || [":", "!", "//"].iter().any(|start| line.starts_with(start))
    };
    let front: usize = code.split_inclusive('\n').take_while(|line| is_other(line)).map(str::len).sum();
    let Some(cursor) = cursor.checked_sub(front) else { return Vec::new() };
    Around::new(&code[front..], cursor).map_or_else(Vec::new, |around| around.pieces())
}

/// The item's surroundings.
struct Around<'a> {
    code: &'a str,
    tokens: Vec<Token>,
    /// The item's own token.
    at: usize,
}

impl<'a> Around<'a> {
    fn new(code: &'a str, cursor: usize) -> Option<Self> {
        let tokens = tokens(code);
        let touches = |token: &Token| token.kind == TokenKind::Word && (token.start..=token.end).contains(&cursor);
        let at = match tokens.iter().position(touches) {
            Some(at) => at,
            // Right behind the bracket of a call: what is called.
            None => {
                let bracket =
                    tokens.iter().position(|token| token.kind == TokenKind::Mark('(') && token.end == cursor)?;
                let is_mark = |at: usize| tokens.get(at).is_some_and(|token| token.kind == TokenKind::Mark('!'));
                let at = bracket.checked_sub(1)?;
                let at = if is_mark(at) { at.checked_sub(1)? } else { at };
                (tokens[at].kind == TokenKind::Word).then_some(at)?
            }
        };
        let around = Around { code, tokens, at };
        (!KEYWORDS.contains(&around.text(at))).then_some(around)
    }

    fn text(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |token| &self.code[token.start..token.end])
    }

    fn before(&self, at: usize) -> &'a str {
        at.checked_sub(1).map_or("", |at| self.text(at))
    }

    /// The start of the token's statement: behind the last `;` or brace before it, on whatever level.
    fn statement(&self, at: usize) -> usize {
        let ends = |token: &&Token| matches!(token.kind, TokenKind::Mark(';' | '{' | '}'));
        self.tokens[..at].iter().rev().find(ends).map_or(0, |token| token.end)
    }

    /// The first of `marks` behind the token that is not within brackets that open behind it.
    fn next(&self, at: usize, marks: &[char]) -> Option<&Token> {
        let mut depth = 0_usize;
        self.tokens[at..].iter().find(|token| {
            let TokenKind::Mark(mark) = token.kind else { return false };
            if depth == 0 && marks.contains(&mark) {
                return true;
            }
            match mark {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            false
        })
    }

    /// The end of the cell's statement that contains the token: later statements may define the name.
    fn end_of_outer_statement(&self) -> usize {
        let mut depth = 0_usize;
        for (at, token) in self.tokens.iter().enumerate() {
            match token.kind {
                TokenKind::Mark('(' | '[' | '{') => depth += 1,
                TokenKind::Mark(mark @ (')' | ']' | '}')) => {
                    depth = depth.saturating_sub(1);
                    let goes_on = matches!(self.text(at + 1), "." | "?" | "else" | ";" | ")" | ",");
                    if mark == '}' && depth == 0 && at >= self.at && !goes_on {
                        return token.end;
                    }
                }
                TokenKind::Mark(';') if depth == 0 && at >= self.at => return token.end,
                _ => {}
            }
        }
        self.code.len()
    }

    /// The innermost macro call that the item is an argument of: its name's token, and the beginning of the argument.
    fn argument(&self) -> Option<(usize, usize)> {
        let mut open: Vec<usize> = Vec::new();
        for at in 0..self.at {
            match self.tokens[at].kind {
                TokenKind::Mark('(' | '[' | '{') => open.push(at),
                TokenKind::Mark(')' | ']' | '}') => drop(open.pop()),
                _ => {}
            }
        }
        let is_macro = |at: &usize| *at >= 2 && self.text(at - 1) == "!" && self.tokens[at - 2].kind == TokenKind::Word;
        let bracket = open.into_iter().rev().find(is_macro)?;
        let (mut begin, mut depth) = (self.tokens[bracket].end, 0_usize);
        for at in bracket + 1..self.at {
            let token = &self.tokens[at];
            match token.kind {
                TokenKind::Mark('(' | '[' | '{') => depth += 1,
                TokenKind::Mark(')' | ']' | '}') => depth = depth.saturating_sub(1),
                TokenKind::Mark(',' | ';' | '=') if depth == 0 => begin = token.end,
                TokenKind::Mark('>') if depth == 0 && self.before(at) == "=" => begin = token.end,
                _ => {}
            }
        }
        Some((bracket - 2, begin))
    }

    /// The position from which a pattern's bindings are in scope: behind its `let`, or inside the block that it is for.
    fn binding(&self) -> Option<usize> {
        let mut at = self.at;
        let scope = loop {
            at = at.checked_sub(1)?;
            match self.text(at) {
                // A type, a value, another statement.
                ":" | "=" | ";" | "}" | "|" => return None,
                word @ ("let" | "for") => break (word, self.before(at)),
                _ => {}
            }
        };
        let marks: &[char] =
            if matches!(scope, ("let", "if" | "while" | "&")) || scope.0 == "for" { &['{'] } else { &[';'] };
        self.next(self.at, marks).map(|token| token.end)
    }

    fn pieces(&self) -> Vec<String> {
        let (name, token) = (self.text(self.at), self.tokens[self.at]);
        let end = self.end_of_outer_statement();
        let later = &self.code[end..];
        let piece = |range: Range<usize>, rest: &str| format!("{later}\n{}\n{rest}", &self.code[range]);
        if DEFINES.contains(&self.before(self.at)) && self.depth() == 0 {
            return vec![piece(0..end, name)];
        }
        if let Some(known) = self.binding() {
            return vec![piece(0..known, name)];
        }
        // evcxr does not look into the arguments of a macro that is not complete.
        let whole = match self.argument() {
            Some((of, begin)) => piece(0..self.statement(of), &self.code[begin..token.end]),
            None => format!("{later}\n{}", &self.code[..token.end]),
        };
        let follows = (self.text(self.at + 1), self.text(self.at + 2));
        let called = format!("{whole}(");
        match follows {
            ("!", "(" | "[" | "{") => vec![whole],
            ("(", _) => vec![called, whole],
            (":", ":") if self.before(self.at) == "." => vec![called, whole],
            _ if self.before(self.at) == "." => vec![whole, called],
            _ => vec![whole],
        }
    }

    /// Brackets that are open before the item.
    fn depth(&self) -> usize {
        self.tokens[..self.at].iter().fold(0, |depth: usize, token| match token.kind {
            TokenKind::Mark('(' | '[' | '{') => depth + 1,
            TokenKind::Mark(')' | ']' | '}') => depth.saturating_sub(1),
            _ => depth,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces for the cursor at `|`.
    fn at(marked: &str) -> Vec<String> {
        let cursor = marked.find('|').unwrap();
        pieces(&marked.replacen('|', "", 1), cursor).iter().map(|piece| piece.trim().to_owned()).collect()
    }

    #[test]
    fn item_is_the_one_under_the_cursor() {
        for (marked, expected) in [
            ("|table.height(rows)", "table"),
            ("ta|ble.height(rows)", "table"),
            ("table|.height(rows)", "table"),
            ("table.hei|ght(rows)", "table.height("),
            ("table.height(|rows)", "table.height(rows"),
            ("table.height(ro|ws)", "table.height(rows"),
            ("f(|)", "f("),
            ("df!(|)", "df"),
            ("let e = \"\u{e9}\u{1f34e}\"; name|.len()", "let e = \"\u{e9}\u{1f34e}\"; name"),
            ("x.field|", "x.field"),
            ("x.collect|::<Vec<_>>()", "x.collect("),
            ("println!(\"{}\", a.b, c = v.le|n())", "v.len("),
            ("let x = 1; vec![x|; 3]", "let x = 1;\nx"),
            ("df!(\"a\" => co|unts)?", "counts"),
            ("d|f!(\"a\" => counts)?", "df"),
            (":dep rand = \"1\"\n!ls\nx|", "x"),
            ("r#ty|pe", "r#type"),
        ] {
            assert_eq!(at(marked).first().map(String::as_str), Some(expected), "{marked}");
        }
        // What a name is bound to is known where it is.
        assert_eq!(at("let x| = vec![1; 3];"), ["let x = vec![1; 3];\nx"]);
        assert_eq!(at("for i| in 0..3 { f(i); }"), ["for i in 0..3 {\ni"]);
        assert_eq!(at("if let Some(x|) = y { x }"), ["if let Some(x) = y {\nx"]);
        assert_eq!(at("let x: Ve|c<u8> = y;"), ["let x: Vec"]);
        assert_eq!(at("fn f|(x: u8) -> u8 { x }\nlet y = 1;"), ["let y = 1;\nfn f(x: u8) -> u8 { x }\nf"]);
        // What is defined later counts.
        assert_eq!(at("f|(1);\nfn f(x: u8) {}")[0], "fn f(x: u8) {}\nf(");
    }

    #[test]
    fn what_is_no_item_has_no_piece() {
        for marked in [
            "\"ta|ble\"",
            "// ta|ble",
            "x /* ta|ble */",
            "r#\"ta|ble\"#",
            "'t|'",
            "&'ta|ble str",
            "1|2",
            "le|t x = 1;",
            "x + | y",
            ":de|p rand",
            "!l|s",
            "|",
            "\"ta|ble",
            "b\"ta|ble\"",
            "a = |= b",
            "f(\"|\")",
            "fo|r",
        ] {
            if marked.contains('|') {
                assert_eq!(at(marked), [""; 0], "{marked}");
            }
        }
        assert!(pieces("x", 99).is_empty() && pieces("", 0).is_empty());
    }

    #[test]
    fn any_text_can_be_taken_apart() {
        let parts = [
            "\"", "'", "r#", "/*", "*/", "b'", "\\", "é", "🍎", "(", "}", "!", ";", "let ", "x", "1.", "::<", "\n",
            "//",
        ];
        let mut seed = 7_usize;
        for _ in 0..3000 {
            let mut text = String::new();
            for _ in 0..8 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(parts[(seed >> 33) % parts.len()]);
            }
            let tokens = tokens(&text);
            assert!(tokens.windows(2).all(|pair| pair[0].end <= pair[1].start), "{text:?}");
            for cursor in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
                pieces(&text, cursor);
            }
        }
    }
}
