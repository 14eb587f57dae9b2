//! Who may take part: tokens and members. Kept in the catalogue beside the journal, since agents join before there is
//! a record 0; what it means for merging is journalled too.

use std::collections::BTreeMap;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::schema::{self, SchemaError};
use anabranch_common::wire::message::JoinRefusal;

use crate::identity::tokens::{CATALOGUE_KEY as TOKENS_KEY, NameForAgent, TokenBook};

anabranch_common::layout! {
    struct Member { name, revoked, joined_at_ms }
}

/// Catalogue key of the members.
pub const MEMBERS_KEY: &str = "members";

/// One enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Whether its certificate was revoked.
    pub revoked: bool,
    /// Unix time in milliseconds at which it joined.
    pub joined_at_ms: u64,
}

/// Tokens and members.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    /// The join tokens.
    pub tokens: TokenBook,
    members: BTreeMap<AgentId, Member>,
}

impl Roster {
    /// Reads both items as they were stored.
    ///
    /// # Errors
    /// An item is damaged.
    pub fn from_items(tokens: Option<&[u8]>, members: Option<&[u8]>) -> Result<Self, SchemaError> {
        let tokens = tokens.map(|bytes| schema::decode(bytes, limits::ROSTER_ITEM_BYTES)).transpose()?;
        let members = members.map(|bytes| schema::decode(bytes, limits::ROSTER_ITEM_BYTES)).transpose()?;
        Ok(Self { tokens: tokens.unwrap_or_default(), members: members.unwrap_or_default() })
    }

    /// Both items as they are stored.
    ///
    /// # Errors
    /// There are more members or tokens than an item holds.
    pub fn to_items(&self) -> Result<Vec<(&'static str, Vec<u8>)>, SchemaError> {
        let tokens = schema::encode(&self.tokens, limits::ROSTER_ITEM_BYTES)?;
        let members = schema::encode(&self.members, limits::ROSTER_ITEM_BYTES)?;
        Ok(vec![(TOKENS_KEY, tokens), (MEMBERS_KEY, members)])
    }

    /// Enrols the owner of a key with a token. A retry by the same key gets the same answer and uses nothing up.
    ///
    /// # Errors
    /// See [`JoinRefusal`].
    pub fn join(&mut self, secret: &[u8; 32], agent: AgentId, now_ms: u64) -> Result<String, JoinRefusal> {
        if self.members.get(&agent).is_some_and(|member| member.revoked) {
            return Err(JoinRefusal::Revoked);
        }
        if self.members.len() >= limits::AGENTS && !self.members.contains_key(&agent) {
            return Err(JoinRefusal::Full);
        }
        let NameForAgent(name) = self.tokens.redeem(secret, agent, now_ms)?;
        let member = self.members.entry(agent).or_insert_with(|| Member { name, revoked: false, joined_at_ms: now_ms });
        Ok(member.name.clone())
    }

    /// Revokes by identity in hexadecimal or by name; the identity when there is exactly one such agent.
    ///
    /// # Errors
    /// A sentence about nobody, or several, being called so.
    pub fn revoke(&mut self, who: &str) -> Result<AgentId, String> {
        let matches: Vec<AgentId> = self
            .members
            .iter()
            .filter(|(id, member)| member.name == who || id.to_string() == who || id.short() == who)
            .map(|(id, _)| *id)
            .collect();
        let agent = match matches[..] {
            [agent] => agent,
            [] => return Err(format!("no agent is called {who:?}; see `agents list`")),
            _ => return Err(format!("{} agents are called {who:?}; use the id from `agents list`", matches.len())),
        };
        if let Some(member) = self.members.get_mut(&agent) {
            member.revoked = true;
        }
        Ok(agent)
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

    /// Identity and name of the members that were not revoked.
    #[must_use]
    pub fn active(&self) -> Vec<(AgentId, String)> {
        self.members()
            .filter(|(_, member)| !member.revoked)
            .map(|(agent, member)| (agent, member.name.clone()))
            .collect()
    }
}
