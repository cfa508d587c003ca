//! polars in cells: through the one table that reports have, too.

use crate::error::Result;
use crate::format::thousands;
use crate::report::Table;
use crate::rich::{Bundle, Rich, mime};
use polars::prelude::{Column, DataFrame, Series};
use serde_json::json;

/// A larger frame is not copied into the notebook; it is shown in part, and its data stay in the session.
const MOST_CELLS: usize = 100_000;

impl Rich for DataFrame {
    fn bundle(&self) -> Result<Bundle> {
        let table = Table::from(self.clone());
        let mut bundle = table.shortened();
        if self.height() == 0 || self.width() == 0 {
            let size = format!("{} rows × {} columns", thousands(self.height() as i128), self.width());
            for (mime, text) in &mut bundle {
                // Without columns there is nothing to head.
                let before = if self.width() == 0 { String::new() } else { std::mem::take(text) };
                *text = match *mime {
                    mime::HTML => format!("{before}<p>{size}</p>\n"),
                    mime::MARKDOWN if !before.is_empty() => format!("{before}\n{size}\n"),
                    _ => format!("{before}{size}\n"),
                };
            }
        }
        if self.height().saturating_mul(self.width()) <= MOST_CELLS {
            // A nested column has no place in CSV, and a table without columns neither.
            let csv = (self.width() > 0).then(|| table.csv().ok()).flatten();
            bundle.extend(csv.map(|csv| (mime::CSV, csv)));
            bundle.push((mime::JSON, table.json().to_string()));
        } else {
            let columns: Vec<&str> = self.get_column_names().into_iter().map(|name| name.as_str()).collect();
            bundle.push((mime::JSON, json!({"rows": self.height(), "columns": columns}).to_string()));
        }
        Ok(bundle)
    }
}

impl Rich for Series {
    fn bundle(&self) -> Result<Bundle> {
        self.clone().into_frame().bundle()
    }
}

impl Rich for Column {
    fn bundle(&self) -> Result<Bundle> {
        self.clone().into_frame().bundle()
    }
}
