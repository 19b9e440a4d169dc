//! PARSE: the wire.
pub mod value;
pub use value::Value;
