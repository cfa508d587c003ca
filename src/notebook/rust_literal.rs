//! As much of Rust's grammar as a cell of parameters needs: statements, bindings, texts, lists.

/// `let name: annotation = value`.
#[derive(Debug, PartialEq)]
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) is_mutable: bool,
    pub(super) annotation: Option<String>,
    pub(super) value: String,
}

impl Binding {
    /// `mut ` or nothing.
    pub(super) fn mutable(&self) -> &'static str {
        if self.is_mutable { "mut " } else { "" }
    }

    /// `: TYPE` or nothing.
    pub(super) fn annotated(&self) -> String {
        self.annotation.as_ref().map(|annotation| format!(": {annotation}")).unwrap_or_default()
    }
}

/// The bindings of single names in a cell. Of two with one name, the last counts, as it does for the cells below.
pub(super) fn bindings(source: &str) -> Vec<Binding> {
    let mut found: Vec<Binding> = Vec::new();
    for statement in split(source, ';') {
        if let Some(binding) = binding(&statement) {
            found.retain(|other| other.name != binding.name);
            found.push(binding);
        }
    }
    found
}

fn binding(statement: &str) -> Option<Binding> {
    let rest = statement.trim().strip_prefix("let")?.strip_prefix(char::is_whitespace)?.trim_start();
    let (is_mutable, rest) = match rest.strip_prefix("mut").and_then(|rest| rest.strip_prefix(char::is_whitespace)) {
        Some(rest) => (true, rest.trim_start()),
        None => (false, rest),
    };
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    let (name, rest) = rest.split_at(end);
    let (before, value) = rest.split_once('=')?;
    let annotation = match before.trim() {
        "" => None,
        before => Some(before.strip_prefix(':')?.trim().to_owned()),
    };
    Some(Binding { name: name.to_owned(), is_mutable, annotation, value: value.trim().to_owned() })
}

/// The items of a list, without its brackets.
pub(super) fn items(inner: &str) -> Vec<String> {
    split(inner, ',').into_iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

/// Returns whether all of `text` is one literal of a text.
pub(super) fn is_text(text: &str) -> bool {
    matches!(tokens(text)[..], [Token::Text(literal)] if literal == text)
}

/// Returns whether only a variable, or a field of one, is named: a value that is shown, and that later cells do not
/// depend on. A call could change anything.
pub(super) fn is_name(source: &str) -> bool {
    let code = tokens(source).into_iter().map(|token| match token {
        Token::Code(code) => code,
        Token::Text(_) => "\"",
        Token::Comment => " ",
    });
    let code: String = code.collect();
    let name = code.trim().trim_start_matches('&');
    name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'))
}

/// Parts of `source` between separators that stand outside of brackets, texts and comments; without the comments.
fn split(source: &str, separator: char) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0i32);
    for token in tokens(source) {
        let last = parts.len() - 1;
        match token {
            Token::Text(literal) => parts[last].push_str(literal),
            Token::Comment => parts[last].push(' '),
            Token::Code(code) => {
                for c in code.chars() {
                    match c {
                        '(' | '[' | '{' => depth += 1,
                        ')' | ']' | '}' => depth -= 1,
                        _ => {}
                    }
                    if c == separator && depth == 0 {
                        parts.push(String::new());
                    } else if let Some(part) = parts.last_mut() {
                        part.push(c);
                    }
                }
            }
        }
    }
    parts
}

enum Token<'a> {
    Code(&'a str),
    /// A literal of a text or a character, with its quotes.
    Text(&'a str),
    Comment,
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let (mut found, mut rest, mut at) = (Vec::new(), source, 0);
    let mut in_word = false;
    while let Some(c) = rest[at..].chars().next() {
        let here = &rest[at..];
        let end = if here.starts_with("//") {
            Some((here.find('\n').unwrap_or(here.len()), true))
        } else if here.starts_with("/*") {
            Some((here.find("*/").map_or(here.len(), |end| end + 2), true))
        } else {
            text_end(here, in_word).map(|end| (end, false))
        };
        in_word = c.is_alphanumeric() || c == '_';
        let Some((end, is_comment)) = end else {
            at += c.len_utf8();
            continue;
        };
        if at > 0 {
            found.push(Token::Code(&rest[..at]));
        }
        found.push(if is_comment { Token::Comment } else { Token::Text(&here[..end]) });
        (rest, at, in_word) = (&here[end..], 0, false);
    }
    if at > 0 {
        found.push(Token::Code(&rest[..at]));
    }
    found
}

/// The end of the literal at the beginning of `text`, if there is one. A word before it cannot be its prefix.
fn text_end(text: &str, in_word: bool) -> Option<usize> {
    if let Some(raw) = text.strip_prefix('r').filter(|_| !in_word) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = 1 + hashes + 1;
            return Some(text[start..].find(&close).map_or(text.len(), |end| start + end + close.len()));
        }
        return None;
    }
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    // `'static` is no character.
    if quote == '\'' && !text.starts_with("'\\") && text.chars().nth(2) != Some('\'') {
        return None;
    }
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(i + 1),
            _ => {}
        }
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_found_beside_anything_else() {
        let source = "use a::b;\n// let no = 1;\nlet x = 1; let mut y : &'static str = \"a;\\\"=\"; /* let z = 2; */\n\
                      let (p, q) = (1, 2);\nlet s = r#\"a\"; b\"#;\nlet list = [';', '\\''];\nlet x = 3;\nfn f() { let w = 1; }";
        let found: Vec<String> = bindings(source)
            .into_iter()
            .map(|b| format!("{}{}{}={}", b.mutable(), b.name, b.annotated(), b.value))
            .collect();
        let expected = ["mut y: &'static str=\"a;\\\"=\"", "s=r#\"a\"; b\"#", "list=[';', '\\'']", "x=3"];
        assert_eq!(found, expected);
    }

    #[test]
    fn texts_and_items() {
        assert!(is_text("\"a\\\"b\"") && is_text("r\"a\"") && !is_text("\"a\" + \"b\"") && !is_text("a"));
        assert_eq!(items("1, \"a,b\", [2, 3],\n"), ["1", "\"a,b\"", "[2, 3]"]);
    }

    #[test]
    fn only_names_can_be_left_out() {
        for shows in ["plot", "// Why; let.\n&records.first", "_x\n"] {
            assert!(is_name(shows), "{shows}");
        }
        for builds in ["x;", "let x = 1", "v.pop()", ":dep rand\nx", "for i in 0..3 { v.push(i); }", "5", "\"x\"", ""] {
            assert!(!is_name(builds), "{builds}");
        }
    }
}
