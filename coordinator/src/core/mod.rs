//! The sans-IO core.

pub mod admit;
pub mod command;
pub mod event;
pub mod state;
