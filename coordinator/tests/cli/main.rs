//! The real binary, called as an operator would: what it prints, and how it ends (exit codes are a promise to scripts).

mod bad_input;
mod rollback;
mod runs;
mod serving;
mod stopped;
mod support;
