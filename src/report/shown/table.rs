//! Tables: a polars frame that knows how its columns are read.

use super::labels::Labels;
use crate::error::{Error, Remedy, Result};
use crate::record::Record;
use crate::settings::Zeros;
use polars::prelude::{Column, DataFrame, NamedFrom, PlSmallStr, PolarsError, Series, SortMultipleOptions};

/// The format of a column's cells. CSV and JSON always carry the full value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As it is, left-aligned.
    Text,
    /// An integer with thousands separated: `12,288`.
    Count,
    /// Four significant digits: `25.34`, `1,234`, `1.234e12`.
    Number,
    /// A fraction in percent with one digit: 0.5 is `50.0`.
    Percent,
}

crate::error::listed!(Format, Text, Count, Number, Percent);

/// A polars frame, with a heading, a unit and a number format for every column.
///
/// ```
/// # fn main() -> lacuna::Result<()> {
/// use lacuna::report::Table;
/// let table = Table::from_records(&[])?;
/// assert_eq!(table.frame().height(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Table {
    frame: DataFrame,
    pub(super) columns: Vec<Heading>,
}

crate::debug::one_line!(rich Table, |table| {
    let names: Vec<&str> = table.columns.iter().map(|column| column.label.as_str()).collect();
    format!("Table({} rows × {} columns: {})", table.frame.height(), names.len(), names.join(", "))
});

/// The heading and format of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heading {
    pub(super) label: String,
    pub(super) unit: Option<String>,
    pub(super) format: Format,
}

impl Heading {
    /// `label (unit)`.
    pub(super) fn title(&self) -> String {
        match &self.unit {
            Some(unit) => format!("{} ({unit})", self.label),
            None => self.label.clone(),
        }
    }
}

impl From<DataFrame> for Table {
    /// Headings are the columns' names; a name like `total_bytes` or `nll_nats` ends with its unit. Integers get thousands
    /// separated, floats four significant digits.
    fn from(frame: DataFrame) -> Table {
        let heading = |column: &Column| {
            let format = match column.dtype() {
                dtype if dtype.is_integer() => Format::Count,
                dtype if dtype.is_float() => Format::Number,
                _ => Format::Text,
            };
            let (label, unit) = match column.name().rsplit_once('_') {
                Some((label, unit)) if format != Format::Text && UNITS.contains(&unit) => (label, Some(unit)),
                _ => (column.name().as_str(), None),
            };
            Heading { label: label.replace('_', " "), unit: unit.map(str::to_owned), format }
        };
        let columns = frame.columns().iter().map(heading).collect();
        Table { frame, columns }
    }
}

/// Units that names of columns end with.
const UNITS: [&str; 9] = ["bytes", "seconds", "nats", "tokens", "percent", "kib", "mib", "gib", "ms"];

/// A column of a table made here: its name in the frame, its label and unit for people, and its format.
type Name<'a> = (&'a str, &'a str, Option<&'a str>, Format);

impl Table {
    /// One row per record, in their order: `model`, `method` (`dense` when nothing was pruned), `pattern`, `per`,
    /// `target_sparsity` and `sparsity` (fractions), `text`, `tokens`, `nll_nats`, `perplexity`, where any record has an
    /// interval `perplexity_low` and `perplexity_high`, and `perplexity_ratio` to the dense record of the same model and
    /// text, if there is one.
    ///
    /// # Errors
    /// Fails when polars cannot hold the columns.
    pub fn from_records(records: &[Record]) -> Result<Table> {
        let pruning =
            |record: &Record, get: fn(&crate::record::PruningRecord) -> String| record.pruning.as_ref().map(get);
        let nll = |r: &Record| r.evaluation.as_ref().map(|e| e.nll_nats);
        let ratio = |record: &Record| {
            let evaluation = record.evaluation.as_ref()?;
            let dense = records.iter().filter(|other| other.pruning.is_none()).find_map(|other| {
                let dense = other.evaluation.as_ref()?;
                let same = other.model.sha256 == record.model.sha256 && dense.text.sha256 == evaluation.text.sha256;
                same.then_some(dense.perplexity)
            })?;
            Some(evaluation.perplexity / dense)
        };
        let strings =
            |get: &dyn Fn(&Record) -> Option<String>| -> Vec<Option<String>> { records.iter().map(get).collect() };
        let floats = |get: &dyn Fn(&Record) -> Option<f64>| -> Vec<Option<f64>> { records.iter().map(get).collect() };
        let tokens: Vec<Option<u64>> = records.iter().map(|r| r.evaluation.as_ref().map(|e| e.tokens)).collect();
        let target = |r: &Record| r.pruning.as_ref().map(|p| p.sparsity);
        let method = |r: &Record| Some(pruning(r, |p| p.method.to_string()).unwrap_or_else(|| "dense".into()));
        let interval = |r: &Record| r.evaluation.as_ref().and_then(|e| e.perplexity_interval);
        let labels = records
            .iter()
            .find_map(interval)
            .map(|interval| interval.level * 100.0)
            .map(|level| [format!("{level}% low"), format!("{level}% high")]);
        let mut columns = vec![
            (("model", "model", None, Format::Text), column(strings(&|r| Some(r.model.name.clone())))),
            (("method", "method", None, Format::Text), column(strings(&method))),
            (("pattern", "pattern", None, Format::Text), column(strings(&|r| pruning(r, |p| p.pattern.to_string())))),
            (("per", "per", None, Format::Text), column(strings(&|r| pruning(r, |p| p.per.to_string())))),
            (("target_sparsity", "target sparsity", Some("%"), Format::Percent), column(floats(&target))),
            (("sparsity", "sparsity", Some("%"), Format::Percent), column(floats(&|r| Some(r.sparsity())))),
            (
                ("text", "text", None, Format::Text),
                column(strings(&|r| Some(r.evaluation.as_ref()?.text.name.clone()))),
            ),
            (("tokens", "tokens", None, Format::Count), column(tokens)),
            (("nll_nats", "NLL", Some("nats/token"), Format::Number), column(floats(&nll))),
            (
                ("perplexity", "perplexity", None, Format::Number),
                column(floats(&|r| r.evaluation.as_ref().map(|e| e.perplexity))),
            ),
        ];
        if let Some([low, high]) = &labels {
            columns.extend([
                (
                    ("perplexity_low", low.as_str(), None, Format::Number),
                    column(floats(&|r| interval(r).map(|i| i.low))),
                ),
                (
                    ("perplexity_high", high.as_str(), None, Format::Number),
                    column(floats(&|r| interval(r).map(|i| i.high))),
                ),
            ]);
        }
        columns
            .push((("perplexity_ratio", "perplexity ratio", Some("× dense"), Format::Number), column(floats(&ratio))));
        build(columns)
    }

    /// Perplexity by pattern and target sparsity (rows: dense first, then unstructured by sparsity, then N:M) and
    /// method (columns, named as [`super::Plot::perplexity_vs_sparsity`] names its curves). The dense perplexity of a
    /// model stands in each of its columns. Records without an evaluation are left out; of two with the same place
    /// the later counts.
    ///
    /// # Errors
    /// Fails when polars cannot hold the columns.
    pub fn perplexity_by_sparsity(records: &[Record]) -> Result<Table> {
        let labels = Labels::of(records);
        let evaluated: Vec<_> =
            records.iter().filter_map(|record| Some((record, record.evaluation.as_ref()?))).collect();
        let mut rows: Vec<(u8, String, f64)> = Vec::new();
        let mut methods: Vec<(String, &str, &str)> = Vec::new();
        for (record, evaluation) in &evaluated {
            let row = row_key(record);
            if !rows.contains(&row) {
                rows.push(row);
            }
            let name = labels.of_method(record);
            if record.pruning.is_some() && !methods.iter().any(|(other, ..)| *other == name) {
                methods.push((name, &record.model.sha256, &evaluation.text.sha256));
            }
        }
        rows.sort_by(|a, b| {
            (a.0, a.2).partial_cmp(&(b.0, b.2)).unwrap_or(std::cmp::Ordering::Equal).then(a.1.cmp(&b.1))
        });
        let cells = |(name, model, text): &(String, &str, &str)| -> Vec<Option<f64>> {
            let belongs = |record: &Record, text_of: &str| match record.pruning {
                None => record.model.sha256 == *model && text_of == *text,
                Some(_) => labels.of_method(record) == *name,
            };
            rows.iter()
                .map(|row| {
                    let mut found = evaluated.iter().rev().filter(|(record, _)| row_key(record) == *row);
                    found.find(|(record, e)| belongs(record, &e.text.sha256)).map(|(_, e)| e.perplexity)
                })
                .collect()
        };
        let mut columns = vec![
            (("pattern", "pattern", None, Format::Text), column(rows.iter().map(|r| r.1.clone()).collect::<Vec<_>>())),
            (
                ("sparsity", "target sparsity", Some("%"), Format::Percent),
                column(rows.iter().map(|r| r.2).collect::<Vec<_>>()),
            ),
        ];
        for method in &methods {
            columns.push(((&method.0, &method.0, Some("perplexity"), Format::Number), column(cells(method))));
        }
        build(columns)
    }

    /// Zeros of every pruned tensor of a record, in model order: `tensor`, `out`, `in`, `zeros`, `sparsity`.
    ///
    /// # Errors
    /// Fails when polars cannot hold the columns.
    pub fn tensors(record: &Record) -> Result<Table> {
        let tensors = &record.tensors;
        let names: Vec<_> = tensors.iter().map(|t| t.name.clone()).collect();
        let side = |i: usize| -> Vec<u64> { tensors.iter().map(|t| t.shape[i] as u64).collect() };
        let sparsity: Vec<_> =
            tensors.iter().map(|t| (t.elements() > 0).then(|| t.zeros as f64 / t.elements() as f64)).collect();
        build([
            (("tensor", "tensor", None, Format::Text), column(names)),
            (("out", "out", None, Format::Count), column(side(0))),
            (("in", "in", None, Format::Count), column(side(1))),
            (("zeros", "zeros", None, Format::Count), column(tensors.iter().map(|t| t.zeros).collect::<Vec<_>>())),
            (("sparsity", "sparsity", Some("%"), Format::Percent), column(sparsity)),
        ])
    }

    /// The frame.
    pub fn frame(&self) -> &DataFrame {
        &self.frame
    }

    /// The frame, without the headings.
    pub fn into_frame(self) -> DataFrame {
        self.frame
    }

    /// Sets a column's heading and unit. The unit is not part of the column's name, which CSV and JSON keep.
    ///
    /// # Errors
    /// Fails when there is no such column.
    pub fn with_heading(mut self, name: &str, label: &str, unit: Option<&str>) -> Result<Table> {
        let i = self.index(name)?;
        self.columns[i].label = label.to_owned();
        self.columns[i].unit = unit.map(str::to_owned);
        Ok(self)
    }

    /// Sets how a column's numbers are written.
    ///
    /// # Errors
    /// Fails when there is no such column.
    pub fn with_format(mut self, name: &str, format: Format) -> Result<Table> {
        let i = self.index(name)?;
        self.columns[i].format = format;
        Ok(self)
    }

    /// Keeps the named columns, in this order.
    ///
    /// # Errors
    /// Fails when there is no such column.
    pub fn select<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Table> {
        let kept: Vec<usize> = names.into_iter().map(|name| self.index(name)).collect::<Result<_>>()?;
        let columns = kept.iter().map(|&i| self.frame.columns()[i].clone()).collect();
        let frame = DataFrame::new(self.frame.height(), columns).map_err(failed)?;
        Ok(Table { frame, columns: kept.iter().map(|&i| self.columns[i].clone()).collect() })
    }

    /// Sorts the rows by a column, smallest first; rows that are equal keep their order, missing values come first.
    ///
    /// # Errors
    /// Fails when there is no such column.
    pub fn sort(&self, name: &str) -> Result<Table> {
        let name = &self.frame.columns()[self.index(name)?].name().clone();
        let options = SortMultipleOptions::default().with_maintain_order(true);
        let frame = self.frame.sort([name.clone()], options).map_err(failed)?;
        Ok(Table { frame, columns: self.columns.clone() })
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.frame.get_column_index(name).ok_or_else(|| {
            let names: Vec<_> = self.frame.get_column_names().into_iter().map(PlSmallStr::as_str).collect();
            Error::argument("column", name, "there is none".remedy(format!("the table has {}", names.join(", "))))
        })
    }
}

/// The sorting key of a row of the pivot: dense, unstructured or N:M; the pattern; the sparsity.
fn row_key(record: &Record) -> (u8, String, f64) {
    match &record.pruning {
        None => (0, "dense".into(), 0.0),
        Some(p) => (if p.pattern == Zeros::UNSTRUCTURED { 1 } else { 2 }, p.pattern.to_string(), p.sparsity),
    }
}

fn column<T, P: ?Sized>(values: T) -> Series
where
    Series: NamedFrom<T, P>,
{
    Series::new(PlSmallStr::EMPTY, values)
}

fn build<'a>(columns: impl IntoIterator<Item = (Name<'a>, Series)>) -> Result<Table> {
    let (mut headings, mut series) = (Vec::new(), Vec::new());
    for ((name, label, unit, format), values) in columns {
        headings.push(Heading { label: label.to_owned(), unit: unit.map(str::to_owned), format });
        series.push(Column::from(values.with_name(name.into())));
    }
    let frame = DataFrame::new_infer_height(series).map_err(failed)?;
    Ok(Table { frame, columns: headings })
}

pub(super) fn failed(error: PolarsError) -> Error {
    Error::report("making a table", error)
}
