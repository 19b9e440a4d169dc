//! The `keyfence` binary.
fn main() {}
