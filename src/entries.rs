//! JSON objects in which no key stands twice.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt::{self, Display};
use std::hash::Hash;
use std::marker::PhantomData;

/// The entries of a JSON object in the order of the text. A key that stands there twice is an error: a map would forget all
/// but the last of its values.
pub(crate) struct Entries<K, V>(pub(crate) Vec<(K, V)>);

impl<'de, K, V> Deserialize<'de> for Entries<K, V>
where
    K: Deserialize<'de> + Clone + Display + Eq + Hash,
    V: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Collect(PhantomData))
    }
}

struct Collect<K, V>(PhantomData<(K, V)>);

impl<'de, K, V> Visitor<'de> for Collect<K, V>
where
    K: Deserialize<'de> + Clone + Display + Eq + Hash,
    V: Deserialize<'de>,
{
    type Value = Entries<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<K, V>, A::Error> {
        let (mut entries, mut keys) = (Vec::new(), HashSet::new());
        while let Some((key, value)) = map.next_entry::<K, V>()? {
            if !keys.insert(key.clone()) {
                return Err(A::Error::custom(format!("`{key}` is there twice")));
            }
            entries.push((key, value));
        }
        Ok(Entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_there_once() {
        let read = |text: &str| serde_json::from_str::<Entries<usize, u8>>(text).map(|Entries(entries)| entries);
        assert_eq!(read(r#"{"2": 1, "1": 1}"#).unwrap(), [(2, 1), (1, 1)]);
        let error = read(r#"{"2": 1, "1": 1, "2": 1}"#).unwrap_err().to_string();
        assert!(error.starts_with("`2` is there twice"), "{error}");
        assert!(read("[]").unwrap_err().to_string().contains("expected an object"));
    }
}
