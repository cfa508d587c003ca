//! `Debug` of what is large (one short line, in an error message, a `dbg!` or beside other values in a cell) and of errors.

use crate::error::{Error, Parts};

/// Gives a type a `Debug` of one line. What is `rich` is shown whole in a notebook also where it stands within another value
/// (a tuple, a vector, a struct of the cell's own): [`crate::rich::set_aside`].
macro_rules! one_line {
    (rich $type:ty, |$value:ident| $line:expr) => {
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                #[cfg(feature = "report")]
                if let Some(mark) = $crate::rich::set_aside(self) {
                    return f.write_str(&mark);
                }
                let $value = self;
                f.write_str(&$crate::debug::short(&$line))
            }
        }
    };
    ($type:ty, |$value:ident| $line:expr) => {
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let $value = self;
                f.write_str(&$crate::debug::short(&$line))
            }
        }
    };
}
pub(crate) use one_line;

/// [`Error::parts`], a line each.
impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        #[cfg(feature = "report")]
        if let Some(mark) = crate::rich::set_aside(self) {
            return f.write_str(&mark);
        }
        let Parts { what, cause, remedy } = self.parts();
        f.write_str(&what)?;
        cause.map_or(Ok(()), |cause| write!(f, "\n  cause: {cause}"))?;
        remedy.map_or(Ok(()), |remedy| write!(f, "\n  remedy: {remedy}"))
    }
}

/// Characters that a line has at most.
const MOST: usize = 200;

/// `text` on one line, its middle left out where it is long: names and paths may be of any length.
pub(crate) fn short(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let count = text.chars().count();
    if count <= MOST {
        return text;
    }
    let half = MOST / 2;
    let (head, tail) = (text.chars().take(half), text.chars().skip(count - (MOST - half - 1)));
    head.chain(['…']).chain(tail).collect()
}

/// A fraction in percent.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1}%", fraction * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_lines_and_short() {
        assert_eq!(short("a\nb"), "a b");
        let long = short(&"é".repeat(1_000));
        assert_eq!((long.chars().count(), long.contains('…')), (MOST, true));
    }
}
