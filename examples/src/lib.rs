//! Home of the examples. Each is a directory here with a `main.rs`; run one with `cargo run --example NAME`.
//!
//! | example | shows |
//! |---|---|
//! | `quickstart` | a coordinator and four agents as real processes on this machine, one slow, one killed and started again |
