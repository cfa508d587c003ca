//! Errors in cells.

use crate::error::Parts;
use crate::error::{Error, Result};
use crate::report::escape_html;
use crate::rich::{Bundle, Rich, mime, shown_in_cells};
use serde_json::json;

impl Rich for Error {
    fn bundle(&self) -> Result<Bundle> {
        let Parts { what, cause, remedy } = self.parts();
        let parts: Vec<(&str, &str)> = [("Cause", &cause), ("Remedy", &remedy)]
            .into_iter()
            .filter_map(|(name, part)| Some((name, part.as_deref()?)))
            .collect();
        let plain = parts
            .iter()
            .fold(format!("error: {what}"), |text, (name, part)| format!("{text}\n  {}: {part}", name.to_lowercase()));
        let items: String =
            parts.iter().map(|(name, part)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape_html(part))).collect();
        let html = format!("<p><strong>Error: {}</strong></p>\n<dl>\n{items}</dl>", escape_html(&what));
        Ok(vec![
            (mime::PLAIN, plain),
            (mime::HTML, html),
            (mime::JSON, json!({"error": what, "cause": cause, "remedy": remedy}).to_string()),
        ])
    }
}

shown_in_cells!(Error);
