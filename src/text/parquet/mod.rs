//! Rows of a parquet file, the form in which the hub keeps data sets, as JSON values. It is read here and not by a library
//! because text and small tables need little of the format: any nesting, the encodings and the compressions that writers use
//! by default (and no statistics, filters, encryption or decimals), out of a file that is trusted in nothing.

mod page;
mod thrift;

use page::{Entries, Leaf, column};
use serde_json::{Map, Value};
use thrift::Fields;

/// The bytes that a parquet file begins and ends with.
pub(super) const MAGIC: &[u8] = b"PAR1";
const DAMAGED: Problem = Problem::Damaged;
/// Groups within groups.
const DEPTH: usize = 24;

/// A problem of a file, as a sentence without its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// It is cut short, or its bytes make no sense.
    Damaged,
    /// It uses a part of the format that is not read here.
    Unread(String),
    /// It has none of the columns that are wanted.
    Missing(String),
}

type Found<T> = Result<T, Problem>;

/// The bytes that are still to be read.
#[derive(Clone, Copy)]
struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, count: usize) -> Found<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DAMAGED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Found<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// A little-endian number of at most 8 bytes.
    fn le(&mut self, size: usize) -> Found<u64> {
        Ok(self.take(size)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn varint(&mut self) -> Found<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(DAMAGED)
    }

    fn length(&mut self) -> Found<usize> {
        usize::try_from(self.varint()?).map_err(|_| DAMAGED)
    }

    fn zigzag(&mut self) -> Found<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

/// A column or a group of them.
struct Node {
    name: String,
    repeated: bool,
    /// Levels at which it is there, and at which it repeats.
    definition: u32,
    repetition: u32,
    form: Form,
}

enum Form {
    /// Its place among all leaves.
    Leaf(usize),
    /// True for a list: a group around a repeated element.
    Group { list: bool, children: Vec<Node> },
}

/// The rows of a file as objects. With `columns` only those are read, and one of them must be there.
pub(super) fn rows(file: &[u8], columns: Option<&[&str]>) -> Found<Vec<Value>> {
    let footer = file.len().checked_sub(8).filter(|_| file.starts_with(MAGIC)).ok_or(DAMAGED)?;
    let mut tail = Bytes(&file[footer..]);
    let length = tail.le(4)? as usize;
    match tail.0 {
        MAGIC => {}
        b"PARE" => return Err(Problem::Unread("is encrypted".into())),
        _ => return Err(DAMAGED),
    }
    let start = footer.checked_sub(length).ok_or(DAMAGED)?;
    let meta = Fields::read(&mut Bytes(&file[start..footer]))?;
    let mut leaves = Vec::new();
    let mut elements = meta.list(2)?.into_iter();
    let root = elements.next().ok_or(DAMAGED)?;
    let children = root.count(5)?;
    let mut roots = nodes(&mut elements, children, (0, 0), &mut leaves, DEPTH)?;
    if let Some(wanted) = columns {
        let there: Vec<String> = roots.iter().map(|node| node.name.clone()).take(12).collect();
        roots.retain(|node| wanted.contains(&node.name.as_str()));
        if roots.is_empty() {
            return Err(Problem::Missing(format!("has no column `{}`, but {there:?}", wanted.join("` or `"))));
        }
    }
    let mut wanted = vec![false; leaves.len()];
    roots.iter().for_each(|node| mark(node, &mut wanted));
    if !wanted.contains(&true) {
        return Err(Problem::Missing("has no column".into()));
    }
    let mut rows = Vec::new();
    for group in meta.list(4)? {
        let chunks = group.list(1)?;
        if chunks.len() != leaves.len() {
            return Err(DAMAGED);
        }
        let mut cursors = Vec::new();
        for ((chunk, leaf), wanted) in chunks.into_iter().zip(&leaves).zip(&wanted) {
            let meta = chunk.fields(3).ok_or(DAMAGED)?;
            let entries = if *wanted { column(file, meta, *leaf)? } else { Entries::default() };
            cursors.push(Cursor::new(entries));
        }
        for _ in 0..group.count(3)? {
            rows.push(object(&roots, &mut cursors)?);
        }
        if cursors.iter().any(|cursor| cursor.at < cursor.definition.len()) {
            return Err(DAMAGED);
        }
    }
    Ok(rows)
}

/// The next `count` nodes of the schema, which is written in order of depth first; levels are those of their parent.
fn nodes<'f>(
    elements: &mut impl Iterator<Item = &'f Fields<'f>>,
    count: usize,
    (definition, repetition): (u32, u32),
    leaves: &mut Vec<Leaf>,
    depth: usize,
) -> Found<Vec<Node>> {
    let inner = depth.checked_sub(1).ok_or(DAMAGED)?;
    let mut all = Vec::new();
    for _ in 0..count {
        let element = elements.next().ok_or(DAMAGED)?;
        let kind = element.int(3).unwrap_or_default();
        let repeated = kind == 2;
        let levels = (definition + u32::from(kind != 0), repetition + u32::from(repeated));
        let form = match element.int(5) {
            Some(children) if children > 0 => {
                let list = element.int(6) == Some(3) || element.fields(10).is_some_and(|kind| kind.fields(3).is_some());
                let children = usize::try_from(children).map_err(|_| DAMAGED)?;
                Form::Group { list, children: nodes(elements, children, levels, leaves, inner)? }
            }
            _ => {
                let kind = element.int(1).ok_or(DAMAGED)?;
                leaves.push(Leaf { kind, max_definition: levels.0, max_repetition: levels.1 });
                Form::Leaf(leaves.len() - 1)
            }
        };
        let name = element.text(4).ok_or(DAMAGED)?.to_owned();
        all.push(Node { name, repeated, definition: levels.0, repetition: levels.1, form });
    }
    Ok(all)
}

fn mark(node: &Node, leaves: &mut [bool]) {
    match &node.form {
        Form::Leaf(leaf) => leaves[*leaf] = true,
        Form::Group { children, .. } => children.iter().for_each(|child| mark(child, leaves)),
    }
}

/// A column and how far it has been read.
struct Cursor {
    repetition: Vec<u32>,
    definition: Vec<u32>,
    at: usize,
    values: std::vec::IntoIter<Value>,
}

impl Cursor {
    fn new(Entries { repetition, definition, values }: Entries) -> Cursor {
        Cursor { repetition, definition, at: 0, values: values.into_iter() }
    }

    /// The level down to which the next entry is there.
    fn definition(&self) -> Found<u32> {
        self.definition.get(self.at).copied().ok_or(DAMAGED)
    }

    fn next(&mut self, deepest: u32) -> Found<Value> {
        let definition = self.definition()?;
        self.at += 1;
        if definition < deepest { Ok(Value::Null) } else { self.values.next().ok_or(DAMAGED) }
    }
}

impl Node {
    /// The first column below it, whose levels speak for all of them.
    fn first(&self) -> usize {
        match &self.form {
            Form::Leaf(leaf) => *leaf,
            Form::Group { children, .. } => children[0].first(),
        }
    }

    /// Passes what is not there.
    fn skip(&self, cursors: &mut [Cursor]) -> Found<()> {
        match &self.form {
            Form::Leaf(leaf) => cursors[*leaf].next(u32::MAX).map(drop),
            Form::Group { children, .. } => children.iter().try_for_each(|child| child.skip(cursors)),
        }
    }

    /// The next value: a list of what repeats.
    fn value(&self, cursors: &mut [Cursor]) -> Found<Value> {
        if !self.repeated {
            return self.one(cursors);
        }
        let first = self.first();
        if cursors[first].definition()? < self.definition {
            self.skip(cursors)?;
            return Ok(Value::Array(Vec::new()));
        }
        let mut list = vec![self.one(cursors)?];
        while cursors[first].repetition.get(cursors[first].at) == Some(&self.repetition) {
            list.push(self.one(cursors)?);
        }
        Ok(Value::Array(list))
    }

    fn one(&self, cursors: &mut [Cursor]) -> Found<Value> {
        match &self.form {
            Form::Leaf(leaf) => cursors[*leaf].next(self.definition),
            Form::Group { .. } if cursors[self.first()].definition()? < self.definition => {
                self.skip(cursors)?;
                Ok(Value::Null)
            }
            Form::Group { list: true, children } if matches!(&children[..], [child] if child.repeated) => {
                let [child] = &children[..] else { return Err(DAMAGED) };
                let value = child.value(cursors)?;
                // What repeats is a group around the element, but in files of old, where it is the element.
                let Form::Group { children: inner, .. } = &child.form else { return Ok(value) };
                let [element] = &inner[..] else { return Ok(value) };
                if child.name == "array" || child.name == format!("{}_tuple", self.name) {
                    return Ok(value);
                }
                let Value::Array(list) = value else { return Err(DAMAGED) };
                let unwrap = |mut value: Value| value.get_mut(&element.name).map(Value::take).unwrap_or_default();
                Ok(Value::Array(list.into_iter().map(unwrap).collect()))
            }
            Form::Group { children, .. } => object(children, cursors),
        }
    }
}

fn object(nodes: &[Node], cursors: &mut [Cursor]) -> Found<Value> {
    let field = |node: &Node| Ok((node.name.clone(), node.value(cursors)?));
    nodes.iter().map(field).collect::<Found<Map<String, Value>>>().map(Value::Object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/data/text/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn expected() -> Vec<Value> {
        serde_json::from_slice(&file("rows.json")).unwrap()
    }

    /// Files that pyarrow wrote with other compressions, pages and encodings (`tests/data/make_text_fixtures.py`).
    #[test]
    fn rows_are_those_of_pyarrow() {
        for name in ["snappy", "groups", "zstd2", "deltas", "plain"] {
            let rows = rows(&file(&format!("{name}.parquet")), None).unwrap();
            assert_eq!(rows.len(), 23, "{name}");
            for (row, expected) in rows.iter().zip(expected()) {
                assert_eq!(*row, expected, "{name}");
            }
        }
    }

    #[test]
    fn columns_that_are_not_wanted_are_not_read() {
        let wanted: Vec<Value> = expected()
            .iter()
            .map(|row| Value::Object(Map::from_iter([("text".into(), row["text"].clone())])))
            .collect();
        // In the second the column of numbers has an encoding that is not read.
        for name in ["snappy.parquet", "split.parquet"] {
            assert_eq!(rows(&file(name), Some(&["text", "input_ids"])), Ok(wanted.clone()));
        }
        let problem = |name: &str, columns| rows(&file(name), columns).unwrap_err();
        let Problem::Missing(missing) = problem("snappy.parquet", Some(&["content"])) else { panic!("it is missing") };
        assert!(missing.starts_with("has no column `content`, but [\"text\", \"id\", "), "{missing}");
        assert!(matches!(problem("split.parquet", None), Problem::Unread(what) if what.contains("encoding")));
        assert!(matches!(problem("brotli.parquet", None), Problem::Unread(what) if what.contains("Brotli")));
    }

    /// Whatever a byte says, the answer is an error or rows.
    #[test]
    fn damage_is_an_error() {
        for name in ["groups.parquet", "zstd2.parquet", "deltas.parquet"] {
            let whole = file(name);
            for end in (0..whole.len()).step_by(97) {
                assert_eq!(rows(&whole[..end], None), Err(Problem::Damaged), "{name} cut at {end}");
            }
            // What is not compressed may say something else.
            let (mut found, places) = (0, (4..whole.len()).step_by(7));
            let of = places.len();
            for at in places {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << (at % 8);
                found += usize::from(rows(&damaged, None).is_err());
            }
            assert!(found * 8 > of, "{name}: {found} of {of}");
        }
    }
}
