//! polars in cells: through the one table that reports have, too.

use super::{Bundle, Rich, mime};
use crate::Result;
use crate::report::Table;
use polars::prelude::{DataFrame, Series};
use serde_json::json;

/// A larger frame is not copied into the notebook; it is shown in part, and its data stay in the session.
const MOST_CELLS: usize = 100_000;

impl Rich for DataFrame {
    fn bundle(&self) -> Result<Bundle> {
        let table = Table::from(self.clone());
        let mut bundle = table.shortened();
        if self.height() == 0 {
            for (_, text) in &mut bundle {
                text.push_str("0 rows\n");
            }
        }
        if self.height().saturating_mul(self.width()) <= MOST_CELLS {
            // A nested column has no place in CSV.
            bundle.extend(table.csv().ok().map(|csv| (mime::CSV, csv)));
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
