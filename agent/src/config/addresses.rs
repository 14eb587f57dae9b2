//! The addresses under which an agent finds its coordinator: `address` in `agent.toml`.

use std::fmt;
use std::path::Path;

use anabranch_common::limits;
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use super::{ConfigError, is_host_and_port};

/// 1 to [`limits::COORDINATOR_ADDRESSES`] addresses (`host:port`) of one coordinator, in the order in which they are tried. In
/// TOML a text, or a list of texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMore", into = "OneOrMore")]
pub struct Addresses(Vec<String>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl From<OneOrMore> for Addresses {
    fn from(written: OneOrMore) -> Self {
        match written {
            OneOrMore::One(address) => Self(vec![address]),
            OneOrMore::More(addresses) => Self(addresses),
        }
    }
}

impl From<Addresses> for OneOrMore {
    fn from(Addresses(mut addresses): Addresses) -> Self {
        match addresses.pop() {
            Some(only) if addresses.is_empty() => Self::One(only),
            last => {
                addresses.extend(last);
                Self::More(addresses)
            }
        }
    }
}

impl From<&str> for Addresses {
    fn from(address: &str) -> Self {
        Self(vec![address.to_owned()])
    }
}

impl Addresses {
    /// Takes addresses as they were given; [`problem`](Self::problem) says whether they can be used.
    #[must_use]
    pub fn new(addresses: Vec<String>) -> Self {
        Self(addresses)
    }

    /// Returns the addresses in the order in which they are tried.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// Returns the address that is tried first.
    #[must_use]
    pub fn first(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// Returns what is wrong with the addresses, if anything is.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if let Some(bad) = self.0.iter().find(|address| !is_host_and_port(address)) {
            return Some(format!("address {bad:?} is not a host and a port, like coordinator.example:4433"));
        }
        let (given, most) = (self.0.len(), limits::COORDINATOR_ADDRESSES);
        (!(1..=most).contains(&given)).then(|| format!("address has {given} entries, expected 1 to {most}"))
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// Returns the text of an `agent.toml` with other addresses in it. Nothing else in the text changes, comments included.
///
/// # Errors
/// The text is not that of an `agent.toml`. `path` is for the message.
pub fn with_addresses(path: &Path, text: &str, addresses: &Addresses) -> Result<String, ConfigError> {
    let line = |problem: String| ConfigError::Line { path: path.to_path_buf(), line: 1, problem };
    let table = DeTable::parse(text).map_err(|error| line(error.message().to_owned()))?;
    let value = table.get_ref().get("address").ok_or_else(|| line("missing field `address`".to_owned()))?;
    let mut changed = text.to_owned();
    changed.replace_range(value.span(), &toml_value(addresses));
    Ok(changed)
}

fn toml_value(addresses: &Addresses) -> String {
    let text = |address: &String| toml::Value::String(address.clone()).to_string();
    match addresses.as_slice() {
        [only] => text(only),
        several => format!("[{}]", several.iter().map(text).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(of: &[&str]) -> Addresses {
        Addresses::new(of.iter().map(|address| (*address).to_owned()).collect())
    }

    #[test]
    fn addresses_are_replaced_and_all_else_stays() {
        let path = Path::new("agent.toml");
        let text = "# mine\naddress = \"a:1\"   # the old one\nname = \"north\"\n";
        let several = with_addresses(path, text, &addresses(&["b:2", "[::1]:3"])).expect("changed");
        assert_eq!(several, "# mine\naddress = [\"b:2\", \"[::1]:3\"]   # the old one\nname = \"north\"\n");
        let one = with_addresses(path, &several, &addresses(&["c:4"])).expect("changed");
        assert_eq!(one, text.replace("a:1", "c:4"));
        assert!(with_addresses(path, "name = 1", &addresses(&["c:4"])).is_err());
        assert!(with_addresses(path, "address = [", &addresses(&["c:4"])).is_err());
    }

    #[test]
    fn there_is_at_least_one_address_and_not_more_than_are_tried() {
        let many = |count: usize| Addresses::new((0..count).map(|n| format!("10.0.0.{n}:1")).collect());
        assert_eq!(many(limits::COORDINATOR_ADDRESSES).problem(), None);
        for (wrong, words) in [
            (many(0), "has 0 entries"),
            (many(limits::COORDINATOR_ADDRESSES + 1), "expected 1 to 8"),
            (addresses(&["a:1", "b"]), "address \"b\" is not a host and a port"),
        ] {
            assert!(wrong.problem().is_some_and(|problem| problem.contains(words)), "{wrong}");
        }
    }
}
