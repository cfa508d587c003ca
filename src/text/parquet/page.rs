//! Pages of a column: compression, levels and values.

use super::thrift::Fields;
use super::{Bytes, DAMAGED, Found, Problem};
use serde_json::Value;
use std::io::Read;

/// Values of a page. Writers make pages of a megabyte or some 20 thousand rows; more is a header that lies.
const PAGE_VALUES: usize = 1 << 27;

/// The entries of a column: for each the level at which it repeats, the level down to which it is there, and those values
/// that are.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) repetition: Vec<u32>,
    pub(super) definition: Vec<u32>,
    /// One for each entry whose definition is the deepest.
    pub(super) values: Vec<Value>,
}

/// A column, as a leaf of the schema describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    /// Physical type, by parquet's number.
    pub(super) kind: i64,
    pub(super) max_definition: u32,
    pub(super) max_repetition: u32,
}

/// Reads the column chunk of a row group. `meta` is its `ColumnMetaData`.
pub(super) fn column(file: &[u8], meta: &Fields, leaf: Leaf) -> Found<Entries> {
    let total = meta.count(5)?;
    let data = meta.count(9)?;
    // Some writers set the place of a dictionary to 0 where there is none.
    let start =
        meta.int(11).and_then(|at| usize::try_from(at).ok()).filter(|&at| at > 0).map_or(data, |at| at.min(data));
    let end = start.checked_add(meta.count(7)?).ok_or(DAMAGED)?;
    let mut bytes = Bytes(file.get(start..end).ok_or(DAMAGED)?);
    let codec = meta.int(4).unwrap_or_default();
    let mut dictionary = Vec::new();
    let mut entries = Entries::default();
    while entries.definition.len() < total {
        let header = Fields::read(&mut bytes)?;
        let (packed, size) = (bytes.take(header.count(3)?)?, header.count(2)?);
        match header.int(1) {
            Some(0) => {
                let page = header.fields(5).ok_or(DAMAGED)?;
                let count = within(page.count(1)?, total - entries.definition.len())?;
                let unpacked = unpack(packed, codec, size)?;
                let mut data = Bytes(&unpacked);
                let mut levels = |max: u32, encoding: i64| -> Found<Vec<u32>> {
                    if max == 0 {
                        return Ok(vec![0; count]);
                    }
                    if page.int(encoding) != Some(3) {
                        return Err(Problem::Unread("has levels in an encoding that was given up in 2013".into()));
                    }
                    let length = data.le(4)? as usize;
                    hybrid(&mut Bytes(data.take(length)?), width(max), count)
                };
                let (repetition, definition) = (levels(leaf.max_repetition, 4)?, levels(leaf.max_definition, 3)?);
                entries.add(repetition, definition, data, page.int(2), leaf, &dictionary)?;
            }
            Some(2) => {
                let page = header.fields(7).ok_or(DAMAGED)?;
                let unpacked = unpack(packed, codec, size)?;
                dictionary = plain(&mut Bytes(&unpacked), leaf.kind, within(page.count(1)?, PAGE_VALUES)?)?;
            }
            Some(3) => {
                let page = header.fields(8).ok_or(DAMAGED)?;
                let count = within(page.count(1)?, total - entries.definition.len())?;
                let mut data = Bytes(packed);
                let (repetition, definition) = (data.take(page.count(6)?)?, data.take(page.count(5)?)?);
                let levels = |bytes, max| match max {
                    0 => Ok(vec![0; count]),
                    max => hybrid(&mut Bytes(bytes), width(max), count),
                };
                let levels = (levels(repetition, leaf.max_repetition)?, levels(definition, leaf.max_definition)?);
                let size = size.checked_sub(packed.len() - data.0.len()).ok_or(DAMAGED)?;
                let codec = if page.bool(7) == Some(false) { 0 } else { codec };
                let unpacked = unpack(data.0, codec, size)?;
                entries.add(levels.0, levels.1, Bytes(&unpacked), page.int(4), leaf, &dictionary)?;
            }
            // Pages of an index.
            _ => {}
        }
    }
    Ok(entries)
}

impl Entries {
    fn add(
        &mut self,
        repetition: Vec<u32>,
        definition: Vec<u32>,
        mut data: Bytes,
        encoding: Option<i64>,
        leaf: Leaf,
        dictionary: &[Value],
    ) -> Found<()> {
        let count = definition.iter().filter(|&&level| level == leaf.max_definition).count();
        self.repetition.extend(repetition);
        self.definition.extend(definition);
        if ![0, 1, 2, 4, 5, 6].contains(&leaf.kind) {
            // Neither text nor a number: there, but not to be read.
            self.values.extend(std::iter::repeat_n(Value::Null, count));
            return Ok(());
        }
        let integer = |value: i64| Value::from(if leaf.kind == 1 { i64::from(value as i32) } else { value });
        let values = match encoding {
            _ if count == 0 => Vec::new(),
            Some(0) => plain(&mut data, leaf.kind, count)?,
            Some(2 | 8) => {
                let width = u32::from(data.byte()?);
                let value = |index: u32| dictionary.get(index as usize).cloned().ok_or(DAMAGED);
                hybrid(&mut data, width, count)?.into_iter().map(value).collect::<Found<_>>()?
            }
            Some(3) if leaf.kind == 0 => {
                let length = data.le(4)? as usize;
                let bits = hybrid(&mut Bytes(data.take(length)?), 1, count)?;
                bits.into_iter().map(|bit| Value::Bool(bit == 1)).collect()
            }
            Some(5) if [1, 2].contains(&leaf.kind) => deltas(&mut data, count)?.into_iter().map(integer).collect(),
            Some(6) if leaf.kind == 6 => lengthy(&mut data, count)?.into_iter().map(text).collect(),
            Some(7) if leaf.kind == 6 => {
                let prefixes = deltas(&mut data, count)?;
                let mut before = Vec::new();
                let mut next = |(prefix, suffix): (i64, &[u8])| -> Found<Value> {
                    let kept = usize::try_from(prefix).ok().and_then(|prefix| before.get(..prefix)).ok_or(DAMAGED)?;
                    before = [kept, suffix].concat();
                    Ok(text(&before))
                };
                prefixes.into_iter().zip(lengthy(&mut data, count)?).map(&mut next).collect::<Found<_>>()?
            }
            other => {
                let which = other.unwrap_or(-1);
                return Err(Problem::Unread(format!("has values in an encoding that is not read here ({which})")));
            }
        };
        self.values.extend(values);
        Ok(())
    }
}

fn within(values: usize, left: usize) -> Found<usize> {
    if values <= left.min(PAGE_VALUES) { Ok(values) } else { Err(DAMAGED) }
}

/// Bits that the levels up to `max` take.
fn width(max: u32) -> u32 {
    u32::BITS - max.leading_zeros()
}

fn text(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or(Value::Null, Value::from)
}

/// Undoes the compression of a page that has `size` bytes then.
fn unpack(bytes: &[u8], codec: i64, size: usize) -> Found<Vec<u8>> {
    let read = |reader: &mut dyn Read| {
        let mut plain = Vec::new();
        reader.take(size as u64 + 1).read_to_end(&mut plain).map(|_| plain).map_err(|_| DAMAGED)
    };
    let other = |name: &str| Err(Problem::Unread(format!("is compressed with {name}, which is not read here")));
    let plain = match codec {
        0 => bytes.to_vec(),
        1 => snappy(bytes, size)?,
        2 => read(&mut flate2::read::MultiGzDecoder::new(bytes))?,
        3 => return other("LZO"),
        4 => return other("Brotli"),
        5 | 7 => return other("LZ4"),
        6 => read(&mut ruzstd::decoding::StreamingDecoder::new(bytes).map_err(|_| DAMAGED)?)?,
        _ => return other("something new"),
    };
    if plain.len() == size { Ok(plain) } else { Err(DAMAGED) }
}

/// Snappy's block format: literals, and copies of what came before.
fn snappy(bytes: &[u8], size: usize) -> Found<Vec<u8>> {
    let mut bytes = Bytes(bytes);
    if bytes.length()? != size {
        return Err(DAMAGED);
    }
    let mut plain = Vec::new();
    while !bytes.0.is_empty() {
        let tag = usize::from(bytes.byte()?);
        let (length, offset) = match tag & 3 {
            0 => {
                let length = match tag >> 2 {
                    short @ 0..60 => short,
                    long => bytes.le(long - 59)? as usize,
                };
                plain.extend_from_slice(bytes.take(length.checked_add(1).ok_or(DAMAGED)?)?);
                continue;
            }
            1 => ((tag >> 2 & 7) + 4, (tag >> 5) << 8 | usize::from(bytes.byte()?)),
            2 => ((tag >> 2) + 1, bytes.le(2)? as usize),
            _ => ((tag >> 2) + 1, bytes.le(4)? as usize),
        };
        let from = plain.len().checked_sub(offset).filter(|_| offset > 0).ok_or(DAMAGED)?;
        if plain.len() + length > size {
            return Err(DAMAGED);
        }
        // A copy may reach into what it makes.
        (from..from + length).for_each(|at| plain.push(plain[at]));
    }
    if plain.len() == size { Ok(plain) } else { Err(DAMAGED) }
}

/// Runs of one value and runs of packed bits, mixed.
fn hybrid(bytes: &mut Bytes, width: u32, count: usize) -> Found<Vec<u32>> {
    if width > 32 {
        return Err(DAMAGED);
    }
    let mut values = Vec::new();
    while values.len() < count {
        let head = bytes.length()?;
        let left = count - values.len();
        if head & 1 == 0 {
            let value = bytes.le(width.div_ceil(8) as usize)? as u32;
            values.extend(std::iter::repeat_n(value, left.min(head >> 1)));
        } else {
            let (groups, width) = (head >> 1, width as usize);
            let packed = bytes.take(groups.checked_mul(width).ok_or(DAMAGED)?)?;
            let here = groups.saturating_mul(8).min(left);
            values.extend((0..here).map(|i| bits(packed, i * width, width as u32) as u32));
        }
    }
    Ok(values)
}

/// `width` bits (at most 64) from bit `at` on, the lowest first.
fn bits(bytes: &[u8], at: usize, width: u32) -> u64 {
    let mut word = 0u128;
    for (i, byte) in bytes.iter().skip(at / 8).take(9).enumerate() {
        word |= u128::from(*byte) << (8 * i);
    }
    (word >> (at % 8)) as u64 & 1u64.checked_shl(width).map_or(u64::MAX, |bit| bit - 1)
}

/// Values as they are.
fn plain(bytes: &mut Bytes, kind: i64, count: usize) -> Found<Vec<Value>> {
    let fixed = |bytes: &mut Bytes, size: usize| -> Found<Vec<u64>> {
        let all = bytes.take(count.checked_mul(size).ok_or(DAMAGED)?)?;
        all.chunks_exact(size).map(|chunk| Bytes(chunk).le(size)).collect()
    };
    Ok(match kind {
        0 => {
            let all = bytes.take(count.div_ceil(8))?;
            (0..count).map(|i| Value::Bool(bits(all, i, 1) == 1)).collect()
        }
        1 => fixed(bytes, 4)?.into_iter().map(|value| Value::from(value as u32 as i32)).collect(),
        2 => fixed(bytes, 8)?.into_iter().map(|value| Value::from(value as i64)).collect(),
        4 => fixed(bytes, 4)?.into_iter().map(|value| Value::from(f32::from_bits(value as u32))).collect(),
        5 => fixed(bytes, 8)?.into_iter().map(|value| Value::from(f64::from_bits(value))).collect(),
        6 => {
            let next = |_| {
                let length = bytes.le(4)? as usize;
                bytes.take(length).map(text)
            };
            (0..count).map(next).collect::<Found<_>>()?
        }
        // A dictionary of what is not read.
        _ => Vec::new(),
    })
}

/// Integers by their differences, which come in blocks of several widths.
fn deltas(bytes: &mut Bytes, count: usize) -> Found<Vec<i64>> {
    let (block, miniblocks, total) = (bytes.length()?, bytes.length()?, bytes.length()?);
    let each = block.checked_div(miniblocks).filter(|&each| each > 0).ok_or(DAMAGED)?;
    if total != count {
        return Err(DAMAGED);
    }
    let mut last = bytes.zigzag()?;
    let mut values = vec![last];
    while values.len() < count {
        let least = bytes.zigzag()?;
        for &width in bytes.take(miniblocks)? {
            if values.len() == count {
                break;
            }
            let width = Some(usize::from(width)).filter(|&width| width <= 64).ok_or(DAMAGED)?;
            let packed = bytes.take(each.checked_mul(width).ok_or(DAMAGED)?.div_ceil(8))?;
            for i in 0..each.min(count - values.len()) {
                last = last.wrapping_add(least).wrapping_add(bits(packed, i * width, width as u32) as i64);
                values.push(last);
            }
        }
    }
    Ok(values)
}

/// All lengths, then all bytes.
fn lengthy<'b>(bytes: &mut Bytes<'b>, count: usize) -> Found<Vec<&'b [u8]>> {
    let lengths = deltas(bytes, count)?;
    lengths.into_iter().map(|length| bytes.take(usize::try_from(length).map_err(|_| DAMAGED)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the format's description (Encodings.md), by hand.
    #[test]
    fn encodings_by_hand() {
        // 0 to 7 in three bits each.
        let packed = [0b1000_1000, 0b1100_0110, 0b1111_1010];
        assert_eq!(hybrid(&mut Bytes(&[&[3], &packed[..]].concat()), 3, 8), Ok((0..8).collect()));
        // Five times 4, then what is packed, of which three are wanted.
        let mixed = [&[10, 4, 3], &packed[..]].concat();
        assert_eq!(hybrid(&mut Bytes(&mixed), 3, 8), Ok(vec![4, 4, 4, 4, 4, 0, 1, 2]));
        // 1, 2, 3, 4, 5: a block of 128 in 4 parts, the least difference 1, and nothing beyond it.
        let steps = [128, 1, 4, 5, 2, 2, 0, 0, 0, 0];
        assert_eq!(deltas(&mut Bytes(&steps), 5), Ok(vec![1, 2, 3, 4, 5]));
        // 7, 5, 3, 1, 2, 3, 4, 5: the least difference -2; 0, 0, 0, 3, 3, 3, 3 beyond it, in two bits each.
        let steps = [&[128, 1, 4, 8, 14, 3, 2, 0, 0, 0, 0b1100_0000, 0b0011_1111][..], &[0; 6]].concat();
        assert_eq!(deltas(&mut Bytes(&steps), 8), Ok(vec![7, 5, 3, 1, 2, 3, 4, 5]));
        assert_eq!(bits(&[0xff; 9], 3, 64), u64::MAX);
    }

    #[test]
    fn snappy_copies_reach_into_what_they_make() {
        // "ab", then 6 bytes from 2 back, then "c".
        let packed = [9, 1 << 2, b'a', b'b', 1 | 2 << 2, 2, 0, b'c'];
        assert_eq!(snappy(&packed, 9), Ok(b"ababababc".to_vec()));
        for wrong in [&packed[..4], &[9, 1 | 2 << 2, 1], &[9, 2, 0, 0], &[1, 1 << 2, b'a', b'b'], &[]] {
            assert_eq!(snappy(wrong, 9), Err(DAMAGED), "{wrong:?}");
        }
    }
}
