//! A notebook file: read as Jupyter reads it, cells filled with outputs, written in one piece.

use super::encoding::Encoding;
use super::json_text::Node;
use super::outcome::{CellError, Outcome};
use super::output::{Bundle, Output};
use anyhow::{Context, Result, bail};
use lacuna::display::mime;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// A Rust notebook in memory.
#[derive(Debug)]
pub(crate) struct Document {
    /// The file's name without its extension.
    pub(crate) stem: String,
    /// Sentences on what was put right while the notebook was read.
    pub(crate) repairs: Vec<String>,
    metadata: Map<String, Value>,
    cells: Vec<Cell>,
}

#[derive(Debug)]
struct Cell {
    kind: CellKind,
    id: String,
    metadata: Map<String, Value>,
    source: String,
    /// Pictures that were pasted into a text: name, then content by MIME type.
    attachments: Map<String, Value>,
    execution_count: Option<i32>,
    outputs: Vec<Value>,
}

/// The tags of a cell that is not run; the second is nbclient's.
pub(super) const SKIP: [&str; 2] = ["skip", "skip-execution"];
/// The tag of a cell that may fail, as nbclient has it: an exercise, until somebody solves it.
pub(super) const RAISES: &str = "raises-exception";

/// A cell's kind, as far as a report cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellKind {
    Markdown,
    Code,
    Raw,
}

impl CellKind {
    fn of(name: &str) -> Option<CellKind> {
        Some(match name {
            "markdown" => CellKind::Markdown,
            "code" => CellKind::Code,
            "raw" => CellKind::Raw,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            CellKind::Markdown => "markdown",
            CellKind::Code => "code",
            CellKind::Raw => "raw",
        }
    }
}

impl Document {
    /// Reads a notebook of format 4, without its outputs.
    ///
    /// # Errors
    /// Fails when the file cannot be read, is no notebook, or is not in Rust.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let raw = read_json(path)?;
        let cells = raw_cells(path, &raw)?;
        let metadata = fields(&raw["metadata"]);
        match language(&metadata) {
            Some(language) if language.eq_ignore_ascii_case("rust") => {}
            Some(language) => bail!("{name} is a notebook in {language}; lacuna runs notebooks in Rust"),
            None => bail!(
                "{name} does not say its language; lacuna runs notebooks in Rust, whose metadata hold \
                 \"language_info\": {{\"name\": \"rust\"}}"
            ),
        }
        let stem = path.file_stem().with_context(|| format!("{name} has no file name"))?.to_string_lossy().into_owned();
        let mut document = Document { stem, repairs: Vec::new(), metadata, cells: Vec::new() };
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for (number, cell) in (1..).zip(cells) {
            let cell = Cell::read(number, cell).with_context(|| format!("{name} is not a notebook"))?;
            document.push(number, cell, &mut taken);
        }
        Ok(document)
    }

    /// Adds a cell, whose id is made one that fits: Jupyter takes any, and the format does not.
    fn push(&mut self, number: usize, mut cell: Cell, taken: &mut BTreeSet<String>) {
        let given = std::mem::take(&mut cell.id);
        let fitting: String = given
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
            .take(LONGEST_ID)
            .collect();
        let wanted = if given.is_empty() { format!("cell-{number}") } else { fitting };
        cell.id = free(&wanted, |id| taken.contains(id));
        if given != cell.id && !given.is_empty() {
            let shown: String = given.escape_debug().take(80).collect();
            let why = if wanted == given { "is that of another cell, too" } else { "is none in notebooks" };
            self.repairs.push(format!("the id `{shown}` of cell {number} {why}; the cell is run as `{}`", cell.id));
        }
        taken.insert(cell.id.clone());
        self.cells.push(cell);
    }

    /// CellKind and source of each cell, from the top.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (CellKind, &str)> {
        self.cells.iter().map(|cell| (cell.kind, cell.source.as_str()))
    }

    /// The source of a cell.
    pub(crate) fn source(&self, index: usize) -> &str {
        &self.cells[index].source
    }

    /// Pictures that were pasted into a cell: name, then content by MIME type.
    pub(crate) fn attachments(&self, index: usize) -> &Map<String, Value> {
        &self.cells[index].attachments
    }

    /// Returns whether the cell has the tag.
    pub(crate) fn has_tag(&self, index: usize, tag: &str) -> bool {
        let tags = self.cells[index].metadata.get("tags").and_then(Value::as_array);
        tags.is_some_and(|tags| tags.iter().any(|other| other == tag))
    }

    /// The first of the tags that the cell has.
    pub(crate) fn tag_of(&self, index: usize, tags: &[&'static str]) -> Option<&'static str> {
        tags.iter().copied().find(|tag| self.has_tag(index, tag))
    }

    /// The code cells that have the tag.
    pub(crate) fn tagged(&self, tag: &str) -> Vec<usize> {
        let is_code = |index: &usize| self.cells[*index].kind == CellKind::Code;
        (0..self.cells.len()).filter(is_code).filter(|index| self.has_tag(*index, tag)).collect()
    }

    /// Returns whether Jupyter shows the cell's source only when it is asked to.
    pub(crate) fn is_collapsed(&self, index: usize) -> bool {
        self.cells[index].metadata.get("jupyter").is_some_and(|jupyter| jupyter["source_hidden"] == true)
    }

    /// Takes out the code cells that have the tag.
    pub(crate) fn remove_tagged(&mut self, tag: &str) {
        for index in self.tagged(tag).into_iter().rev() {
            self.cells.remove(index);
        }
    }

    /// Puts a code cell before the one at `index`.
    pub(crate) fn insert_code(&mut self, index: usize, id: &str, tag: &str, source: &str) {
        let id = free(id, |id| self.cells.iter().any(|cell| cell.id == id));
        let metadata = fields(&json!({"tags": [tag]}));
        let source = source.to_owned();
        let (attachments, outputs) = (Map::new(), Vec::new());
        let cell = Cell { kind: CellKind::Code, id, metadata, source, attachments, execution_count: None, outputs };
        self.cells.insert(index, cell);
    }

    /// The cell's id, which Jupyter shows in its file format only.
    pub(crate) fn id(&self, index: usize) -> &str {
        &self.cells[index].id
    }

    /// Gives code cell `index` what its run left; `count` is the number in `[count]` beside it.
    pub(crate) fn set_outcome(&mut self, index: usize, count: i32, outcome: &Outcome) {
        let cell = &mut self.cells[index];
        cell.execution_count = Some(count);
        cell.outputs = outputs(count, outcome);
    }

    /// The executed notebook as Jupyter writes it (sorted keys, one space of indentation), with a word that it is one.
    ///
    /// # Errors
    /// Fails when there is no memory for it.
    pub(crate) fn executed(&self) -> Result<Vec<u8>> {
        let mut metadata = self.metadata.clone();
        metadata.insert(EXECUTED.into(), executed_mark());
        let cells: Vec<Value> = self.cells.iter().map(Cell::to_json).collect();
        let mut notebook = json!({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5});
        notebook.sort_all_objects();
        let mut bytes = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
        notebook.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Characters of a cell's id, at the most.
const LONGEST_ID: usize = 64;

/// The id, or one like it that is not taken.
fn free(id: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2usize..).map(|n| {
        let end = format!("-{n}");
        format!("{}{end}", &id[..id.floor_char_boundary(LONGEST_ID - end.len())])
    });
    std::iter::once(id.to_owned()).chain(numbered).find(|id| !is_taken(id)).unwrap_or_default()
}

impl Cell {
    fn read(number: usize, raw: &Value) -> Result<Cell> {
        if !raw.is_object() {
            bail!("its cell {number} is no JSON object");
        }
        let name = raw["cell_type"].as_str().unwrap_or_default();
        let Some(kind) = CellKind::of(name) else {
            bail!("its cell {number} has the cell_type {}; it can be code, markdown or raw", raw["cell_type"]);
        };
        let source = match &raw["source"] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(lines) if lines.iter().all(Value::is_string) => text(&raw["source"]),
            _ => bail!("the source of its cell {number} is no text"),
        };
        Ok(Cell {
            kind,
            id: raw["id"].as_str().unwrap_or_default().to_owned(),
            metadata: fields(&raw["metadata"]),
            source,
            attachments: fields(&raw["attachments"]),
            execution_count: None,
            outputs: Vec::new(),
        })
    }

    fn to_json(&self) -> Value {
        let mut cell = json!({
            "cell_type": self.kind.name(), "id": self.id, "metadata": self.metadata, "source": lines(&self.source),
        });
        match self.kind {
            CellKind::Code => {
                cell["execution_count"] = json!(self.execution_count);
                cell["outputs"] = json!(self.outputs);
            }
            CellKind::Markdown | CellKind::Raw if self.attachments.is_empty() => {}
            CellKind::Markdown | CellKind::Raw => cell["attachments"] = json!(self.attachments),
        }
        cell
    }
}

/// The members of an object; none of anything else, as where Jupyter finds `null`.
fn fields(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// Text as notebooks hold it.
fn lines(text: &str) -> Value {
    text.split_inclusive('\n').collect()
}

/// The key in the metadata of a notebook that a run wrote.
pub(super) const EXECUTED: &str = "lacuna";

fn executed_mark() -> Value {
    json!({"executed": true})
}

/// Returns whether a run wrote the notebook at `path`.
pub(super) fn is_executed(path: &Path) -> bool {
    path.is_file() && read_json(path).is_ok_and(|notebook| notebook["metadata"][EXECUTED] == executed_mark())
}

/// Takes the outputs out of a notebook of any language; whatever else is in the file stays as it is, byte for byte. A file
/// without any is not written; says whether it was.
///
/// # Errors
/// Fails when the file cannot be read or written, or is no notebook.
pub(crate) fn clean(path: &Path) -> Result<bool> {
    let (text, encoding) = read_text(path)?;
    let raw = parse_json(path, &text)?;
    let raw_cells = raw_cells(path, &raw)?;
    let root = Node::read(&text).with_context(|| format!("{} is not a notebook", path.display()))?;
    let cells = root.get("cells").map(Node::items).unwrap_or_default();
    let mut edits = Vec::new();
    for (cell, raw) in cells.iter().zip(raw_cells) {
        if raw["cell_type"] != "code" {
            continue;
        }
        for (key, empty) in [("outputs", json!([])), ("execution_count", Value::Null)] {
            if let Some(value) = cell.get(key).filter(|_| raw[key] != empty) {
                edits.push((value.span.clone(), empty.to_string()));
            }
        }
        // When JupyterLab ran it.
        let execution = cell.get("metadata").and_then(|metadata| metadata.without("execution"));
        edits.extend(execution.map(|range| (range, String::new())));
    }
    if raw["metadata"][EXECUTED] == executed_mark() {
        let mark = root.get("metadata").and_then(|metadata| metadata.without(EXECUTED));
        edits.extend(mark.map(|range| (range, String::new())));
    }
    if edits.is_empty() {
        return Ok(false);
    }
    edits.sort_by_key(|(range, _)| range.start);
    let mut cleaned = text;
    for (range, with) in edits.into_iter().rev() {
        cleaned.replace_range(range, &with);
    }
    write_file(path, &encoding.encode(&cleaned))?;
    Ok(true)
}

fn read_text(path: &Path) -> Result<(String, Encoding)> {
    let name = path.display();
    let bytes = fs::read(path).with_context(|| format!("cannot read {name}"))?;
    Encoding::decode(&bytes).with_context(|| format!("{name} is not a notebook"))
}

fn parse_json(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("{} is not a notebook: it is not JSON", path.display()))
}

pub(super) fn read_json(path: &Path) -> Result<Value> {
    parse_json(path, &read_text(path)?.0)
}

/// The cells of a notebook of format 4.
fn raw_cells<'a>(path: &Path, raw: &'a Value) -> Result<&'a [Value]> {
    let name = path.display();
    let version = |key: &str| raw[key].as_f64().filter(|version| version.fract() == 0.0);
    let (major, minor) = (version("nbformat"), version("nbformat_minor").unwrap_or(0.0));
    match major {
        Some(4.0) => {}
        Some(major) => bail!(
            "{name} has notebook format {major}.{minor}; lacuna reads format 4. Open and save it in Jupyter to convert it"
        ),
        None => bail!("{name} is not a notebook: it does not say \"nbformat\": 4"),
    }
    let cells = raw["cells"].as_array();
    Ok(cells.with_context(|| format!("{name} is not a notebook: it has no list of cells"))?)
}

fn language(metadata: &Map<String, Value>) -> Option<String> {
    let text = |object: &str, key: &str| Some(metadata.get(object)?.get(key)?.as_str()?.to_owned());
    text("language_info", "name").or_else(|| text("kernelspec", "language")).or_else(|| {
        // Some editors write the kernel's name only.
        let name = text("kernelspec", "name")?;
        Some(if matches!(name.as_str(), "rust" | "lacuna") { "rust".into() } else { name })
    })
}

fn outputs(count: i32, outcome: &Outcome) -> Vec<Value> {
    let mut outputs: Vec<Value> = outcome
        .outputs
        .iter()
        .map(|output| match output {
            Output::Text(stream, text) => json!({"output_type": "stream", "name": stream.name(), "text": lines(text)}),
            Output::Display(bundle) => json!({"output_type": "display_data", "data": in_lines(bundle), "metadata": {}}),
            Output::Result(bundle) => json!({
                "output_type": "execute_result", "execution_count": count, "data": in_lines(bundle), "metadata": {},
            }),
        })
        .collect();
    if let Some(CellError { kind, message }) = &outcome.error {
        let traceback: Vec<&str> = message.lines().collect();
        outputs.push(json!({"output_type": "error", "ename": kind.name(), "evalue": message, "traceback": traceback}));
    }
    outputs
}

/// A value as a notebook holds it: text in lines.
fn in_lines(bundle: &Bundle) -> Map<String, Value> {
    let mut data = contents(bundle);
    for (mime, value) in &mut data {
        let is_text = mime.starts_with("text/") || mime == mime::SVG || mime == "application/javascript";
        if is_text && let Some(text) = value.as_str() {
            *value = lines(text);
        }
    }
    data
}

/// A value as messages hold it: JSON types are structured, others are text.
///
/// JupyterLab shows `application/json` before anything else, as a tree; so a value's data go by a type that it leaves
/// alone, and the table beside them is what is seen.
pub(super) fn contents(bundle: &Bundle) -> Map<String, Value> {
    let content = |(mime, text): (&String, &String)| {
        let structured = mime == mime::JSON || mime.ends_with("+json");
        let name = if mime == mime::JSON { DATA } else { mime };
        let value = if structured { serde_json::from_str(text).ok() } else { None };
        (name.to_owned(), value.unwrap_or_else(|| Value::from(text.as_str())))
    };
    bundle.iter().map(content).collect()
}

/// [`mime::JSON`] in a notebook.
pub(super) const DATA: &str = "application/vnd.lacuna+json";

/// Writes a file in one piece: beside it, then renamed into its place.
///
/// # Errors
/// Fails when the file cannot be written; the file that was there before is then still there.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    // Behind a link stands the file that is meant.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let write = || -> io::Result<()> {
        fs::create_dir_all(&directory)?;
        // What the umask leaves of it, as for any other file; tempfile's own default is private.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let mut file = tempfile::Builder::new().prefix(".lacuna-").permissions(mode).tempfile_in(&directory)?;
        // Before there is anything in it that not everybody may read.
        if let Ok(old) = target.metadata() {
            file.as_file().set_permissions(old.permissions())?;
        }
        io::Write::write_all(&mut file, bytes)?;
        file.as_file().sync_all()?;
        file.persist(&target)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Text of a notebook: one string, or a list of lines.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        value => value.as_str().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn written(value: &Value) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n.ipynb");
        fs::write(&path, value.to_string()).unwrap();
        (directory, path)
    }

    fn of_cells(cells: Value) -> Value {
        json!({"cells": cells, "metadata": {"language_info": {"name": "rust"}}, "nbformat": 4, "nbformat_minor": 5})
    }

    /// Committed reports come out as they are: with the outputs that they hold, and as Jupyter formats them.
    #[test]
    fn executed_notebooks_keep_their_form() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports");
        let mut seen = 0;
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_none_or(|extension| extension != "ipynb") {
                continue;
            }
            let mut document = Document::read(&path).unwrap();
            let raw = read_json(&path).unwrap();
            for (index, cell) in raw["cells"].as_array().unwrap().iter().enumerate() {
                if let Some(count) = cell["execution_count"].as_i64() {
                    document.set_outcome(index, count as i32, &super::super::stored::outcome(cell));
                }
            }
            let (new, old) =
                (String::from_utf8(document.executed().unwrap()).unwrap(), fs::read_to_string(&path).unwrap());
            let differs = new.lines().zip(old.lines()).find(|(new, old)| new != old);
            assert!(new == old, "{}: {differs:?}", path.display());
            seen += 1;
        }
        assert!(seen > 0);
    }

    #[test]
    fn what_jupyter_reads_is_a_notebook() {
        let long = "x".repeat(100);
        let cells = json!([
            {"cell_type": "code", "id": "a", "metadata": {"scrolled": "auto", "collapsed": "no", "tags": "skip"}, "source": "1",
             "outputs": [{"output_type": "pyout", "x": 1}, null, 3], "execution_count": "many"},
            {"cell_type": "code", "id": "a", "metadata": null, "source": ["1\n", "2"], "outputs": null},
            {"cell_type": "markdown", "id": "a=b", "source": null, "attachments": {"p.png": {"image/png": "AA=="}}},
            {"cell_type": "code", "id": long},
            {"cell_type": "code", "id": long},
            {"cell_type": "raw", "id": 7, "metadata": [], "more": {}},
            {"cell_type": "code", "id": "ä b"},
            {"cell_type": "code", "id": ""},
        ]);
        for minor in [json!(0), json!(5), json!(17), json!(5.0), Value::Null, json!("five")] {
            let mut value = of_cells(cells.clone());
            value["nbformat_minor"] = minor;
            let (_directory, path) = written(&value);
            let document = Document::read(&path).unwrap();
            let ids: Vec<&str> = (0..8).map(|index| document.id(index)).collect();
            let (x, y) = ("x".repeat(64), format!("{}-2", "x".repeat(62)));
            assert_eq!(ids, ["a", "a-2", "a-b", &x, &y, "cell-6", "--b", "cell-8"]);
            assert_eq!(document.repairs.len(), 5, "{:?}", document.repairs);
            assert_eq!(
                document.repairs[0],
                "the id `a` of cell 2 is that of another cell, too; the cell is run as `a-2`"
            );
            assert!(document.repairs[1].starts_with("the id `a=b` of cell 3 is none in notebooks"));
            assert_eq!(document.source(1), "1\n2");
            let executed: Value = serde_json::from_slice(&document.executed().unwrap()).unwrap();
            assert_eq!(executed["cells"][0]["metadata"]["scrolled"], "auto");
            assert_eq!(executed["cells"][0]["outputs"], json!([]));
            assert_eq!(executed["cells"][2]["attachments"]["p.png"]["image/png"], "AA==");
            assert_eq!(executed["cells"][5]["metadata"], json!({}));
        }
    }

    #[test]
    fn what_is_no_notebook_says_why() {
        for (value, expected) in [
            (json!([1]), "does not say \"nbformat\": 4"),
            (json!({"nbformat": "4", "cells": []}), "does not say"),
            (json!({"nbformat": 3, "nbformat_minor": 0, "worksheets": []}), "format 3.0"),
            (json!({"nbformat": 5, "nbformat_minor": 1, "cells": []}), "format 5.1"),
            (json!({"nbformat": 4}), "no list of cells"),
            (json!({"nbformat": 4, "cells": {}}), "no list of cells"),
            (of_cells(json!([[]])), "cell 1 is no JSON object"),
            (of_cells(json!([{"source": "1"}])), "cell 1 has the cell_type null"),
            (of_cells(json!([{"cell_type": "heading"}])), "cell 1 has the cell_type \"heading\""),
            (of_cells(json!([{"cell_type": "code", "source": ["1", 2]}])), "the source of its cell 1 is no text"),
            (json!({"nbformat": 4, "cells": [], "metadata": 3}), "does not say its language"),
            (json!({"nbformat": 4, "cells": [], "metadata": {"kernelspec": {"name": "ir"}}}), "in ir"),
        ] {
            let (_directory, path) = written(&value);
            let error = format!("{:#}", Document::read(&path).unwrap_err());
            assert!(error.contains(expected) && error.contains("n.ipynb"), "{error}");
        }
        let (_directory, path) = written(&Value::Null);
        fs::write(&path, "[".repeat(100_000)).unwrap();
        assert!(format!("{:#}", Document::read(&path).unwrap_err()).contains("not JSON"));
    }

    #[test]
    fn cleaning_touches_nothing_else() {
        let text = "{\"nbformat\": 4.0, \"x\": 1.50e+3,\t\"cells\": [\n {\"cell_type\":\"code\", \"outputs\" : [ 1, {}], \
                    \"metadata\": {\"execution\": {\"a\": 1}, \"scrolled\": \"auto\"}, \"source\":\"\\u00e4 ä\", \
                    \"execution_count\":7 },\n {\"cell_type\":\"code\",\"id\":\"a=\"},\n {\"cell_type\": \"markdown\", \"outputs\": 3}],\r\n\
                    \"metadata\":{ \"lacuna\": {\"executed\": true} }} ";
        let expected = "{\"nbformat\": 4.0, \"x\": 1.50e+3,\t\"cells\": [\n {\"cell_type\":\"code\", \"outputs\" : [], \
                        \"metadata\": {\"scrolled\": \"auto\"}, \"source\":\"\\u00e4 ä\", \
                        \"execution_count\":null },\n {\"cell_type\":\"code\",\"id\":\"a=\"},\n {\"cell_type\": \"markdown\", \"outputs\": 3}],\r\n\
                        \"metadata\":{}} ";
        let (_directory, path) = written(&Value::Null);
        let utf16 = Encoding::Utf16 { is_big: false, has_mark: true };
        for encoding in [Encoding::Utf8(false), Encoding::Utf8(true), utf16] {
            fs::write(&path, encoding.encode(text)).unwrap();
            assert!(clean(&path).unwrap());
            assert_eq!(fs::read(&path).unwrap(), encoding.encode(expected), "{encoding:?}");
            assert!(!clean(&path).unwrap());
        }
    }

    #[test]
    fn any_output_goes_into_a_notebook_and_comes_back() {
        let bundle = |parts: &[(&str, &str)]| -> Bundle {
            parts.iter().map(|(mime, text)| ((*mime).to_owned(), (*text).to_owned())).collect()
        };
        let stdout = |text: &str| Output::Text(super::super::output::Stream::Stdout, text.to_owned());
        let outcome = Outcome {
            outputs: vec![
                stdout("a\nb"),
                Output::Display(bundle(&[("text/html", "<p>\n</p>"), ("application/json", "{\"b\":1,\"a\":2}")])),
                stdout("50%\r100%\n"),
                Output::Display(bundle(&[("image/webp", "AAAA"), ("application/vnd.plotly.v1+json", "{\"data\":[]}")])),
                Output::Result(bundle(&[
                    ("", "x"),
                    ("no mime at all", "y"),
                    ("audio/wav", "AAAA"),
                    ("text/latex", "$x$"),
                ])),
            ],
            ..Outcome::default()
        };
        let (_directory, path) = written(&of_cells(json!([{"cell_type": "code", "source": "1"}])));
        let mut document = Document::read(&path).unwrap();
        document.set_outcome(0, 1, &outcome);
        let executed: Value = serde_json::from_slice(&document.executed().unwrap()).unwrap();
        let back = super::super::stored::outcome(&executed["cells"][0]);
        let sorted = |outputs: &[Output]| -> Vec<Output> {
            // Keys of JSON are sorted in a notebook.
            let json = |bundle: &Bundle| -> BTreeMap<String, String> {
                let text = |mime: &str, text: &str| match mime.ends_with("json") {
                    true => {
                        let mut value: Value = serde_json::from_str(text).unwrap();
                        value.sort_all_objects();
                        value.to_string()
                    }
                    false => text.to_owned(),
                };
                bundle.iter().map(|(mime, of)| (mime.clone(), text(mime, of))).collect()
            };
            let output = |output: &Output| match output {
                Output::Text(stream, text) => Output::Text(*stream, text.clone()),
                Output::Display(bundle) => Output::Display(json(bundle)),
                Output::Result(bundle) => Output::Result(json(bundle)),
            };
            outputs.iter().map(output).collect()
        };
        assert_eq!(sorted(&back.outputs), sorted(&outcome.outputs));
    }
}
