//! The names of a model that are nearest to one that it does not have.

/// Names that an error message lists at most.
const LISTED: usize = 3;

/// The few of `names` that differ least from `wanted`, in characters to insert, remove or replace; of equals, the first.
pub(super) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<(usize, &str)> = names.map(|name| (distance(wanted, name), name)).collect();
    names.sort_by_key(|(distance, _)| *distance);
    names.into_iter().take(LISTED).map(|(_, name)| name).collect()
}

/// Levenshtein's distance of two texts, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_come_first() {
        for (a, b, expected) in [("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("up", "up", 0)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
        let names = ["mlp.up_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj"];
        assert_eq!(nearest("mlp.dwn_proj", names.into_iter())[..2], ["mlp.down_proj", "mlp.up_proj"]);
        assert_eq!(nearest("self_attn.o_prj", names.into_iter())[0], "self_attn.o_proj");
    }
}
