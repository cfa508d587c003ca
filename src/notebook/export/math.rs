//! Formulas on a page, as MathML, which browsers show without any other file.

use pulldown_latex::config::DisplayMode;
use pulldown_latex::{Event, Parser, RenderConfig, Storage, push_mathml};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A formula in LaTeX as MathML; one that is not understood, as its text.
pub(super) fn formula(latex: &str, is_display: bool) -> String {
    let fallback = || {
        let dollars = if is_display { "$$" } else { "$" };
        format!("<code class=\"math\">{}</code>", escaped(&format!("{dollars}{latex}{dollars}")))
    };
    // What a notebook says must not end its report.
    match catch_unwind(AssertUnwindSafe(|| mathml(latex, is_display))) {
        Ok(Some(text)) => text,
        Ok(None) | Err(_) => fallback(),
    }
}

fn mathml(latex: &str, is_display: bool) -> Option<String> {
    // The parser goes as deep as groups do.
    if latex.matches(['{', '(']).count() + latex.matches("\\").count() > 5_000 || depth(latex) > 50 {
        return None;
    }
    // Numbers and anchors of equations are MathJax's own.
    let latex = without_command(&without_command(latex, "\\label"), "\\tag");
    let storage = Storage::new();
    let events: Vec<Event> = Parser::new(&latex, &storage).collect::<Result<_, _>>().ok()?;
    let display_mode = if is_display { DisplayMode::Block } else { DisplayMode::Inline };
    let mut text = String::new();
    let events = events.into_iter().map(Ok::<_, std::convert::Infallible>);
    push_mathml(&mut text, events, RenderConfig { display_mode, ..RenderConfig::default() }).ok()?;
    // A blank line would end the block of HTML that it is in; and the crate leaves the sign of an operator as it is.
    Some(text.replace('\n', " ").replace("><</", ">&lt;</"))
}

/// The most groups that are open at a time.
fn depth(latex: &str) -> usize {
    let (mut depth, mut most) = (0usize, 0);
    for (at, _) in latex.match_indices(['{', '}', '\\']) {
        match latex.as_bytes()[at] {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ if latex[at..].starts_with("\\left") || latex[at..].starts_with("\\begin") => depth += 1,
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

/// LaTeX without a command and its argument.
fn without_command(latex: &str, command: &str) -> String {
    let (mut text, mut rest) = (String::new(), latex);
    while let Some((before, behind)) = rest.split_once(command) {
        text.push_str(before);
        let argument = behind.strip_prefix('*').unwrap_or(behind).strip_prefix('{');
        match argument.and_then(|argument| argument.split_once('}')) {
            Some((_, behind)) => rest = behind,
            None => {
                text.push_str(command);
                rest = behind;
            }
        }
    }
    text + rest
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_become_mathml() {
        for (latex, expected) in [
            ("x^2", "<msup><mi>x</mi><mn>2</mn></msup>"),
            ("\\frac{a}{b}", "<mfrac>"),
            ("\\begin{align} a &= b \\\\ c &= d \\label{eq:1}\\end{align}", "<mtable"),
            ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "<mtable"),
            ("\\sum_{i=1}^n \\lVert W_i \\rVert_2 \\in \\mathbb{R}", "ℝ"),
            ("x \\tag{1}", "<mi>x</mi>"),
            ("a < b", "&lt;"),
        ] {
            for is_display in [false, true] {
                let text = formula(latex, is_display);
                assert!(text.starts_with("<math") && text.contains(expected), "{latex}: {text}");
                assert_eq!(text.contains("display=\"block\""), is_display);
            }
        }
    }

    #[test]
    fn what_is_no_formula_stays_text() {
        for latex in ["\\foo{x", "{", "\\left( x", "\\begin{nothing}<b>\\end{nothing}", "x^", "\\", "\\frac", "\\\u{0}"]
        {
            let text = formula(latex, false);
            assert!(text.starts_with("<code class=\"math\">$") || text.starts_with("<math"), "{latex}: {text}");
            assert!(!text.contains("<b>"));
        }
        assert!(!formula("\\text{<script>}", true).contains("<script>"));
        assert!(!formula(&"{".repeat(20_000), true).is_empty());
    }
}
