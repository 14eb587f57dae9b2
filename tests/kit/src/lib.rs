//! What tests share: conformance suites, and values to test with.
//!
//! | module | content | who calls it |
//! |---|---|---|
//! | [`codec`] | what every [`Codec`](anabranch_common::codec::Codec) must do | `common/tests/conformance` |
//! | [`merge`] | what every [`MergeRule`](anabranch_common::merge::MergeRule) must do | `common/tests/conformance` |
//! | [`extreme`] | extreme values | tests of both cores |
//! | [`lease`] | a lease and a plan | tests of the agent, benchmarks |
//! | [`transfer`] | a content of several chunks | tests of both transports |
//!
//! A suite panics with what does not hold. Unit tests of `anabranch-common` cannot call the suites: they are compiled with a
//! second instance of that crate, whose traits are other traits. They may call functions of numbers.

pub mod codec;
pub mod extreme;
pub mod lease;
pub mod merge;
pub mod transfer;
