//! The documentation holds what it says of the code: paths exist, links lead somewhere, quotes are quotes.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every Markdown file of the documentation.
fn pages() -> Vec<PathBuf> {
    fn add(directory: &Path, pages: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(&path, pages);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    let mut pages: Vec<_> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name)).into();
    add(&root().join("docs"), &mut pages);
    pages.sort();
    pages
}

/// The text outside fenced blocks.
fn prose(markdown: &str) -> String {
    let mut fenced = false;
    let outside = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    };
    markdown.lines().filter(outside).collect::<Vec<_>>().join("\n")
}

/// The pieces of `text` between `open` and `close`.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| rest.split_once(close).map(|(piece, _)| piece)).collect()
}

/// The code spans, of one backtick each.
fn spans(prose: &str) -> Vec<&str> {
    prose.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn paths_exist() {
    let mut checked = 0;
    for page in pages() {
        let text = prose(&read(&page));
        for span in spans(&text) {
            let ours = ["src/", "docs/", "tests/", "benches/", "scripts/", "notebooks/"]
                .iter()
                .any(|top| span.starts_with(top));
            if ours && !span.contains(['*', '{', ' ', '<']) {
                assert!(root().join(span).exists(), "{}: `{span}` is not there", page.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 40, "{checked} paths");
}

/// Links to our own files, as `(text, target)`.
fn links(prose: &str) -> Vec<(&str, &str)> {
    let targets = prose.match_indices("](").filter_map(|(at, _)| {
        let target = prose[at + 2..].split_once(')')?.0;
        let text = prose[..at].rsplit_once('[').map_or("", |(_, text)| text);
        Some((text, target))
    });
    targets.filter(|(_, target)| !target.contains("://")).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for page in pages() {
        let text = prose(&read(&page));
        for (_, target) in links(&text) {
            let file = target.split('#').next().unwrap_or(target);
            let path = page.parent().unwrap().join(file);
            assert!(file.is_empty() || path.exists(), "{}: ({target}) is not there", page.display());
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked} links");
}

#[test]
fn items_that_links_name_are_in_their_files() {
    let mut checked = 0;
    for page in pages() {
        let text = prose(&read(&page));
        for (name, target) in links(&text).into_iter().filter(|(_, target)| target.ends_with(".rs")) {
            let Some(item) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else { continue };
            let item = item.rsplit("::").next().unwrap_or(item);
            let source = read(&page.parent().unwrap().join(target));
            let defines = |kind: &&str| {
                let definition = format!("{kind} {item}");
                source.match_indices(&definition).any(|(at, _)| {
                    let next = source[at + definition.len()..].chars().next();
                    next.is_none_or(|next| !next.is_alphanumeric() && next != '_')
                })
            };
            let kinds = ["fn", "struct", "enum", "trait", "const"];
            assert!(kinds.iter().any(defines), "{}: {target} has no `{item}`", page.display());
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked} items");
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A block of Rust under a comment `<!-- from FILE -->` stands in that file, but for white space.
#[test]
fn quotes_are_in_the_code() {
    let mut checked = 0;
    for page in pages() {
        let text = read(&page);
        for quote in text.split("<!-- from ").skip(1) {
            let (file, rest) = quote.split_once(" -->").unwrap();
            let blocks = between(rest, "```rust\n", "```");
            let block = blocks.first().unwrap_or_else(|| panic!("{}: no quote of {file}", page.display()));
            let is_quoted = words(&read(&root().join(file))).contains(&words(block));
            assert!(is_quoted && !block.trim().is_empty(), "{}: not in {file}:\n{block}", page.display());
            checked += 1;
        }
    }
    assert!(checked > 5, "{checked} quotes");
}
