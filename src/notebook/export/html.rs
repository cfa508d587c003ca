//! The report as one HTML file, which needs no other file and no network.

use super::Files;
use super::links::{OPTIONS, normal};
use super::math::{escaped, formula};
use super::shown::{FRAMES_SCRIPT, picture_mime};
use super::text::unlink;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd, html};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Stands near the top of our files, and only of ours.
const GENERATOR: &str = "<meta name=\"generator\" content=\"lacuna notebook run\">";

const STYLE: &str = "\
:root { color-scheme: light dark; --text: #222; --back: #fff; --soft: #f5f5f3; --line: #ddd; --link: #0060b0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --back: #16181b; --soft: #212429; --line: #3a3e44; --link: #7ab8ff; }
}
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: var(--text); background: var(--back);
  font: 1rem/1.55 system-ui, sans-serif; }
a { color: var(--link); }
h1, h2, h3 { line-height: 1.25; margin-top: 2rem; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 4px; padding: .7rem; overflow-x: auto;
  font-size: .85rem; line-height: 1.4; }
pre:has(> code.language-text) { background: none; border-width: 0 0 0 3px; border-radius: 0; max-height: 40rem; }
code { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; }
iframe.value { width: 100%; height: 10rem; border: 0; background: #fff; border-radius: 4px; color-scheme: light; }
math[display=block] { overflow-x: auto; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--soft); }
summary { cursor: pointer; color: var(--link); }
@media print { body { max-width: none; } pre { max-height: none !important; white-space: pre-wrap; } }
";

/// The file's name.
pub(super) fn name(stem: &str) -> String {
    format!("{stem}.html")
}

/// Returns whether the text is a page that a run wrote.
pub(crate) fn is_ours(text: &str) -> bool {
    text.lines().take(5).any(|line| line == GENERATOR)
}

/// The Markdown report as a page, the pictures that it shows inside: those of the report, and other files that it names
/// from its directory `out`.
pub(super) fn page(markdown: &str, stem: &str, files: &Files, out: &Path) -> String {
    let title = super::gallery::title(markdown).unwrap_or_else(|| stem.to_owned());
    let parser = Parser::new_ext(markdown, OPTIONS.union(Options::ENABLE_MATH)).into_offset_iter();
    let mut events: Vec<Event> = parser
        .map(|(event, range)| match event {
            Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
                let dest_url = data_uri(&dest_url, files, out).map_or(dest_url, CowStr::from);
                Event::Start(Tag::Image { link_type, dest_url, title, id })
            }
            // "$5-$6" is no formula, as others have it.
            Event::InlineMath(_) if markdown[range.end..].starts_with(|c: char| c.is_ascii_digit()) => {
                Event::Text(CowStr::from(&markdown[range]))
            }
            Event::InlineMath(latex) => Event::InlineHtml(formula(&latex, false).into()),
            Event::DisplayMath(latex) => Event::InlineHtml(formula(&latex, true).into()),
            event => event,
        })
        .collect();
    add_ids(&mut events);
    let mut body = String::new();
    html::push_html(&mut body, events.into_iter());
    // A wide table scrolls by itself, not with the page.
    let body = body.replace("<table>", "<div class=\"table\"><table>").replace("</table>", "</table></div>");
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    let script = if body.contains("<iframe class=\"value\"") { FRAMES_SCRIPT } else { "" };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\n{GENERATOR}\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}{script}</body>\n</html>\n"
    )
}

/// A picture as an address that holds it.
fn data_uri(target: &str, files: &Files, out: &Path) -> Option<String> {
    let path = unlink(target)?;
    let mime = picture_mime(Path::new(&path).extension()?.to_str()?)?;
    let bytes = match files.get(&path) {
        Some(bytes) => bytes.clone(),
        // The directory may not be there yet, so that `..` leads nowhere.
        None => fs::read(normal(&out.join(&path))).ok()?,
    };
    Some(format!("data:{mime};base64,{}", BASE64_STANDARD.encode(&bytes)))
}

/// Gives headings the ids that links within the text use: GitHub's (`#two-of-four`), and beside it Jupyter's
/// (`#Two-of-four`). Of several with one name, the later ones are numbered.
fn add_ids(events: &mut Vec<Event>) {
    let mut taken = BTreeSet::new();
    let mut free = |id: String| {
        let numbered = (1usize..).map(|n| format!("{id}-{n}"));
        let id = std::iter::once(id.clone()).chain(numbered).find(|id| !taken.contains(id)).unwrap_or(id);
        taken.insert(id.clone());
        id
    };
    let mut anchors: Vec<(usize, String)> = Vec::new();
    let mut at = 0;
    while at < events.len() {
        if let Event::Start(Tag::Heading { .. }) = events[at] {
            let end = events[at..].iter().position(|event| matches!(event, Event::End(TagEnd::Heading(_))));
            let end = at + end.unwrap_or(0);
            let text: String = events[at..end]
                .iter()
                .filter_map(|event| match event {
                    Event::Text(text) | Event::Code(text) => Some(&**text),
                    Event::SoftBreak | Event::HardBreak => Some(" "),
                    _ => None,
                })
                .collect();
            let (github, jupyter) = (slug(&text), text.trim().replace(char::is_whitespace, "-"));
            if !github.is_empty() {
                let github = free(github);
                if let Event::Start(Tag::Heading { id, .. }) = &mut events[at] {
                    *id = Some(github.into());
                }
            }
            anchors.push((at, jupyter));
            at = end;
        }
        at += 1;
    }
    // Once GitHub's are known, which go first; of two of Jupyter's the first is meant.
    let mut inserted = 0;
    for (at, jupyter) in anchors {
        if !jupyter.is_empty() && taken.insert(jupyter.clone()) {
            let anchor = format!("<a id=\"{}\"></a>", escaped(&jupyter));
            events.insert(at + 1 + inserted, Event::InlineHtml(anchor.into()));
            inserted += 1;
        }
    }
}

/// A heading's id, as GitHub makes it.
fn slug(text: &str) -> String {
    let kept = text.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(markdown: &str) -> String {
        page(markdown, "n", &Files::new(), Path::new("/nowhere"))
    }

    #[test]
    fn links_within_the_page_find_their_headings() {
        let page = page_of(
            "# Über *uns* & `mehr`!\n\n## Two of four\n\n## Two of four\n\n## two-of-four-1\n\nSetext heading\n---\n\n# !!!\n\n[a](#über-uns--mehr)",
        );
        for expected in [
            "<h1 id=\"über-uns--mehr\">",
            "<h2 id=\"two-of-four\"><a id=\"Two-of-four\"></a>",
            "<h2 id=\"two-of-four-1\">",
            "<h2 id=\"two-of-four-1-1\">",
            "<h2 id=\"setext-heading\"><a id=\"Setext-heading\"></a>",
            "<h1><a id=\"!!!\"></a>",
        ] {
            assert!(page.contains(expected), "no {expected:?} in\n{page}");
        }
        assert_eq!(page.matches("id=\"Two-of-four\"").count(), 1);
        assert_eq!(slug("  A.B_c - d\t "), "ab_c---d");
    }

    #[test]
    fn formulas_are_drawn_and_money_is_not() {
        let page = page_of(
            "Let $x^2$ and\n\n$$\n\\frac{a}{b}\n$$\n\nIt costs $5 and $6, or $5-$6. `$x$` \\$y\\$ $\\nothing{$\n\n```\n$z$\n```\n",
        );
        assert_eq!(page.matches("<math").count(), 2, "{page}");
        for expected in ["<msup>", "<mfrac>", "$5 and $6, or $5-$6.", "<code>$x$</code> $y$", "$\\nothing{$", "$z$"] {
            assert!(page.contains(expected), "no {expected:?} in\n{page}");
        }
    }

    #[test]
    fn a_page_stands_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("photo.png"), b"foo").unwrap();
        let files = Files::from([("n_files/plot_1.svg".to_owned(), b"<svg/>".to_vec())]);
        let markdown = "# A < B\n\n| a | b |\n|--:|---|\n| 1 | x |\n\n```text\n<b>&\n```\n\n![one](n_files/plot_1.svg) ![two](photo.png)\n";
        let page = page(markdown, "n", &files, directory.path());
        assert!(is_ours(&page) && !is_ours("<html>"), "{page}");
        for expected in [
            "<title>A &lt; B</title>",
            "<div class=\"table\"><table>",
            "text-align: right",
            "&lt;b&gt;&amp;",
            "<img src=\"data:image/svg+xml;base64,PHN2Zy8+\" alt=\"one\"",
            "<img src=\"data:image/png;base64,Zm9v\" alt=\"two\"",
        ] {
            assert!(page.contains(expected), "no {expected:?} in\n{page}");
        }
        assert!(!page.contains("http://") && !page.contains("https://"));
    }
}
