//! The forms of a cell's values that a report shows.

use super::super::output::Bundle;
use lacuna::display::mime;

const JPEG: &str = "image/jpeg";
pub(super) const LATEX: &str = "text/latex";

/// Pictures that browsers show: MIME type and extension, the form that a report prefers first.
pub(super) const PICTURES: [(&str, &str); 8] = [
    (mime::SVG, "svg"),
    (mime::PNG, "png"),
    (JPEG, "jpg"),
    ("image/jpg", "jpg"),
    ("image/gif", "gif"),
    ("image/webp", "webp"),
    ("image/avif", "avif"),
    ("image/bmp", "bmp"),
];

/// Representations that a report keeps as a file beside it: MIME type, extension, and the element that plays it on a
/// page.
pub(super) const KEPT: [(&str, &str, Option<&str>); 12] = [
    ("application/pdf", "pdf", None),
    ("audio/wav", "wav", Some("audio")),
    ("audio/x-wav", "wav", Some("audio")),
    ("audio/mpeg", "mp3", Some("audio")),
    ("audio/mp3", "mp3", Some("audio")),
    ("audio/ogg", "ogg", Some("audio")),
    ("audio/flac", "flac", Some("audio")),
    ("audio/webm", "webm", Some("audio")),
    ("audio/mp4", "m4a", Some("audio")),
    ("video/mp4", "mp4", Some("video")),
    ("video/webm", "webm", Some("video")),
    ("video/ogg", "ogv", Some("video")),
];

/// Extensions of the files that reports write below `STEM_files/`.
pub(crate) fn is_extension(extension: &str) -> bool {
    extension == "html"
        || PICTURES.iter().any(|(_, of)| *of == extension)
        || KEPT.iter().any(|(_, of, _)| *of == extension)
}

/// The extension of a picture's MIME type.
pub(super) fn picture_extension(mime: &str) -> Option<&'static str> {
    PICTURES.iter().find(|(of, _)| *of == mime).map(|(_, extension)| *extension)
}

/// The MIME type of a picture's file.
pub(super) fn picture_mime(extension: &str) -> Option<&'static str> {
    let extension = extension.to_ascii_lowercase();
    let extension = if extension == "jpeg" { "jpg" } else { extension.as_str() };
    PICTURES.iter().find(|(_, of)| *of == extension).map(|(mime, _)| *mime)
}

/// Returns whether a report writes this representation to one of its files, so that it needs no place of its own in the
/// JSON.
pub(super) fn has_place(name: &str) -> bool {
    [mime::PLAIN, mime::MARKDOWN, mime::CSV, mime::JSON].contains(&name)
        || picture_extension(name).is_some()
        || KEPT.iter().any(|(of, ..)| *of == name)
}

/// A value whose only form with structure is HTML, which Markdown cannot hold.
pub(super) fn html(bundle: &Bundle) -> Option<&str> {
    let has_better =
        bundle.keys().any(|name| [mime::MARKDOWN, LATEX].contains(&name.as_str()) || picture_extension(name).is_some());
    bundle.get(mime::HTML).filter(|_| !has_better).map(String::as_str)
}

/// Returns whether the plain text says all that the HTML does.
pub(super) fn is_as_plain(html: &str, plain: &str) -> bool {
    let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    !html.contains("<script") && letters(&text_of_html(html)) == letters(plain)
}

/// The text in HTML: without tags, scripts and styles, a line for each block and row.
pub(super) fn text_of_html(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some(at) = rest.find(['<', '&']) {
        text.push_str(&squeezed(&rest[..at], text.ends_with(char::is_whitespace)));
        rest = &rest[at..];
        if let Some(entity) = rest.strip_prefix('&') {
            let name = entity.split_once(';').map(|(name, _)| name).filter(|name| name.len() < 12);
            match name.and_then(character) {
                Some(c) => {
                    text.push(c);
                    rest = &entity[name.map_or(0, str::len) + 1..];
                }
                None => {
                    text.push('&');
                    rest = entity;
                }
            }
            continue;
        }
        let is_tag = rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '!' | '?'));
        if !is_tag {
            text.push('<');
            rest = &rest[1..];
            continue;
        }
        let name: String = rest[1..].trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        let name = name.to_ascii_lowercase();
        let is_start = !rest.starts_with("</");
        // An element that is no text is dropped with its end tag; one without an end tag reaches to the end.
        let end = match name.as_str() {
            _ if rest.starts_with("<!--") => find_end(rest, "-->"),
            "script" | "style" | "head" | "template" if is_start => {
                let close = format!("</{name}");
                let at = rest.to_ascii_lowercase().find(&close).unwrap_or(rest.len());
                at + find_end(&rest[at..], ">")
            }
            _ => find_end(rest, ">"),
        };
        match name.as_str() {
            "br" | "p" | "div" | "tr" | "li" | "ul" | "ol" | "table" | "pre" | "section" | "h1" | "h2" | "h3"
            | "h4" | "h5" | "h6" | "hr" | "dt" | "dd"
                if !text.is_empty() && !text.ends_with('\n') =>
            {
                text.push('\n');
            }
            "td" | "th" if is_start && !text.is_empty() && !text.ends_with('\n') => text.push_str("  "),
            _ => {}
        }
        rest = &rest[end..];
    }
    text.push_str(&squeezed(rest, text.ends_with(char::is_whitespace)));
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim().to_owned()
}

fn find_end(text: &str, end: &str) -> usize {
    text.find(end).map_or(text.len(), |at| at + end.len())
}

/// Text with each run of white space as one space, and none at its beginning behind one.
fn squeezed(text: &str, mut after_space: bool) -> String {
    let mut squeezed = String::with_capacity(text.len());
    for c in text.chars() {
        let c = if c.is_ascii_whitespace() { ' ' } else { c };
        if c != ' ' || !after_space {
            squeezed.push(c);
        }
        after_space = c == ' ';
    }
    squeezed
}

/// The character behind an entity's name.
fn character(name: &str) -> Option<char> {
    if let Some(number) = name.strip_prefix('#') {
        let hexadecimal = number.strip_prefix(['x', 'X']).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        return char::from_u32(hexadecimal.or_else(|| number.parse().ok())?);
    }
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        "ndash" => '–',
        "mdash" => '—',
        "hellip" => '…',
        "times" => '×',
        _ => return None,
    })
}

/// A frame for HTML that comes from a cell: its scripts run, and see nothing of the page around it. On one line, so that
/// Markdown takes it as it is.
pub(super) fn frame(html: &str) -> String {
    let tell = "<script>addEventListener('load',()=>{const tell=()=>parent.postMessage({lacunaHeight:\
                document.documentElement.scrollHeight},'*');tell();new ResizeObserver(tell).observe(document.body)})\
                </script>";
    let mut inside = String::with_capacity(html.len() + 500);
    for c in format!("<!DOCTYPE html><meta charset=\"utf-8\">{html}{tell}").chars() {
        match c {
            '&' => inside.push_str("&amp;"),
            '"' => inside.push_str("&quot;"),
            '<' => inside.push_str("&lt;"),
            '\n' => inside.push_str("&#10;"),
            '\r' => inside.push_str("&#13;"),
            '\t' => inside.push_str("&#9;"),
            '\0' => {}
            c => inside.push(c),
        }
    }
    format!("<iframe class=\"value\" sandbox=\"allow-scripts\" srcdoc=\"{inside}\"></iframe>")
}

/// Makes a page's frames as high as what is in them.
pub(super) const FRAMES_SCRIPT: &str = "<script>addEventListener('message',e=>{for(const f of \
     document.querySelectorAll('iframe.value'))if(f.contentWindow===e.source&&e.data&&e.data.lacunaHeight>0)\
     f.style.height=Math.min(e.data.lacunaHeight+4,20000)+'px'})</script>\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_has_a_text() {
        for (html, expected) in [
            ("<p>a &lt; b &amp;&#x41;&#66; &unknown; &</p>", "a < b &AB &unknown; &"),
            ("<table><tr><th>x</th><th>y</th></tr>\n<tr><td>1</td><td>2</td></tr></table>", "x  y\n1  2"),
            (
                "<style>p { }</style><div>one</div><div>two<br/>three</div><script>alert('<p>')</script>",
                "one\ntwo\nthree",
            ),
            ("<script>never closed", ""),
            ("<!-- > x --><b>bold</b> 1 < 2 <unclosed", "bold 1 < 2"),
            ("&#1114112;&#xd800;", "&#1114112;&#xd800;"),
            ("", ""),
        ] {
            assert_eq!(text_of_html(html), expected, "{html}");
        }
    }

    #[test]
    fn a_frame_is_one_line_that_nothing_leaves() {
        let frame = frame("<p title=\"x\">\n\n</iframe>\r\n&amp;</p>");
        assert_eq!(frame.lines().count(), 1);
        assert_eq!(frame.matches("</iframe>").count(), 1);
        assert!(frame.contains("&lt;/iframe>&#13;&#10;&amp;amp;") && frame.contains("sandbox=\"allow-scripts\""));
    }
}
