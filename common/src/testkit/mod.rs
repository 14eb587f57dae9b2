//! Conformance suites: what every [`Codec`](crate::codec::Codec) and every [`MergeRule`](crate::merge::MergeRule)
//! must do, to be called from the tests of each. They panic with what does not hold. And values to test with.

pub mod codec;
pub mod extreme;
pub mod lease;
pub mod merge;
