//! Who may take part: tokens and members, and tokens of the page, as items of the catalogue. What an agent means for merging is journalled by
//! the runs that it takes part in.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, Digest, RunId};
use anabranch_common::limits;
use anabranch_common::schema::{self, SchemaError};
use anabranch_common::status::TokenStatus;
use anabranch_common::wire::message::JoinRefusal;

use super::page_tokens::{NewPageToken, PageTokenBook, PageTokenError, PageTokenRecord};
use super::tokens::{NewToken, Redeemed, TokenBook, TokenError, TokenRecord};

/// What catalogue keys of members begin with; the identity follows.
pub const MEMBER_KEYS: &str = "member/";
/// What catalogue keys of tokens begin with; the token's id follows.
pub const TOKEN_KEYS: &str = "token/";
/// What catalogue keys of page tokens begin with; the token's id follows.
pub const PAGE_TOKEN_KEYS: &str = "page-token/";

/// One enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Whether its certificate was revoked.
    pub revoked: bool,
    /// Unix time in milliseconds at which it joined.
    pub joined_at_ms: u64,
    /// The tokens that it joined with, by the digest of their secret, and its number among those that joined with each.
    pub tokens: BTreeMap<Digest, u32>,
    /// The runs that it may take part in, by all tokens that it joined with; all runs when there is none.
    pub runs: BTreeSet<RunId>,
    /// The key that counts, where that is not the first one.
    pub key: Option<AgentId>,
    /// The key for which a certificate was issued at an operator's request, until the member connects with it.
    pub next_key: Option<AgentId>,
    /// Whether an operator has asked for a new key.
    pub rotates: bool,
    /// The certificate with which it connected last.
    pub shown: Option<ShownCertificate>,
    /// Unix time in milliseconds at which the latest certificate expires that it was issued over a connection.
    pub issued_until_ms: Option<u64>,
    /// Whether an operator has asked for a new key again, so that another next key may take the place of the one there is.
    pub rotates_again: bool,
}

/// What is kept of a certificate with which a member has connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownCertificate {
    /// The key of the CA that has issued it ([`authority_id`](anabranch_io::tls::authority_id)), where the member speaks a
    /// version in which it is told of CAs.
    pub authority: Option<Digest>,
    /// Unix time in milliseconds at which it expires.
    pub expires_at_ms: u64,
}

/// The certificate of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    /// The id of its key.
    pub key: AgentId,
    /// The key of the CA that has issued it.
    pub authority: Option<Digest>,
    /// Unix time in milliseconds at which it expires.
    pub expires_at_ms: u64,
    /// The version of the schema that its owner speaks.
    pub version: u16,
}

/// The first version of the schema in which an agent can be asked for a renewal, and is told of CAs.
pub(crate) const ASKED_SINCE: u16 = 7;

impl Certificate {
    fn shown(&self) -> ShownCertificate {
        let authority = self.authority.filter(|_| self.version >= ASKED_SINCE);
        ShownCertificate { authority, expires_at_ms: self.expires_at_ms }
    }
}

impl Member {
    /// Returns whether it may take part in a run.
    #[must_use]
    pub fn may_enter(&self, run: RunId) -> bool {
        self.runs.is_empty() || self.runs.contains(&run)
    }

    /// The key that counts.
    #[must_use]
    pub fn current_key(&self, agent: AgentId) -> AgentId {
        self.key.unwrap_or(agent)
    }

    /// Returns whether it may connect with this key.
    #[must_use]
    pub fn may_use(&self, agent: AgentId, key: AgentId) -> bool {
        key == self.current_key(agent) || self.next_key == Some(key)
    }

    /// Unix time in milliseconds at which the last of its certificates that are known expires. Nothing is known of one that
    /// it has joined with and not connected with.
    #[must_use]
    pub fn holds_until_ms(&self) -> Option<u64> {
        let shown = self.shown?;
        Some(self.issued_until_ms.map_or(shown.expires_at_ms, |issued_ms| issued_ms.max(shown.expires_at_ms)))
    }

    /// Adds the runs that another token is for. Returns whether that changes anything.
    fn widen(&mut self, runs: &BTreeSet<RunId>) -> bool {
        let before = self.runs.len();
        if runs.is_empty() {
            self.runs.clear();
        } else if !self.runs.is_empty() {
            self.runs.extend(runs);
        }
        self.runs.len() != before
    }
}

/// An item of the catalogue that is to be saved; without a value it is to be deleted.
pub type ItemChange = (String, Option<Vec<u8>>);

/// Tokens, members and page tokens. Each is an item of its own, so that a join rewrites one small item.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    tokens: TokenBook,
    members: BTreeMap<AgentId, Member>,
    page_tokens: PageTokenBook,
    /// The owner of each key that is not its owner's first one.
    owners: BTreeMap<AgentId, AgentId>,
    /// What has changed since [`take_changes`](Self::take_changes).
    changed_members: BTreeSet<AgentId>,
    changed_tokens: BTreeSet<String>,
    changed_page_tokens: BTreeSet<String>,
}

anabranch_common::layout! {
    struct Member {
        name, revoked, joined_at_ms, tokens, runs,
        key since 7 or None, next_key since 7 or None, rotates since 7 or false, shown since 7 or None,
        issued_until_ms since 7 or None, rotates_again since 7 or false,
    }
    struct ShownCertificate { authority, expires_at_ms }
    struct SavedToken { secret_digest, name, created_ms, expires_ms, uses, revoked, runs }
    struct PageTokenRecord { secret_digest, name, permission, created_ms, expires_ms, used_ms, revoked }
}

/// A token, as it is saved.
#[derive(Debug)]
struct SavedToken {
    secret_digest: [u8; 32],
    name: Option<String>,
    created_ms: u64,
    expires_ms: u64,
    uses: u32,
    revoked: bool,
    runs: BTreeSet<RunId>,
}

impl Roster {
    /// Takes over one item as it was saved. Items of tokens come before those of members.
    ///
    /// # Errors
    /// The item is damaged.
    pub fn restore(&mut self, key: &str, value: &[u8]) -> Result<(), SchemaError> {
        let malformed = || SchemaError::Malformed(format!("{key:?} is no key of a token or a member"));
        if let Some(agent) = key.strip_prefix(MEMBER_KEYS) {
            let agent: AgentId = agent.parse().map_err(|_| malformed())?;
            let mut member: Member = schema::decode_numbered(value, limits::ROSTER_ITEM_BYTES)?;
            // Tokens that were forgotten since are forgotten here, too.
            member.tokens.retain(|token, nth| self.tokens.restore_use(agent, *token, *nth));
            self.owners.extend(member.key.into_iter().chain(member.next_key).map(|key| (key, agent)));
            self.members.insert(agent, member);
        } else if key.starts_with(TOKEN_KEYS) {
            let SavedToken { secret_digest, name, created_ms, expires_ms, uses, revoked, runs } =
                schema::decode_numbered(value, limits::ROSTER_ITEM_BYTES)?;
            let used_by = BTreeMap::new();
            let token = TokenRecord { secret_digest, name, created_ms, expires_ms, uses, revoked, runs, used_by };
            self.tokens.restore(token);
        } else if key.starts_with(PAGE_TOKEN_KEYS) {
            self.page_tokens.restore(schema::decode_numbered(value, limits::ROSTER_ITEM_BYTES)?);
        } else {
            return Err(malformed());
        }
        Ok(())
    }

    /// The items of the tokens, members and page tokens that have changed since the last call.
    ///
    /// # Errors
    /// An item is longer than it may be.
    pub fn take_changes(&mut self) -> Result<Vec<ItemChange>, SchemaError> {
        let (members, tokens) = (std::mem::take(&mut self.changed_members), std::mem::take(&mut self.changed_tokens));
        let mut items = Vec::new();
        for id in tokens {
            let saved = self.tokens.get(&id).map(|token| SavedToken {
                secret_digest: token.secret_digest,
                name: token.name.clone(),
                created_ms: token.created_ms,
                expires_ms: token.expires_ms,
                uses: token.uses,
                revoked: token.revoked,
                runs: token.runs.clone(),
            });
            let value = saved.map(|saved| schema::encode_numbered(&saved, limits::ROSTER_ITEM_BYTES)).transpose()?;
            items.push((format!("{TOKEN_KEYS}{id}"), value));
        }
        for agent in members {
            let Some(mut saved) = self.members.get(&agent).cloned() else { continue };
            saved.tokens.retain(|token, _| self.tokens.has(*token));
            let value = schema::encode_numbered(&saved, limits::ROSTER_ITEM_BYTES)?;
            items.push((format!("{MEMBER_KEYS}{agent}"), Some(value)));
        }
        for id in std::mem::take(&mut self.changed_page_tokens) {
            let token = self.page_tokens.get(&id);
            let value = token.map(|token| schema::encode_numbered(token, limits::ROSTER_ITEM_BYTES)).transpose()?;
            items.push((format!("{PAGE_TOKEN_KEYS}{id}"), value));
        }
        Ok(items)
    }

    /// The page tokens.
    #[must_use]
    pub fn page_tokens(&self) -> &PageTokenBook {
        &self.page_tokens
    }

    /// Makes a page token. Returns its id.
    ///
    /// # Errors
    /// See [`PageTokenError`].
    pub fn create_page_token(&mut self, new: NewPageToken, now_ms: u64) -> Result<String, PageTokenError> {
        let (id, gone) = self.page_tokens.create(new, now_ms)?;
        self.changed_page_tokens.extend(gone.into_iter().chain([id.clone()]));
        Ok(id)
    }

    /// Revokes a page token. Returns whether there is one.
    pub fn revoke_page_token(&mut self, id: &str) -> bool {
        let known = self.page_tokens.revoke(id);
        if known {
            self.changed_page_tokens.insert(id.to_owned());
        }
        known
    }

    /// Notes a use of a page token. Returns whether it is worth saving.
    pub fn use_page_token(&mut self, id: &str, now_ms: u64) -> bool {
        let is_worth_saving = self.page_tokens.used(id, now_ms);
        if is_worth_saving {
            self.changed_page_tokens.insert(id.to_owned());
        }
        is_worth_saving
    }

    /// The join tokens.
    #[must_use]
    pub fn tokens(&self) -> &TokenBook {
        &self.tokens
    }

    /// Makes a token.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn create_token(&mut self, new: NewToken, now_ms: u64) -> Result<TokenStatus, TokenError> {
        let before: BTreeSet<String> = self.tokens.ids().cloned().collect();
        let status = self.tokens.create(new, now_ms)?;
        // One that is over may have made room.
        let gone = before.into_iter().filter(|id| self.tokens.get(id).is_none());
        self.changed_tokens.extend(gone.chain([status.id.clone()]));
        Ok(status)
    }

    /// Revokes a token. Says whether there is one.
    pub fn revoke_token(&mut self, id: &str) -> bool {
        let known = self.tokens.revoke(id);
        if known {
            self.changed_tokens.insert(id.to_owned());
        }
        known
    }

    /// Enrols the owner of a key with a token. A retry by the same key gets the same answer and uses nothing up.
    ///
    /// # Errors
    /// See [`JoinRefusal`].
    pub fn join(&mut self, secret: &[u8; 32], key: AgentId, now_ms: u64) -> Result<String, JoinRefusal> {
        let agent = self.owner(key);
        // A key that was replaced joins nobody.
        if self.members.get(&agent).is_some_and(|member| member.revoked || !member.may_use(agent, key)) {
            return Err(JoinRefusal::Revoked);
        }
        if self.members.len() >= limits::AGENTS && !self.members.contains_key(&agent) {
            return Err(JoinRefusal::Full);
        }
        let Redeemed { name, token, nth, runs } = self.tokens.redeem(secret, agent, now_ms)?;
        let new = || Member {
            name,
            revoked: false,
            joined_at_ms: now_ms,
            tokens: BTreeMap::new(),
            runs: runs.clone(),
            key: None,
            next_key: None,
            rotates: false,
            shown: None,
            issued_until_ms: None,
            rotates_again: false,
        };
        let member = self.members.entry(agent).or_insert_with(new);
        let is_wider = member.widen(&runs);
        // The certificate that it gets now is known once it has connected with it.
        let has_expired = member.holds_until_ms().is_some_and(|until_ms| until_ms <= now_ms);
        if has_expired {
            (member.shown, member.issued_until_ms) = (None, None);
        }
        if member.tokens.insert(token, nth) != Some(nth) || is_wider || has_expired {
            self.changed_members.insert(agent);
        }
        Ok(member.name.clone())
    }

    /// Returns the one agent that is called so: by identity in hexadecimal, or by name.
    ///
    /// # Errors
    /// A sentence about nobody, or several, being called so.
    pub fn find(&self, who: &str) -> Result<AgentId, String> {
        let matches: Vec<AgentId> = self
            .members
            .iter()
            .filter(|(id, member)| member.name == who || id.to_string() == who || id.short() == who)
            .map(|(id, _)| *id)
            .collect();
        match matches[..] {
            [agent] => Ok(agent),
            [] => Err(format!("no agent is called {who:?}; see `agents list`")),
            _ => Err(format!("{} agents are called {who:?}; use the id from `agents list`", matches.len())),
        }
    }

    /// Revokes a member. Returns false if it was revoked before, or is no member.
    pub fn revoke(&mut self, agent: AgentId) -> bool {
        let Some(member) = self.members.get_mut(&agent).filter(|member| !member.revoked) else { return false };
        member.revoked = true;
        self.changed_members.insert(agent);
        true
    }

    /// Marks a member for a new key. Returns false if it is revoked, or no member.
    pub fn rotate(&mut self, agent: AgentId) -> bool {
        let Some(member) = self.members.get_mut(&agent).filter(|member| !member.revoked) else { return false };
        let before = (member.rotates, member.rotates_again);
        (member.rotates, member.rotates_again) = (true, member.next_key.is_some());
        if (member.rotates, member.rotates_again) != before {
            self.changed_members.insert(agent);
        }
        true
    }

    /// Notes until when the certificate is good that a member is sent over its connection.
    pub fn note_issued(&mut self, agent: AgentId, until_ms: u64) {
        let Some(member) = self.members.get_mut(&agent) else { return };
        if member.issued_until_ms.is_none_or(|before_ms| before_ms < until_ms) {
            member.issued_until_ms = Some(until_ms);
            self.changed_members.insert(agent);
        }
    }

    /// Notes the key for which a member that rotates is issued a certificate. Returns false where the key belongs, or has
    /// belonged, to another member or to this one, and where the member has another next key already: whoever holds a copy
    /// of the present key could replace it. An operator who asks again lets one more be noted.
    pub fn set_next_key(&mut self, agent: AgentId, key: AgentId) -> bool {
        let is_taken = self.members.contains_key(&key) || self.owners.get(&key).is_some_and(|owner| *owner != agent);
        let Some(member) = self.members.get_mut(&agent).filter(|member| !is_taken && member.key != Some(key)) else {
            return false;
        };
        if member.next_key != Some(key) {
            if member.next_key.is_some() && !member.rotates_again {
                return false;
            }
            if let Some(before) = member.next_key.replace(key) {
                self.owners.remove(&before);
            }
            member.rotates_again = false;
            self.owners.insert(key, agent);
            self.changed_members.insert(agent);
        }
        true
    }

    /// A member has connected with a certificate that it may use. With its next key, that key counts from now on, and no other.
    /// Returns whether anything has changed.
    pub fn note_shown(&mut self, agent: AgentId, certificate: &Certificate) -> bool {
        let Some(member) = self.members.get_mut(&agent) else { return false };
        let before = member.clone();
        member.shown = Some(certificate.shown());
        if member.next_key == Some(certificate.key) {
            (member.key, member.next_key) = (member.next_key, None);
            (member.rotates, member.rotates_again) = (false, false);
        }
        let has_changed = *member != before;
        if has_changed {
            self.changed_members.insert(agent);
        }
        has_changed
    }

    /// Returns whose key this is: that of the member which has it as a later key, else of the agent of that id.
    #[must_use]
    pub fn owner(&self, key: AgentId) -> AgentId {
        self.owners.get(&key).copied().unwrap_or(key)
    }

    /// Whether an item waits to be saved.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.changed_members.is_empty() || !self.changed_tokens.is_empty()
    }

    /// A member, revoked or not.
    #[must_use]
    pub fn member(&self, agent: AgentId) -> Option<&Member> {
        self.members.get(&agent)
    }

    /// A member's name.
    #[must_use]
    pub fn name(&self, agent: AgentId) -> Option<&str> {
        self.members.get(&agent).map(|member| member.name.as_str())
    }

    /// Every member by identity.
    pub fn members(&self) -> impl Iterator<Item = (AgentId, &Member)> {
        self.members.iter().map(|(agent, member)| (*agent, member))
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::token::PagePermission;

    use super::*;

    const SECRET: [u8; 32] = [9; 32];

    fn agent(number: u16) -> AgentId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        AgentId(id)
    }

    fn token(number: u64, ttl_ms: u64) -> NewToken {
        let secret_digest = if number == 0 { Digest::of(&SECRET).0 } else { Digest::of(&number.to_le_bytes()).0 };
        NewToken { secret_digest, name: Some("ward".into()), ttl_ms, uses: 1_000, runs: BTreeSet::new() }
    }

    fn keys(roster: &mut Roster) -> Vec<(String, bool)> {
        let items = roster.take_changes().expect("short");
        items.into_iter().map(|(key, value)| (key, value.is_some())).collect()
    }

    #[test]
    fn a_join_writes_one_short_item_however_many_have_joined() {
        let mut roster = Roster::default();
        roster.create_token(token(0, 60_000), 0).expect("valid");
        (0..500).for_each(|number| drop(roster.join(&SECRET, agent(number), 1).expect("good")));
        assert_eq!(roster.take_changes().expect("short").len(), 501);
        assert_eq!(roster.join(&SECRET, agent(500), 1), Ok("ward-501".to_owned()));
        let items = roster.take_changes().expect("short");
        let [(key, Some(value))] = &items[..] else { panic!("{items:?}") };
        assert!(*key == format!("member/{}", agent(500)) && value.len() < 100, "{key}: {} bytes", value.len());
        assert_eq!(roster.join(&SECRET, agent(7), 2), Ok("ward-8".to_owned()), "its answer was lost on the way");
        assert_eq!(keys(&mut roster), [], "a retry changes nothing");
        assert_eq!(roster.find("ward-8"), Ok(agent(7)));
        assert!(roster.revoke(agent(7)) && !roster.revoke(agent(7)) && !roster.revoke(agent(600)));
        assert_eq!(keys(&mut roster), [(format!("member/{}", agent(7)), true)]);
    }

    #[test]
    fn a_member_may_enter_the_runs_of_all_its_tokens() {
        let runs = |numbers: &[u8]| numbers.iter().map(|number| RunId([*number; 16])).collect::<BTreeSet<_>>();
        let may =
            |roster: &Roster, run: u8| roster.member(agent(1)).is_some_and(|member| member.may_enter(RunId([run; 16])));
        let (mut roster, mut secrets) = (Roster::default(), Vec::new());
        for (number, of) in [(1u64, runs(&[1])), (2, runs(&[2])), (3, runs(&[]))] {
            let secret: [u8; 32] = std::array::from_fn(|_| u8::try_from(number).expect("small"));
            let secret_digest = Digest::of(&secret).0;
            roster.create_token(NewToken { secret_digest, runs: of, ..token(0, 60_000) }, 0).expect("valid");
            secrets.push(secret);
        }
        roster.join(&secrets[0], agent(1), 1).expect("good");
        assert_eq!([1, 2, 3].map(|run| may(&roster, run)), [true, false, false]);
        roster.join(&secrets[1], agent(1), 1).expect("good");
        assert_eq!([1, 2, 3].map(|run| may(&roster, run)), [true, true, false]);
        roster.join(&secrets[2], agent(1), 1).expect("good");
        assert!(may(&roster, 3), "a token for all runs");
        roster.join(&secrets[0], agent(1), 2).expect("good");
        assert!(may(&roster, 3), "an earlier token takes nothing away");
    }

    #[test]
    fn what_was_saved_is_restored() {
        let mut roster = Roster::default();
        let runs = BTreeSet::from([RunId([5; 16])]);
        roster.create_token(NewToken { runs, ..token(0, 60_000) }, 0).expect("valid");
        roster.create_token(token(1, 60_000), 0).expect("valid");
        (0..3).for_each(|number| drop(roster.join(&SECRET, agent(number), 1).expect("good")));
        assert!(roster.revoke(agent(1)));
        assert!(roster.revoke_token(&Digest::of(&1_u64.to_le_bytes()).short()));
        let items = roster.take_changes().expect("short");
        let mut restored = Roster::default();
        for (key, value) in items {
            restored.restore(&key, &value.expect("nothing is deleted")).expect("as saved");
        }
        assert_eq!(restored, roster);
        assert_eq!(restored.join(&SECRET, agent(3), 2), Ok("ward-4".to_owned()), "uses are counted");
        assert!(restored.restore("member/x", &[]).is_err() && restored.restore("other", &[]).is_err());
    }

    #[test]
    fn page_tokens_are_items_of_their_own() {
        let mut roster = Roster::default();
        let new = |number: u64, ttl_ms| NewPageToken {
            secret_digest: Digest::of(&number.to_le_bytes()).0,
            name: None,
            permission: PagePermission::Operate,
            ttl_ms,
        };
        let first = roster.create_page_token(new(0, 1_000), 0).expect("valid");
        assert!(roster.use_page_token(&first, 5) && !roster.use_page_token(&first, 6));
        assert!(roster.revoke_page_token(&first) && !roster.revoke_page_token("00000000"));
        let items = roster.take_changes().expect("short");
        let [(key, Some(value))] = &items[..] else { panic!("{items:?}") };
        assert_eq!(*key, format!("page-token/{first}"));
        let mut restored = Roster::default();
        restored.restore(key, value).expect("as saved");
        assert_eq!(restored, roster);
        for number in 1..limits::PAGE_TOKENS as u64 {
            roster.create_page_token(new(number, 60_000), 1).expect("there is room");
        }
        drop(keys(&mut roster));
        let last = roster.create_page_token(new(5_000, 60_000), 2_000).expect("the first one is over");
        let mut expected = [(format!("page-token/{last}"), true), (format!("page-token/{first}"), false)];
        expected.sort();
        assert_eq!(keys(&mut roster), expected);
    }

    #[test]
    fn a_token_that_makes_room_takes_its_item_along() {
        let mut roster = Roster::default();
        roster.create_token(token(0, 1_000), 0).expect("valid");
        roster.join(&SECRET, agent(1), 1).expect("good");
        for number in 1..limits::TOKENS as u64 {
            roster.create_token(token(number, 60_000), 0).expect("there is room");
        }
        drop(keys(&mut roster));
        let status = roster.create_token(token(5_000, 60_000), 2_000).expect("the first one has expired");
        let mut expected =
            [(format!("token/{}", status.id), true), (format!("token/{}", Digest::of(&SECRET).short()), false)];
        expected.sort();
        assert_eq!(keys(&mut roster), expected);
        // The member forgets it with its next change, and at the next start.
        assert!(roster.revoke(agent(1)));
        let items = roster.take_changes().expect("short");
        let mut restored = Roster::default();
        restored.restore(&items[0].0, items[0].1.as_ref().expect("a value")).expect("as saved");
        assert!(restored.member(agent(1)).is_some_and(|member| member.revoked && member.tokens.is_empty()));
    }
}
