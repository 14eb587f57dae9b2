//! The names under which a server answers. A hostile name server can point the name of another site at this machine, and a
//! browser then takes that site for the origin of what is served here: its `Host` says so.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Names under which a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(BTreeSet<String>);

impl Hosts {
    /// Returns localhost, the loopback addresses, the address that is served unless it is a wildcard, and the names that the
    /// operator has given.
    #[must_use]
    pub fn new(address: SocketAddr, given: impl IntoIterator<Item = String>) -> Self {
        let own = ["localhost", "127.0.0.1", "::1"].map(String::from);
        let served = Some(address.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
        Self(own.into_iter().chain(served).chain(given).map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Returns whether a `Host` header has one of these names. Its port may be another one: that of a tunnel.
    #[must_use]
    pub fn has(&self, host: &str) -> bool {
        name_of(host).is_some_and(|name| self.0.contains(&name.to_ascii_lowercase()))
    }

    /// Returns whether a `Host` header has one of these names or any IP address, which no name server can point elsewhere.
    #[must_use]
    pub fn has_or_is_address(&self, host: &str) -> bool {
        self.has(host) || name_of(host).is_some_and(|name| name.parse::<IpAddr>().is_ok())
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
    fn a_host_counts_by_its_name_whatever_its_port_is() {
        let hosts = Hosts::new(([127, 0, 0, 2], 8433).into(), ["Trainer.example.org".to_owned()]);
        for own in
            ["localhost", "LOCALHOST:9", "127.0.0.1:8433", "127.0.0.2", "[::1]:8433", "[::1]", "trainer.example.org:1"]
        {
            assert!(hosts.has(own) && hosts.has_or_is_address(own), "{own}");
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
            assert!(!hosts.has(other) && !hosts.has_or_is_address(other), "{other}");
        }
        for address in ["10.0.0.7:9464", "[fd00::7]:9464"] {
            assert!(!hosts.has(address) && hosts.has_or_is_address(address), "{address}");
        }
        assert!(!Hosts::new(([0, 0, 0, 0], 8433).into(), []).has("0.0.0.0:8433"), "a wildcard is no name");
    }
}
