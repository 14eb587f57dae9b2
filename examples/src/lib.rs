//! Home of the examples, and what they share. Each example is a directory here with a `main.rs`; run one with
//! `cargo run --example NAME`.
//!
//! | example | shows |
//! |---|---|
//! | `quickstart` | a coordinator and four agents as real processes on this machine, one slow, one killed and started again |
//! | `pods` | two pods and a single agent train a language model; a helper and the coordinator are killed and started again |
//! | `search` | twelve configurations train on three agents, the best go on; the coordinator is killed and started again |
//! | `custom_trainer` | a trainer in Rust |
//!
//! | module | what is in it |
//! |---|---|
//! | [`daemon`] | the example's binary as a coordinator or an agent |
//! | [`run_dir`] | directories, enrolment, export |
//! | [`digits`] | the digits that agents train on |
//! | [`fleet`] | all processes while they are under way |
//! | [`watch`] | the reports of a run, or of a search |
//! | [`view`] | the live view |
//! | [`plot`], [`figures`] | what came out |

pub mod daemon;
pub mod digits;
pub mod figures;
pub mod fleet;
pub mod plot;
pub mod run_dir;
pub mod view;
pub mod watch;
