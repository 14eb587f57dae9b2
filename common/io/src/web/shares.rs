//! How many connections each address has: one that takes all places keeps the others out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections by address, shared by all of them. Those of an IPv6 network of 64 bits, which one machine may have all of, count
/// together.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    counts: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    most: usize,
}

/// A connection's part of its address's share. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    address: Option<IpAddr>,
    shares: Shares,
}

impl Shares {
    pub(super) fn new(most: usize) -> Self {
        Self { counts: Arc::default(), most }
    }

    /// Returns the part of another connection of an address, unless it has as many as it may. Programs of this machine share
    /// one address and are not counted.
    pub(super) fn take(&self, address: IpAddr) -> Option<Share> {
        let address = Some(network(address)).filter(|address| !address.is_loopback());
        if let Some(address) = address {
            let mut counts = self.counts.lock();
            let count = counts.entry(address).or_default();
            if *count >= self.most {
                return None;
            }
            *count += 1;
        }
        Some(Share { address, shares: self.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut counts = self.shares.counts.lock();
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

/// Returns what counts as one address: an IPv4 address, or the first 64 bits of an IPv6 address.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::limits;

    use super::*;

    #[test]
    fn an_address_has_its_share_and_no_more_until_a_connection_ends() {
        let shares = Shares::new(2);
        let take = |address: &str| shares.take(address.parse().expect("an address"));
        let (first, _second) = (take("10.0.0.7").expect("room"), take("10.0.0.7").expect("room"));
        assert!(take("10.0.0.7").is_none() && take("::ffff:10.0.0.7").is_none(), "the same address");
        assert!(take("10.0.0.8").is_some());
        drop(first);
        let _third = take("10.0.0.7").expect("one has ended");
        let _ours: Vec<Share> = (0..9).map(|_| take("127.0.0.1").expect("not counted")).collect();
        let _others = [take("fd00::1:2:3").expect("room"), take("fd00::9:9:9").expect("room")];
        assert!(take("fd00::7").is_none(), "one network");
        assert!(take("fd00:0:0:1::7").is_some() && take("::1").is_some());
        assert_eq!(shares.counts.lock().len(), 2, "what has ended is forgotten");
        let (shares, address) = (Shares::new(limits::WEB_CONNECTIONS_PER_ADDRESS), IpAddr::from([10, 0, 0, 7]));
        let all: Vec<Share> = std::iter::from_fn(|| shares.take(address)).collect();
        assert_eq!(all.len(), limits::WEB_CONNECTIONS_PER_ADDRESS);
    }
}
