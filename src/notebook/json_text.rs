//! JSON as text: where members and items stand in it, so that one can be replaced and everything else stays as it is.

use std::ops::Range;

/// A value, and what is in it.
pub(super) struct Node {
    pub(super) span: Range<usize>,
    pub(super) inside: Inside,
}

/// The content of a JSON value.
pub(super) enum Inside {
    /// Key with its escapes resolved, where the member begins, and its value.
    Object(Vec<(String, usize, Node)>),
    Array(Vec<Node>),
    Scalar,
}

impl Node {
    /// Reads a text that [`serde_json`] has accepted; `None` if it would not.
    pub(super) fn read(text: &str) -> Option<Node> {
        let mut at = 0;
        node(text, &mut at)
    }

    /// The value of a key; of several, the last, as for other readers.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        let Inside::Object(members) = &self.inside else { return None };
        members.iter().rev().find(|(name, ..)| name == key).map(|(.., value)| value)
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.inside {
            Inside::Array(items) => items,
            _ => &[],
        }
    }

    /// The range to cut out of the text so that the object has no such key, and commas stay only between members.
    pub(super) fn without(&self, key: &str) -> Option<Range<usize>> {
        let Inside::Object(members) = &self.inside else { return None };
        let index = members.iter().position(|(name, ..)| name == key)?;
        Some(match (index, members.len()) {
            (0, 1) => self.span.start + 1..self.span.end - 1,
            (0, _) => members[0].1..members[1].1,
            _ => members[index - 1].2.span.end..members[index].2.span.end,
        })
    }
}

fn node(text: &str, at: &mut usize) -> Option<Node> {
    space(text, at);
    let start = *at;
    let inside = match text.as_bytes().get(start)? {
        b'{' => {
            let mut members = Vec::new();
            *at += 1;
            while !ends(text, at, b'}')? {
                let begin = *at;
                let key = string(text, at)?;
                space(text, at);
                (text.as_bytes().get(*at)? == &b':').then_some(())?;
                *at += 1;
                members.push((serde_json::from_str(&text[key]).ok()?, begin, node(text, at)?));
            }
            Inside::Object(members)
        }
        b'[' => {
            let mut items = Vec::new();
            *at += 1;
            while !ends(text, at, b']')? {
                items.push(node(text, at)?);
            }
            Inside::Array(items)
        }
        b'"' => {
            string(text, at)?;
            Inside::Scalar
        }
        _ => {
            let length = text[start..].find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(text.len() - start);
            *at += length.max(1);
            Inside::Scalar
        }
    };
    Some(Node { span: start..*at, inside })
}

/// Goes on to the next member or item, behind its comma; true, and past the bracket, when there is none.
fn ends(text: &str, at: &mut usize, bracket: u8) -> Option<bool> {
    space(text, at);
    if text.as_bytes().get(*at)? == &b',' {
        *at += 1;
        space(text, at);
    }
    let is_end = text.as_bytes().get(*at)? == &bracket;
    *at += usize::from(is_end);
    Some(is_end)
}

fn space(text: &str, at: &mut usize) {
    let rest = &text.as_bytes()[*at..];
    *at += rest.iter().take_while(|c| matches!(c, b' ' | b'\t' | b'\r' | b'\n')).count();
}

/// The span of a string with its quotes.
fn string(text: &str, at: &mut usize) -> Option<Range<usize>> {
    let start = *at;
    let bytes = text.as_bytes();
    (bytes.get(start)? == &b'"').then_some(())?;
    *at += 1;
    loop {
        match bytes.get(*at)? {
            b'\\' => *at += 2,
            b'"' => break,
            _ => *at += 1,
        }
    }
    *at += 1;
    Some(start..*at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_and_taken_out() {
        let text = "{\"a\": [1, {\"b\\\"}\": \"x,]\\\\\"} ],\n\t\"\\u00e4\" : null , \"c\":{ \"d\" : 1 }}\n";
        let root = Node::read(text).unwrap();
        assert_eq!(&text[root.get("ä").unwrap().span.clone()], "null");
        let items = root.get("a").unwrap().items();
        assert_eq!(&text[items[1].get("b\"}").unwrap().span.clone()], "\"x,]\\\\\"");
        for (key, expected) in [
            ("a", "{\"\\u00e4\" : null , \"c\":{ \"d\" : 1 }}\n"),
            ("ä", "{\"a\": [1, {\"b\\\"}\": \"x,]\\\\\"} ] , \"c\":{ \"d\" : 1 }}\n"),
            ("c", "{\"a\": [1, {\"b\\\"}\": \"x,]\\\\\"} ],\n\t\"\\u00e4\" : null}\n"),
        ] {
            let mut left = text.to_owned();
            left.replace_range(root.without(key).unwrap(), "");
            serde_json::from_str::<serde_json::Value>(&left).unwrap();
            assert_eq!(left, expected);
        }
        let inner = root.get("c").unwrap();
        assert_eq!(&text[inner.without("d").unwrap()], " \"d\" : 1 ");
        assert!(root.without("b").is_none() && Node::read("{\"a\"").is_none() && Node::read("").is_none());
    }
}
