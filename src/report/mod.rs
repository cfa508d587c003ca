//! From records to what people read: numbers, files of records and masks, and, with the feature `report`, tables, plots, and
//! reports that bundle them.
//!
//! Nothing here loads a model: the same records give the same bytes, a year later and on another machine.

mod cost;
mod json;
mod masks;
#[cfg(feature = "report")]
mod shown;

pub use crate::files::check_output;
pub use json::{read_records, write_record};
pub use masks::{MaskFile, write_masks};
#[cfg(feature = "report")]
pub use shown::{Cell, Figure, Format, HeatMap, MaskMap, MaybeNumber, Number, Plot, Point, Report, Row, Table};

#[cfg(feature = "report")]
pub(crate) use json::record_json;
#[cfg(feature = "report")]
pub(crate) use shown::escape_html;
