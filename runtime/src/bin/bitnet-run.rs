//! Runs a ternary model.
fn main() {}
