//! The fold as checkpoints keep it: a head, and pages of agents. Each is a blob under the digest of its bytes.
//!
//! ```text
//!  head   0      4        6          8
//!         ┌──────┬────────┬──────────┬──────────────────────────────────────────────┐
//!         │"ANBH"│version │ reserved │ everything that is not of one agent,         │
//!         │ 4    │ u16 le │ u16 = 0  │ digests of the pages by the ids in them      │
//!         └──────┴────────┴──────────┴──────────────────────────────────────────────┘
//!  page   ┌──────┬────────┬──────────┬──────────────────────────────────────────────┐
//!         │"ANBP"│version │ reserved │ 1 to FOLD_PAGE_AGENTS agents by id           │
//!         └──────┴────────┴──────────┴──────────────────────────────────────────────┘
//! ```
//! The same fold has the same bytes. A page whose agents have not changed since it was saved or loaded is neither encoded
//! nor written again, except that each checkpoint compares a few pages with what is stored, in turns. `parts` has the tables.

mod parts;

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use anabranch_common::schema::{self, Layout, RunTextError};
use anabranch_io::faults;

use super::{RecoveryError, vectors};
use crate::core::agents::{Agents, Page};
use crate::core::state::RunState;
use crate::store::Blobs;

/// Magic bytes of a head.
const HEAD_MAGIC: [u8; 4] = *b"ANBH";
/// Magic bytes of a page.
const PAGE_MAGIC: [u8; 4] = *b"ANBP";
/// Bytes before the body of either.
const HEADER_BYTES: usize = 8;
/// What errors call a head and a page.
const HEAD: &str = "state";
const PAGE: &str = "page of the state";

/// Stores the pages of a fold that the store does not hold, then its head. All of it is durable after [`Blobs::sync`].
/// Returns the head's digest.
///
/// # Errors
/// A page or the head is longer than it may be, or the storage fails.
pub(crate) fn put(blobs: &dyn Blobs, state: &RunState) -> Result<Digest, RecoveryError> {
    let turns = state.agents.pages().count().div_ceil(limits::FOLD_PAGES_CHECKED).max(1) as u64;
    let mut pages = Vec::new();
    // Drawn by the position, so that no regular distance of checkpoints leaves a page out for good.
    let turn = SplitMix64::new(state.position.0).next_u64() % turns;
    for (number, page) in (turn..).zip(state.agents.pages()) {
        let trust = if number.is_multiple_of(turns) { Trust::Nothing } else { Trust::WhatIsKnown };
        pages.push(put_page(blobs, state, page, trust)?);
    }
    faults::point("checkpoint-before-head");
    let head = parts::Head::of(state, pages)?;
    let bytes = encode(HEAD_MAGIC, &head, limits::FOLD_HEAD_BYTES)?;
    let digest = Digest::of(&bytes);
    blobs.put(digest, &bytes)?;
    Ok(digest)
}

/// What is believed of a page that was saved before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// It is in the store as it was.
    WhatIsKnown,
    /// It is compared, and written again where the disk has damaged it: every checkpoint that names it needs it.
    Nothing,
}

fn put_page(blobs: &dyn Blobs, state: &RunState, page: &Page, trust: Trust) -> Result<Digest, RecoveryError> {
    if trust == Trust::WhatIsKnown
        && let Some(digest) = page.digest()
        && blobs.holds(digest)?
    {
        return Ok(digest);
    }
    let saved = parts::Page::of(page, &state.participation, &state.shares);
    let bytes = encode(PAGE_MAGIC, &saved, limits::FOLD_PAGE_BYTES)?;
    let digest = Digest::of(&bytes);
    blobs.put(digest, &bytes)?;
    page.remember(digest);
    faults::point("checkpoint-in-pages");
    Ok(digest)
}

/// Reads a fold and checks each part against its digest.
///
/// # Errors
/// A part is missing, damaged or of another version, or the storage fails.
pub(crate) fn load(blobs: &dyn Blobs, head: Digest) -> Result<RunState, RecoveryError> {
    let (digest, head) = (head, read_head(blobs, head)?);
    let mut agents = Agents::default();
    let mut loaded: BTreeMap<AgentId, (usize, Digest)> = BTreeMap::new();
    let (mut newest, mut parts) = (None, parts::AgentParts::default());
    for digest in &head.pages {
        let page: parts::Page = read(blobs, PAGE, *digest, PAGE_MAGIC, limits::FOLD_PAGE_BYTES)?;
        let smallest = page.agents.first().map(|(agent, _)| *agent);
        loaded.extend(smallest.map(|smallest| (smallest, (page.agents.len(), *digest))));
        for (agent, saved) in page.agents {
            if newest.replace(agent) >= Some(agent) {
                let problem = "holds agents that are out of order".to_owned();
                return Err(RecoveryError::Blob { what: PAGE, digest: *digest, problem });
            }
            parts.participation.extend(saved.part.map(|part| (agent, part)));
            parts.shares.extend(saved.share.map(|share| (agent, share)));
            *agents.get_or_insert(agent) = Arc::unwrap_or_clone(saved.state);
        }
    }
    agents.remember(&loaded);
    head.into_state(agents, parts).map_err(|error| unparsed(digest, &error))
}

/// Reads a fold's head alone: the fold without its agents.
///
/// # Errors
/// As [`load`], of the head alone.
pub(super) fn load_without_agents(blobs: &dyn Blobs, head: Digest) -> Result<RunState, RecoveryError> {
    let (agents, parts) = (Agents::default(), parts::AgentParts::default());
    read_head(blobs, head)?.into_state(agents, parts).map_err(|error| unparsed(head, &error))
}

/// Checks that every part of a fold can be read, one page after the other.
///
/// # Errors
/// As [`load`].
pub(super) fn check(blobs: &dyn Blobs, head: Digest) -> Result<(), RecoveryError> {
    let (digest, head) = (head, read_head(blobs, head)?);
    head.spec().map_err(|error| unparsed(digest, &error))?;
    for digest in head.pages {
        read::<parts::Page>(blobs, PAGE, digest, PAGE_MAGIC, limits::FOLD_PAGE_BYTES)?;
    }
    Ok(())
}

/// The pages that a head names.
///
/// # Errors
/// As [`load`], of the head alone.
pub(super) fn pages(blobs: &dyn Blobs, head: Digest) -> Result<Vec<Digest>, RecoveryError> {
    Ok(read_head(blobs, head)?.pages)
}

fn read_head(blobs: &dyn Blobs, head: Digest) -> Result<parts::Head, RecoveryError> {
    read(blobs, HEAD, head, HEAD_MAGIC, limits::FOLD_HEAD_BYTES)
}

fn unparsed(head: Digest, error: &RunTextError) -> RecoveryError {
    RecoveryError::Blob { what: HEAD, digest: head, problem: format!("does not decode: {error}") }
}

fn encode<T: Layout>(magic: [u8; 4], body: &T, max_bytes: usize) -> Result<Vec<u8>, RecoveryError> {
    let body = schema::encode(body, max_bytes)?;
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&schema::VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&body);
    Ok(out)
}

fn read<T: Layout>(
    blobs: &dyn Blobs,
    what: &'static str,
    digest: Digest,
    magic: [u8; 4],
    max_bytes: usize,
) -> Result<T, RecoveryError> {
    let problem = |problem: String| RecoveryError::Blob { what, digest, problem };
    let bytes = vectors::bytes(blobs, what, digest)?;
    if Digest::of(&bytes) != digest {
        return Err(problem("does not have the content that its digest names".to_owned()));
    }
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>().filter(|(header, _)| header[..4] == magic)
    else {
        return Err(problem("does not start with its magic bytes".to_owned()));
    };
    let version = u16::from_le_bytes([header[4], header[5]]);
    if !schema::is_readable(version) {
        return Err(RecoveryError::Schema { what, found: version });
    }
    schema::decode_as(version, body, max_bytes).map_err(|error| problem(format!("does not decode: {error}")))
}

#[cfg(test)]
mod tests {
    use anabranch_common::merge::participation::Participation;
    use anabranch_common::merge::shares::Shares;

    use super::*;
    use crate::store::Store as _;
    use crate::store::for_tests::MapStore;

    /// Stores `bytes` as a page and reads it.
    fn read_page(bytes: &[u8]) -> Result<parts::Page, RecoveryError> {
        let (store, digest) = (MapStore::new(), Digest::of(bytes));
        store.blobs().put(digest, bytes).expect("memory");
        read(store.blobs(), PAGE, digest, PAGE_MAGIC, limits::FOLD_PAGE_BYTES)
    }

    fn page() -> Vec<u8> {
        let mut agents = Agents::default();
        (0..3).for_each(|number| agents.get_or_insert(AgentId([number; 16])).name = "a".to_owned());
        let page = agents.pages().next().expect("one page");
        let saved = parts::Page::of(page, &Participation::default(), &Shares::default());
        encode(PAGE_MAGIC, &saved, limits::FOLD_PAGE_BYTES).expect("short")
    }

    #[test]
    fn the_bytes_of_a_page_are_these() {
        let bytes = page();
        assert_eq!(bytes[..16], *b"ANBP\x07\0\0\0\x03\0\0\0\0\0\0\0", "magic, version, reserved, number of agents");
        assert_eq!(bytes[16..41], *b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a", "an id, and its name");
        assert_eq!(read_page(&bytes).expect("whole").agents.len(), 3);
    }

    #[test]
    fn what_a_page_claims_to_hold_is_bounded() {
        let mut bytes = page();
        bytes[8..16].copy_from_slice(&(1u64 << 40).to_le_bytes());
        let error = read_page(&bytes).expect_err("no page has so many agents").to_string();
        assert!(error.starts_with("page of the state") && error.contains("does not decode"), "{error}");
        let mut long = page();
        long.resize(HEADER_BYTES + limits::FOLD_PAGE_BYTES + 1, 0);
        assert!(read_page(&long).is_err(), "longer than any page");
    }

    #[test]
    fn every_prefix_and_what_is_no_page_of_this_version_is_refused() {
        let bytes = page();
        for len in 0..bytes.len() {
            assert!(read_page(&bytes[..len]).is_err(), "a prefix of {len} bytes was accepted");
        }
        for (at, problem) in [(0, "magic bytes"), (4, "version 5")] {
            let mut other = bytes.clone();
            other[at] ^= 2;
            let error = read_page(&other).expect_err("not a page").to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
