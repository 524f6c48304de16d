//! The command `mixd`.
fn main() {}
