//! Fields of a `config.json`.

use crate::error::{Error, Remedy, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Typed access to a JSON object, with errors that name the file and the key.
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    pub(super) map: &'a Map<String, Value>,
}

impl Fields<'_> {
    pub(super) fn present(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, key: &str, value: &Value, wanted: &str) -> Error {
        Error::file(self.path, format!("`{key}` is {value}, which is not {wanted}"))
    }

    pub(super) fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.present(key) else { return Ok(default) };
        match value.as_u64() {
            Some(number) if number > 0 && number < 1 << 40 => Ok(number as usize),
            _ => Err(self.wrong(key, value, "a positive whole number")),
        }
    }

    /// A whole number that may be zero.
    pub(super) fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        let zero = self.present(key).is_some_and(|value| value.as_u64() == Some(0));
        if zero { Ok(0) } else { self.usize_or(key, default) }
    }

    pub(super) fn usize(&self, key: &str) -> Result<usize> {
        match self.usize_or(key, 0)? {
            0 => Err(Error::file(
                self.path,
                format!("`{key}` is missing").remedy("is this a language model's config.json?"),
            )),
            number => Ok(number),
        }
    }

    pub(super) fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.present(key) else { return Ok(default) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number >= 0.0 => Ok(number),
            _ => Err(self.wrong(key, value, "a number")),
        }
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.present(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }
}
