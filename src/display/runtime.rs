//! Functions that compiled cells call while they run, answered by the process that runs them.
//!
//! evcxr's generated code tells its parent by lines on standard output that a cell panicked, that a `?` met an error, that a
//! variable changed its type. Text of the cell could imitate such a line, or tear one apart. So the kernel puts calls of these
//! functions in their place before a cell is compiled. Cells share one copy of this library with the process that loads them,
//! so a static is enough to find it.

use super::cell::id_of;
pub use crate::rich::{Host, Place, set_host};
use crate::rich::{emit, host, mime};
use std::any::TypeId;
use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::io::Write;
use std::panic::Location;

/// A variable that each cell defines first and that evcxr stores with the others at the cell's end. If it is dropped
/// before, the cell has not come to its end.
#[derive(Debug)]
pub struct Running(u64);

/// Begins cell `number`.
pub fn begin(number: u64) -> Running {
    if let Some(host) = host() {
        host.begins(number);
    }
    Running(number)
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(host) = host() {
            host.dropped(self.0);
        }
    }
}

/// The cell has panicked.
pub fn panicked() {
    if let Some(host) = host() {
        host.panicked();
    }
}

/// The variable `name` has another type than its value.
fn retyped(name: &str) {
    if let Some(host) = host() {
        host.retyped(name);
    }
}

/// Shows a cell's value, where evcxr would print it.
pub fn value<T: Debug>(value: &T) {
    super::EvcxrDisplay::evcxr_display(value);
}

/// Shows text as the cell's value.
pub fn plain(text: &str) {
    emit(&[(mime::PLAIN, text)]);
}

/// An error type of the cell's own, whose causes can be asked for.
#[derive(Clone, Copy)]
pub struct ErrorType {
    id: TypeId,
    as_error: unsafe fn(*const ()) -> &'static dyn StdError,
}

impl ErrorType {
    /// The error type `T`.
    pub const fn of<T: StdError + 'static>() -> Self {
        unsafe fn cast<T: StdError + 'static>(at: *const ()) -> &'static dyn StdError {
            // SAFETY: the caller has compared the type's id, and uses the reference only while the value lives.
            unsafe { &*at.cast::<T>() }
        }
        ErrorType { id: TypeId::of::<T>(), as_error: cast::<T> }
    }
}

/// A `?` of the cell met `error`. Its causes are told where its type is known: lacuna's, candle's, polars' and the standard
/// library's errors, boxed ones, those that write them in `{:#}` as anyhow does, and `types` of the cell's own.
#[track_caller]
pub fn failed<T: Display>(error: &T, types: &[ErrorType]) {
    tell(chain(error, types));
}

/// A `?` of the cell met an error, which is shown in a form that the reader has chosen.
#[track_caller]
pub fn failed_as(message: String) {
    tell(vec![message]);
}

#[track_caller]
fn tell(chain: Vec<String>) {
    let line = Location::caller().line();
    match host() {
        Some(host) => host.failed(&chain, line),
        // Outside of a notebook's process nobody else says it.
        None => drop(writeln!(std::io::stderr(), "{}", chain.join("\ncaused by: "))),
    }
}

fn chain<T: Display>(error: &T, types: &[ErrorType]) -> Vec<String> {
    // SAFETY: the id is that of the type of what the pointer comes from, which lives as long as this function.
    unsafe { chain_of(&error, id_of::<T>(), std::ptr::from_ref(error).cast(), types) }
}

/// The chain of `error`, whose type has the id `id`, and which is at `at`. Not generic, so that it is compiled once, in the library.
///
/// # Safety
/// The value at `at` must have the type whose id is `id`.
unsafe fn chain_of(error: &dyn Display, id: TypeId, at: *const (), types: &[ErrorType]) -> Vec<String> {
    let mut source = None;
    macro_rules! known {
        ($($type:ty => $as_error:expr),+ $(,)?) => { $(
            if id == TypeId::of::<$type>() {
                // SAFETY: the ids are equal, which the caller answers for.
                let error: &$type = unsafe { &*at.cast::<$type>() };
                let as_error: fn(&$type) -> &dyn StdError = $as_error;
                source = as_error(error).source();
            }
        )+ };
    }
    known!(
        crate::error::Error => |error| error,
        candle_core::Error => |error| error,
        polars::error::PolarsError => |error| error,
        std::io::Error => |error| error,
        serde_json::Error => |error| error,
        Box<dyn StdError> => |error| error.as_ref(),
        Box<dyn StdError + Send + Sync> => |error| error.as_ref(),
    );
    if let Some(known) = types.iter().find(|known| known.id == id) {
        // SAFETY: the ids are equal, which the caller answers for.
        source = unsafe { (known.as_error)(at) }.source();
    }
    let mut chain = vec![error.to_string()];
    if source.is_none() {
        // anyhow's and eyre's way to write all causes.
        let all = format!("{error:#}");
        if let Some(causes) = all.strip_prefix(&format!("{}: ", chain[0])) {
            chain.push(causes.to_owned());
        }
    }
    while let Some(cause) = source {
        let text = cause.to_string();
        // Many messages end with that of their cause.
        if chain.last().is_none_or(|last| !last.contains(&text)) {
            chain.push(text);
        }
        source = cause.source();
    }
    chain
}

/// evcxr's store of the variables between cells, compiled once in the library: it stands in the place of the module that evcxr
/// writes into each cell.
pub mod store {
    use std::any::Any;
    use std::collections::HashMap;
    use std::sync::Arc;

    /// Variables by name.
    #[derive(Default)]
    pub struct VariableStore(HashMap<String, Box<dyn Any>>);

    impl VariableStore {
        fn put(&mut self, name: &str, value: Box<dyn Any>) {
            self.0.insert(name.to_owned(), value);
        }

        fn get(&self, name: &str) -> Option<&dyn Any> {
            self.0.get(name).map(Box::as_ref)
        }

        fn take(&mut self, name: &str) -> Box<dyn Any> {
            self.0.remove(name).unwrap_or_else(|| panic!("the variable `{name}` is gone"))
        }

        /// Stores a variable.
        pub fn put_variable<T: 'static>(&mut self, name: &str, value: T) {
            self.put(name, Box::new(value));
        }

        /// Returns whether the variable, if there is one, is a `T`; otherwise it is lost, which the host is told.
        pub fn check_variable<T: 'static>(&mut self, name: &str) -> bool {
            let is_same = self.get(name).is_none_or(|value| value.is::<T>());
            if !is_same {
                super::lost(name);
            }
            is_same
        }

        /// Takes a variable out, as a `T`.
        ///
        /// # Panics
        /// Panics when there is none, or it is no `T`; evcxr asks before.
        pub fn take_variable<T: 'static>(&mut self, name: &str) -> T {
            match self.take(name).downcast() {
                Ok(value) => *value,
                Err(_) => panic!("the variable `{name}` has another type"),
            }
        }

        /// A value that is made when it is first asked for.
        ///
        /// # Panics
        /// Panics when the value of this name has another type.
        pub fn lazy_arc<T: 'static, F: FnOnce() -> T>(&mut self, name: &str, create: F) -> Arc<T> {
            let value = self.0.entry(name.to_owned()).or_insert_with(|| Box::new(Arc::new(create())));
            match value.downcast_ref::<Arc<T>>() {
                Some(value) => value.clone(),
                None => panic!("`{name}` has another type"),
            }
        }
    }

    /// A store that lives as long as the process.
    pub fn create_variable_store() -> *mut VariableStore {
        Box::into_raw(Box::default())
    }
}

/// Says that a variable is lost because its type was defined anew.
fn lost(name: &str) {
    let _ = writeln!(std::io::stderr(), "the type of the variable {name} was defined anew, so its value is lost");
    retyped(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);
    impl Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(if f.alternate() { "no width: from the alternate form" } else { "no width" })
        }
    }
    impl StdError for Outer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn causes_are_told_where_the_type_is_known() {
        let outer = || Outer("x".parse::<u8>().unwrap_err());
        let expected = ["no width", "invalid digit found in string"];
        assert_eq!(chain(&outer(), &[ErrorType::of::<Outer>()]), expected);
        let boxed: Box<dyn StdError> = Box::new(outer());
        assert_eq!(chain(&boxed, &[]), expected);
        let boxed: Box<dyn StdError + Send + Sync> = std::io::Error::other("all").into();
        assert_eq!(chain(&boxed, &[]), ["all"]);
        assert_eq!(chain(&std::io::Error::other(outer()), &[])[0], "no width");
        assert_eq!(chain(&outer(), &[]), ["no width", "from the alternate form"]);
        assert_eq!(chain(&"text", &[ErrorType::of::<Outer>()]), ["text"]);
    }

    #[test]
    fn a_cause_that_the_message_ends_with_is_told_once() {
        let error = crate::error::Error::io("read", "a.safetensors")(std::io::Error::other("no space"));
        assert_eq!(chain(&error, &[]).len(), 1, "{:?}", chain(&error, &[]));
    }
}
