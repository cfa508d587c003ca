//! `README.md` of a directory of reports: what there is, with one picture each.

use super::super::document::write_file;
use super::Files;
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

const NAME: &str = "README.md";

/// The first line. A README without it was written by a person, and stays.
const MARK: &str = "<!-- Written by `lacuna notebook run`; what is changed here is lost. -->";

/// Writes the gallery of all reports in `directory`.
///
/// # Errors
/// Fails when the file cannot be written.
pub(crate) fn write(directory: &Path) -> Result<()> {
    // Two runs that end together must not each miss the other's report. Not every file system can lock; then the next
    // run puts it right.
    let lock = File::open(directory);
    let _held = lock.as_ref().map(File::lock);
    let mut files = Files::new();
    add(&mut files, directory);
    match files.get(NAME) {
        Some(bytes) if fs::read(directory.join(NAME)).ok().as_ref() != Some(bytes) => {
            write_file(&directory.join(NAME), bytes)
        }
        _ => Ok(()),
    }
}

/// Adds the gallery to `fresh`, the files of a report that stand for those in `directory`. Nothing where a person wrote
/// the README.
pub(crate) fn add(fresh: &mut Files, directory: &Path) {
    if fs::read_to_string(directory.join(NAME)).is_ok_and(|text| text.lines().next() != Some(MARK)) {
        return;
    }
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: BTreeSet<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name != NAME).collect();
    names.extend(fresh.keys().cloned());
    let read = |name: &str| match fresh.get(name) {
        Some(bytes) => String::from_utf8(bytes.clone()).ok(),
        None => fs::read_to_string(directory.join(name)).ok(),
    };
    let mut text = format!("{MARK}\n# Reports\n\nEach is what a notebook gave when it was run from top to bottom.\n");
    for name in &names {
        let Some(stem) = name.strip_suffix(".md") else { continue };
        // Other Markdown may stand beside reports.
        let json = read(&format!("{stem}.json")).and_then(|json| serde_json::from_str::<Value>(&json).ok());
        if json.is_some_and(|json| json["notebook"].as_str() == Some(&format!("{stem}.ipynb")))
            && let Some(markdown) = read(name)
        {
            text.push_str(&entry(stem, &markdown, &names));
        }
    }
    fresh.insert(NAME.to_owned(), text.into_bytes());
}

fn entry(stem: &str, markdown: &str, names: &BTreeSet<String>) -> String {
    let link = |extension: &str| super::text::link(&format!("{stem}.{extension}"));
    let title = title(markdown).unwrap_or_else(|| stem.to_owned());
    let mut text = format!("\n## [{}]({})\n", title.replace(['[', ']'], ""), link("md"));
    if let Some(sentence) = first_sentence(markdown) {
        text.push_str(&format!("\n{sentence}\n"));
    }
    if let Some((alt, target)) = picture(markdown) {
        let alt = alt.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
        text.push_str(&format!(
            "\n<a href=\"{}\"><img src=\"{target}\" width=\"480\" alt=\"{alt}\"></a>\n",
            link("md")
        ));
    }
    let forms = [
        ("report", "md"),
        ("web page", "html"),
        ("notebook with outputs", "ipynb"),
        ("table", "csv"),
        ("data", "json"),
    ];
    // The executed notebook is written with each report.
    let links: Vec<String> = forms
        .iter()
        .filter(|(_, extension)| *extension == "ipynb" || names.contains(&format!("{stem}.{extension}")))
        .map(|(what, extension)| format!("[{what}]({})", link(extension)))
        .collect();
    text.push_str(&format!("\n{}\n", links.join(" · ")));
    text
}

/// The first heading.
pub(super) fn title(markdown: &str) -> Option<String> {
    outside_fences(markdown).find_map(|line| line.strip_prefix("# ")).map(|title| title.trim().to_owned())
}

/// The first sentence of the first paragraph.
fn first_sentence(markdown: &str) -> Option<String> {
    let is_prose = |line: &&str| {
        let is_emphasis = line.starts_with('*') && !line.starts_with("* ");
        let starts_otherwise = line.starts_with(['#', '|', '!', '<', '>', '-', '*', '`', '$']);
        !line.trim().is_empty() && (!starts_otherwise || is_emphasis)
    };
    let lines = outside_fences(markdown).skip_while(|line| !is_prose(line));
    let paragraph: Vec<&str> = lines.take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let paragraph = paragraph.join(" ");
    let ends = |(at, c): (usize, char)| {
        let after = paragraph[at + c.len_utf8()..].trim_start_matches(['*', '_', ')', '"']);
        let next = after.strip_prefix(' ').and_then(|rest| rest.chars().next());
        let is_end = matches!(c, '.' | '?' | '!') && (after.is_empty() || next.is_some_and(|c| !c.is_lowercase()));
        is_end.then(|| paragraph.len() - after.len())
    };
    let end = paragraph.char_indices().find_map(ends).unwrap_or(paragraph.len());
    (!paragraph.is_empty()).then(|| paragraph[..end].to_owned())
}

/// The first picture that is a file beside the report: description and target.
fn picture(markdown: &str) -> Option<(&str, &str)> {
    outside_fences(markdown).find_map(|line| {
        let (alt, rest) = line.trim_start().strip_prefix("![")?.split_once("](")?;
        let target = rest.split_once(')')?.0;
        super::text::unlink(target).map(|_| (alt, target))
    })
}

fn outside_fences(markdown: &str) -> impl Iterator<Item = &str> {
    let mut fence: Option<String> = None;
    markdown.lines().filter(move |line| {
        let ticks: String = line.chars().take_while(|c| *c == '`').collect();
        match &fence {
            Some(open) if ticks == *open => {
                fence = None;
                false
            }
            Some(_) => false,
            None if ticks.len() >= 3 => {
                fence = Some(ticks);
                false
            }
            None => true,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_title_sentence_picture_and_links() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let markdown = "```rust\n# no heading\n```\n\n# Two [2]\n\n*What* goes at 2.5%, e.g. first?\nThis. More.\n\n\
                        ```text\n![no](x.png)\n```\n\n![a \"plot\"](b_files/plot_1.svg)\n";
        put("b.md", markdown);
        put("b.json", r#"{"notebook": "b.ipynb"}"#);
        put("b.csv", "a\n");
        put("notes.md", "# Notes\n");
        put("c.md", "# Other\n");
        put("c.json", r#"{"title": "Other"}"#);
        write(directory.path()).unwrap();
        let text = fs::read_to_string(directory.path().join(NAME)).unwrap();
        let expected = "\n## [Two 2](b.md)\n\n*What* goes at 2.5%, e.g. first?\n\n\
                        <a href=\"b.md\"><img src=\"b_files/plot_1.svg\" width=\"480\" alt=\"a &quot;plot&quot;\"></a>\n\n\
                        [report](b.md) · [notebook with outputs](b.ipynb) · [table](b.csv) · [data](b.json)\n";
        assert!(text.ends_with(expected) && text.matches("\n## ").count() == 1, "{text}");

        // A fresh report counts before it is written.
        let fresh = [("a.md", "# First\n"), ("a.json", r#"{"notebook": "a.ipynb"}"#), ("a.html", "")];
        let mut files: Files = fresh.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into();
        add(&mut files, directory.path());
        let text = String::from_utf8(files[NAME].clone()).unwrap();
        let first = text.find("## [First](a.md)").unwrap();
        assert!(first < text.find("## [Two 2]").unwrap() && text.contains("[web page](a.html)"), "{text}");
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), "# Mine\n").unwrap();
        write(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(directory.path().join(NAME)).unwrap(), "# Mine\n");
        let mut files = Files::new();
        add(&mut files, directory.path());
        assert!(files.is_empty());
    }
}
