//! The report as one HTML file, which needs no other file and no network.

use super::Files;
use super::links::{OPTIONS, normal};
use super::text::{encode_base64, unlink};
use pulldown_cmark::{CowStr, Event, Parser, Tag, html};
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

/// Whether the text is a page that a run wrote.
pub(crate) fn is_ours(text: &str) -> bool {
    text.lines().take(5).any(|line| line == GENERATOR)
}

/// The Markdown report as a page, the pictures that it shows inside: those of the report, and other files that it names
/// from its directory `out`.
pub(super) fn page(markdown: &str, stem: &str, files: &Files, out: &Path) -> String {
    let title = super::gallery::title(markdown).unwrap_or_else(|| stem.to_owned());
    let events = Parser::new_ext(markdown, OPTIONS).map(|event| match event {
        Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
            let dest_url = data_uri(&dest_url, files, out).map_or(dest_url, CowStr::from);
            Event::Start(Tag::Image { link_type, dest_url, title, id })
        }
        event => event,
    });
    let mut body = String::new();
    html::push_html(&mut body, events);
    // A wide table scrolls by itself, not with the page.
    let body = body.replace("<table>", "<div class=\"table\"><table>").replace("</table>", "</table></div>");
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\n{GENERATOR}\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// A picture as an address that holds it.
fn data_uri(target: &str, files: &Files, out: &Path) -> Option<String> {
    let path = unlink(target)?;
    let extension = Path::new(&path).extension()?.to_str()?.to_ascii_lowercase();
    let kind = match extension.as_str() {
        "svg" => "svg+xml",
        "png" => "png",
        "jpg" | "jpeg" => "jpeg",
        "gif" => "gif",
        "webp" => "webp",
        _ => return None,
    };
    let bytes = match files.get(&path) {
        Some(bytes) => bytes.clone(),
        // The directory may not be there yet, so that `..` leads nowhere.
        None => fs::read(normal(&out.join(&path))).ok()?,
    };
    Some(format!("data:image/{kind};base64,{}", encode_base64(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
