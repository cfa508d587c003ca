//! Links and pictures of a notebook's text, for a report that lies in another directory.

use super::text::{link, unlink};
use pulldown_cmark::{Event, LinkType, Options, Parser, Tag, TagEnd};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// Extensions of Markdown that GitHub and Jupyter have beside CommonMark.
pub(super) const OPTIONS: Options = Options::ENABLE_TABLES
    .union(Options::ENABLE_STRIKETHROUGH)
    .union(Options::ENABLE_FOOTNOTES)
    .union(Options::ENABLE_TASKLISTS);

/// The text with its relative targets, which were meant from the directory `from`, as they are from `to`, and with those of
/// pasted pictures (`attachment:NAME`) as `attached` has them. Addresses, places in the text and absolute paths stay; so
/// does whatever only looks like a link, in code.
pub(super) fn moved(markdown: &str, from: &Path, to: &Path, attached: &Attached) -> String {
    let (from, to) = (normal(from), normal(to));
    let relocated = |target: &str| match attachment(target) {
        Some(name) => attached.get(&name).map(|file| link(file)),
        None if from == to => None,
        None => relocated(target, &from, &to),
    };
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut edit = |at: usize, end: usize, target: &str| {
        let range = destination(markdown, at, end);
        edits.extend(range.zip(relocated(target)));
    };
    let mut events = Parser::new_ext(markdown, OPTIONS).into_offset_iter();
    for (_, definition) in events.reference_definitions().iter() {
        let Range { start, end } = definition.span.clone();
        if let Some(at) = markdown[start..end].find("]:") {
            edit(start + at + 2, end, &definition.dest);
        }
    }
    // Links that have begun: the target, if it stands in them, and the end of what is shown so far.
    let mut open: Vec<(Option<String>, usize)> = Vec::new();
    let mut pasted: Vec<Range<usize>> = Vec::new();
    for (event, range) in &mut events {
        match event {
            Event::Start(Tag::Link { link_type, dest_url, .. } | Tag::Image { link_type, dest_url, .. }) => {
                open.push(((link_type == LinkType::Inline).then(|| dest_url.to_string()), range.start));
                continue;
            }
            Event::End(TagEnd::Link | TagEnd::Image) => {
                if let Some((Some(target), shown)) = open.pop()
                    && let Some(at) = markdown[shown..range.end].find("](")
                {
                    edit(shown + at + 2, range.end, &target);
                }
            }
            // Pictures with a size are written so.
            Event::Html(html) | Event::InlineHtml(html) if html.contains(ATTACHMENT) => pasted.push(range.clone()),
            _ => {}
        }
        if let Some((_, shown)) = open.last_mut() {
            *shown = range.end.max(*shown);
        }
    }
    edits.extend(pasted.into_iter().map(|range| {
        let html = attached.iter().fold(markdown[range.clone()].to_owned(), |html, (name, file)| {
            [name.clone(), link(name)].iter().fold(html, |html, name| {
                let quoted = |file: &str| ["\"", "'"].map(|quote| format!("{quote}{file}{quote}"));
                let (olds, news) = (quoted(&format!("{ATTACHMENT}{name}")), quoted(&link(file)));
                olds.iter().zip(&news).fold(html, |html, (old, new)| html.replace(old, new))
            })
        });
        (range, html)
    }));
    edits.sort_by_key(|(range, _)| range.start);
    let (mut text, mut done) = (String::with_capacity(markdown.len()), 0);
    for (range, target) in edits {
        text.push_str(&markdown[done..range.start]);
        text.push_str(&target);
        done = range.end;
    }
    text.push_str(&markdown[done..]);
    text
}

/// Begins the target of a picture that was pasted into the cell.
const ATTACHMENT: &str = "attachment:";

/// Files of the report that hold pasted pictures, by the name that the text has for them.
pub(super) type Attached = BTreeMap<String, String>;

/// The name of the pasted picture that a target means.
fn attachment(target: &str) -> Option<String> {
    let name = target.strip_prefix(ATTACHMENT)?;
    Some(unlink(name).unwrap_or_else(|| name.to_owned()))
}

/// The range of the link target that begins behind `at`, its angle brackets included.
fn destination(markdown: &str, at: usize, end: usize) -> Option<Range<usize>> {
    let rest = &markdown[at..end];
    let start = at + rest.len() - rest.trim_start().len();
    let text = &markdown[start..end];
    let (mut depth, mut is_escaped) = (0, false);
    for (offset, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '>' if text.starts_with('<') => return Some(start..start + offset + 1),
            _ if text.starts_with('<') => {}
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            c if c == ')' || c.is_whitespace() => return Some(start..start + offset),
            _ => {}
        }
    }
    // Of a definition, to the end.
    (!text.is_empty() && !text.starts_with('<')).then_some(start..end)
}

/// A relative target from another directory; `None` for others.
fn relocated(target: &str, from: &Path, to: &Path) -> Option<String> {
    let (path, place) = target.split_at(target.find(['#', '?']).unwrap_or(target.len()));
    let path = unlink(path)?;
    let slash = if path.ends_with('/') { "/" } else { "" };
    Some(format!("{}{slash}{place}", link(&relative(&normal(&from.join(path)), to))))
}

/// An absolute path as it is from the directory `to`.
fn relative(path: &Path, to: &Path) -> String {
    let common = path.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = to.components().skip(common).map(|_| "..".to_owned());
    let down = path.components().skip(common).map(|part| part.as_os_str().to_string_lossy().into_owned());
    let parts: Vec<String> = up.chain(down).collect();
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// An absolute path without `.` and `..`, as a reader of the link takes it.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_reports(markdown: &str) -> String {
        moved(markdown, Path::new("/w/notebooks"), Path::new("/w/notebooks/../reports"), &Attached::new())
    }

    #[test]
    fn relative_targets_follow_the_report() {
        for (before, after) in [
            ("![a](p.png)", "![a](../notebooks/p.png)"),
            ("![](p.png \"title\")", "![](../notebooks/p.png \"title\")"),
            ("[*b* `c](d)`](../data/x.csv#row)!", "[*b* `c](d)`](../data/x.csv#row)!"),
            (
                "[n](02_b.ipynb?x=1) and [n]( ./a/../e.md )",
                "[n](../notebooks/02_b.ipynb?x=1) and [n]( ../notebooks/e.md )",
            ),
            ("[![a](p.png)](../reports/n.md)", "[![a](../notebooks/p.png)](n.md)"),
            (
                "[a](<two words.png>) [b](two%20words.png)",
                "[a](../notebooks/two%20words.png) [b](../notebooks/two%20words.png)",
            ),
            ("[a](p(1).png) [b](p\\)2.png)", "[a](../notebooks/p%281%29.png) [b](../notebooks/p%292.png)"),
            (
                "see [a] and [b][r]\n\n[a]: p.png 'title'\n[r]: <q.png>",
                "see [a] and [b][r]\n\n[a]: ../notebooks/p.png 'title'\n[r]: ../notebooks/q.png",
            ),
            ("> - [ä\n>   é](ü.png)\n", "> - [ä\n>   é](../notebooks/ü.png)\n"),
            ("| a |\n|---|\n| ![x](p.png) |", "| a |\n|---|\n| ![x](../notebooks/p.png) |"),
            ("[dir](sub/) [here](.)", "[dir](../notebooks/sub/) [here](../notebooks)"),
        ] {
            assert_eq!(from_reports(before), after);
        }
    }

    #[test]
    fn all_else_stays() {
        for text in [
            "[a](https://x.org/p.png) <https://x.org> [b](#top) [c](/abs.png) [d](mailto:a@b.c) ![e](attachment:f.png)",
            "```\n![a](p.png)\n```\n\n    ![b](q.png)\n\n`[c](d)` \\[e](f) [g]\n\n[h]() [i](%zz)\n",
            "<!-- ![a](p.png) -->\n\nfoot[^1]\n\n[^1]: note\n\n- [ ] task\n",
        ] {
            assert_eq!(from_reports(text), text);
        }
        let text = "![a](p.png)";
        assert_eq!(moved(text, Path::new("/w/n"), Path::new("/w/./n"), &Attached::new()), text);
    }

    #[test]
    fn pasted_pictures_become_files() {
        let attached = Attached::from(
            [("image.png", "n_files/attached_1.png"), ("ä b.jpg", "n (1)_files/attached_2.jpg")]
                .map(|(name, file)| (name.to_owned(), file.to_owned())),
        );
        let text = "![a](attachment:image.png) [![b](<attachment:ä b.jpg>)](attachment:%C3%A4%20b.jpg) ![r]\n\n\
                    <img src=\"attachment:image.png\" width='9'> <img src='attachment:ä%20b.jpg'>\n\n\
                    `![c](attachment:image.png)` ![d](attachment:none.png)\n\n[r]: attachment:image.png";
        let expected = "![a](n_files/attached_1.png) [![b](n%20%281%29_files/attached_2.jpg)](n%20%281%29_files/attached_2.jpg) \
                        ![r]\n\n<img src=\"n_files/attached_1.png\" width='9'> <img src='n%20%281%29_files/attached_2.jpg'>\n\n\
                        `![c](attachment:image.png)` ![d](attachment:none.png)\n\n[r]: n_files/attached_1.png";
        for to in ["/w/n", "/w/r"] {
            assert_eq!(moved(text, Path::new("/w/n"), Path::new(to), &attached), expected);
        }
    }
}
