//! Documentation as a reader wants it: rust-analyzer's, of which evcxr gives a web page and a text, made new.

use std::fmt::Write;

/// The documentation of an item in three forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Documentation {
    pub(super) plain: String,
    pub(super) markdown: String,
    pub(super) html: String,
}

/// The tags and texts of a page.
enum Part<'a> {
    /// `<name attributes>` or `</name>`, without its brackets.
    Tag(&'a str),
    Text(&'a str),
}

fn parts(html: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = html;
    while !rest.is_empty() {
        let is_tag = |after: &str| after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
        if let Some((tag, after)) =
            rest.strip_prefix('<').filter(|after| is_tag(after)).and_then(|after| after.split_once('>'))
        {
            parts.push(Part::Tag(tag));
            rest = after;
            continue;
        }
        let end = rest.char_indices().skip(1).find(|(_, c)| *c == '<').map_or(rest.len(), |(at, _)| at);
        parts.push(Part::Text(&rest[..end]));
        rest = &rest[end..];
    }
    parts
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Returns whether a code block with these words behind its fence is Rust, as rustdoc has it.
fn is_rust(class: &str) -> bool {
    const OPTIONS: [&str; 8] =
        ["", "rust", "ignore", "no_run", "should_panic", "compile_fail", "test_harness", "standalone_crate"];
    let language = class.strip_prefix("language-").unwrap_or(class);
    language
        .split([',', ' '])
        .all(|word| OPTIONS.contains(&word) || word.starts_with("edition") || word.starts_with("ignore-"))
}

/// A doc test's code without the lines that only the test needs.
fn shown(code: &str) -> String {
    let mut shown = String::new();
    for line in code.lines() {
        let bare = line.trim_start();
        if bare == "#" || bare.starts_with("# ") {
            continue;
        }
        // Two of them stand for one.
        let line = if bare.starts_with("##") { line.replacen("##", "#", 1) } else { line.to_owned() };
        let _ = writeln!(shown, "{line}");
    }
    shown
}

/// Links lead somewhere: to the web, and not to what rustdoc alone can find, nor to pages of this crate, which are not there.
fn leads_somewhere(target: &str) -> bool {
    (target.starts_with("https://") || target.starts_with("http://")) && !target.contains("docs.rs/lacuna/")
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) = tag.split_once(&format!("{name}=\""))?;
    value.split_once('"').map(|(value, _)| value)
}

impl Documentation {
    /// The documentation in the page that evcxr makes of rust-analyzer's Markdown.
    pub(super) fn of(html: &str) -> Self {
        let mut writer = Writer::default();
        // rustdoc's links without a target are brackets here.
        let html = html.replace("[<code>", "<code>").replace("</code>]", "</code>");
        let mut parts = parts(&html).into_iter();
        while let Some(part) = parts.next() {
            match part {
                Part::Tag("pre") => writer.block(&mut parts),
                Part::Tag(tag) => writer.tag(tag),
                Part::Text(text) => writer.text(text),
            }
        }
        Documentation {
            plain: squeezed(&writer.plain),
            markdown: squeezed(&writer.markdown),
            html: writer.html.trim().to_owned(),
        }
    }
}

/// With one empty line at the most between paragraphs, and none around them.
fn squeezed(text: &str) -> String {
    let mut squeezed = String::new();
    let mut empty = 0;
    for line in text.trim().lines() {
        empty = if line.trim().is_empty() { empty + 1 } else { 0 };
        if empty < 2 {
            squeezed.push_str(line.trim_end());
            squeezed.push('\n');
        }
    }
    squeezed.trim_end().to_owned()
}

#[derive(Default)]
struct Writer {
    plain: String,
    markdown: String,
    html: String,
    /// The number of each open list's next item; `None` where they have none.
    lists: Vec<Option<u64>>,
    /// Targets of open links, for those that have one.
    links: Vec<Option<String>>,
    cells: usize,
    in_head: bool,
}

impl Writer {
    fn both(&mut self, text: &str) {
        self.plain.push_str(text);
        self.markdown.push_str(text);
    }

    /// Begins a line, where none has begun.
    fn new_line(&mut self) {
        for text in [&mut self.plain, &mut self.markdown] {
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.html.push_str(text);
        let text = unescaped(text);
        // Text between blocks is white space.
        if !(text.trim().is_empty() && (self.plain.is_empty() || self.plain.ends_with('\n'))) {
            self.both(&text);
        }
    }

    /// A code block, whose `<pre>` is read already.
    fn block<'a>(&mut self, parts: &mut impl Iterator<Item = Part<'a>>) {
        let (mut class, mut code) = ("", String::new());
        for part in parts {
            match part {
                Part::Tag("/pre") => break,
                Part::Tag(tag) if tag.starts_with("code") => class = attribute(tag, "class").unwrap_or_default(),
                Part::Tag(_) => {}
                Part::Text(text) => code.push_str(&unescaped(text)),
            }
        }
        let rust = is_rust(class);
        let code = if rust { shown(&code) } else { code };
        if code.trim().is_empty() {
            return;
        }
        let language = if rust { "rust" } else { class.strip_prefix("language-").unwrap_or(class) };
        let code = code.trim_end();
        let _ = write!(self.html, "<pre><code class=\"language-{language}\">{}\n</code></pre>", escaped(code));
        let _ = write!(self.markdown, "\n\n```{language}\n{code}\n```\n\n");
        let _ = write!(self.plain, "\n\n{code}\n\n");
    }

    fn tag(&mut self, tag: &str) {
        let name = tag.split([' ', '/']).find(|name| !name.is_empty()).unwrap_or_default();
        let opens = !tag.starts_with('/');
        if name == "a" {
            return self.link(tag, opens);
        }
        let _ = write!(self.html, "<{tag}>");
        match (name, opens) {
            ("p" | "blockquote" | "table", _) if self.lists.is_empty() => self.both("\n\n"),
            ("h1" | "h2" | "h3" | "h4" | "h5" | "h6", true) => {
                self.both("\n\n");
                let level = name[1..].parse().unwrap_or(1);
                self.markdown.push_str(&"#".repeat(level));
                self.markdown.push(' ');
            }
            ("h1" | "h2" | "h3" | "h4" | "h5" | "h6", false) => self.both("\n\n"),
            ("hr", _) => {
                self.plain.push_str("\n\n");
                self.markdown.push_str("\n\n---\n\n");
            }
            ("br", _) => self.both("\n"),
            ("ul" | "ol", true) => {
                let start = attribute(tag, "start").and_then(|start| start.parse().ok()).unwrap_or(1);
                self.lists.push((name == "ol").then_some(start));
                self.both("\n");
            }
            ("ul" | "ol", false) => {
                self.lists.pop();
                self.both("\n\n");
            }
            ("li", true) => {
                let indent = "  ".repeat(self.lists.len().saturating_sub(1));
                let mark = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}.", *number - 1)
                    }
                    _ => "-".into(),
                };
                self.new_line();
                self.both(&format!("{indent}{mark} "));
            }
            ("code", _) => self.both("`"),
            ("em", _) => self.markdown.push('*'),
            ("strong", _) => self.markdown.push_str("**"),
            ("del", _) => self.markdown.push_str("~~"),
            ("thead", true) => self.in_head = true,
            ("tr", true) => {
                self.new_line();
                self.markdown.push('|');
                self.cells = 0;
            }
            ("tr", false) => self.end_row(),
            ("th" | "td", true) => {
                self.markdown.push(' ');
                self.cells += 1;
            }
            ("th" | "td", false) => {
                self.plain.push_str("  ");
                self.markdown.push_str(" |");
            }
            _ => {}
        }
    }

    fn end_row(&mut self) {
        if std::mem::take(&mut self.in_head) {
            let _ = write!(self.markdown, "\n|{}", "---|".repeat(self.cells));
        }
    }

    fn link(&mut self, tag: &str, opens: bool) {
        if opens {
            let target = attribute(tag, "href").filter(|target| leads_somewhere(target)).map(str::to_owned);
            if target.is_some() {
                let _ = write!(self.html, "<{tag}>");
                self.markdown.push('[');
            }
            self.links.push(target);
        } else if let Some(Some(target)) = self.links.pop() {
            let _ = write!(self.html, "<{tag}>");
            let _ = write!(self.markdown, "]({})", unescaped(&target));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_lines_stay_hidden_in_all_forms() {
        let html = "<pre><code class=\"language-rust\">lacuna::masks\n</code></pre>\n<hr />\n<p>Shows <em>all</em> \
                    [<code>Mask</code>]s of a <a href=\"https://docs.rs/lacuna/latest/lacuna/lab/struct.Lab.html\"><code>Lab</code></a>, \
                    see <a href=\"https://doc.rust-lang.org/std/\">std</a> &amp; <a href=\"crate::x\">x</a>.</p>\n<h1>Examples</h1>\n\
                    <pre><code class=\"language-no_run\"># use lacuna::prelude::*;\n#\nlet x = 1 &lt; 2;\n#[derive(Debug)]\n## a\n  # Ok(())\n</code></pre>\n\
                    <pre><code class=\"language-text\"># a heading\n</code></pre>\n<ul>\n<li>one</li>\n<li>two</li>\n</ul>\n";
        let documentation = Documentation::of(html);
        let code = "let x = 1 < 2;\n#[derive(Debug)]\n# a";
        assert_eq!(
            documentation.plain,
            format!(
                "lacuna::masks\n\nShows all `Mask`s of a `Lab`, see std & x.\n\nExamples\n\n{code}\n\n# a heading\n\n- one\n- two"
            )
        );
        assert!(
            documentation.markdown.starts_with("```rust\nlacuna::masks\n```\n\n---\n\nShows *all* `Mask`s of a `Lab`, see [std](https://doc.rust-lang.org/std/) & x."),
            "{}",
            documentation.markdown
        );
        assert!(
            documentation
                .markdown
                .contains(&format!("# Examples\n\n```rust\n{code}\n```\n\n```text\n# a heading\n```"))
        );
        assert!(
            !documentation.html.contains("prelude") && !documentation.html.contains("crate::x"),
            "{}",
            documentation.html
        );
        assert!(documentation.html.contains("let x = 1 &lt; 2;"), "{}", documentation.html);
    }

    #[test]
    fn tables_and_numbered_lists_stay_what_they_are() {
        let html = "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>\n<tr><td>1</td><td>2</td></tr>\n</tbody></table>\n\
                    <ol start=\"3\">\n<li>x<ul>\n<li>y</li>\n</ul>\n</li>\n<li>z</li>\n</ol>\n";
        let markdown = Documentation::of(html).markdown;
        assert!(markdown.starts_with("| a | b |\n|---|---|\n| 1 | 2 |"), "{markdown}");
        assert!(
            markdown.contains("\n3. x") && markdown.contains("\n  - y") && markdown.contains("\n4. z"),
            "{markdown}"
        );
    }

    #[test]
    fn any_page_can_be_read() {
        for html in ["", "<", "<p", "a < b", "<pre>", "<pre><code>x", "</a></ul></pre>", "é<é>", "<a href=\"x>y</a>"]
        {
            Documentation::of(html);
        }
        assert_eq!(Documentation::of("a &lt; b &amp;lt;").plain, "a < b &lt;");
    }
}
