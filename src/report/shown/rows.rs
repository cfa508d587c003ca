//! Tables out of rows: a tuple a row.

use super::Table;
use crate::error::{Error, Remedy, Result};
use polars::prelude::{Column, DataFrame, NamedFrom, Series};

/// A cell of a table: text, a number, or nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// Nothing.
    Missing,
}

macro_rules! cells {
    ($($type:ty => $cell:ident($value:ident) $make:expr;)+) => { $(
        impl From<$type> for Cell {
            fn from($value: $type) -> Cell {
                Cell::$cell($make)
            }
        }
    )+ };
}
cells! {
    String => Text(text) text;
    &String => Text(text) text.clone();
    &str => Text(text) text.to_owned();
    f64 => Float(number) number;
    f32 => Float(number) f64::from(number);
    u8 => Integer(number) i64::from(number);
    u16 => Integer(number) i64::from(number);
    u32 => Integer(number) i64::from(number);
    i32 => Integer(number) i64::from(number);
    i64 => Integer(number) number;
}

/// Counts beyond the largest `i64` do not occur; should one, it is shown as a float.
macro_rules! counts {
    ($($type:ty),+) => { $(
        impl From<$type> for Cell {
            fn from(count: $type) -> Cell {
                i64::try_from(count).map_or(Cell::Float(count as f64), Cell::Integer)
            }
        }
    )+ };
}
counts!(u64, usize);

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Cell {
        value.map_or(Cell::Missing, Into::into)
    }
}

/// A row of `N` cells: a tuple of text, numbers and options of them, or an array.
pub trait Row<const N: usize> {
    /// The cells, from left to right.
    fn cells(self) -> [Cell; N];
}

impl<T: Into<Cell>, const N: usize> Row<N> for [T; N] {
    fn cells(self) -> [Cell; N] {
        self.map(Into::into)
    }
}

macro_rules! rows {
    ($($count:literal: $($name:ident),+;)+) => { $(
        impl<$($name: Into<Cell>),+> Row<$count> for ($($name,)+) {
            fn cells(self) -> [Cell; $count] {
                #[expect(non_snake_case, reason = "fields are named as their types")]
                let ($($name,)+) = self;
                [$($name.into()),+]
            }
        }
    )+ };
}
rows! {
    1: A;
    2: A, B;
    3: A, B, C;
    4: A, B, C, D;
    5: A, B, C, D, E;
    6: A, B, C, D, E, F;
    7: A, B, C, D, E, F, G;
    8: A, B, C, D, E, F, G, H;
}

impl Table {
    /// A table of `rows`, whose columns are called `names`. Headings and formats follow from names and types, as those of
    /// a frame do.
    ///
    /// ```
    /// # fn main() -> lacuna::Result<()> {
    /// use lacuna::report::Table;
    /// let runs = [("wanda", 0.5, Some(26.1)), ("random", 0.5, None)];
    /// let table = Table::rows(["method", "sparsity", "perplexity"], runs)?;
    /// assert_eq!((table.frame().height(), table.frame().width()), (2, 3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Report`] when two columns have one name, or a column has both text and numbers.
    pub fn rows<const N: usize>(names: [&str; N], rows: impl IntoIterator<Item = impl Row<N>>) -> Result<Table> {
        let mut columns: [Vec<Cell>; N] = std::array::from_fn(|_| Vec::new());
        for row in rows {
            columns.iter_mut().zip(row.cells()).for_each(|(column, cell)| column.push(cell));
        }
        let series = names.iter().zip(columns).map(|(name, cells)| series(name, cells).map(Column::from));
        let frame = DataFrame::new_infer_height(series.collect::<Result<_>>()?);
        Ok(Table::from(frame.map_err(|error| Error::report("making a table of rows", error))?))
    }
}

/// A column: text if it has some, whole numbers if it has no others.
fn series(name: &str, cells: Vec<Cell>) -> Result<Series> {
    let has = |kind: fn(&Cell) -> bool| cells.iter().any(kind);
    let (text, float) = (has(|cell| matches!(cell, Cell::Text(_))), has(|cell| matches!(cell, Cell::Float(_))));
    let integer = has(|cell| matches!(cell, Cell::Integer(_)));
    if text && (float || integer) {
        let problem =
            format!("column `{name}` has both text and numbers").remedy("write the numbers as text, or leave them out");
        return Err(Error::report("making a table of rows", problem));
    }
    if integer && !float {
        let numbers: Vec<Option<i64>> =
            cells.iter().map(|cell| if let Cell::Integer(number) = cell { Some(*number) } else { None }).collect();
        return Ok(Series::new(name.into(), numbers));
    }
    if float {
        let number = |cell: &Cell| match cell {
            Cell::Integer(number) => Some(*number as f64),
            Cell::Float(number) => Some(*number),
            Cell::Text(_) | Cell::Missing => None,
        };
        return Ok(Series::new(name.into(), cells.iter().map(number).collect::<Vec<_>>()));
    }
    let texts: Vec<Option<String>> =
        cells.into_iter().map(|cell| if let Cell::Text(text) = cell { Some(text) } else { None }).collect();
    Ok(Series::new(name.into(), texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_the_types_of_their_cells() {
        let rows = [("a", 1u64, Some(0.5), None::<f64>), ("b", 2, None, Some(3.0))];
        let table = Table::rows(["name", "size_bytes", "share", "other"], rows).unwrap();
        let types: Vec<String> = table.frame().dtypes().iter().map(ToString::to_string).collect();
        assert_eq!(types, ["str", "i64", "f64", "f64"]);
        let mixed = Table::rows(["name"], [[Cell::from("a")], [Cell::from(1)]]).unwrap_err().to_string();
        assert!(mixed.contains("column `name` has both text and numbers; write"), "{mixed}");
        assert!(Table::rows(["a", "a"], [(1, 2)]).is_err());
        assert_eq!(Table::rows(["a"], Vec::<(f64,)>::new()).unwrap().frame().height(), 0);
    }
}
