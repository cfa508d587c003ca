//! Thrift's compact protocol, in which parquet writes its headers: any structure as a tree of fields.

use super::{Bytes, DAMAGED, Found};

/// Structures within structures; parquet has 5 of them.
const DEPTH: usize = 16;

/// A structure: its fields by number.
#[derive(Debug, Default)]
pub(super) struct Fields<'b>(Vec<(i64, Thrift<'b>)>);

#[derive(Debug)]
enum Thrift<'b> {
    Bool(bool),
    Int(i64),
    Bytes(&'b [u8]),
    List(Vec<Thrift<'b>>),
    Struct(Fields<'b>),
    /// Types that no field of parquet's headers has.
    Other,
}

impl<'b> Fields<'b> {
    /// The structure that `bytes` begin with.
    pub(super) fn read(bytes: &mut Bytes<'b>) -> Found<Self> {
        fields(bytes, DEPTH)
    }

    fn get(&self, field: i64) -> Option<&Thrift<'b>> {
        self.0.iter().find(|(number, _)| *number == field).map(|(_, value)| value)
    }

    pub(super) fn int(&self, field: i64) -> Option<i64> {
        match self.get(field)? {
            Thrift::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// A number that cannot be negative.
    pub(super) fn count(&self, field: i64) -> Found<usize> {
        self.int(field).and_then(|value| usize::try_from(value).ok()).ok_or(DAMAGED)
    }

    pub(super) fn bool(&self, field: i64) -> Option<bool> {
        match self.get(field)? {
            Thrift::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn text(&self, field: i64) -> Option<&'b str> {
        match self.get(field)? {
            Thrift::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub(super) fn fields(&self, field: i64) -> Option<&Fields<'b>> {
        match self.get(field)? {
            Thrift::Struct(fields) => Some(fields),
            _ => None,
        }
    }

    /// A list of structures.
    pub(super) fn list(&self, field: i64) -> Found<Vec<&Fields<'b>>> {
        let Some(Thrift::List(list)) = self.get(field) else { return Err(DAMAGED) };
        let fields = list.iter().map(|value| match value {
            Thrift::Struct(fields) => Ok(fields),
            _ => Err(DAMAGED),
        });
        fields.collect()
    }
}

fn fields<'b>(bytes: &mut Bytes<'b>, depth: usize) -> Found<Fields<'b>> {
    let mut all = Vec::new();
    let mut number = 0;
    loop {
        let head = bytes.byte()?;
        if head == 0 {
            return Ok(Fields(all));
        }
        number = match head >> 4 {
            0 => bytes.zigzag()?,
            step => number + i64::from(step),
        };
        let value = match head & 15 {
            // A boolean stands in the type.
            1 => Thrift::Bool(true),
            2 => Thrift::Bool(false),
            kind => value(bytes, kind, depth)?,
        };
        all.push((number, value));
    }
}

fn value<'b>(bytes: &mut Bytes<'b>, kind: u8, depth: usize) -> Found<Thrift<'b>> {
    let inner = depth.checked_sub(1).ok_or(DAMAGED)?;
    Ok(match kind {
        1 | 2 => Thrift::Bool(bytes.byte()? == 1),
        3 => Thrift::Int(i64::from(bytes.byte()? as i8)),
        4..=6 => Thrift::Int(bytes.zigzag()?),
        7 => {
            bytes.take(8)?;
            Thrift::Other
        }
        8 => {
            let length = bytes.length()?;
            Thrift::Bytes(bytes.take(length)?)
        }
        9 | 10 => {
            let head = bytes.byte()?;
            let length = if head >> 4 == 15 { bytes.length()? } else { usize::from(head >> 4) };
            // Each takes a byte at least, so that a length cannot ask for more memory than the file has bytes.
            (0..length).map(|_| value(bytes, head & 15, inner)).collect::<Found<Vec<_>>>().map(Thrift::List)?
        }
        11 => {
            let length = bytes.length()?;
            let kinds = if length > 0 { bytes.byte()? } else { 0 };
            for _ in 0..length {
                value(bytes, kinds >> 4, inner)?;
                value(bytes, kinds & 15, inner)?;
            }
            Thrift::Other
        }
        12 => Thrift::Struct(fields(bytes, inner)?),
        _ => return Err(DAMAGED),
    })
}
