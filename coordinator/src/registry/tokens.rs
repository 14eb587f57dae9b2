//! Join tokens as the coordinator keeps them: the digest of each secret, never the secret.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, Digest, RunId};
use anabranch_common::limits;
use anabranch_common::status::TokenStatus;
use anabranch_common::wire::message::JoinRefusal;

use crate::config::{is_label, label_problem};

/// Milliseconds that a token lives unless told otherwise: a day.
pub const DEFAULT_TTL_MS: u64 = 24 * 60 * 60 * 1000;

/// One join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// BLAKE3 of its secret.
    pub secret_digest: [u8; 32],
    /// Name for the agents that join with it.
    pub name: Option<String>,
    /// Unix time in milliseconds at which it was made.
    pub created_ms: u64,
    /// Unix time in milliseconds at which it expires.
    pub expires_ms: u64,
    /// Agents that may join with it, those that have joined included.
    pub uses: u32,
    /// Whether it was revoked.
    pub revoked: bool,
    /// The runs that its agents may take part in; all runs when there is none.
    pub runs: BTreeSet<RunId>,
    /// The agents that joined with it, each with its number in order, from 0. Saved with the agents, not with the token.
    pub used_by: BTreeMap<AgentId, u32>,
}

/// All join tokens by id: the first eight hexadecimal characters of the digest of the secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBook {
    tokens: BTreeMap<String, TokenRecord>,
}

/// What a token gives an agent that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeemed {
    /// The agent's name.
    pub name: String,
    /// BLAKE3 of the token's secret.
    pub token: Digest,
    /// The agent's number among those that joined with the token, from 0.
    pub nth: u32,
    /// The runs that it may take part in; all runs when there is none.
    pub runs: BTreeSet<RunId>,
}

/// Why a token was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The name cannot be an agent's.
    #[error("a token's name {0}")]
    BadName(String),
    /// Nobody could join with it, or more agents than a run holds.
    #[error("a token is for 1 to {max} agents, not {0}", max = limits::AGENTS)]
    BadUses(u32),
    /// It would be over at once, or live for more than a year.
    #[error("a token lives between a second and a year, not {0} ms")]
    BadTtl(u64),
    /// It names more runs than a token may.
    #[error("a token is for at most {max} runs, not {0}; leave out --runs for all runs", max = limits::TOKEN_RUNS)]
    ManyRuns(usize),
    /// There is one with this id; another secret has another id.
    #[error("there is a token {0} already")]
    Exists(String),
    /// Every place is taken by a token that is still good.
    #[error("there are {max} tokens that are still good; revoke some first", max = limits::TOKENS)]
    Full,
}

/// What an operator asks of a new token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// BLAKE3 of its secret.
    pub secret_digest: [u8; 32],
    /// Name for the agents that join with it; without one they are called after their id.
    pub name: Option<String>,
    /// How long it is good for, in milliseconds.
    pub ttl_ms: u64,
    /// How many agents may join with it.
    pub uses: u32,
    /// The runs that its agents may take part in; all runs when there is none.
    pub runs: BTreeSet<RunId>,
}

impl TokenRecord {
    fn uses_left(&self) -> u32 {
        self.uses.saturating_sub(u32::try_from(self.used_by.len()).unwrap_or(u32::MAX))
    }

    fn is_over(&self, now_ms: u64) -> bool {
        self.revoked || self.uses_left() == 0 || now_ms >= self.expires_ms
    }

    /// What the `nth` agent (from 0) that joins with this token gets.
    fn redeemed(&self, agent: AgentId, nth: u32) -> Redeemed {
        let name = match &self.name {
            None => format!("agent-{}", agent.short()),
            Some(name) if self.uses <= 1 => name.clone(),
            Some(name) => format!("{name}-{}", u64::from(nth) + 1),
        };
        Redeemed { name, token: Digest(self.secret_digest), nth, runs: self.runs.clone() }
    }

    fn status(&self, id: &str) -> TokenStatus {
        TokenStatus {
            id: id.to_owned(),
            name: self.name.clone(),
            expires_at_ms: self.expires_ms,
            uses_left: self.uses_left(),
            revoked: self.revoked,
            runs: self.runs.iter().copied().collect(),
        }
    }
}

impl TokenBook {
    /// Adds a token. When the book is full, the oldest one that is over makes room.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn create(&mut self, new: NewToken, now_ms: u64) -> Result<TokenStatus, TokenError> {
        let NewToken { secret_digest, name, ttl_ms, uses, runs } = new;
        if let Some(name) = &name {
            let longest = format!("{name}-{uses}");
            if !is_label(name) || !is_label(&longest) {
                return Err(TokenError::BadName(label_problem(name)));
            }
        }
        if uses == 0 || uses as usize > limits::AGENTS {
            return Err(TokenError::BadUses(uses));
        }
        if !(1000..=limits::TOKEN_TTL_MS).contains(&ttl_ms) {
            return Err(TokenError::BadTtl(ttl_ms));
        }
        if runs.len() > limits::TOKEN_RUNS {
            return Err(TokenError::ManyRuns(runs.len()));
        }
        let id = Digest(secret_digest).short();
        if self.tokens.contains_key(&id) {
            return Err(TokenError::Exists(id));
        }
        if self.tokens.len() >= limits::TOKENS {
            let oldest = oldest_over(&self.tokens, |token| token.is_over(now_ms).then_some(token.created_ms));
            self.tokens.remove(&oldest.ok_or(TokenError::Full)?);
        }
        let expires_ms = now_ms.saturating_add(ttl_ms);
        let used_by = BTreeMap::new();
        let record =
            TokenRecord { secret_digest, name, created_ms: now_ms, expires_ms, uses, revoked: false, runs, used_by };
        let status = record.status(&id);
        self.tokens.insert(id, record);
        Ok(status)
    }

    /// Lets `agent` join with `secret` and says what it is called. An agent that has joined with this token before, but
    /// did not hear the answer, gets the same name again and uses up nothing, even when the token is over by now.
    ///
    /// # Errors
    /// No such token, or it was revoked, is used up or has expired.
    pub fn redeem(&mut self, secret: &[u8; 32], agent: AgentId, now_ms: u64) -> Result<Redeemed, JoinRefusal> {
        let digest = Digest::of(secret);
        let token = self.tokens.get_mut(&digest.short()).filter(|token| token.secret_digest == digest.0);
        let token = token.filter(|token| !token.revoked).ok_or(JoinRefusal::UnknownToken)?;
        if let Some(nth) = token.used_by.get(&agent) {
            return Ok(token.redeemed(agent, *nth));
        }
        if token.uses_left() == 0 {
            return Err(JoinRefusal::UsedToken);
        }
        if now_ms >= token.expires_ms {
            return Err(JoinRefusal::ExpiredToken);
        }
        let nth = token.uses - token.uses_left();
        token.used_by.insert(agent, nth);
        Ok(token.redeemed(agent, nth))
    }

    /// Takes over a token as it was saved.
    pub(crate) fn restore(&mut self, token: TokenRecord) {
        self.tokens.insert(Digest(token.secret_digest).short(), token);
    }

    /// Notes that `agent` has joined with the token that has this digest, as the `nth` one. Says whether there is such a token.
    pub(crate) fn restore_use(&mut self, agent: AgentId, token: Digest, nth: u32) -> bool {
        let token = self.tokens.get_mut(&token.short()).filter(|known| known.secret_digest == token.0);
        token.map(|token| token.used_by.insert(agent, nth)).is_some()
    }

    /// The token with this secret, whatever it is still good for.
    pub(crate) fn of_secret(&self, secret: &[u8; 32]) -> Option<&TokenRecord> {
        let digest = Digest::of(secret);
        self.tokens.get(&digest.short()).filter(|token| token.secret_digest == digest.0)
    }

    /// A token, by id.
    pub(crate) fn get(&self, id: &str) -> Option<&TokenRecord> {
        self.tokens.get(id)
    }

    /// Whether the book has the token with this digest.
    pub(crate) fn has(&self, token: Digest) -> bool {
        self.tokens.get(&token.short()).is_some_and(|known| known.secret_digest == token.0)
    }

    /// The ids of all tokens, in ascending order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &String> {
        self.tokens.keys()
    }

    /// Revokes a token: nobody joins with it any more. Agents that have joined stay. Says whether there is one.
    pub fn revoke(&mut self, id: &str) -> bool {
        self.tokens.get_mut(id).map(|token| token.revoked = true).is_some()
    }

    /// Every token, by id.
    #[must_use]
    pub fn list(&self) -> Vec<TokenStatus> {
        self.tokens.iter().map(|(id, token)| token.status(id)).collect()
    }
}

/// Returns the id of the oldest token that is over. `over`: when a token was made that is over.
pub(super) fn oldest_over<T>(tokens: &BTreeMap<String, T>, over: impl Fn(&T) -> Option<u64>) -> Option<String> {
    let over = tokens.iter().filter_map(|(id, token)| Some((over(token)?, id)));
    over.min_by_key(|(created_ms, _)| *created_ms).map(|(_, id)| id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [9; 32];
    const ANNA: AgentId = AgentId([0xa; 16]);
    const BERT: AgentId = AgentId([0xb; 16]);

    fn book(name: Option<&str>, uses: u32) -> TokenBook {
        let mut book = TokenBook::default();
        book.create(new(name, uses), 1_000).expect("valid");
        book
    }

    fn new(name: Option<&str>, uses: u32) -> NewToken {
        let (secret_digest, name) = (Digest::of(&SECRET).0, name.map(String::from));
        NewToken { secret_digest, name, ttl_ms: 60_000, uses, runs: BTreeSet::new() }
    }

    fn name(text: &str) -> Result<String, JoinRefusal> {
        Ok(text.into())
    }

    fn redeem(book: &mut TokenBook, secret: &[u8; 32], agent: AgentId, now_ms: u64) -> Result<String, JoinRefusal> {
        book.redeem(secret, agent, now_ms).map(|redeemed| redeemed.name)
    }

    #[test]
    fn a_token_is_good_once_but_a_retry_of_the_same_agent_always_works() {
        let mut book = book(Some("clinic"), 1);
        assert_eq!(redeem(&mut book, &[8; 32], ANNA, 2_000), Err(JoinRefusal::UnknownToken));
        assert_eq!(redeem(&mut book, &SECRET, ANNA, 2_000), name("clinic"));
        assert_eq!(redeem(&mut book, &SECRET, BERT, 2_000), Err(JoinRefusal::UsedToken));
        assert_eq!(redeem(&mut book, &SECRET, ANNA, 2_000), name("clinic"), "its answer was lost on the way");
        assert_eq!(redeem(&mut book, &SECRET, ANNA, 99_000), name("clinic"), "even later");
        assert_eq!(book.list()[0].uses_left, 0);
    }

    #[test]
    fn expired_and_revoked_tokens_let_nobody_in() {
        let mut book = book(None, 2);
        assert_eq!(redeem(&mut book, &SECRET, ANNA, 61_000), Err(JoinRefusal::ExpiredToken));
        assert_eq!(redeem(&mut book, &SECRET, ANNA, 60_999), name("agent-0a0a0a0a"));
        let id = book.list()[0].id.clone();
        assert!(book.revoke(&id) && book.list()[0].revoked);
        assert_eq!(redeem(&mut book, &SECRET, BERT, 2_000), Err(JoinRefusal::UnknownToken));
        assert_eq!(redeem(&mut book, &SECRET, ANNA, 2_000), Err(JoinRefusal::UnknownToken));
        assert!(!book.revoke("00000000"));
    }

    #[test]
    fn several_agents_with_one_token_are_numbered() {
        let mut book = book(Some("ward"), 2);
        assert_eq!(redeem(&mut book, &SECRET, ANNA, 2_000), name("ward-1"));
        assert_eq!(redeem(&mut book, &SECRET, BERT, 2_000), name("ward-2"));
        assert_eq!(redeem(&mut book, &SECRET, ANNA, 2_000), name("ward-1"));
    }

    #[test]
    fn senseless_tokens_are_refused() {
        let mut book = TokenBook::default();
        assert!(matches!(book.create(new(Some("a b"), 1), 0), Err(TokenError::BadName(_))));
        let overlong = "x".repeat(limits::NAME_BYTES - 1);
        assert!(matches!(book.create(new(Some(&overlong), 9), 0), Err(TokenError::BadName(_))), "its agents' names");
        assert_eq!(book.create(new(None, 0), 0), Err(TokenError::BadUses(0)));
        assert_eq!(book.create(NewToken { ttl_ms: 999, ..new(None, 1) }, 0), Err(TokenError::BadTtl(999)));
        let runs = (0..=limits::TOKEN_RUNS as u128).map(|run| RunId(run.to_be_bytes())).collect();
        assert_eq!(
            book.create(NewToken { runs, ..new(None, 1) }, 0),
            Err(TokenError::ManyRuns(limits::TOKEN_RUNS + 1))
        );
        book.create(new(None, 1), 0).expect("valid");
        assert!(matches!(book.create(new(None, 1), 0), Err(TokenError::Exists(_))));
    }

    #[test]
    fn a_full_book_forgets_the_oldest_token_that_is_over() {
        let mut book = TokenBook::default();
        let nth = |n: usize| NewToken { secret_digest: Digest::of(&n.to_le_bytes()).0, ..new(None, 1) };
        for n in 0..limits::TOKENS {
            book.create(nth(n), n as u64).expect("there is room");
        }
        assert_eq!(book.create(nth(limits::TOKENS), 5_000), Err(TokenError::Full));
        let first = Digest(nth(0).secret_digest).short();
        book.create(nth(limits::TOKENS), 60_001).expect("the first two have expired");
        assert!(book.list().iter().all(|token| token.id != first));
        assert_eq!(book.list().len(), limits::TOKENS);
    }
}
