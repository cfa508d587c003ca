//! JSON whose floats are read exactly.

use serde_json::Value;

/// Replaces the floats of `value` by the nearest ones to their text, in document order.
///
/// serde_json's fast parser may be off by one unit in the last place, and its `float_roundtrip` feature is off here;
/// a record that is read and written again must not change. `None` when the numbers do not pair up, which only a
/// duplicate key causes.
pub(crate) fn exact_floats(text: &str, value: &mut Value) -> Option<()> {
    let mut floats = FloatTokens { bytes: text.as_bytes(), at: 0 };
    replace_floats(value, &mut floats)?;
    floats.next().is_none().then_some(())
}

fn replace_floats(value: &mut Value, floats: &mut FloatTokens<'_>) -> Option<()> {
    match value {
        Value::Number(number) if number.is_f64() => {
            *number = serde_json::Number::from_f64(floats.next()?)?;
            Some(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| replace_floats(item, floats)),
        Value::Object(fields) => fields.values_mut().try_for_each(|field| replace_floats(field, floats)),
        _ => Some(()),
    }
}

/// The numbers of a valid JSON text that serde_json reads as floats, exactly parsed.
struct FloatTokens<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for FloatTokens<'_> {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => {
                    self.at += 1;
                    while self.bytes.get(self.at).is_some_and(|b| *b != b'"') {
                        self.at += if self.bytes[self.at] == b'\\' { 2 } else { 1 };
                    }
                    self.at += 1;
                }
                b'-' | b'0'..=b'9' => {
                    let start = self.at;
                    let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                    while self.bytes.get(self.at).is_some_and(is_part) {
                        self.at += 1;
                    }
                    let token = std::str::from_utf8(&self.bytes[start..self.at]).ok()?;
                    // Integers beyond 64 bits and -0 are floats to serde_json, too.
                    if token == "-0" || (token.parse::<u64>().is_err() && token.parse::<i64>().is_err()) {
                        return token.parse().ok();
                    }
                }
                _ => self.at += 1,
            }
        }
        None
    }
}
