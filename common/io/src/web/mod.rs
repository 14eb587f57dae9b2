//! Both daemons' figures over HTTP/1.1, within bounds.

mod patient;
mod server;
#[cfg(test)]
mod tests;

pub use server::{Bounds, Server, WebError, listen_address};
