//! A text cell ends with the cell: what it leaves open would swallow the cells below, which Jupyter shows apart.

use super::links::OPTIONS;
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag};

/// Elements that have no end.
const VOID: [&str; 14] =
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"];

/// The text with what it leaves open closed: a fence, a comment, elements of HTML.
pub(super) fn closed(markdown: &str) -> String {
    let mut text = markdown.trim_end().to_owned();
    if let Some(fence) = open_fence(&text) {
        text.push('\n');
        text.push_str(&fence);
    }
    let mut html = String::new();
    for event in Parser::new_ext(&text, OPTIONS) {
        if let Event::Html(part) | Event::InlineHtml(part) = event {
            html.push_str(&part);
        }
    }
    let end = open_html(&html);
    if !end.is_empty() {
        // Some blocks end at a blank line, and others only at their own end, before which it does not matter.
        text.push('\n');
        if !end.starts_with("-->") {
            text.push('\n');
        }
        text.push_str(&end);
    }
    text
}

/// The end of the code block that the text ends in, if it has none.
fn open_fence(text: &str) -> Option<String> {
    let mut depth = 0usize;
    let mut last = None;
    for (event, range) in Parser::new_ext(text, OPTIONS).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(_))) if depth == 0 => {
                last = Some(range);
                depth += 1;
            }
            Event::Start(_) => depth += 1,
            Event::End(_) => depth -= 1,
            _ => {}
        }
    }
    let block = text[last.filter(|range| text[range.end..].trim().is_empty())?].trim_end();
    let mut lines = block.lines();
    let first = lines.next()?.trim_start();
    let c = first.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let fence: String = first.chars().take_while(|other| *other == c).collect();
    let is_end = |line: &str| {
        let line = line.trim();
        line.len() >= fence.len() && line.chars().all(|other| other == c)
    };
    let is_closed = lines.next_back().is_some_and(is_end);
    (!is_closed).then_some(fence)
}

/// The end tags of the comment and the elements that are open at the end, innermost first.
fn open_html(html: &str) -> String {
    let mut open: Vec<String> = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            match comment.find("-->") {
                Some(end) => rest = &comment[end + 3..],
                None => return format!("-->\n\n{}", ends(&open)),
            }
            continue;
        }
        let is_end = rest.starts_with("</");
        let name: String =
            rest[1..].trim_start_matches('/').chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let name = name.to_ascii_lowercase();
        let length = tag_length(rest);
        let is_empty = rest[..length].ends_with("/>");
        rest = &rest[length..];
        if name.is_empty() || VOID.contains(&name.as_str()) || is_empty {
            continue;
        }
        if is_end {
            if let Some(index) = open.iter().rposition(|other| *other == name) {
                open.truncate(index);
            }
            continue;
        }
        if matches!(name.as_str(), "script" | "style" | "textarea" | "title") {
            // Nothing in it is a tag.
            let end = format!("</{name}");
            match rest.to_ascii_lowercase().find(&end) {
                Some(at) => rest = &rest[at + tag_length(&rest[at..])..],
                None => {
                    open.push(name);
                    break;
                }
            }
            continue;
        }
        open.push(name);
    }
    ends(&open)
}

fn ends(open: &[String]) -> String {
    // These are closed by what follows, as HTML has it.
    let implied = |name: &&String| !matches!(name.as_str(), "p" | "li" | "td" | "th" | "tr" | "dt" | "dd" | "option");
    open.iter().rev().filter(implied).map(|name| format!("</{name}>")).collect()
}

/// The length of a tag with its brackets, texts in quotes included.
fn tag_length(tag: &str) -> usize {
    let mut quote = None;
    for (at, c) in tag.char_indices() {
        match (quote, c) {
            (None, '>') => return at + 1,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    // A quote that is never closed is none.
    tag.find('>').map_or(tag.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_open_is_closed() {
        for (text, expected) in [
            ("```rust\nlet x;", "```rust\nlet x;\n```"),
            ("~~~~\na\n~~~\n\n", "~~~~\na\n~~~\n~~~~"),
            ("```", "```\n```"),
            ("a\n\n````\n```\nb", "a\n\n````\n```\nb\n````"),
            ("<details>\n<summary>x</summary>\n\ntext", "<details>\n<summary>x</summary>\n\ntext\n\n</details>"),
            ("<div><span title='>'>\n\na <b>c", "<div><span title='>'>\n\na <b>c\n\n</b></span></div>"),
            ("text\n\n<!-- never\n\nclosed", "text\n\n<!-- never\n\nclosed\n-->\n\n"),
            ("<pre>\na\n\n<b>", "<pre>\na\n\n<b>\n\n</b></pre>"),
            ("<script>\nif (a < b) '<p>'\n", "<script>\nif (a < b) '<p>'\n\n</script>"),
        ] {
            assert_eq!(closed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_closed_stays() {
        for text in [
            "# a\n\n```rust\nx\n```",
            "```\nx\n`````",
            "~~~\n```\n~~~",
            "- item\n\n  ```\n  x",
            "> ```\n> x",
            "    ```\n    code",
            "`<div>` and \\<div> and 1 < 2",
            "```html\n<div>\n```",
            "<img src=\"a>b\"> <br> a <b>c</b> <x/>",
            "<!-- <div> -->",
            "<p>one\n<li>two",
            "",
        ] {
            assert_eq!(closed(text), text);
        }
    }
}
