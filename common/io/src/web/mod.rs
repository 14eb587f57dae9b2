//! HTTP/1.1 and HTTPS within bounds: both daemons' figures, and the coordinator's page.

mod hosts;
mod patient;
mod server;
mod shares;
#[cfg(test)]
mod tests;

pub use hosts::Hosts;
pub use server::{Bounds, Client, Server, WebError, listen_address};
pub use shares::network;
