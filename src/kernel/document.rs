//! A notebook file: read with its format checked, cells filled with outputs, written in one piece.

use super::output::{Bundle, Output as Given};
use super::session::{CellError, Outcome};
use anyhow::{Context, Result, bail};
use lacuna::notebook::mime;
use nbformat::v4::{self, Cell, Output};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// A Rust notebook in memory.
#[derive(Debug)]
pub(crate) struct Document {
    /// The file's name without its extension.
    pub(crate) stem: String,
    notebook: v4::Notebook,
}

/// A cell's kind, as far as a report cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Markdown,
    Code,
    Raw,
}

impl Document {
    /// Reads a notebook of format 4, without its outputs.
    ///
    /// # Errors
    /// When the file cannot be read, is no notebook, or is not in Rust.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let mut raw = read_json(path)?;
        prepare(&mut raw);
        let notebook = parse(path, &raw)?;
        match language(&notebook.metadata) {
            Some(language) if language.eq_ignore_ascii_case("rust") => {}
            Some(language) => bail!("{name} is a notebook in {language}; lacuna runs notebooks in Rust"),
            None => bail!(
                "{name} does not say its language; lacuna runs notebooks in Rust, whose metadata hold \
                 \"language_info\": {{\"name\": \"rust\"}}"
            ),
        }
        let stem = path.file_stem().with_context(|| format!("{name} has no file name"))?.to_string_lossy().into_owned();
        Ok(Document { stem, notebook })
    }

    /// Kind and source of each cell, from the top.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (Kind, String)> {
        self.notebook.cells.iter().map(|cell| {
            let kind = match cell {
                Cell::Markdown { .. } => Kind::Markdown,
                Cell::Code { .. } => Kind::Code,
                Cell::Raw { .. } => Kind::Raw,
            };
            (kind, cell.source().concat())
        })
    }

    /// The source of a cell.
    pub(crate) fn source(&self, index: usize) -> String {
        self.notebook.cells[index].source().concat()
    }

    /// Whether the cell has the tag.
    pub(crate) fn has_tag(&self, index: usize, tag: &str) -> bool {
        let tags = self.notebook.cells[index].metadata().tags.as_ref();
        tags.is_some_and(|tags| tags.iter().any(|other| other == tag))
    }

    /// The code cells that have the tag.
    pub(crate) fn tagged(&self, tag: &str) -> Vec<usize> {
        let is_code = |index: &usize| matches!(self.notebook.cells[*index], Cell::Code { .. });
        (0..self.notebook.cells.len()).filter(is_code).filter(|index| self.has_tag(*index, tag)).collect()
    }

    /// Whether Jupyter shows the cell's source only when it is asked to.
    pub(crate) fn is_collapsed(&self, index: usize) -> bool {
        let jupyter = self.notebook.cells[index].metadata().jupyter.as_ref();
        jupyter.and_then(|jupyter| jupyter.source_hidden) == Some(true)
    }

    /// Takes out the code cells that have the tag.
    pub(crate) fn remove_tagged(&mut self, tag: &str) {
        for index in self.tagged(tag).into_iter().rev() {
            self.notebook.cells.remove(index);
        }
    }

    /// Puts a code cell before the one at `index`.
    ///
    /// # Errors
    /// When `id` cannot be a cell's id.
    pub(crate) fn insert_code(&mut self, index: usize, id: &str, tag: &str, source: &str) -> Result<()> {
        let taken = |id: &str| self.notebook.cells.iter().any(|cell| cell.id().as_str() == id);
        let id = std::iter::once(id.to_owned()).chain((2..).map(|n| format!("{id}-{n}"))).find(|id| !taken(id));
        let cell = json!({
            "cell_type": "code", "id": id, "metadata": {"tags": [tag]}, "source": source, "outputs": [],
            "execution_count": null,
        });
        self.notebook.cells.insert(index, serde_json::from_value(cell).context("cannot add a cell")?);
        Ok(())
    }

    /// The cell's id, which Jupyter shows in its file format only.
    pub(crate) fn id(&self, index: usize) -> &str {
        self.notebook.cells[index].id().as_str()
    }

    /// Gives code cell `index` what its run left; `count` is the number in `[count]` beside it.
    ///
    /// # Errors
    /// When a value has a MIME type or form that the notebook format does not know.
    pub(crate) fn set_outcome(&mut self, index: usize, count: i32, outcome: &Outcome) -> Result<()> {
        let new = outputs(count, outcome)?;
        if let Cell::Code { execution_count, outputs, .. } = &mut self.notebook.cells[index] {
            *execution_count = Some(count);
            *outputs = new;
        }
        Ok(())
    }

    /// The executed notebook as Jupyter writes it (sorted keys, one space of indentation), with a word that it is one.
    ///
    /// # Errors
    /// When it does not fit the format.
    pub(crate) fn executed(&self) -> Result<Vec<u8>> {
        let mut notebook = self.notebook.clone();
        notebook.metadata.additional.insert(EXECUTED.into(), executed_mark());
        let text = nbformat::serialize_notebook(&nbformat::Notebook::V4(notebook));
        Ok(text.with_context(|| format!("cannot write {}.ipynb", self.stem))?.into_bytes())
    }
}

/// The key in the metadata of a notebook that a run wrote.
pub(super) const EXECUTED: &str = "lacuna";

fn executed_mark() -> Value {
    json!({"executed": true})
}

/// Whether a run wrote the notebook at `path`.
pub(super) fn is_executed(path: &Path) -> bool {
    path.is_file() && read_json(path).is_ok_and(|notebook| notebook["metadata"][EXECUTED] == executed_mark())
}

/// Takes the outputs out of a notebook of any language. A file without any is left as it is; says whether one was written.
///
/// # Errors
/// When the file cannot be read or written, or is no notebook.
pub(crate) fn clean(path: &Path) -> Result<bool> {
    let mut raw = read_json(path)?;
    parse(path, &raw)?;
    let before = raw.clone();
    for cell in raw.get_mut("cells").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(cell) = cell.as_object_mut().filter(|cell| cell.get("cell_type") == Some(&json!("code"))) else {
            continue;
        };
        // In place, so that the order of keys stays.
        cell.insert("outputs".into(), json!([]));
        cell.insert("execution_count".into(), Value::Null);
        if let Some(metadata) = cell.get_mut("metadata").and_then(Value::as_object_mut) {
            // When JupyterLab ran it.
            metadata.shift_remove("execution");
        }
    }
    if let Some(metadata) = raw.get_mut("metadata").and_then(Value::as_object_mut)
        && metadata.get(EXECUTED) == Some(&executed_mark())
    {
        metadata.shift_remove(EXECUTED);
    }
    if raw == before {
        return Ok(false);
    }
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    raw.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    bytes.push(b'\n');
    write_file(path, &bytes)?;
    Ok(true)
}

pub(super) fn read_json(path: &Path) -> Result<Value> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    serde_json::from_str(&text).with_context(|| format!("{name} is not a notebook: it is not JSON"))
}

fn parse(path: &Path, raw: &Value) -> Result<v4::Notebook> {
    let name = path.display();
    let parsed = nbformat::parse_notebook(&raw.to_string()).map_err(|error| match error {
        nbformat::NotebookError::UnsupportedVersion(major, minor) => anyhow::anyhow!(
            "{name} has notebook format {major}.{minor}; lacuna reads 4.0 to 4.5. Open and save it in Jupyter to convert it"
        ),
        error => anyhow::anyhow!("{name} is not a notebook: {error}"),
    })?;
    Ok(match parsed {
        nbformat::Notebook::V4(notebook) => notebook,
        nbformat::Notebook::V4QuirksMode(quirks) => quirks.repair(),
        nbformat::Notebook::Legacy(old) => {
            nbformat::upgrade_legacy_notebook(old).with_context(|| format!("{name} is not a notebook"))?
        }
        _ => bail!("{name} has an old notebook format; open and save it in Jupyter to convert it"),
    })
}

/// Removes outputs, which are not read, and gives cells without an id one that is the same in every run.
fn prepare(raw: &mut Value) {
    let Some(cells) = raw.get_mut("cells").and_then(Value::as_array_mut) else { return };
    for (number, cell) in (1..).zip(cells) {
        let Some(cell) = cell.as_object_mut() else { continue };
        if cell.get("cell_type").and_then(Value::as_str) == Some("code") {
            cell.insert("outputs".into(), json!([]));
            cell.insert("execution_count".into(), Value::Null);
        }
        if cell.get("id").and_then(Value::as_str).is_none_or(str::is_empty) {
            cell.insert("id".into(), json!(format!("cell-{number}")));
        }
    }
}

fn language(metadata: &v4::Metadata) -> Option<String> {
    let info = metadata.language_info.as_ref().map(|info| info.name.clone());
    let kernel = metadata.kernelspec.as_ref();
    info.or_else(|| kernel.and_then(|kernel| kernel.language.clone())).or_else(|| {
        // Some editors write the kernel's name only.
        let name = kernel?.name.as_str();
        Some(if matches!(name, "rust" | "lacuna") { "rust".into() } else { name.to_owned() })
    })
}

fn outputs(count: i32, outcome: &Outcome) -> Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for output in &outcome.outputs {
        outputs.push(match output {
            Given::Text(stream, text) => json!({"output_type": "stream", "name": stream.name(), "text": text}),
            Given::Display(bundle) => {
                json!({"output_type": "display_data", "data": contents(bundle), "metadata": {}})
            }
            Given::Result(bundle) => json!({
                "output_type": "execute_result", "execution_count": count, "data": contents(bundle), "metadata": {},
            }),
        });
    }
    if let Some(CellError { kind, message }) = &outcome.error {
        let traceback: Vec<&str> = message.lines().collect();
        outputs.push(json!({"output_type": "error", "ename": kind.name(), "evalue": message, "traceback": traceback}));
    }
    outputs
        .into_iter()
        .map(|output| serde_json::from_value(output).context("the cell's output does not fit a notebook"))
        .collect()
}

/// A value as a notebook holds it.
pub(super) fn contents(bundle: &Bundle) -> Map<String, Value> {
    bundle.iter().map(|(mime, text)| content(mime, text)).collect()
}

/// A representation as a notebook holds it: JSON types are structured, others are text.
///
/// JupyterLab shows `application/json` before anything else, as a tree; so a value's data go by a type that it leaves
/// alone, and the table beside them is what is seen.
fn content(mime: &str, text: &str) -> (String, Value) {
    let structured = mime == mime::JSON || mime.ends_with("+json");
    let name = if mime == mime::JSON { DATA } else { mime };
    let value = if structured { serde_json::from_str(text).ok() } else { None };
    (name.to_owned(), value.unwrap_or_else(|| Value::from(text)))
}

/// [`mime::JSON`] in a notebook.
pub(super) const DATA: &str = "application/vnd.lacuna+json";

/// Writes a file in one piece: beside it, then renamed into its place.
///
/// # Errors
/// When the file cannot be written; what was there before is then still there.
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
