//! Where the page may be served, and under which names a browser may ask for it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anabranch_io::web::listen_address;

/// Returns the address that an operator means by `--page`: a port alone is one of the loopback interface.
///
/// # Errors
/// The text is no address, or one that other machines reach: the page has no TLS yet.
pub fn page_address(text: &str) -> Result<SocketAddr, String> {
    let address = listen_address(text)?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    let port = address.port();
    Err(format!(
        "the page is not encrypted and is served on the loopback interface only: give 127.0.0.1:{port}, and reach it from \
         another machine with `ssh -L {port}:127.0.0.1:{port} HOST`"
    ))
}

/// The names under which the page is served. Another site whose name a hostile name server points at this machine is not
/// among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(BTreeSet<String>);

impl Names {
    /// Returns localhost, the loopback addresses, the address that is served, and the names that the operator has given.
    #[must_use]
    pub fn new(address: SocketAddr, given: impl IntoIterator<Item = String>) -> Self {
        let own = ["localhost", "127.0.0.1", "::1"].map(String::from).into_iter().chain([address.ip().to_string()]);
        Self(own.chain(given).map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a `Host` header has one of these names. Its port may be another one: that of a tunnel.
    pub(super) fn has(&self, host: &str) -> bool {
        let Some(name) = name_of(host) else { return false };
        self.0.contains(&name.to_ascii_lowercase())
    }

    /// Returns the names, for people.
    pub(super) fn list(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// Returns the name in a host with or without a port. An IPv6 address is in brackets.
fn name_of(host: &str) -> Option<&str> {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (name, port) = rest.split_once(']')?;
        matches!(name.parse(), Ok(IpAddr::V6(_))).then_some((name, port))?
    } else {
        host.split_at(host.find(':').unwrap_or(host.len()))
    };
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    is_port.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_served_on_the_loopback_interface_alone() {
        let address = |text: &str| page_address(text).map(|address| address.to_string());
        assert_eq!(address("8433").as_deref(), Ok("127.0.0.1:8433"));
        assert_eq!(address("[::1]:8433").as_deref(), Ok("[::1]:8433"));
        for reachable in ["0.0.0.0:8433", "10.0.0.7:8433", "[::]:8433"] {
            assert!(address(reachable).is_err_and(|why| why.contains("ssh -L 8433:127.0.0.1:8433")), "{reachable}");
        }
        assert!(address("trainer:8433").is_err_and(|why| why.contains("neither a port nor an IP address")));
    }

    #[test]
    fn a_host_counts_by_its_name_whatever_its_port_is() {
        let names = Names::new(([127, 0, 0, 2], 8433).into(), ["Trainer.example.org".to_owned()]);
        for own in
            ["localhost", "LOCALHOST:9", "127.0.0.1:8433", "127.0.0.2", "[::1]:8433", "[::1]", "trainer.example.org:1"]
        {
            assert!(names.has(own), "{own}");
        }
        for other in [
            "",
            ":8433",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8433",
            "localhost:port",
            "localhost:80:80",
            "localhost@evil.example",
            "[::1",
            "[localhost]",
            "::1",
            "trainer.example.org.",
        ] {
            assert!(!names.has(other), "{other}");
        }
    }
}
