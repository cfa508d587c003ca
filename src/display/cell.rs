//! The method that evcxr calls, for everything that has none of its own.

use super::nested::{self, Piece};
use crate::calibrate::Statistics;
use crate::checkpoint::{Checkpoint, HeadersOnly, Remote};
use crate::error::{Error, Result};
use crate::evaluate::{ChoiceScores, Evaluation, GenerationScores};
use crate::experts::{ExpertScores, Keep, Ranking, Selection};
use crate::gradients::Gradients;
use crate::lab::{CacheSummary, DeviceMemory, Lab};
use crate::mask::{Comparison, Mask, MaskSet, MaskStatistics};
use crate::model::Model;
use crate::prune::{Masks, Pruned};
use crate::record::Record;
use crate::report::{HeatMap, MaskMap, Plot, Report, Table};
use crate::rich::{Bundle, Rich, emit, mime, show};
use crate::stats::{Interval, Score};
use crate::structured::Structured;
use crate::text::{Tokenizer, Windows};
use candle_core::Tensor;
use polars::prelude::{Column, DataFrame, PolarsError, Series};
use std::any::TypeId;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

/// Shows any value that can be printed as a cell's value: what is [`Rich`] with all its representations, also where other values
/// hold it (each of a tuple of tables or a vector of plots), everything else as text. The prelude brings it into scope.
///
/// evcxr first compiles a cell with a call of this method, and again with `{:?}` when there is none; numbers,
/// collections and structs of the cell's own would cost a second compilation. If a type has a method of this name
/// itself, that one is called.
pub trait EvcxrDisplay {
    /// Shows the value as a cell's value.
    ///
    /// # Panics
    /// Panics when a table or a picture of it cannot be made: a cell's display has no other way to fail.
    fn evcxr_display(&self);
}

impl<T: Debug> EvcxrDisplay for T {
    fn evcxr_display(&self) {
        // All but this line is compiled once, in the library.
        show_any(Unknown::of(self), &self);
    }
}

/// Shows a value where it is called, between what the cell prints: `display(&plot);` in a loop shows every plot. Takes whatever can
/// be a cell's value.
///
/// # Panics
/// Panics when a table or a picture of it cannot be made, as if it were a cell's value.
pub fn display<T: Debug>(value: &T) {
    crate::rich::between(|| show_any(Unknown::of(value), value));
}

/// A reference to a value of a type that only its id tells. It is made by [`Unknown::of`] alone, so that both belong together.
#[derive(Clone, Copy)]
struct Unknown<'a> {
    id: TypeId,
    at: *const (),
    _borrowed: PhantomData<&'a ()>,
}

impl<'a> Unknown<'a> {
    fn of<T>(value: &'a T) -> Self {
        Unknown { id: id_of::<T>(), at: std::ptr::from_ref(value).cast(), _borrowed: PhantomData }
    }

    /// The value, if it is a `T`, lifetimes aside: a `&'static str` may be any `&str`.
    ///
    /// # Safety
    /// Data that `T` borrows must not be used after 'a, whatever lifetime `T` gives it.
    unsafe fn get<T: 'static>(self) -> Option<&'a T> {
        // SAFETY: `at` comes from a reference that lives for 'a, and its type is `T` but for lifetimes, which change no
        // layout; that they are longer in `T` is what the caller answers for.
        (self.id == TypeId::of::<T>()).then(|| unsafe { &*self.at.cast::<T>() })
    }
}

/// The id of a type that may borrow, lifetimes aside: values of such types are shown as well.
pub(super) fn id_of<T>() -> TypeId {
    trait Id {
        fn id(&self) -> TypeId
        where
            Self: 'static;
    }
    impl<T> Id for PhantomData<T> {
        fn id(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }
    let phantom = PhantomData::<T>;
    let id: &dyn Id = &phantom;
    // SAFETY: the two types of reference differ in a lifetime alone, which changes neither the pointer nor the table of methods.
    // The only method asks for the id of `T`, so that nothing that `T` borrows is touched as if it were `'static`; the object,
    // a `PhantomData`, outlives the call.
    unsafe { std::mem::transmute::<&dyn Id, &(dyn Id + 'static)>(id) }.id()
}

fn show_any(value: Unknown<'_>, debug: &dyn Debug) {
    for piece in pieces(value, debug) {
        match piece {
            Piece::Text(text) => emit(&[(mime::PLAIN, &text)]),
            Piece::Rich(bundle) => show(bundle),
        }
    }
}

/// The pieces that are shown of a value, for tests.
#[cfg(test)]
pub(super) fn shown<T: Debug>(value: &T) -> Vec<Piece> {
    pieces(Unknown::of(value), value)
}

/// The pieces that are shown of a value, one after the other.
fn pieces(value: Unknown<'_>, debug: &dyn Debug) -> Vec<Piece> {
    if let Some(bundle) = rich(value) {
        return vec![Piece::Rich(bundle)];
    }
    // What is nothing shows nothing: `println!` as the last expression.
    if value.id == TypeId::of::<()>() {
        return Vec::new();
    }
    if let Some(numbers) = numbers(value) {
        return vec![Piece::Text(numbers)];
    }
    held(value).unwrap_or_else(|| nested::pieces(debug))
}

/// Pieces of collections that hold values of other crates, whose `Debug` knows nothing of notebooks, and of maps, whose order
/// is another in every run.
fn held(value: Unknown<'_>) -> Option<Vec<Piece>> {
    macro_rules! known {
        ($($type:ty),+ $(,)?) => { $(
            // SAFETY: pieces own what they show.
            if let Some(value) = unsafe { value.get::<$type>() } {
                return Some(nested::pieces_of(value));
            }
        )+ };
    }
    macro_rules! maps {
        ($type:ty) => {
            known!(HashMap<String, $type>, HashMap<&'static str, $type>, HashMap<usize, $type>);
            known!(BTreeMap<String, $type>, BTreeMap<&'static str, $type>, BTreeMap<usize, $type>);
        };
    }
    macro_rules! collections {
        ($($type:ty),+) => { $(
            known!(&'static $type, Box<$type>, Rc<$type>, Arc<$type>, Result<$type, PolarsError>);
            known!(Vec<$type>, &'static Vec<$type>, Vec<&'static $type>, &'static [$type], Box<[$type]>, VecDeque<$type>);
            known!(Option<Vec<$type>>, Vec<Option<$type>>, Result<Vec<$type>>, Vec<Vec<$type>>, Vec<($type, $type)>);
            known!([$type; 1], [$type; 2], [$type; 3], [$type; 4], [&'static $type; 2], [&'static $type; 3]);
            known!(Vec<(String, $type)>, Vec<(&'static str, $type)>, Vec<(usize, $type)>, Vec<(f64, $type)>);
            known!(Option<Box<$type>>, Option<Option<$type>>, Result<Option<$type>>, Option<Result<$type>>);
            known!(($type,), ($type, $type, $type), ($type, $type, $type, $type), Option<($type, $type)>, Result<($type, $type)>);
            known!((&'static $type, &'static $type), (($type, $type), $type), ($type, ($type, $type)));
            maps!($type);
            with!($type; DataFrame, Series, Tensor, Table, Plot, HeatMap, Mask, Record, Evaluation, String, &'static str,
                f64, f32, usize, u64, i32, bool);
        )+ };
    }
    macro_rules! with {
        ($type:ty; $($other:ty),+) => { known!($(($type, $other), ($other, $type), (&'static $type, $other)),+); };
    }
    collections!(DataFrame, Series, Tensor);
    known!(&'static Column, Option<Column>, Vec<Column>, Result<Column, PolarsError>, &'static [Column]);
    known!(Result<&'static Column, PolarsError>, Result<&'static Series, PolarsError>, Result<Tensor, candle_core::Error>);
    known!((DataFrame, DataFrame, Plot), (DataFrame, Plot, Plot), (Plot, DataFrame, DataFrame), (DataFrame, Plot, f64));
    maps!(f64);
    maps!(f32);
    maps!(usize);
    maps!(u64);
    maps!(i32);
    maps!(String);
    maps!(&'static str);
    maps!(Table);
    maps!(Plot);
    maps!(HeatMap);
    maps!(Mask);
    maps!(Record);
    maps!(Evaluation);
    maps!(Score);
    None
}

/// Representations of values that have more than text.
fn rich(value: Unknown<'_>) -> Option<Result<Bundle>> {
    // SAFETY: of all that is looked at here, only representations are returned, which own their text.
    macro_rules! get {
        ($type:ty) => {
            unsafe { value.get::<$type>() }
        };
    }
    macro_rules! known {
        ($($type:ty),+ $(,)?) => { $(
            if let Some(value) = get!($type) {
                return Some(value.bundle());
            }
            if let Some(result) = get!(Result<$type>) {
                return Some(match result {
                    Ok(value) => value.bundle(),
                    Err(error) => error.bundle(),
                });
            }
            if let Some(Some(value)) = get!(Option<$type>) {
                return Some(value.bundle());
            }
            if let Some(Some(value)) = get!(Option<&'static $type>) {
                return Some(value.bundle());
            }
            if let Some(Ok(value)) = get!(Result<&'static $type>) {
                return Some(value.bundle());
            }
        )+ };
    }
    known!(
        DataFrame,
        Series,
        Column,
        Table,
        Report,
        Plot,
        HeatMap,
        MaskMap,
        Model,
        Checkpoint,
        HeadersOnly,
        Remote,
        Mask,
        MaskSet,
        Masks,
        MaskStatistics,
        Comparison,
        Statistics,
        Gradients,
        Evaluation,
        ChoiceScores,
        GenerationScores,
        Score,
        Interval,
        Record,
        Vec<Record>,
        Structured,
        Pruned,
        ExpertScores,
        Ranking,
        Keep,
        Selection,
        Windows,
        Tokenizer,
        Tensor,
        Lab,
        CacheSummary,
        DeviceMemory,
        Error,
    );
    if let Some(Err(error)) = get!(Result<()>) {
        return Some(error.bundle());
    }
    None
}

/// Elements that are shown of a long list of numbers: the first and the last.
const ENDS: usize = 10;
/// Lists of up to so many are shown whole.
const WHOLE: usize = 100;

/// A long list of numbers, with the middle left out.
fn numbers(value: Unknown<'_>) -> Option<String> {
    fn ends<T: Debug>(values: &[T]) -> Option<String> {
        let (count, joined) =
            (values.len(), |part: &[T]| part.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>().join(", "));
        (count > WHOLE).then(|| {
            let (first, last) = (joined(&values[..ENDS]), joined(&values[count - ENDS..]));
            let all = crate::format::thousands(count as i128);
            format!("[{first}, …, {last}]\nshowing {} of {all} values", 2 * ENDS)
        })
    }
    macro_rules! lists {
        ($($number:ty),+) => { $(
            // SAFETY: a list of numbers that is borrowed is read while it is.
            let list = unsafe {
                let vector = value.get::<Vec<$number>>().map(Vec::as_slice);
                let borrowed = || value.get::<&'static Vec<$number>>().map(|list| list.as_slice());
                let slice = || value.get::<&'static [$number]>().copied();
                let boxed = || value.get::<Box<[$number]>>().map(|list| &list[..]);
                vector.or_else(borrowed).or_else(slice).or_else(boxed)
            };
            if let Some(list) = list {
                return ends(list);
            }
        )+ };
    }
    lists!(f32, f64, u8, u16, u32, u64, usize, i8, i16, i32, i64, isize, bool);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_apart_whatever_they_borrow() {
        let mask = Mask::none(2, 3);
        let borrowed = Some(&mask);
        let plain = |bundle: Option<Result<Bundle>>| bundle.unwrap().unwrap().remove(0).1;
        assert_eq!(plain(rich(Unknown::of(&mask))), plain(rich(Unknown::of(&borrowed))));
        let failed: Result<Mask> = Err(Error::Interrupted);
        assert!(plain(rich(Unknown::of(&failed))).starts_with("error: interrupted"));
        assert!(rich(Unknown::of(&Some(1))).is_none() && rich(Unknown::of(&None::<Mask>)).is_none());
        let text = String::from("x");
        let short: &str = &text;
        assert_ne!(id_of::<&str>(), id_of::<String>());
        // SAFETY: `text` is alive.
        assert_eq!(unsafe { Unknown::of(&short).get::<&'static str>() }, Some(&"x"));
    }

    #[test]
    fn long_lists_are_shown_in_part() {
        let many: Vec<u32> = (0..5_000).collect();
        let shown = numbers(Unknown::of(&many)).unwrap();
        assert!(shown.starts_with("[0, 1,") && shown.ends_with("4999]\nshowing 20 of 5,000 values"), "{shown}");
        assert_eq!(numbers(Unknown::of(&vec![1.5f64])), None);
    }
}
