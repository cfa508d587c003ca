//! Typed access to a GGUF file's metadata.

use crate::error::{Error, Problem, Remedy, Result};
use candle_core::quantized::gguf_file::Value;
use std::collections::HashMap;
use std::path::Path;

/// The metadata, and the file for messages.
pub(super) struct Metadata<'a> {
    pub(super) file: &'a Path,
    values: &'a HashMap<String, Value>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(file: &'a Path, values: &'a HashMap<String, Value>) -> Self {
        Self { file, values }
    }

    pub(super) fn error(&self, problem: impl Into<Problem>) -> Error {
        Error::file(self.file, problem)
    }

    fn wrong_type(&self, key: &str, expected: &str) -> Error {
        self.error(format!("metadata `{key}` is not {expected}; this file cannot be imported"))
    }

    /// Unwraps what is required.
    pub(super) fn require<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value
            .ok_or_else(|| self.error(format!("metadata `{key}` is missing").remedy("convert the model to GGUF again")))
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<usize>> {
        let number = match self.values.get(key) {
            None => return Ok(None),
            Some(&Value::U8(v)) => Some(usize::from(v)),
            Some(&Value::U16(v)) => Some(usize::from(v)),
            Some(&Value::U32(v)) => usize::try_from(v).ok(),
            Some(&Value::U64(v)) => usize::try_from(v).ok(),
            Some(&Value::I8(v)) => usize::try_from(v).ok(),
            Some(&Value::I16(v)) => usize::try_from(v).ok(),
            Some(&Value::I32(v)) => usize::try_from(v).ok(),
            Some(&Value::I64(v)) => usize::try_from(v).ok(),
            Some(_) => None,
        };
        // A dimension beyond this is damage, and could overflow in a product.
        match number.filter(|&number| number < 1 << 31) {
            None => Err(self.wrong_type(key, "one number from 0 to 2147483647")),
            some => Ok(some),
        }
    }

    /// A dimension or count, which is not 0.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.integer(key)? {
            Some(0) => Err(self.wrong_type(key, "positive")),
            size => Ok(size),
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::F32(v)) if v.is_finite() => Ok(Some(f64::from(v))),
            Some(&Value::F64(v)) if v.is_finite() => Ok(Some(v)),
            Some(_) => Err(self.wrong_type(key, "a finite number")),
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Bool(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong_type(key, "true or false")),
        }
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong_type(key, "a string")),
        }
    }

    /// Returns whether there is an entry of any type.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    fn array(&self, key: &str) -> Result<Option<&'a [Value]>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong_type(key, "an array")),
        }
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let strings = array.iter().map(|value| match value {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        });
        strings.collect::<Option<_>>().map(Some).ok_or_else(|| self.wrong_type(key, "an array of strings"))
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let floats = array.iter().map(|value| match *value {
            Value::F32(v) if !v.is_nan() => Some(v),
            _ => None,
        });
        floats.collect::<Option<_>>().map(Some).ok_or_else(|| self.wrong_type(key, "an array of numbers"))
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let integers = array.iter().map(|value| match *value {
            Value::I32(v) => Some(i64::from(v)),
            Value::U32(v) => Some(i64::from(v)),
            Value::I64(v) => Some(v),
            _ => None,
        });
        integers.collect::<Option<_>>().map(Some).ok_or_else(|| self.wrong_type(key, "an array of integers"))
    }
}
