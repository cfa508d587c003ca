//! The one place where tables become text.

use super::table::{Format, Table, failed};
use crate::error::Result;
use crate::format::{number, thousands};
use crate::rich::{Bundle, Rich, mime, shown_in_cells};
use polars::prelude::{AnyValue, CsvWriter, SerWriter};
use serde_json::{Map, Value, json};

/// A notebook shows tables of up to so many rows and columns whole, and of larger ones the first and the last.
const WHOLE_ROWS: usize = 60;
const ROW_ENDS: (usize, usize) = (10, 10);
const WHOLE_COLUMNS: usize = 24;
const COLUMN_ENDS: (usize, usize) = (12, 8);
/// Characters that it shows of a text in a cell.
const TEXT: usize = 100;
/// The mark in the place of rows or columns that are left out.
const GAP: &str = "…";

/// A value, apart from polars.
enum Cell {
    Missing,
    Text(String),
    Integer(i128),
    Float(f64),
}

/// A table as text: alignment and width of each column, and the rows.
struct Grid {
    titles: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
    /// Position and number of the rows that were left out.
    gap: Option<(usize, usize)>,
    /// Number of columns that were left out.
    hidden_columns: usize,
}

impl Table {
    /// The whole table in Markdown, aligned also as plain text.
    pub fn markdown(&self) -> String {
        self.markdown_of(&self.grid(false))
    }

    /// The whole table as plain text, in columns two spaces apart.
    pub fn text(&self) -> String {
        self.text_of(&self.grid(false))
    }

    /// The table as HTML; of a long one the first and last rows, with the number of rows.
    pub fn html(&self) -> String {
        let grid = self.grid(true);
        let align = |i: usize| if grid.right[i] { "right" } else { "left" };
        let cells = |tag: &str, row: &[String]| -> String {
            let cell = |(i, text): (usize, &String)| {
                format!(r#"<{tag} style="text-align:{}">{}</{tag}>"#, align(i), escape_html(text))
            };
            row.iter().enumerate().map(cell).collect()
        };
        let mut out = format!("<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n", cells("th", &grid.titles));
        for (i, row) in grid.rows.iter().enumerate() {
            if let Some((_, skipped)) = grid.gap.filter(|(at, _)| *at == i) {
                let width = grid.titles.len();
                let rows = thousands(skipped as i128);
                out.push_str(&format!("<tr><td colspan=\"{width}\">… {rows} more rows …</td></tr>\n"));
            }
            out.push_str(&format!("<tr>{}</tr>\n", cells("td", row)));
        }
        out.push_str("</tbody>\n</table>\n");
        if let Some(size) = self.size(&grid) {
            out.push_str(&format!("<p>{size}</p>\n"));
        }
        out
    }

    /// The table as CSV (RFC 4180, LF) with the columns' plain names and full precision; missing values are empty.
    ///
    /// # Errors
    /// Fails when a column has a nested type.
    pub fn csv(&self) -> Result<String> {
        let mut bytes = Vec::new();
        CsvWriter::new(&mut bytes).finish(&mut self.frame().clone()).map_err(failed)?;
        String::from_utf8(bytes).map_err(|e| crate::error::Error::report("writing CSV", e))
    }

    /// The table as JSON, as `docs/record.md` describes it: `columns` (name, label, unit) and `rows` (objects).
    /// A number that is not finite is the string `NaN`, `inf` or `-inf`; a missing value is null.
    pub fn json(&self) -> Value {
        let frame = self.frame();
        let columns: Vec<_> = frame
            .columns()
            .iter()
            .zip(&self.columns)
            .map(|(column, heading)| {
                json!({"name": column.name().as_str(), "label": heading.label, "unit": heading.unit})
            })
            .collect();
        let rows: Vec<_> = (0..frame.height())
            .map(|row| {
                let fields = frame.columns().iter().map(|column| {
                    let value = match column.get(row).map_or(Cell::Missing, cell) {
                        Cell::Missing => Value::Null,
                        Cell::Text(text) => text.into(),
                        Cell::Integer(i) => i64::try_from(i).map(Value::from).unwrap_or_else(|_| (i as u64).into()),
                        Cell::Float(f) if f.is_finite() => f.into(),
                        Cell::Float(f) => f.to_string().into(),
                    };
                    (column.name().to_string(), value)
                });
                Value::Object(fields.collect::<Map<_, _>>())
            })
            .collect();
        json!({"columns": columns, "rows": rows})
    }

    /// The representations in a notebook, by MIME type. Plain text, Markdown and HTML leave the middle of a large table
    /// out; CSV and JSON are whole.
    ///
    /// # Errors
    /// As [`Table::csv`].
    pub fn bundle(&self) -> Result<Bundle> {
        let mut bundle = self.shortened();
        bundle.push((mime::CSV, self.csv()?));
        bundle.push((mime::JSON, self.json().to_string()));
        Ok(bundle)
    }

    /// Plain text, Markdown and HTML, without the middle of a large table.
    pub(crate) fn shortened(&self) -> Bundle {
        let grid = self.grid(true);
        vec![(mime::PLAIN, self.text_of(&grid)), (mime::MARKDOWN, self.markdown_of(&grid)), (mime::HTML, self.html())]
    }

    fn markdown_of(&self, grid: &Grid) -> String {
        let escaped = |row: &[String]| row.iter().map(|text| escape_markdown(&text.replace('\n', " "))).collect();
        let titles: Vec<String> = escaped(&grid.titles);
        let rows: Vec<Vec<String>> = grid.rows.iter().map(|row| escaped(row)).collect();
        let widths: Vec<usize> = widths(&titles, &rows).into_iter().map(|w| w.max(3)).collect();
        let line = |row: &[String]| format!("| {} |\n", padded(row, &widths, &grid.right).join(" | "));
        let rule = |(width, right): (&usize, &bool)| {
            if *right { format!("{}:", "-".repeat(width + 1)) } else { "-".repeat(width + 2) }
        };
        let mut out = line(&titles);
        out.push_str(&format!("|{}|\n", widths.iter().zip(&grid.right).map(rule).collect::<Vec<_>>().join("|")));
        for (i, row) in rows.iter().enumerate() {
            if grid.gap.is_some_and(|(at, _)| at == i) {
                out.push_str(&line(&vec!["…".to_owned(); widths.len()]));
            }
            out.push_str(&line(row));
        }
        if let Some(size) = self.size(grid) {
            out.push_str(&format!("\n{size}\n"));
        }
        out
    }

    fn text_of(&self, grid: &Grid) -> String {
        let widths = widths(&grid.titles, &grid.rows);
        let line = |row: &[String]| format!("{}\n", padded(row, &widths, &grid.right).join("  ").trim_end());
        let mut out = line(&grid.titles);
        out.push_str(&line(&widths.iter().map(|w| "─".repeat(*w)).collect::<Vec<_>>()));
        for (i, row) in grid.rows.iter().enumerate() {
            if let Some((_, skipped)) = grid.gap.filter(|(at, _)| *at == i) {
                out.push_str(&format!("… {} more rows …\n", thousands(skipped as i128)));
            }
            out.push_str(&line(row));
        }
        if let Some(size) = self.size(grid) {
            out.push_str(&format!("{size}\n"));
        }
        out
    }

    /// The numbers of rows and columns that are shown and that there are; `None` if all are shown.
    fn size(&self, grid: &Grid) -> Option<String> {
        let (rows, columns) = (self.frame().height(), self.columns.len());
        let of_rows = match grid.gap {
            Some(_) => format!("{} of {} rows", grid.rows.len(), thousands(rows as i128)),
            None => format!("{} rows", thousands(rows as i128)),
        };
        match grid.hidden_columns {
            0 if grid.gap.is_none() => None,
            0 => Some(format!("showing {of_rows} × {columns} columns")),
            hidden => Some(format!("showing {of_rows} × {} of {columns} columns", columns - hidden)),
        }
    }

    fn grid(&self, shortened: bool) -> Grid {
        let (height, width) = (self.frame().height(), self.columns.len());
        let rows = shown(height, WHOLE_ROWS, ROW_ENDS, shortened);
        let columns = shown(width, WHOLE_COLUMNS, COLUMN_ENDS, shortened);
        let gap = rows.iter().position(Option::is_none).map(|at| (at, height + 1 - rows.len()));
        let hidden_columns = width - columns.iter().flatten().count();
        let most = if shortened { TEXT } else { usize::MAX };
        let write = |row: usize| -> Vec<String> {
            let cell = |column: &Option<usize>| match *column {
                Some(i) => {
                    let value = self.frame().columns()[i].get(row).map_or(Cell::Missing, cell);
                    cut(written(value, self.columns[i].format), most)
                }
                None => GAP.to_owned(),
            };
            columns.iter().map(cell).collect()
        };
        let heading = |column: &Option<usize>| column.map(|i| &self.columns[i]);
        Grid {
            titles: columns.iter().map(|i| heading(i).map_or(GAP.to_owned(), |heading| heading.title())).collect(),
            right: columns.iter().map(|i| heading(i).is_some_and(|h| h.format != Format::Text)).collect(),
            rows: rows.into_iter().flatten().map(write).collect(),
            gap,
            hidden_columns,
        }
    }
}

impl Rich for Table {
    fn bundle(&self) -> Result<Bundle> {
        self.bundle()
    }
}

shown_in_cells!(Table);

/// The indices of the rows or columns that are shown, of `count`, with `None` for those between: all up to `whole`,
/// else both `ends`.
fn shown(count: usize, whole: usize, ends: (usize, usize), shortened: bool) -> Vec<Option<usize>> {
    if !shortened || count <= whole {
        return (0..count).map(Some).collect();
    }
    (0..ends.0).map(Some).chain([None]).chain((count - ends.1..count).map(Some)).collect()
}

/// The first `most` characters of `text`.
fn cut(text: String, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => text[..at].to_owned() + GAP,
        None => text,
    }
}

fn cell(value: AnyValue<'_>) -> Cell {
    let dtype = value.dtype();
    match &value {
        AnyValue::Null => Cell::Missing,
        value if dtype.is_integer() => value.extract().map_or(Cell::Missing, Cell::Integer),
        value if dtype.is_float() => value.extract().map_or(Cell::Missing, Cell::Float),
        value => Cell::Text(value.get_str().map_or_else(|| value.to_string(), str::to_owned)),
    }
}

fn written(cell: Cell, format: Format) -> String {
    match (cell, format) {
        (Cell::Missing, _) => String::new(),
        (Cell::Text(text), _) => text,
        (Cell::Integer(i), Format::Text) => i.to_string(),
        (Cell::Integer(i), Format::Count | Format::Number) => thousands(i),
        (Cell::Integer(i), Format::Percent) => percent(i as f64),
        (Cell::Float(f), Format::Text) => f.to_string(),
        (Cell::Float(f), Format::Count) if f.fract() == 0.0 => thousands(f as i128),
        (Cell::Float(f), Format::Count | Format::Number) => number(f),
        (Cell::Float(f), Format::Percent) => percent(f),
    }
}

fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.1}", fraction * 100.0) } else { number(fraction) }
}

fn widths(titles: &[String], rows: &[Vec<String>]) -> Vec<usize> {
    let width = |i: usize| rows.iter().map(|row| &row[i]).chain([&titles[i]]).map(|t| t.chars().count()).max();
    (0..titles.len()).map(|i| width(i).unwrap_or(0)).collect()
}

fn padded(row: &[String], widths: &[usize], right: &[bool]) -> Vec<String> {
    let pad = |((text, width), right): ((&String, &usize), &bool)| {
        if *right { format!("{text:>width$}") } else { format!("{text:<width$}") }
    };
    row.iter().zip(widths).zip(right).map(pad).collect()
}

/// A cell of a table. A backslash stays as it is, as it does in code, except before a bar, where it would take the bar's own
/// away.
fn escape_markdown(text: &str) -> String {
    let (mut out, mut backslashes) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        match c {
            '\\' => backslashes += 1,
            '|' => {
                out.extend(std::iter::repeat_n('\\', backslashes + 1));
                backslashes = 0;
            }
            _ => backslashes = 0,
        }
        out.push(c);
    }
    out
}

/// Text as HTML shows it.
pub(crate) fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
