//! Values within values: what a tuple, a vector, a map or a struct of the cell's own holds is shown as it is alone.
//!
//! Values are shown within a container of an unknown type, which can only be printed. So the library's own types, when
//! they are asked to print themselves for a cell ([`set_aside`](crate::rich::set_aside)), put their representations aside and write a mark,
//! wherever they stand; the text between the marks is shown between them. Types of other crates print what they always
//! do, and are found by their type in the collections that `cell` lists, whose members [`Held`] names.

use super::card::{column, table};
use super::printed::{line, text};
use crate::error::{Error, Result};
use crate::evaluate::Evaluation;
use crate::mask::Mask;
use crate::record::Record;
use crate::report::{HeatMap, Plot, Table};
use crate::rich::{Bundle, MOST, Rich, mark, putting_aside};
use crate::stats::Score;
use candle_core::Tensor;
use polars::prelude::{Column, DataFrame, PolarsError, Series};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::{Debug, Display};
use std::rc::Rc;
use std::sync::Arc;

/// A part of what is shown of a value.
#[derive(Debug)]
pub(super) enum Piece {
    Text(String),
    Rich(Result<Bundle>),
}

/// Pieces of a value of which nothing is known.
pub(super) fn pieces(value: &dyn Debug) -> Vec<Piece> {
    let (printed, aside) = putting_aside(|| line(value));
    if aside.is_empty() {
        return vec![Piece::Text(text(value))];
    }
    let mut pieces = Vec::new();
    let mut rest = printed.as_str();
    for (i, bundle) in aside.into_iter().enumerate() {
        // What stands beyond the end of a long text comes after it.
        let (before, after) = rest.split_once(&mark(i)).unwrap_or((rest, ""));
        pieces.extend(between(before).map(Piece::Text));
        rest = after;
        pieces.push(Piece::Rich(bundle));
    }
    pieces.extend(between(rest).map(Piece::Text));
    pieces
}

/// The text between two values, without the brackets and commas around them; `None` if that is all.
fn between(text: &str) -> Option<String> {
    let mut text = text.trim_start_matches(|c: char| c.is_whitespace() || ")]},".contains(c));
    loop {
        text = text.trim_end();
        let Some(shorter) = text.strip_suffix(['(', '[', '{', ',']) else { break };
        let of = ["Some", "Ok", "Err"].into_iter().find_map(|wrapper| shorter.strip_suffix(wrapper));
        text = of.filter(|_| text.ends_with('(')).unwrap_or(shorter);
    }
    // Brackets whose other half stands before or behind another value.
    while text.starts_with(OPENING) && is_open(text.chars(), OPENING, CLOSING) {
        text = text[1..].trim_start();
    }
    while text.ends_with(CLOSING) && is_open(text.chars().rev(), CLOSING, OPENING) {
        text = text[..text.len() - 1].trim_end();
    }
    (!text.is_empty()).then(|| text.to_owned())
}

const OPENING: [char; 3] = ['(', '[', '{'];
const CLOSING: [char; 3] = [')', ']', '}'];

/// Returns whether the first bracket has no other half. Brackets within strings are taken for brackets, as the printed
/// text need not be Rust.
fn is_open(chars: impl Iterator<Item = char>, open: [char; 3], close: [char; 3]) -> bool {
    let mut depth = 0usize;
    for c in chars {
        if open.contains(&c) {
            depth += 1;
        } else if close.contains(&c) {
            depth = depth.saturating_sub(1);
        }
        if depth == 0 {
            return false;
        }
    }
    true
}

/// A value whose parts are known.
pub(super) trait Held {
    fn put(&self, into: &mut Pieces);

    /// Values by their keys as one table, where each is a number or a short text.
    fn table(_keys: &[String], _values: &[&Self]) -> Option<Result<Bundle>>
    where
        Self: Sized,
    {
        None
    }
}

/// Pieces as they are collected.
#[derive(Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    shown: usize,
    left_out: usize,
}

impl Pieces {
    fn rich(&mut self, value: &impl Rich) {
        if self.shown == MOST {
            self.left_out += 1;
        } else {
            self.pieces.push(Piece::Rich(value.bundle()));
            self.shown += 1;
        }
    }

    fn text(&mut self, text: String) {
        if self.shown < MOST {
            self.pieces.push(Piece::Text(text));
        }
    }
}

/// Pieces of a value whose parts are known.
pub(super) fn pieces_of(value: &impl Held) -> Vec<Piece> {
    let mut into = Pieces::default();
    value.put(&mut into);
    let Pieces { mut pieces, left_out, .. } = into;
    if left_out > 0 {
        pieces.push(Piece::Text(format!("… {left_out} more are not shown")));
    }
    if pieces.is_empty() {
        pieces.push(Piece::Text("[]".into()));
    }
    pieces
}

macro_rules! values {
    ($($type:ty),+ $(,)?) => { $(
        impl Held for $type {
            fn put(&self, into: &mut Pieces) {
                into.rich(self);
            }
        }
    )+ };
}
values!(DataFrame, Series, Column, Tensor, Table, Plot, HeatMap, Mask, Record, Evaluation, Score, Error);

macro_rules! texts {
    ($($type:ty => $column:ty),+ $(,)?) => { $(
        impl Held for $type {
            fn put(&self, into: &mut Pieces) {
                into.text(text(self));
            }

            fn table(keys: &[String], values: &[&Self]) -> Option<Result<Bundle>> {
                let values: Vec<$column> = values.iter().map(|&value| value.clone().into()).collect();
                Some(two_columns(column("value", values), keys))
            }
        }
    )+ };
}
texts!(String => String, &'static str => String, f64 => f64, f32 => f32, u64 => u64, i32 => i32, bool => bool);

fn two_columns(values: Column, keys: &[String]) -> Result<Bundle> {
    table(vec![column("key", keys), values])?.bundle()
}

impl Held for usize {
    fn put(&self, into: &mut Pieces) {
        into.text(text(self));
    }

    fn table(keys: &[String], values: &[&usize]) -> Option<Result<Bundle>> {
        let values: Vec<u64> = values.iter().map(|&&value| value as u64).collect();
        Some(two_columns(column("value", values), keys))
    }
}

impl Held for PolarsError {
    fn put(&self, into: &mut Pieces) {
        into.text(format!("error: {self}"));
    }
}

impl Held for candle_core::Error {
    fn put(&self, into: &mut Pieces) {
        into.text(format!("error: {self}"));
    }
}

macro_rules! pointers {
    ($($type:ty),+) => { $(
        impl<T: Held + ?Sized> Held for $type {
            fn put(&self, into: &mut Pieces) {
                (**self).put(into);
            }
        }
    )+ };
}
pointers!(Box<T>, Rc<T>, Arc<T>);

macro_rules! borrowed {
    ($($type:ty),+) => { $(
        impl Held for &$type {
            fn put(&self, into: &mut Pieces) {
                (**self).put(into);
            }
        }
    )+ };
}
borrowed!(DataFrame, Series, Column, Tensor);

impl<T: Held> Held for Option<T> {
    fn put(&self, into: &mut Pieces) {
        match self {
            Some(value) => value.put(into),
            None => into.text("None".into()),
        }
    }
}

impl<T: Held, E: Held> Held for Result<T, E> {
    fn put(&self, into: &mut Pieces) {
        match self {
            Ok(value) => value.put(into),
            Err(error) => error.put(into),
        }
    }
}

impl<T: Held> Held for [T] {
    fn put(&self, into: &mut Pieces) {
        self.iter().for_each(|value| value.put(into));
    }
}

impl<T: Held> Held for &[T] {
    fn put(&self, into: &mut Pieces) {
        (**self).put(into);
    }
}

impl<T: Held, const N: usize> Held for [T; N] {
    fn put(&self, into: &mut Pieces) {
        self[..].put(into);
    }
}

impl<T: Held> Held for Vec<T> {
    fn put(&self, into: &mut Pieces) {
        self[..].put(into);
    }
}

impl<T: Held> Held for &Vec<T> {
    fn put(&self, into: &mut Pieces) {
        self[..].put(into);
    }
}

impl<T: Held> Held for VecDeque<T> {
    fn put(&self, into: &mut Pieces) {
        self.iter().for_each(|value| value.put(into));
    }
}

macro_rules! tuples {
    ($($($name:ident),+;)+) => { $(
        impl<$($name: Held),+> Held for ($($name,)+) {
            fn put(&self, into: &mut Pieces) {
                #[expect(non_snake_case, reason = "fields are named as their types")]
                let ($($name,)+) = self;
                $($name.put(into);)+
            }
        }
    )+ };
}
tuples!(A; A, B; A, B, C; A, B, C, D;);

/// Entries in the order of their keys.
fn put_map<'a, K: Ord + Display + 'a, V: Held + 'a>(entries: impl Iterator<Item = (&'a K, &'a V)>, into: &mut Pieces) {
    let mut entries: Vec<(&K, &V)> = entries.collect();
    entries.sort_by_key(|(key, _)| *key);
    let (keys, values): (Vec<String>, Vec<&V>) =
        entries.into_iter().map(|(key, value)| (key.to_string(), value)).unzip();
    if keys.is_empty() {
        return into.text("{}".into());
    }
    match V::table(&keys, &values) {
        Some(bundle) => into.pieces.push(Piece::Rich(bundle)),
        None => {
            for (key, value) in keys.into_iter().zip(values) {
                into.text(format!("{key}:"));
                value.put(into);
            }
        }
    }
}

impl<K: Ord + Display, V: Held> Held for HashMap<K, V> {
    fn put(&self, into: &mut Pieces) {
        put_map(self.iter(), into);
    }
}

impl<K: Ord + Display, V: Held> Held for BTreeMap<K, V> {
    fn put(&self, into: &mut Pieces) {
        put_map(self.iter(), into);
    }
}

#[cfg(test)]
mod tests {
    use super::super::cell::shown;
    use super::*;
    use crate::calibrate::Statistics;
    use crate::mask::MaskSet;
    use candle_core::Device;
    use polars::df;

    /// Each piece in one line: a text as it is, anything else by its first line of plain text, in brackets.
    fn lines<T: Debug>(value: &T) -> Vec<String> {
        let line = |piece: Piece| match piece {
            Piece::Text(text) => text,
            Piece::Rich(bundle) => format!("<{}>", bundle.unwrap()[0].1.trim().lines().next().unwrap_or_default()),
        };
        shown(value).into_iter().map(line).collect()
    }

    fn frame() -> DataFrame {
        df!["a" => [1, 2]].unwrap()
    }

    fn tabled(name: &str) -> Table {
        Table::from(df![name => [1.5]].unwrap())
    }

    fn plot(title: &str) -> Plot {
        Plot::curves(title).series("s", [(0, 1), (1, 2)])
    }

    #[test]
    fn values_of_ours_are_shown_wherever_they_stand() {
        let (a, b) = (tabled("a"), tabled("b"));
        assert_eq!(lines(&(a.clone(), b.clone())), ["<a>", "<b>"]);
        assert_eq!(lines(&vec![a.clone(), b.clone()]), ["<a>", "<b>"]);
        assert_eq!(lines(&[Some(a.clone()), None, Some(b.clone())]), ["<a>", "None", "<b>"]);
        assert_eq!(lines(&("wanda", 0.5, a.clone())), ["\"wanda\", 0.5", "<a>"]);
        assert_eq!(lines(&Box::new(Some(Ok::<_, Error>(vec![&a])))), ["<a>"]);
        assert_eq!(lines(&Err::<Table, _>(Error::Interrupted)), ["<error: interrupted>"]);
        assert_eq!(lines(&(Err::<Table, _>(Error::Interrupted), 1)), ["<error: interrupted>", "1"]);
        let plots: BTreeMap<&str, (Plot, f64)> = [("x", (plot("first"), 1.0)), ("y", (plot("second"), 2.0))].into();
        let first = "<first: s (2 points)>";
        assert_eq!(lines(&plots), ["\"x\":", first, "1.0), \"y\":", "<second: s (2 points)>", "2.0"]);
        #[derive(Debug)]
        #[expect(dead_code, reason = "it is printed")]
        struct Own<'a> {
            what: &'a str,
            plot: Plot,
            masks: [Mask; 1],
            n: u32,
        }
        let long = "x".repeat(200);
        let shown = lines(&Own { what: &long, plot: plot("first"), masks: [Mask::none(2, 4)], n: 3 });
        assert_eq!(shown.iter().filter(|line| line.starts_with('<')).count(), 2, "each once: {shown:?}");
        let own = Own { what: "run", plot: plot("first"), masks: [Mask::none(2, 4)], n: 3 };
        let mask = "<Mask of 2 × 4 weights: 0.0% pruned>";
        assert_eq!(lines(&own), ["Own { what: \"run\", plot:", first, "masks:", mask, "n: 3"]);
        let shared = (Arc::new(Statistics::default()), Rc::new(MaskSet { metadata: None, masks: vec![] }));
        assert_eq!(lines(&shared).len(), 2);
        assert_eq!(format!("{:?}", (a, 1)), "(Table(1 rows × 1 columns: a), 1)", "elsewhere it is a line");
    }

    #[test]
    fn frames_series_and_tensors_are_shown_in_collections() {
        let tensor = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let series: Series = frame().column("a").unwrap().as_materialized_series().clone().with_name("s".into());
        let both = ["<a>", "<a>"];
        assert_eq!(lines(&(frame(), frame())), both);
        assert_eq!(lines(&vec![frame(), frame()]), both);
        assert_eq!(lines(&[frame(), frame()]), both);
        assert_eq!(lines(&Some(vec![frame(), frame()])), both);
        assert_eq!(lines(&vec![&frame(), &frame()]), both);
        assert_eq!(lines(&&frame()), ["<a>"]);
        assert_eq!(lines(&&frame().columns()[0]), ["<a>"]);
        assert_eq!(lines(&Box::new(frame())), ["<a>"]);
        assert_eq!(lines(&&[frame()][..]), ["<a>"]);
        assert_eq!(lines(&(frame(), (series.clone(), 1).0)), ["<a>", "<s>"]);
        assert_eq!(lines(&(series, tensor.clone())), ["<s>", "<[1., 2.]>"]);
        assert_eq!(lines(&(tensor, 0.5)), ["<[1., 2.]>", "0.5"]);
        assert_eq!(lines(&("wanda", frame())), ["\"wanda\"", "<a>"]);
        assert_eq!(lines(&(frame(), plot("first"))), ["<a>", "<first: s (2 points)>"]);
        assert_eq!(
            lines(&vec![("x".to_owned(), frame()), ("y".to_owned(), frame())]),
            ["\"x\"", "<a>", "\"y\"", "<a>"]
        );
        assert_eq!(lines(&Ok::<_, PolarsError>(frame())), ["<a>"]);
        assert_eq!(lines(&frame().column("b")), ["error: not found: \"b\" not found"]);
        assert_eq!(lines(&Vec::<DataFrame>::new()), ["[]"]);
        assert_eq!(lines(&None::<Vec<DataFrame>>), ["None"]);
        assert_eq!(lines(&vec![frame(); 25]).last().unwrap(), "… 5 more are not shown");
        // Of what is not known, its own text.
        assert!(lines(&(frame(), 1u8, 'c', frame()))[0].contains("shape: (2, 1)"));
    }

    #[test]
    fn maps_are_in_the_order_of_their_keys() {
        let scores: HashMap<String, f64> =
            [("wanda", 2.0), ("magnitude", 3.5), ("random", 9.0)].map(|(k, v)| (k.into(), v)).into();
        let [Piece::Rich(bundle)] = &shown(&scores)[..] else { panic!("one table") };
        let plain = &bundle.as_ref().unwrap()[0].1;
        assert_eq!(
            plain.lines().skip(2).collect::<Vec<_>>(),
            ["magnitude  3.500", "random     9.000", "wanda      2.000"]
        );
        let frames: HashMap<&str, DataFrame> = [("b", frame()), ("a", frame())].into();
        assert_eq!(lines(&frames), ["a:", "<a>", "b:", "<a>"]);
        let counts: BTreeMap<usize, usize> = [(2, 1), (1, 3)].into();
        assert_eq!(lines(&counts).len(), 1);
        assert_eq!(lines(&HashMap::<String, f64>::new()), ["{}"]);
    }

    #[test]
    fn many_values_are_shown_in_part() {
        let many: Vec<Plot> = (0..30).map(|i| plot(&format!("p{i}"))).collect();
        let shown = lines(&many);
        assert_eq!(shown.len(), MOST + 1);
        assert!(shown[MOST].starts_with("Plot(p20: s (2 points)), Plot(p21"), "{}", shown[MOST]);
        // What is printed beyond the end of a long text is shown all the same.
        let long = lines(&("x".repeat(10_000), plot("after")));
        assert!(long[0].contains("more characters") || long[1].starts_with("<after"), "{long:?}");
        assert_eq!(long.iter().filter(|line| line.starts_with("<after")).count(), 1);
    }

    #[test]
    fn a_plot_that_cannot_be_drawn_says_so_in_its_place() {
        let pieces = shown(&(tabled("a"), Plot::curves("empty")));
        assert!(matches!(&pieces[..], [Piece::Rich(Ok(_)), Piece::Rich(Err(_))]));
        struct Panics;
        impl Debug for Panics {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                panic!("as it is printed")
            }
        }
        assert!(std::panic::catch_unwind(|| shown(&(tabled("a"), Panics))).is_err());
        // Nothing of it is left for the next value.
        assert_eq!(format!("{:?}", tabled("a")), "Table(1 rows × 1 columns: a)");
    }
}
