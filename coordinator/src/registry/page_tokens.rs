//! Page tokens as the coordinator keeps them: the digest of each secret, never the secret.
//!
//! ```text
//!  PageTokenBook ── durable changes ──► PageGrants ─ published ─► requests of the page: is this secret good now?
//!        ▲                                                              │
//!        └──────────────── a use, about once a minute ──────────────────┘
//! ```
//! Requests are checked against what the registry has published, so that strangers cause the loop no work.

use std::collections::BTreeMap;

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::status::PageTokenStatus;
use anabranch_common::token::PagePermission;

use super::tokens::oldest_over;
use crate::config::{is_label, label_problem};

/// One page token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageTokenRecord {
    /// BLAKE3 of its secret.
    pub secret_digest: [u8; 32],
    /// Name of its owner.
    pub name: Option<String>,
    /// What its owner may do.
    pub permission: PagePermission,
    /// Unix time in milliseconds at which it was made.
    pub created_ms: u64,
    /// Unix time in milliseconds at which it expires.
    pub expires_ms: u64,
    /// Unix time in milliseconds at which it was used last.
    pub used_ms: Option<u64>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// All page tokens by id: the first eight hexadecimal characters of the digest of the secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageTokenBook {
    tokens: BTreeMap<String, PageTokenRecord>,
}

/// What an operator asks of a new page token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPageToken {
    /// BLAKE3 of its secret.
    pub secret_digest: [u8; 32],
    /// Name of its owner.
    pub name: Option<String>,
    /// What its owner may do.
    pub permission: PagePermission,
    /// How long it is good for, in milliseconds.
    pub ttl_ms: u64,
}

/// Why a page token was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageTokenError {
    /// The name is no label.
    #[error("a page token's name {0}")]
    BadName(String),
    /// It would be over at once, or live for more than a year.
    #[error("a page token lives between a second and a year, not {0} ms")]
    BadTtl(u64),
    /// There is one with this id; another secret has another id.
    #[error("there is a page token {0} already")]
    Exists(String),
    /// Every place is taken by a token that is still good.
    #[error("there are {max} page tokens that are still good; revoke some first", max = limits::PAGE_TOKENS)]
    Full,
}

impl PageTokenRecord {
    fn is_over(&self, now_ms: u64) -> bool {
        self.revoked || now_ms >= self.expires_ms
    }

    fn status(&self, id: &str) -> PageTokenStatus {
        PageTokenStatus {
            id: id.to_owned(),
            name: self.name.clone(),
            permission: self.permission,
            created_at_ms: self.created_ms,
            expires_at_ms: self.expires_ms,
            last_used_at_ms: self.used_ms,
            revoked: self.revoked,
        }
    }
}

impl PageTokenBook {
    /// Adds a token. When the book is full, the oldest one that is over makes room. Returns the new one's id, and that of the
    /// one that has made room.
    ///
    /// # Errors
    /// See [`PageTokenError`].
    pub fn create(&mut self, new: NewPageToken, now_ms: u64) -> Result<(String, Option<String>), PageTokenError> {
        let NewPageToken { secret_digest, name, permission, ttl_ms } = new;
        if let Some(name) = name.as_ref().filter(|name| !is_label(name)) {
            return Err(PageTokenError::BadName(label_problem(name)));
        }
        if !(1000..=limits::PAGE_TOKEN_TTL_MS).contains(&ttl_ms) {
            return Err(PageTokenError::BadTtl(ttl_ms));
        }
        let id = Digest(secret_digest).short();
        if self.tokens.contains_key(&id) {
            return Err(PageTokenError::Exists(id));
        }
        let mut gone = None;
        if self.tokens.len() >= limits::PAGE_TOKENS {
            let oldest = oldest_over(&self.tokens, |token| token.is_over(now_ms).then_some(token.created_ms));
            let oldest = oldest.ok_or(PageTokenError::Full)?;
            self.tokens.remove(&oldest);
            gone = Some(oldest);
        }
        let expires_ms = now_ms.saturating_add(ttl_ms);
        let (created_ms, used_ms, revoked) = (now_ms, None, false);
        let record = PageTokenRecord { secret_digest, name, permission, created_ms, expires_ms, used_ms, revoked };
        self.tokens.insert(id.clone(), record);
        Ok((id, gone))
    }

    /// Takes over a token as it was saved.
    pub(crate) fn restore(&mut self, token: PageTokenRecord) {
        self.tokens.insert(Digest(token.secret_digest).short(), token);
    }

    /// Returns a token, by id.
    pub(crate) fn get(&self, id: &str) -> Option<&PageTokenRecord> {
        self.tokens.get(id)
    }

    /// Revokes a token. Returns whether there is one.
    pub fn revoke(&mut self, id: &str) -> bool {
        self.tokens.get_mut(id).map(|token| token.revoked = true).is_some()
    }

    /// Notes that a token was used. Returns whether that is worth saving: the use noted last is older than
    /// `limits::PAGE_TOKEN_USE_MS`.
    pub fn used(&mut self, id: &str, now_ms: u64) -> bool {
        let is_due = |used_ms: u64| now_ms >= used_ms.saturating_add(limits::PAGE_TOKEN_USE_MS);
        let Some(token) = self.tokens.get_mut(id).filter(|token| token.used_ms.is_none_or(is_due)) else {
            return false;
        };
        token.used_ms = Some(now_ms);
        true
    }

    /// Returns every token, by id.
    #[must_use]
    pub fn list(&self) -> Vec<PageTokenStatus> {
        self.tokens.iter().map(|(id, token)| token.status(id)).collect()
    }

    /// Returns what the tokens that were not revoked let their owners do.
    #[must_use]
    pub fn grants(&self) -> PageGrants {
        let good = self.tokens.iter().filter(|(_, token)| !token.revoked);
        let grant = |(id, token): (&String, &PageTokenRecord)| PageGrant {
            id: id.clone(),
            name: token.name.clone(),
            permission: token.permission,
            expires_ms: token.expires_ms,
            secret_digest: Digest(token.secret_digest),
        };
        PageGrants(good.map(grant).collect())
    }
}

/// What page tokens let their owners do: at most `limits::PAGE_TOKENS`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageGrants(Vec<PageGrant>);

/// What one page token lets its owner do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageGrant {
    /// The token's id.
    pub id: String,
    /// Name of its owner.
    pub name: Option<String>,
    /// What its owner may do.
    pub permission: PagePermission,
    /// Unix time in milliseconds at which it expires.
    pub expires_ms: u64,
    secret_digest: Digest,
}

impl PageGrants {
    /// Returns what the token with this secret lets its owner do, if it is good at `now_ms`. The time that it takes depends on
    /// the number of tokens alone.
    #[must_use]
    pub fn of_secret(&self, secret: &[u8; 32], now_ms: u64) -> Option<&PageGrant> {
        let digest = Digest::of(secret);
        let found = self.0.iter().fold(None, |found, grant| {
            let is_same = grant.secret_digest.is_same_secret(digest);
            if is_same { Some(grant) } else { found }
        });
        found.filter(|grant| now_ms < grant.expires_ms)
    }

    /// Returns whether a token that was good still is at `now_ms`.
    #[must_use]
    pub fn has(&self, id: &str, now_ms: u64) -> bool {
        self.0.iter().any(|grant| grant.id == id && now_ms < grant.expires_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [9; 32];

    fn new(number: usize) -> NewPageToken {
        let secret_digest = if number == 0 { Digest::of(&SECRET).0 } else { Digest::of(&number.to_le_bytes()).0 };
        NewPageToken { secret_digest, name: Some("anna".into()), permission: PagePermission::View, ttl_ms: 60_000 }
    }

    fn book() -> (PageTokenBook, String) {
        let mut book = PageTokenBook::default();
        let (id, gone) = book.create(new(0), 1_000).expect("valid");
        assert_eq!(gone, None);
        (book, id)
    }

    #[test]
    fn a_secret_is_good_until_its_token_expires_or_is_revoked() {
        let (mut book, id) = book();
        let grants = book.grants();
        let granted = grants.of_secret(&SECRET, 60_999).expect("good");
        assert_eq!(
            (&granted.id, granted.name.as_deref(), granted.permission),
            (&id, Some("anna"), PagePermission::View)
        );
        assert!(grants.has(&id, 60_999) && !grants.has(&id, 61_000) && !grants.has("00000000", 1_000));
        assert_eq!(grants.of_secret(&SECRET, 61_000), None, "expired");
        assert_eq!(grants.of_secret(&[8; 32], 2_000), None, "another secret");
        assert!(book.revoke(&id) && !book.revoke("00000000"));
        assert_eq!(book.grants().of_secret(&SECRET, 2_000), None, "revoked");
        assert!(!book.grants().has(&id, 2_000) && book.list()[0].revoked);
    }

    #[test]
    fn a_use_is_worth_saving_once_a_while() {
        let (mut book, id) = book();
        assert_eq!(book.list()[0].last_used_at_ms, None);
        assert!(book.used(&id, 2_000) && !book.used(&id, 2_000 + limits::PAGE_TOKEN_USE_MS - 1));
        assert_eq!(book.list()[0].last_used_at_ms, Some(2_000));
        assert!(book.used(&id, 2_000 + limits::PAGE_TOKEN_USE_MS) && !book.used("00000000", 2_000));
    }

    #[test]
    fn senseless_page_tokens_are_refused() {
        let (mut book, id) = book();
        assert_eq!(book.create(new(0), 2_000), Err(PageTokenError::Exists(id)));
        let bad = NewPageToken { name: Some("a b".into()), ..new(1) };
        assert!(matches!(book.create(bad, 2_000), Err(PageTokenError::BadName(_))));
        for ttl_ms in [0, 999, limits::PAGE_TOKEN_TTL_MS + 1] {
            let bad = NewPageToken { ttl_ms, ..new(1) };
            assert_eq!(book.create(bad, 2_000), Err(PageTokenError::BadTtl(ttl_ms)));
        }
    }

    #[test]
    fn a_full_book_forgets_the_oldest_token_that_is_over() {
        let (mut book, first) = book();
        for number in 1..limits::PAGE_TOKENS {
            book.create(new(number), 1_000 + number as u64).expect("there is room");
        }
        assert_eq!(book.create(new(limits::PAGE_TOKENS), 5_000), Err(PageTokenError::Full));
        let (_, gone) = book.create(new(limits::PAGE_TOKENS), 61_005).expect("the first ones have expired");
        assert_eq!((gone, book.list().len()), (Some(first), limits::PAGE_TOKENS));
    }
}
