//! The kind and rows of a text file, by its content and not by its name.

use super::{END_OF_TEXT, extension, parquet};
use crate::error::{Error, Problem, Remedy, Result};
use serde_json::Value;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

/// A text file, read: documents, or windows of token ids.
#[derive(Clone, PartialEq)]
pub struct TextFile {
    pub(super) path: PathBuf,
    pub(super) content: Content,
    /// Lines that could not be read and were left out, from 1.
    pub skipped: Vec<usize>,
    /// The unit of `skipped`: a `line`, or a `row` of a list or table.
    pub unit: &'static str,
}

crate::debug::one_line!(TextFile, |text| {
    let holds = match &text.content {
        Content::Documents(documents) => format!("{} documents", documents.len()),
        Content::Windows(windows) => format!("{} windows of token ids", windows.len()),
    };
    format!("TextFile({}: {holds})", text.path.display())
});

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// Without white space around them; none is empty.
    Documents(Vec<String>),
    /// Token ids, a row a window.
    Windows(Vec<Vec<u32>>),
}

impl TextFile {
    /// Reads a file of text, or of windows of token ids, in any form that [`crate::text`] names. A line or row that cannot be
    /// read is an error, or is left out where `skip_bad_lines` says so.
    ///
    /// # Errors
    /// Fails when the file cannot be read, holds no text, or has a bad line.
    pub fn read(path: impl AsRef<Path>, skip_bad_lines: bool) -> Result<Self> {
        let path = path.as_ref();
        let input = read(path, Some(&["text", "input_ids"]))?;
        let unit = if let Input::Rows(rows) = &input { rows.unit } else { "line" };
        let (content, skipped) = match input {
            Input::Text(text) => (Content::Documents(plain_documents(&text)), Vec::new()),
            Input::Rows(rows) => content(path, rows, skip_bad_lines)?,
        };
        let empty = match &content {
            Content::Documents(documents) => documents.is_empty(),
            Content::Windows(windows) => windows.is_empty(),
        };
        if empty {
            let skipped = if skipped.is_empty() { String::new() } else { format!(" ({} bad {unit}s)", skipped.len()) };
            let problem =
                format!("holds no text and no window{skipped}").remedy("give a file with at least one window of it");
            return Err(Error::file(path, problem));
        }
        Ok(TextFile { path: path.to_path_buf(), content, skipped, unit })
    }

    /// Tokens of a window, where the file holds windows of token ids; text has windows of any length.
    pub fn seqlen(&self) -> Option<usize> {
        match &self.content {
            Content::Documents(_) => None,
            Content::Windows(windows) => windows.first().map(Vec::len),
        }
    }
}

/// A text file that was read, by what its content is.
pub(crate) enum Input {
    /// JSON or a table.
    Rows(Rows),
    /// Anything else.
    Text(String),
}

/// The rows of a file.
pub(crate) struct Rows {
    /// The unit of a row's number: a `line`, or a `row` of a list or table.
    pub(crate) unit: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// One row: its number from 1; a row that cannot be read says why.
pub(crate) type Row = (usize, std::result::Result<Value, String>);

/// Reads a file for what it is; of a table only `columns`, of which it must have one.
///
/// # Errors
/// Fails when the file cannot be read; formats that are not known are named.
pub(crate) fn read(path: &Path, columns: Option<&[&str]>) -> Result<Input> {
    let bytes = unpacked(path)?;
    if bytes.starts_with(parquet::MAGIC) {
        let problem = |problem| match problem {
            parquet::Problem::Damaged => "is a parquet file that is cut short or damaged".remedy("fetch it again"),
            parquet::Problem::Missing(problem) => {
                format!("is a parquet file that {problem}").remedy("rename the one that is meant, or give another file")
            }
            parquet::Problem::Unread(problem) => format!("is a parquet file that {problem}").remedy(
                "make JSON lines of it, with `python3 -c \"import pandas as \
                 p;p.read_parquet('FILE.parquet').to_json('FILE.jsonl',orient='records',lines=True)\"`",
            ),
        };
        let rows = parquet::rows(&bytes, columns).map_err(|found| Error::file(path, problem(found)))?;
        return Ok(Input::Rows(Rows { unit: "row", rows: counted(rows) }));
    }
    let text = utf8(path, bytes)?;
    Ok(match rows(path, &text)? {
        Some(rows) => Input::Rows(rows),
        None => Input::Text(text),
    })
}

/// The text of a file, decompressed, without a byte order mark.
///
/// # Errors
/// Fails when the file cannot be read or is not UTF-8; formats that hold no plain text are named.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    utf8(path, unpacked(path)?)
}

/// The bytes of a file, decompressed.
fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    // A compressed file may have been compressed twice; more would be a trap.
    for _ in 0..2 {
        let mut plain = Vec::new();
        let unpacked = if bytes.starts_with(&[0x1f, 0x8b]) {
            flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut plain).map(drop).map_err(|_| "gzip")
        } else if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            zstd(&bytes, &mut plain).map(drop).map_err(|_| "zstd")
        } else {
            break;
        };
        if let Err(format) = unpacked {
            let problem = format!("is a {format} file that is cut short or damaged").remedy("fetch it again");
            return Err(Error::file(path, problem));
        }
        bytes = plain;
    }
    Ok(bytes)
}

fn utf8(path: &Path, mut bytes: Vec<u8>) -> Result<String> {
    if let Some(problem) = no_text(&bytes) {
        return Err(Error::file(path, problem));
    }
    if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::file(path, format!("is not UTF-8 (byte {at})").remedy("convert it, for instance with `iconv -t utf-8`"))
    })
}

/// Every frame of a zstd file.
fn zstd(bytes: &[u8], plain: &mut Vec<u8>) -> std::io::Result<()> {
    let mut rest = Cursor::new(bytes);
    while (rest.position() as usize) < bytes.len() {
        let mut frame = ruzstd::decoding::StreamingDecoder::new(&mut rest).map_err(std::io::Error::other)?;
        frame.read_to_end(plain)?;
    }
    Ok(())
}

/// Names the format of bytes that are no text in UTF-8, and the remedy.
fn no_text(bytes: &[u8]) -> Option<Problem> {
    let utf16 = |name: &str, code: &str| {
        Some(format!("is {name}, not UTF-8").remedy(format!("convert it with `iconv -f {code} -t utf-8 FILE > NEW`")))
    };
    let packed = |name: &str, command: &str| {
        Some(format!("is packed with {name}").remedy(format!("unpack it first, with `{command}`")))
    };
    let zeros = |first: usize| {
        let head = &bytes[..bytes.len().min(64)];
        head.len() >= 4 && head.iter().skip(first).step_by(2).filter(|&&byte| byte == 0).count() * 4 > head.len()
    };
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => utf16("UTF-32", "utf-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => utf16("UTF-16", "utf-16"),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => Some(
            "is an Arrow file, which is not read here".remedy("save the data set as JSON lines (`Dataset.to_json`)"),
        ),
        [b'P', b'K', 3, 4, ..] => packed("zip", "unzip"),
        [b'B', b'Z', b'h', ..] => packed("bzip2", "bunzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => packed("xz", "unxz"),
        _ if bytes.starts_with(b"version https://git-lfs.github.com/spec/") => {
            Some("is a pointer of Git LFS and not the file itself".remedy("fetch that, with `git lfs pull`"))
        }
        _ if zeros(1) && !zeros(0) => utf16("UTF-16 without a mark", "utf-16le"),
        _ if zeros(0) && !zeros(1) => utf16("UTF-16 without a mark", "utf-16be"),
        _ => None,
    }
}

/// The name that says what a file holds, without the endings of compression.
fn ending(path: &Path) -> String {
    let mut path = path.to_path_buf();
    while ["gz", "zst", "zstd", "gzip"].contains(&extension(&path).as_str()) {
        path.set_extension("");
    }
    extension(&path)
}

/// The rows of a JSON file: of JSON lines, of a list, or the one object. `None` for what is plain text.
///
/// # Errors
/// Fails when the file is called JSON and is none as a whole.
fn rows(path: &Path, text: &str) -> Result<Option<Rows>> {
    let ending = ending(path);
    let called_lines = ["jsonl", "ndjson", "jsonlines"].contains(&ending.as_str());
    let called_json = called_lines || ending == "json";
    let start = text.trim_start();
    if !called_json && !start.starts_with(['{', '[']) {
        return Ok(None);
    }
    let parsed = |line: &str| serde_json::from_str::<Value>(line);
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    // A bad line at the beginning does not make something else of the others.
    let beginning = || lines().take(8).filter_map(|(_, line)| parsed(line).ok());
    let first = start.lines().next().unwrap_or_default().trim();
    let closed = (first.starts_with('{') && first.ends_with('}')) || (first.starts_with('[') && first.ends_with(']'));
    let by_line = || closed || (first.starts_with('{') && beginning().any(|value| value.is_object()));
    let whole: std::result::Result<Value, _> = serde_json::from_str(text);
    let ours = |value: &Value| match value {
        Value::Object(fields) => ["text", "input_ids", "rows"].iter().any(|&field| fields.contains_key(field)),
        Value::Array(list) => list.first().is_some_and(|first| first.is_array() || first.is_object()),
        _ => false,
    };
    match whole {
        // Text that happens to be JSON, such as a number in brackets.
        Ok(value) if !called_json && !ours(&value) => Ok(None),
        Ok(value) => {
            let rows = list(value);
            let one_line = rows.rows.len() == 1 && text.trim().lines().count() == 1;
            Ok(Some(if one_line { Rows { unit: "line", ..rows } } else { rows }))
        }
        Err(_) if !called_json && !beginning().any(|value| ours(&value)) => Ok(None),
        Err(_) if called_lines || by_line() => {
            let row = |(i, line): (usize, &str)| (i + 1, parsed(line).map_err(|error| not_json(line, &error)));
            Ok(Some(Rows { unit: "line", rows: lines().map(row).collect() }))
        }
        Err(_) if !called_json => Ok(None),
        Err(_) if text.trim().is_empty() => Ok(Some(Rows { unit: "line", rows: Vec::new() })),
        Err(error) => {
            let problem = "is no JSON: neither a list, nor an object, nor one of them on each line";
            let place = format!("line {}, column {}", error.line(), error.column());
            Err(Error::file(path, format!("{problem}; what is wrong begins at {place}")))
        }
    }
}

/// The rows of a list; of `{"rows": [{"row": ...}, ...]}`, as the hub's viewer gives them; or the one value.
fn list(value: Value) -> Rows {
    let rows = match value {
        // A row of numbers is a window, not a list of rows.
        Value::Array(list) if !list.iter().all(Value::is_number) => list,
        Value::Array(list) if list.is_empty() => list,
        Value::Object(mut fields) => match fields.get_mut("rows") {
            Some(Value::Array(rows)) => {
                rows.drain(..).map(|mut row| row.get_mut("row").map(Value::take).unwrap_or(row)).collect()
            }
            _ => vec![Value::Object(fields)],
        },
        other => vec![other],
    };
    Rows { unit: "row", rows: counted(rows) }
}

fn counted(rows: Vec<Value>) -> Vec<Row> {
    rows.into_iter().enumerate().map(|(i, row)| (i + 1, Ok(row))).collect()
}

/// A sentence on what is wrong with a line that is no JSON.
fn not_json(line: &str, error: &serde_json::Error) -> String {
    let (at, message) = (error.column().max(1), error.to_string());
    let what = if error.is_eof() {
        "it ends in the middle"
    } else if message.contains("surrogate") || message.contains("hex escape") {
        "a `\\u` escape is half a character, as when a text is cut inside an emoji"
    } else if message.contains("control character") {
        "a control character stands in a text"
    } else if ["NaN", "Infinity", "-Infinity"].iter().any(|name| line.get(at - 1..).unwrap_or("").starts_with(name)) {
        "NaN and Infinity are no JSON"
    } else {
        "something is missing there, or stands where it cannot"
    };
    format!("is not JSON (column {at}: {what})")
}

/// Documents or windows out of rows, and the lines that were skipped.
fn content(path: &Path, Rows { unit, rows }: Rows, skip: bool) -> Result<(Content, Vec<usize>)> {
    let count = rows.len();
    let (mut documents, mut windows, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    for (line, row) in rows {
        match row.and_then(part) {
            Ok(Content::Documents(texts)) => documents.extend(texts),
            Ok(Content::Windows(ids)) => windows.extend(ids),
            Err(problem) => bad.push((line, problem)),
        }
    }
    if let Some((line, problem)) = bad.first().filter(|_| !skip) {
        let more = match bad.len() {
            1 => format!("the only one of {count} that is bad"),
            n => format!("{n} of {count} are bad"),
        };
        let problem = format!("{unit} {line}: {problem} ({more})")
            .remedy(format!("mend it, or leave such {unit}s out with --skip-bad-lines"));
        return Err(Error::file(path, problem));
    }
    let lines = bad.into_iter().map(|(line, _)| line).collect();
    match (documents.is_empty(), windows.is_empty()) {
        (_, true) => Ok((Content::Documents(documents), lines)),
        (true, false) => Ok((Content::Windows(windows), lines)),
        (false, false) => Err(Error::file(path, "has both texts and windows of token ids".remedy("keep one kind"))),
    }
}

/// The content of one row.
fn part(row: Value) -> std::result::Result<Content, String> {
    let wanted = "wanted is an object with a text in the field `text`, or a window of token ids, `[1, 2, ...]` or \
                  `{\"input_ids\": ...}`";
    match row {
        Value::Object(fields) => match (fields.get("text"), fields.get("input_ids")) {
            (Some(Value::String(text)), _) if text.trim().is_empty() => Ok(Content::Documents(Vec::new())),
            (Some(Value::String(text)), _) => Ok(Content::Documents(vec![text.trim().to_owned()])),
            (Some(_), _) => Err("its field `text` is no text".into()),
            (None, Some(Value::Array(rows))) if rows.iter().any(Value::is_array) => {
                rows.iter().map(window).collect::<std::result::Result<_, _>>().map(Content::Windows)
            }
            (None, Some(ids)) => window(ids).map(|ids| Content::Windows(vec![ids])),
            (None, None) => {
                let has: Vec<&str> = fields.keys().map(String::as_str).take(8).collect();
                Err(format!("has no string field `text`, but {has:?}; {wanted}"))
            }
        },
        Value::String(text) if text.trim().is_empty() => Ok(Content::Documents(Vec::new())),
        Value::String(text) => Ok(Content::Documents(vec![text.trim().to_owned()])),
        ids @ Value::Array(_) => window(&ids).map(|ids| Content::Windows(vec![ids])),
        _ => Err(format!("is neither text nor a window; {wanted}")),
    }
}

/// A row of token ids.
fn window(ids: &Value) -> std::result::Result<Vec<u32>, String> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = ids.as_array().ok_or("holds no windows of token ids: a row is no list")?;
    ids.iter()
        .map(|value| id(value).ok_or_else(|| format!("holds no windows of token ids: {value} is no id")))
        .collect()
}

fn plain_documents(text: &str) -> Vec<String> {
    // Lines that end as Windows ends them give the same tokens.
    let text = text.replace("\r\n", "\n");
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if line.trim() == END_OF_TEXT {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
        }
    }
    documents.into_iter().map(|document| document.trim().to_owned()).filter(|document| !document.is_empty()).collect()
}
