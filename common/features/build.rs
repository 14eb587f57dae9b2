//! Does nothing: without a build script cargo does not count build dependencies.

fn main() {}
