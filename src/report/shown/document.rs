//! A report: text, tables and pictures, and the records they come from.

use super::{Figure, Table, escape_html};
use crate::error::{Error, Remedy, Result};
use crate::record::{Record, SCHEMA_VERSION};
use crate::report::json::{pretty, record_json, write_atomic};
use crate::rich::{Bundle, Rich, mime, shown_in_cells};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A report as JSON: records, and the tables made from them.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "Report")]
pub(in crate::report) struct Document {
    /// Version of this format: 1.
    schema: u32,
    /// Its heading.
    title: String,
    /// Its records; what may differ between two runs of them stands in `environment.records`.
    #[schemars(with = "Vec<Record>")]
    records: Vec<Value>,
    /// Its tables by name: columns with label and unit, and rows.
    tables: Map<String, Value>,
    /// A one-line summary of each plot, by name.
    plots: Map<String, Value>,
    /// Whatever may differ between two runs with the same results. Comparisons leave it out.
    environment: Environment,
}

/// Times, hosts, versions.
#[derive(Debug, Serialize, JsonSchema)]
struct Environment {
    /// Facts about the making of the report.
    report: Map<String, Value>,
    /// Facts about each record, in their order.
    #[schemars(with = "Vec<BTreeMap<String, Value>>")]
    records: Vec<Value>,
}

/// A document: text, tables and plots in the order they were added, and the records they come from.
#[derive(Clone, Default)]
pub struct Report {
    title: String,
    records: Vec<Record>,
    parts: Vec<Part>,
    environment: Map<String, Value>,
}

crate::debug::one_line!(rich Report, |report| {
    format!("Report({}: {} records, {} parts)", report.title, report.records.len(), report.parts.len())
});

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Table(String, Table),
    Plot(String, Arc<dyn Figure>),
}

impl Report {
    /// An empty report.
    pub fn new(title: impl Into<String>) -> Report {
        Report { title: title.into(), ..Report::default() }
    }

    /// Adds the records that the report rests on; its JSON holds them, its CSV tabulates them.
    pub fn records(mut self, records: &[Record]) -> Report {
        self.records.extend_from_slice(records);
        self
    }

    /// Adds Markdown text.
    pub fn text(mut self, markdown: impl Into<String>) -> Report {
        self.parts.push(Part::Text(markdown.into()));
        self
    }

    /// Adds a table, shown here and written to `STEM_NAME.csv`.
    pub fn table(mut self, name: impl Into<String>, table: Table) -> Report {
        self.parts.push(Part::Table(name.into(), table));
        self
    }

    /// Adds a picture, such as a [`Plot`](super::Plot) or a [`HeatMap`](super::HeatMap), shown here and written to `STEM_NAME.svg` and `STEM_NAME.png`.
    pub fn plot(mut self, name: impl Into<String>, plot: impl Figure + 'static) -> Report {
        self.parts.push(Part::Plot(name.into(), Arc::new(plot)));
        self
    }

    /// Notes a time, a host, a version: whatever may differ between two runs with the same results. Only the
    /// `environment` of the JSON shows it.
    pub fn environment(mut self, key: impl Into<String>, value: impl Into<Value>) -> Report {
        self.environment.insert(key.into(), value.into());
        self
    }

    /// Writes `STEM.md`, `STEM.json`, `STEM.csv` (the records), and the files of tables and plots into `dir`, which
    /// is made if it is missing. Everything is rendered before the first file is written, and each file is replaced
    /// in one step. Returns the files, the Markdown first.
    ///
    /// # Errors
    /// Fails when a plot cannot be drawn, a record holds a number that is not finite, two parts have one name, or a
    /// file cannot be written.
    pub fn write(&self, dir: impl AsRef<Path>, stem: &str) -> Result<Vec<PathBuf>> {
        let dir = dir.as_ref();
        let files = self.render(stem)?;
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let mut written = Vec::with_capacity(files.len());
        for (name, bytes) in files {
            let path = dir.join(name);
            write_atomic(&path, &bytes)?;
            written.push(path);
        }
        Ok(written)
    }

    /// Text, tables and pictures in their order, as a notebook shows them. Text is Markdown, which HTML shows as it was
    /// written; the first picture stands for itself, too.
    fn shown(&self) -> Result<Bundle> {
        let (mut plain, mut markdown) = (self.title.clone() + "\n", format!("# {}\n", self.title));
        let (mut html, mut pictures) = (format!("<h2>{}</h2>\n", escape_html(&self.title)), Vec::new());
        for part in &self.parts {
            match part {
                Part::Text(text) => {
                    let text = text.trim();
                    plain.push_str(&format!("\n{text}\n"));
                    markdown.push_str(&format!("\n{text}\n"));
                    for paragraph in text.split("\n\n") {
                        html.push_str(&format!("<p style=\"white-space: pre-line\">{}</p>\n", escape_html(paragraph)));
                    }
                }
                Part::Table(_, table) => {
                    for (mime, text) in table.shortened() {
                        match mime {
                            mime::PLAIN => plain.push_str(&format!("\n{text}")),
                            mime::MARKDOWN => markdown.push_str(&format!("\n{text}")),
                            _ => html.push_str(&text),
                        }
                    }
                }
                Part::Plot(_, figure) => {
                    let summary = figure.summary();
                    plain.push_str(&format!("\n[{summary}]\n"));
                    html.push_str(&figure.svg()?);
                    if pictures.is_empty() {
                        pictures = figure.bundle()?;
                        pictures.retain(|(mime, _)| *mime != mime::PLAIN);
                    } else {
                        markdown.push_str(&format!("\n*{summary}*\n"));
                    }
                }
            }
        }
        let names = |keep: fn(&Part) -> Option<&str>| -> Vec<&str> { self.parts.iter().filter_map(keep).collect() };
        let tables = names(|part| if let Part::Table(name, _) = part { Some(name) } else { None });
        let plots = names(|part| if let Part::Plot(name, _) = part { Some(name) } else { None });
        let records: Vec<Value> = self.records.iter().map(record_json).collect::<Result<_>>()?;
        let json = serde_json::json!({"title": self.title, "tables": tables, "plots": plots, "records": records});
        let mut bundle = vec![(mime::PLAIN, plain), (mime::MARKDOWN, markdown), (mime::HTML, html)];
        bundle.append(&mut pictures);
        bundle.push((mime::JSON, json.to_string()));
        Ok(bundle)
    }

    /// File names and contents.
    fn render(&self, stem: &str) -> Result<Vec<(String, Vec<u8>)>> {
        check_name("stem", stem)?;
        let mut seen = BTreeSet::new();
        let mut markdown = format!("# {}\n", self.title);
        let (mut files, mut tables, mut plots) = (Vec::new(), Map::new(), Map::new());
        for part in &self.parts {
            if let Part::Table(name, _) | Part::Plot(name, _) = part {
                check_name("name", name)?;
                if !seen.insert(name) {
                    return Err(Error::argument("name", name, "two parts of the report have it".remedy("rename one")));
                }
            }
            markdown.push('\n');
            match part {
                Part::Text(text) => markdown.push_str(&format!("{}\n", text.trim())),
                Part::Table(name, table) => {
                    markdown.push_str(&table.markdown());
                    files.push((format!("{stem}_{name}.csv"), table.csv()?.into_bytes()));
                    tables.insert(name.clone(), table.json());
                }
                Part::Plot(name, plot) => {
                    let (file, alt) = (format!("{stem}_{name}.svg"), plot.summary().replace(['[', ']'], ""));
                    markdown.push_str(&format!("![{alt}]({file})\n"));
                    plots.insert(name.clone(), plot.summary().into());
                    files.push((file, plot.svg()?.into_bytes()));
                    files.push((format!("{stem}_{name}.png"), plot.png()?));
                }
            }
        }
        markdown.push_str(&format!("\nData: [{stem}.csv]({stem}.csv), [{stem}.json]({stem}.json).\n"));
        let (mut records, mut environments) = (Vec::new(), Vec::new());
        for record in &self.records {
            let mut value = record_json(record)?;
            environments.extend(value.as_object_mut().and_then(|object| object.shift_remove("environment")));
            records.push(value);
        }
        let document = Document {
            schema: SCHEMA_VERSION,
            title: self.title.clone(),
            records,
            tables,
            plots,
            environment: Environment { report: self.environment.clone(), records: environments },
        };
        let mut all = vec![
            (format!("{stem}.md"), markdown.into_bytes()),
            (format!("{stem}.json"), pretty(&document)?.into_bytes()),
            (format!("{stem}.csv"), Table::from_records(&self.records)?.csv()?.into_bytes()),
        ];
        all.append(&mut files);
        Ok(all)
    }
}

impl Rich for Report {
    fn bundle(&self) -> Result<Bundle> {
        self.shown()
    }
}

shown_in_cells!(Report);

/// Names become parts of file names and of Markdown links.
fn check_name(what: &'static str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(Error::argument(
            what,
            name,
            "use letters, digits, `-`, `_` and `.`; it becomes part of file names",
        ));
    }
    Ok(())
}
