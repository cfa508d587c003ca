//! Operations of notebooks on data frames: group, join, sort and keep rows.
//!
//! polars' query engine is not compiled in (`docs/cookbook.md` says what it would cost); what is here works on frames as they
//! are, column by name, in an order that is always the same. The frames are polars', and so is everything else about them:
//! `lacuna::polars::prelude` has [`DataFrame::filter`], `with_column` and the rest.
//!
//! ```
//! # fn main() -> lacuna::Result<()> {
//! use lacuna::prelude::*;
//! let runs = df![
//!     "method" => ["wanda", "magnitude", "wanda", "magnitude"],
//!     "sparsity" => [0.5, 0.5, 0.6, 0.6],
//!     "perplexity" => [7.0, 9.0, 11.0, 30.0],
//! ].unwrap();
//! let by_method = runs
//!     .filtered(|row| Ok(row.number("perplexity")? < 25.0))?
//!     .grouped(["method"], [Aggregate::Count, Aggregate::Mean("perplexity")])?
//!     .sorted([Order::Descending("mean_perplexity")])?;
//! assert_eq!(by_method.column("mean_perplexity").unwrap().f64().unwrap().get(1), Some(9.0));
//! # Ok(())
//! # }
//! ```

use crate::error::{Error, Remedy, Result};
use polars::prelude::{
    AnyValue, Column, DataFrame, DataFrameJoinOps, DataType, GroupsIndicator, IdxCa, IdxSize, JoinArgs, JoinType,
    MaintainOrderJoin, NamedFrom, PlSmallStr, PolarsError, Series, SortMultipleOptions,
};
use std::borrow::Cow;

/// A value that is computed from the rows of a group. Missing values are left out, as if their rows were not there; a
/// group of missing values alone has a missing result, except for its sum, which is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate<'a> {
    /// The number of rows, as `count`.
    Count,
    /// The sum of a column of numbers: `sum_NAME`, of integers an integer.
    Sum(&'a str),
    /// Their mean: `mean_NAME`.
    Mean(&'a str),
    /// Their median, of an even number the mean of the two in the middle: `median_NAME`.
    Median(&'a str),
    /// Their standard deviation with n - 1 in the denominator: `std_NAME`; missing for a single value.
    Std(&'a str),
    /// The smallest number or the first text: `min_NAME`. NaN is smaller than no number.
    Min(&'a str),
    /// The largest number or the last text: `max_NAME`. NaN is larger than no number.
    Max(&'a str),
}

/// A column that rows are sorted by; a name alone means ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order<'a> {
    /// Smallest first.
    Ascending(&'a str),
    /// Largest first.
    Descending(&'a str),
}

impl<'a> From<&'a str> for Order<'a> {
    fn from(name: &'a str) -> Self {
        Order::Ascending(name)
    }
}

impl<'a> From<&'a String> for Order<'a> {
    fn from(name: &'a String) -> Self {
        Order::Ascending(name)
    }
}

/// The rows without a partner in the other frame that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// None.
    Inner,
    /// The rows of the first frame; their values in the other's columns are missing.
    Left,
}

crate::error::listed!(Join, Inner, Left);

/// One row of a frame.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    frame: &'a DataFrame,
    index: usize,
}

impl std::fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Row({} of {})", self.index, self.frame.height())
    }
}

impl<'a> Row<'a> {
    /// Its place in the frame, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// A number, or whether (1) or not (0) in a column of booleans; NaN where the value is missing, which is neither smaller nor
    /// larger than anything.
    ///
    /// # Errors
    /// Fails when there is no such column, or it has no numbers.
    pub fn number(&self, column: &str) -> Result<f64> {
        match self.value(column)? {
            AnyValue::Null => Ok(f64::NAN),
            AnyValue::Boolean(is) => Ok(f64::from(u8::from(is))),
            value => value.extract::<f64>().filter(|_| value.is_primitive_numeric()).ok_or_else(|| {
                Error::argument("column", column, format!("is of type {}", value.dtype()).remedy("numbers are needed"))
            }),
        }
    }

    /// A text, or any other value as it is printed; empty where it is missing.
    ///
    /// # Errors
    /// Fails when there is no such column.
    pub fn text(&self, column: &str) -> Result<Cow<'a, str>> {
        Ok(match self.value(column)? {
            AnyValue::Null => Cow::Borrowed(""),
            AnyValue::String(text) => Cow::Borrowed(text),
            value => Cow::Owned(value.get_str().map_or_else(|| value.to_string(), str::to_owned)),
        })
    }

    /// Returns whether the value is missing.
    ///
    /// # Errors
    /// Fails when there is no such column.
    pub fn is_missing(&self, column: &str) -> Result<bool> {
        Ok(self.value(column)?.is_null())
    }

    fn value(&self, name: &str) -> Result<AnyValue<'a>> {
        column(self.frame, name)?.get(self.index).map_err(failed("reading a row"))
    }
}

/// Groups, joins, sorts and keeps rows of a data frame. The prelude brings it into scope.
pub trait Frames {
    /// A row for each different combination of values in `keys`, in the order in which they first stand in the frame: the keys,
    /// then what was asked for. A missing key is a key of its own.
    ///
    /// # Errors
    /// Fails when there is no key, or no column of a name, or one that is not of numbers where they are needed, or a
    /// name would stand twice.
    fn grouped<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a str>,
        aggregates: impl IntoIterator<Item = Aggregate<'a>>,
    ) -> Result<DataFrame>;

    /// Rows of both frames that are equal in all of `keys` beside one another, in the order of the first frame and, for each of its
    /// rows, of the other. A column of the other frame that has a name of the first is called `NAME_right`. Missing keys equal
    /// nothing.
    ///
    /// # Errors
    /// Fails when there is no key, one is in one frame only, or has types that cannot be compared.
    fn joined<'a>(&self, other: &DataFrame, keys: impl IntoIterator<Item = &'a str>, how: Join) -> Result<DataFrame>;

    /// Rows by the first of `by`, equal ones by the second, and so on; those that are equal in all keep their order. Missing values
    /// come last, NaN counts as larger than every number.
    ///
    /// # Errors
    /// Fails when there is no column of a name, or its values have no order.
    fn sorted<'a>(&self, by: impl IntoIterator<Item = impl Into<Order<'a>>>) -> Result<DataFrame>;

    /// The rows that `keep` is true of.
    ///
    /// # Errors
    /// Fails with the first error of `keep`: a column that is not there, or has no numbers.
    fn filtered(&self, keep: impl FnMut(Row<'_>) -> Result<bool>) -> Result<DataFrame>;
}

impl Frames for DataFrame {
    fn grouped<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a str>,
        aggregates: impl IntoIterator<Item = Aggregate<'a>>,
    ) -> Result<DataFrame> {
        let doing = || failed("grouping rows");
        let keys = columns(self, keys)?;
        let by: Vec<PlSmallStr> = keys.iter().map(|key| key.name().clone()).collect();
        let grouped = self.group_by_stable(by.iter().map(PlSmallStr::as_str)).map_err(doing())?;
        let groups: Vec<Vec<IdxSize>> = grouped
            .get_groups()
            .iter()
            .map(|group| match group {
                GroupsIndicator::Idx((_, all)) => all.to_vec(),
                GroupsIndicator::Slice([first, len]) => (first..first + len).collect(),
            })
            .collect();
        let first: Vec<Option<IdxSize>> = groups.iter().map(|group| group.first().copied()).collect();
        let mut made = vec![];
        for key in &keys {
            made.push(rows(key, &first)?);
        }
        for aggregate in aggregates {
            made.push(aggregate.of(self, &groups)?);
        }
        DataFrame::new(groups.len(), made).map_err(doing())
    }

    fn joined<'a>(&self, other: &DataFrame, keys: impl IntoIterator<Item = &'a str>, how: Join) -> Result<DataFrame> {
        let keys: Vec<&str> = keys.into_iter().collect();
        columns(self, keys.iter().copied())?;
        columns(other, keys.iter().copied())?;
        let mut arguments = JoinArgs::new(match how {
            Join::Inner => JoinType::Inner,
            Join::Left => JoinType::Left,
        });
        arguments.maintain_order = MaintainOrderJoin::LeftRight;
        DataFrameJoinOps::join(self, other, keys.iter().copied(), keys.iter().copied(), arguments, None)
            .map_err(failed("joining frames"))
    }

    fn sorted<'a>(&self, by: impl IntoIterator<Item = impl Into<Order<'a>>>) -> Result<DataFrame> {
        let by: Vec<(&str, bool)> = by
            .into_iter()
            .map(|order| match order.into() {
                Order::Ascending(name) => (name, false),
                Order::Descending(name) => (name, true),
            })
            .collect();
        columns(self, by.iter().map(|(name, _)| *name))?;
        let options = SortMultipleOptions::default()
            .with_order_descending_multi(by.iter().map(|(_, descending)| *descending))
            .with_nulls_last(true)
            .with_maintain_order(true);
        self.sort(by.iter().map(|(name, _)| *name), options).map_err(failed("sorting rows"))
    }

    fn filtered(&self, mut keep: impl FnMut(Row<'_>) -> Result<bool>) -> Result<DataFrame> {
        let mut kept = Vec::new();
        for index in 0..self.height() {
            if keep(Row { frame: self, index })? {
                kept.push(index as IdxSize);
            }
        }
        self.take(&IdxCa::new(PlSmallStr::EMPTY, kept)).map_err(failed("keeping rows"))
    }
}

impl Aggregate<'_> {
    fn of(self, frame: &DataFrame, groups: &[Vec<IdxSize>]) -> Result<Column> {
        let named = |what: &str, name: &str| PlSmallStr::from(format!("{what}_{name}"));
        let numbers = |what: &str, name: &str, of: fn(&[f64]) -> Option<f64>| -> Result<Column> {
            let values = numbers(frame, name)?;
            let of_group = |group: &Vec<IdxSize>| of(&present(group, |row| values[row]));
            Ok(Series::new(named(what, name), groups.iter().map(of_group).collect::<Vec<_>>()).into())
        };
        match self {
            Aggregate::Count => {
                let counts: Vec<u64> = groups.iter().map(|group| group.len() as u64).collect();
                Ok(Series::new("count".into(), counts).into())
            }
            Aggregate::Sum(name) if column(frame, name)?.dtype().is_integer() => {
                let column = column(frame, name)?;
                let mut sums = Vec::with_capacity(groups.len());
                for group in groups {
                    let integer = |row: usize| column.get(row).ok()?.extract::<i128>();
                    let sum = present(group, integer).into_iter().try_fold(0i128, i128::checked_add);
                    sums.push(sum.and_then(|sum| i64::try_from(sum).ok()).ok_or_else(|| {
                        let problem = "has a sum that 64 bits do not hold".remedy("make it a column of floats first");
                        Error::argument("column", name, problem)
                    })?);
                }
                Ok(Series::new(named("sum", name), sums).into())
            }
            Aggregate::Sum(name) => {
                numbers("sum", name, |values| Some(values.iter().fold(0.0, |sum, value| sum + value)))
            }
            Aggregate::Mean(name) => numbers("mean", name, mean),
            Aggregate::Median(name) => numbers("median", name, median),
            Aggregate::Std(name) => numbers("std", name, |values| {
                let mean = mean(values).filter(|_| values.len() > 1)?;
                let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
                Some((squares / (values.len() - 1) as f64).sqrt())
            }),
            Aggregate::Min(name) => Ok(extreme(frame, name, groups, false)?.with_name(named("min", name))),
            Aggregate::Max(name) => Ok(extreme(frame, name, groups, true)?.with_name(named("max", name))),
        }
    }
}

/// Values of a group's rows, those that are there.
fn present<T>(group: &[IdxSize], value: impl Fn(usize) -> Option<T>) -> Vec<T> {
    group.iter().filter_map(|&row| value(row as usize)).collect()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn median(values: &[f64]) -> Option<f64> {
    if values.iter().any(|value| value.is_nan()) {
        return Some(f64::NAN);
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { sorted[sorted.len() / 2 - 1].midpoint(upper) })
}

/// The smallest or largest value of each group, in the type of the column.
fn extreme(frame: &DataFrame, name: &str, groups: &[Vec<IdxSize>], largest: bool) -> Result<Column> {
    let column = column(frame, name)?;
    let better = |is: std::cmp::Ordering| if largest { is.is_gt() } else { is.is_lt() };
    let best = |compare: &dyn Fn(usize, usize) -> std::cmp::Ordering, is_there: &dyn Fn(usize) -> bool| {
        let of_group = |group: &Vec<IdxSize>| {
            let rows = group.iter().copied().filter(|&row| is_there(row as usize));
            rows.reduce(|best, row| if better(compare(row as usize, best as usize)) { row } else { best })
        };
        groups.iter().map(of_group).collect::<Vec<Option<IdxSize>>>()
    };
    let rows_of_best = match column.dtype() {
        DataType::String => {
            let texts = column.str().map_err(failed("comparing texts"))?;
            best(&|a, b| texts.get(a).cmp(&texts.get(b)), &|row| texts.get(row).is_some())
        }
        dtype if dtype.is_integer() => {
            let integer = |row: usize| column.get(row).ok().and_then(|value| value.extract::<i128>());
            best(&|a, b| integer(a).cmp(&integer(b)), &|row| integer(row).is_some())
        }
        _ => {
            let values = numbers(frame, name)?;
            let compare = |a: usize, b: usize| values[a].partial_cmp(&values[b]).unwrap_or(std::cmp::Ordering::Equal);
            let number = best(&compare, &|row| values[row].is_some_and(|value| !value.is_nan()));
            // A group of NaN alone has NaN.
            let any = best(&|_, _| std::cmp::Ordering::Equal, &|row| values[row].is_some());
            number.into_iter().zip(any).map(|(number, any)| number.or(any)).collect()
        }
    };
    rows(column, &rows_of_best)
}

/// Rows of a column, missing where there is none.
fn rows(column: &Column, rows: &[Option<IdxSize>]) -> Result<Column> {
    column.take(&IdxCa::new(PlSmallStr::EMPTY, rows)).map_err(failed("taking rows"))
}

/// A column's numbers; booleans count as 0 and 1.
fn numbers(frame: &DataFrame, name: &str) -> Result<Vec<Option<f64>>> {
    let column = column(frame, name)?;
    let dtype = column.dtype();
    if !(dtype.is_primitive_numeric() || dtype.is_bool()) {
        return Err(Error::argument("column", name, format!("is of type {dtype}").remedy("numbers are needed")));
    }
    let floats = column.cast(&DataType::Float64).map_err(failed("reading numbers"))?;
    Ok(floats.f64().map_err(failed("reading numbers"))?.iter().collect())
}

fn column<'a>(frame: &'a DataFrame, name: &str) -> Result<&'a Column> {
    frame.column(name).map_err(|_| {
        let names: Vec<_> = frame.get_column_names().into_iter().map(PlSmallStr::as_str).collect();
        Error::argument("column", name, "there is none".remedy(format!("the frame has {}", names.join(", "))))
    })
}

fn columns<'f, 'a>(frame: &'f DataFrame, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<&'f Column>> {
    let columns: Vec<_> = names.into_iter().map(|name| column(frame, name)).collect::<Result<_>>()?;
    if columns.is_empty() {
        return Err(Error::argument("columns", "none", "at least one is needed".remedy("name it")));
    }
    Ok(columns)
}

fn failed(doing: &'static str) -> impl Fn(PolarsError) -> Error {
    move |error| Error::report(doing, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    fn runs() -> DataFrame {
        df![
            "method" => [Some("wanda"), Some("magnitude"), Some("wanda"), None, Some("magnitude"), None],
            "n" => [1i32, 2, 3, 4, 5, 6],
            "x" => [Some(1.0), None, Some(2.0), Some(f64::NAN), None, Some(4.0)],
            "ok" => [true, false, true, true, false, false],
        ]
        .unwrap()
    }

    fn shown(frame: &DataFrame) -> String {
        crate::report::Table::from(frame.clone()).csv().unwrap()
    }

    #[test]
    fn groups_come_in_the_order_of_their_first_rows() {
        use Aggregate::{Count, Max, Mean, Median, Min, Std, Sum};
        let all = [Count, Sum("n"), Mean("n"), Median("n"), Std("n"), Min("n"), Max("n"), Mean("ok")];
        let expected = "method,count,sum_n,mean_n,median_n,std_n,min_n,max_n,mean_ok\n\
                        wanda,2,4,2.0,2.0,1.4142135623730951,1,3,1.0\n\
                        magnitude,2,7,3.5,3.5,2.1213203435596424,2,5,0.0\n\
                        ,2,10,5.0,5.0,1.4142135623730951,4,6,0.5\n";
        assert_eq!(shown(&runs().grouped(["method"], all).unwrap()), expected);
        // Missing values are left out, NaN stays in sums and is no extreme.
        let x = runs().grouped(["method"], [Sum("x"), Mean("x"), Std("x"), Min("x"), Max("x"), Median("x")]).unwrap();
        let expected = "method,sum_x,mean_x,std_x,min_x,max_x,median_x\n\
                        wanda,3.0,1.5,0.7071067811865476,1.0,2.0,1.5\n\
                        magnitude,0.0,,,,,\n\
                        ,NaN,NaN,NaN,4.0,4.0,NaN\n";
        assert_eq!(shown(&x), expected);
        let two = runs().grouped(["method", "ok"], [Count]).unwrap();
        assert_eq!(two.height(), 4);
        let text = runs().grouped(["ok"], [Min("method"), Max("method")]).unwrap();
        assert_eq!(shown(&text), "ok,min_method,max_method\ntrue,wanda,wanda\nfalse,magnitude,magnitude\n");
        let none = runs().filtered(|_| Ok(false)).unwrap().grouped(["method"], [Count, Mean("x"), Max("n")]).unwrap();
        assert_eq!(shown(&none), "method,count,mean_x,max_n\n");
    }

    #[test]
    fn joins_keep_the_order_of_the_first_frame() {
        let cost = df!["method" => ["magnitude", "wanda", "wanda", "ria"], "n" => [10, 20, 30, 40]].unwrap();
        let inner = runs().joined(&cost, ["method"], Join::Inner).unwrap();
        let of = |frame: &DataFrame| shown(&frame.select(["method", "n", "n_right"]).unwrap());
        let expected =
            "method,n,n_right\nwanda,1,20\nwanda,1,30\nmagnitude,2,10\nwanda,3,20\nwanda,3,30\nmagnitude,5,10\n";
        assert_eq!(of(&inner), expected);
        let left = runs().joined(&cost, ["method"], Join::Left).unwrap();
        assert_eq!((left.height(), left.column("n_right").unwrap().null_count()), (8, 2));
        let both = runs().joined(&runs(), ["method", "n"], Join::Inner).unwrap();
        assert_eq!(both.height(), 4, "a missing key equals nothing");
        assert_eq!(runs().head(Some(0)).joined(&cost, ["method"], Join::Left).unwrap().height(), 0);
    }

    #[test]
    fn rows_are_sorted_by_several_columns_and_kept_by_a_predicate() {
        let sorted = runs().sorted([Order::Ascending("method"), Order::Descending("n")]).unwrap();
        let n: Vec<i32> = sorted.column("n").unwrap().i32().unwrap().iter().flatten().collect();
        assert_eq!(n, [5, 2, 3, 1, 6, 4]);
        let by_x = runs().sorted(["x"]).unwrap();
        let n: Vec<i32> = by_x.column("n").unwrap().i32().unwrap().iter().flatten().collect();
        assert_eq!(n, [1, 3, 6, 4, 2, 5]);
        let kept = runs().filtered(|row| Ok(row.text("method")? == "wanda" || row.number("x")? > 3.0)).unwrap();
        assert_eq!(kept.height(), 3);
        let missing = runs().filtered(|row| row.is_missing("x")).unwrap();
        assert_eq!(missing.height(), 2);
        assert_eq!(runs().filtered(|row| Ok(row.number("ok")? == 1.0 && row.index() > 0)).unwrap().height(), 2);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |result: Result<DataFrame>| result.unwrap_err().to_string();
        let unknown = message(runs().sorted(["perplexity"]));
        assert_eq!(unknown, "column = perplexity: there is none; the frame has method, n, x, ok");
        assert_eq!(message(runs().grouped(["a"], [])), unknown.replace("perplexity", "a"));
        assert!(message(runs().grouped([], [Aggregate::Count])).contains("at least one is needed"));
        assert!(message(runs().grouped(["n"], [Aggregate::Mean("method")])).contains("numbers are needed"));
        assert!(message(runs().filtered(|row| Ok(row.number("method")? > 1.0))).contains("numbers are needed"));
        assert!(message(runs().joined(&df!["a" => [1]].unwrap(), ["n"], Join::Inner)).contains("the frame has a"));
        let big = df!["k" => [1, 1], "v" => [i64::MAX, 1]].unwrap();
        assert!(message(big.grouped(["k"], [Aggregate::Sum("v")])).contains("64 bits"));
        assert!(message(runs().grouped(["n"], [Aggregate::Count, Aggregate::Count])).contains("count"));
    }
}
