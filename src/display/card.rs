//! A value as a card: a line that says what it is, tables, and a picture.

use crate::error::{Error, Result};
use crate::report::{Figure, Table, escape_html};
use crate::rich::{Bundle, Rich, mime};
use polars::prelude::{Column, DataFrame, NamedFrom, Series};
use serde_json::Value;

/// The parts of a value's display, of which every representation is made.
pub(super) struct Card {
    summary: String,
    tables: Vec<Table>,
    figure: Option<Box<dyn Figure>>,
    json: Value,
}

impl Card {
    /// A card whose first line is `summary`, and which programs read as `json`.
    pub(super) fn new(summary: impl Into<String>, json: Value) -> Card {
        Card { summary: summary.into(), tables: Vec::new(), figure: None, json }
    }

    /// Adds a table of names and values under the heading of `what` it is and what that is `called`.
    pub(super) fn facts(self, what: &str, called: &str, facts: Vec<(&str, String)>) -> Result<Card> {
        let (names, values): (Vec<&str>, Vec<String>) = facts.into_iter().unzip();
        let table = table(vec![column("name", names), column("value", values)])?;
        Ok(self.table(table.with_heading("name", what, None)?.with_heading("value", called, None)?))
    }

    /// Adds a table.
    pub(super) fn table(mut self, table: Table) -> Card {
        self.tables.push(table);
        self
    }

    /// Sets the picture.
    pub(super) fn figure(self, figure: impl Figure + 'static) -> Card {
        Card { figure: Some(Box::new(figure)), ..self }
    }

    /// The card's representations.
    pub(super) fn bundle(&self) -> Result<Bundle> {
        let (mut plain, mut markdown) = (format!("{}\n", self.summary), format!("**{}**\n", one_line(&self.summary)));
        let mut html = format!("<div>\n<p><strong>{}</strong></p>\n", escape_html(&self.summary));
        for table in &self.tables {
            for (mime, text) in table.shortened() {
                match mime {
                    mime::PLAIN => plain.push_str(&format!("\n{text}")),
                    mime::MARKDOWN => markdown.push_str(&format!("\n{text}")),
                    _ => html.push_str(&text),
                }
            }
        }
        let mut bundle = Bundle::new();
        if let Some(figure) = &self.figure {
            // Jupyter shows HTML alone; reports and nbconvert take the picture.
            html.push_str(&figure.svg()?);
            bundle.extend(figure.bundle()?.into_iter().filter(|(mime, _)| *mime != mime::PLAIN));
        }
        html.push_str("</div>\n");
        let text = [(mime::PLAIN, plain), (mime::MARKDOWN, markdown), (mime::HTML, html)];
        bundle.splice(0..0, text.map(|(mime, text)| (mime, text.trim_end().to_owned())));
        bundle.push((mime::JSON, self.json.to_string()));
        Ok(bundle)
    }
}

/// Text between Markdown's asterisks, as it is.
fn one_line(text: &str) -> String {
    let special = |c: char| matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '&' | '|');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if special(c) {
            out.push('\\');
        }
        out.push(if c == '\n' { ' ' } else { c });
    }
    out
}

/// A column of a table.
pub(super) fn column<T, P: ?Sized>(name: &str, values: T) -> Column
where
    Series: NamedFrom<T, P>,
{
    Series::new(name.into(), values).into()
}

/// Columns as a table; formats and units follow from their types and names.
pub(super) fn table(columns: Vec<Column>) -> Result<Table> {
    DataFrame::new_infer_height(columns).map(Table::from).map_err(|error| Error::report("making a table", error))
}

/// A fraction for people: `50.0%`.
pub(super) fn percent(fraction: f64) -> String {
    format!("{:.1}%", fraction * 100.0)
}

/// A matrix's shape for people: `576 × 1536`.
pub(super) fn shape(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")
}
