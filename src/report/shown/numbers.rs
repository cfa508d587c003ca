//! The types that plots take for numbers.

/// A number of any type, or a reference to one.
pub trait Number: Copy {
    /// The nearest `f64`.
    fn number(self) -> f64;
}

macro_rules! numbers {
    ($($type:ty),+) => { $(
        impl Number for $type {
            fn number(self) -> f64 {
                self as f64
            }
        }
    )+ };
}
numbers!(f32, f64, u8, u16, u32, u64, usize, i8, i16, i32, i64, isize);

impl<T: Number> Number for &T {
    fn number(self) -> f64 {
        (*self).number()
    }
}

/// A number that may be missing: a number, or an `Option` of one.
pub trait MaybeNumber {
    /// The nearest `f64`.
    fn maybe_number(self) -> Option<f64>;
}

impl<T: Number> MaybeNumber for T {
    fn maybe_number(self) -> Option<f64> {
        Some(self.number())
    }
}

impl<T: Number> MaybeNumber for Option<T> {
    fn maybe_number(self) -> Option<f64> {
        self.map(Number::number)
    }
}

impl<T: Number> MaybeNumber for &Option<T> {
    fn maybe_number(self) -> Option<f64> {
        self.map(Number::number)
    }
}

/// A place in a plot, `(x, y)`, of numbers of any type, or a reference to one.
pub trait Point {
    /// As `f64`s.
    fn point(self) -> (f64, f64);
}

impl<X: Number, Y: Number> Point for (X, Y) {
    fn point(self) -> (f64, f64) {
        (self.0.number(), self.1.number())
    }
}

impl<X: Number, Y: Number> Point for &(X, Y) {
    fn point(self) -> (f64, f64) {
        (*self).point()
    }
}
