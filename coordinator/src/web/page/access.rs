//! Who may see and do what. A token comes with each request, in its `Authorization` header; a browser never sends it by itself.
//!
//! | request | on the loopback interface | elsewhere |
//! |---|---|---|
//! | the page's files | | |
//! | the state, events, the list of checkpoints | | a token |
//! | a model | a token | a token |
//! | pause, resume, stop | a token to operate | a token to operate |

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anabranch_common::limits;
use anabranch_common::token::{PagePermission, PageToken};
use anabranch_io::web::Client;
use axum::extract::{Extension, Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::wrong::{Wrong, WrongTokens};
use crate::clock;
use crate::host;
use crate::registry::page_tokens::{PageGrant, PageGrants};
use crate::transport::{Input, Shared};

/// What page tokens let their owners do now.
pub(crate) type Grants = watch::Receiver<Arc<PageGrants>>;

/// Who sees the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Viewing {
    /// Whoever reaches it.
    Open,
    /// Owners of tokens.
    WithToken,
}

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Access {
    viewing: Viewing,
    grants: Grants,
    shared: Arc<Shared>,
    wrong: Mutex<WrongTokens>,
    /// When the loop was told of each token's use, in Unix milliseconds.
    noted: Mutex<BTreeMap<String, u64>>,
}

/// Who sends a request that is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Viewer {
    /// Somebody without a token, where none is needed.
    Anyone,
    /// The owner of a token.
    Owner(PageGrant),
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has no token.
    NoToken,
    /// Its token is unknown, expired or revoked.
    WrongToken,
    /// The same, as many before.
    TooManyWrong,
    /// Its token is to view alone.
    ViewOnly,
}

impl Viewer {
    /// Returns the owner of a token that lets it do what is asked for.
    pub(super) fn with(&self, needed: PagePermission) -> Result<&PageGrant, Refusal> {
        match self {
            Self::Anyone => Err(Refusal::NoToken),
            Self::Owner(grant) if grant.permission < needed => Err(Refusal::ViewOnly),
            Self::Owner(grant) => Ok(grant),
        }
    }

    /// Returns whether the token that let it in still is good.
    pub(super) fn is_good(&self, grants: &PageGrants, now_ms: u64) -> bool {
        match self {
            Self::Anyone => true,
            Self::Owner(grant) => grants.has(&grant.id, now_ms),
        }
    }
}

impl Access {
    pub(super) fn new(viewing: Viewing, grants: Grants, shared: Arc<Shared>) -> Self {
        Self { viewing, grants, shared, wrong: Mutex::default(), noted: Mutex::default() }
    }

    /// What tokens let their owners do, as it changes.
    pub(super) fn grants(&self) -> Grants {
        self.grants.clone()
    }

    /// Returns who sends a request.
    fn viewer(&self, headers: &HeaderMap, from: SocketAddr) -> Result<Viewer, Refusal> {
        if !headers.contains_key(AUTHORIZATION) {
            return match self.viewing {
                Viewing::Open => Ok(Viewer::Anyone),
                Viewing::WithToken => Err(Refusal::NoToken),
            };
        }
        let now_ms = clock::unix_ms();
        let grants = Arc::clone(&self.grants.borrow());
        let token = bearer(headers);
        match token.and_then(|token| grants.of_secret(&token.secret, now_ms)) {
            Some(grant) => {
                self.note(&grant.id, now_ms);
                Ok(Viewer::Owner(grant.clone()))
            }
            None => Err(self.wrong(from)),
        }
    }

    fn wrong(&self, from: SocketAddr) -> Refusal {
        match self.wrong.lock().count(from.ip(), clock::monotonic()) {
            Wrong::First => {
                tracing::warn!(%from, "a token that is not good was shown to the page");
                Refusal::WrongToken
            }
            Wrong::Another => Refusal::WrongToken,
            Wrong::TooMany => Refusal::TooManyWrong,
        }
    }

    /// Tells the loop of a use, unless it has heard of one a short while ago, or has too much to do.
    fn note(&self, id: &str, now_ms: u64) {
        let mut noted = self.noted.lock();
        let is_recent = |at_ms: &u64| now_ms.abs_diff(*at_ms) < limits::PAGE_TOKEN_USE_MS;
        noted.retain(|_, at_ms| is_recent(at_ms));
        if !noted.contains_key(id)
            && self.shared.try_tell(Input::Host(host::Input::PageTokenUsed { id: id.to_owned() }))
        {
            noted.insert(id.to_owned(), now_ms);
        }
    }
}

/// Returns the token of a request that has exactly one.
fn bearer(headers: &HeaderMap) -> Option<PageToken> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    token.parse().ok()
}

/// Answers a request of somebody who may see the page, and says who it is.
pub(super) async fn admit(
    State(access): State<Arc<Access>>,
    Extension(client): Extension<Client>,
    mut request: Request,
    next: Next,
) -> Response {
    match access.viewer(request.headers(), client.address) {
        Ok(viewer) => {
            request.extensions_mut().insert(viewer);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NoToken => {
                (StatusCode::UNAUTHORIZED, "this needs a token: `anabranch-coordinator page token create` makes one\n")
            }
            Self::WrongToken => (
                StatusCode::UNAUTHORIZED,
                "this token is not good: it is mistyped, has expired or was revoked; `page token list` shows the tokens\n",
            ),
            Self::TooManyWrong => (StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens; try again in a minute\n"),
            Self::ViewOnly => (
                StatusCode::FORBIDDEN,
                "this token is to view alone; `page token create --operate` makes one that operates\n",
            ),
        };
        let mut response = (status, text).into_response();
        let headers = response.headers_mut();
        match self {
            Self::NoToken | Self::WrongToken => _ = headers.insert(WWW_AUTHENTICATE, "Bearer".parse().expect("ASCII")),
            Self::TooManyWrong => {
                headers.insert(RETRY_AFTER, (limits::PAGE_WRONG_MS / 1_000).into());
                headers.insert(CONNECTION, "close".parse().expect("ASCII"));
            }
            Self::ViewOnly => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn one_token_is_read_whatever_the_case_of_its_scheme() {
        let token = PageToken { secret: [7; 32] };
        let headers = |values: &[&str]| {
            let mut map = HeaderMap::new();
            values.iter().for_each(|value| _ = map.append(AUTHORIZATION, HeaderValue::from_str(value).expect("text")));
            map
        };
        for good in [format!("Bearer {token}"), format!("bearer {token} ")] {
            assert_eq!(bearer(&headers(&[&good])), Some(token.clone()), "{good}");
        }
        let text = token.to_string();
        for bad in ["", "Bearer", "Bearer ", &text, &format!("Basic {text}"), &format!("Bearer {}", &text[1..])] {
            assert_eq!(bearer(&headers(&[bad])), None, "{bad}");
        }
        let good = format!("Bearer {text}");
        assert_eq!(bearer(&headers(&[&good, &good])), None, "two");
    }
}
