//! What is refused before a route sees it, and the headers of every answer.

use std::sync::Arc;

use anabranch_io::web::{Client, Hosts};
use axum::extract::{Extension, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What the page's own files may do, and nothing else: no script, style or connection of another origin, none inline, no
/// form that is sent, and no frame around the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Answers a request if it is one of the page's own, and says who may see the answer.
pub(super) async fn guard(
    State(hosts): State<Arc<Hosts>>,
    Extension(client): Extension<Client>,
    request: Request,
    next: Next,
) -> Response {
    let scheme = if client.is_encrypted { "https" } else { "http" };
    let mut response = match refusal(&hosts, scheme, request.headers(), request.uri().path()) {
        None => next.run(request).await,
        Some(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Returns why a request is refused, if it is. The names of this coordinator are told to nobody who does not know one.
fn refusal(hosts: &Hosts, scheme: &str, headers: &HeaderMap, path: &str) -> Option<&'static str> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let mut named = headers.get_all(HOST).iter().map(text);
    let host = named.next().filter(|_| named.next().is_none());
    if !host.as_deref().is_some_and(|host| hosts.has(host)) {
        return Some(
            "the page is not served under this name: open it under one of server.names in run.toml, or put the name there and \
             start the coordinator again",
        );
    }
    let is_own = |origin: &str| host.as_deref().is_some_and(|host| origin == format!("{scheme}://{host}"));
    if headers.get(ORIGIN).is_some_and(|origin| !is_own(&text(origin))) {
        return Some("requests of other sites are refused");
    }
    // A browser says so itself where a site of another name has the request made; a link to the page is fine.
    let site = headers.get("sec-fetch-site").map(text);
    let is_foreign = matches!(site.as_deref(), Some("cross-site" | "same-site"));
    (is_foreign && path != "/").then_some("requests of other sites are refused")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_under_other_names_and_of_other_sites_are_refused() {
        let hosts = Hosts::new(([127, 0, 0, 1], 8433).into(), ["trainer.example.org".to_owned()]);
        let refusal = |path: &str, headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect::<Vec<_>>();
            let mut map = HeaderMap::new();
            headers.into_iter().for_each(|(name, value)| _ = map.append(name, value));
            refusal(&hosts, "http", &map, path)
        };
        let own = ("host", "127.0.0.1:8433");
        assert_eq!(refusal("/api/state", &[own]), None);
        assert_eq!(refusal("/api/state", &[own, ("origin", "http://127.0.0.1:8433")]), None);
        assert_eq!(refusal("/", &[own, ("sec-fetch-site", "cross-site")]), None, "a link");
        assert_eq!(refusal("/api/events", &[own, ("sec-fetch-site", "same-origin")]), None);
        let refused = |path: &str, headers: &[(&'static str, &'static str)], what: &str| {
            assert!(refusal(path, headers).is_some_and(|why| why.contains(what)), "{headers:?}");
        };
        refused("/", &[], "server.names");
        let told = refusal("/", &[("host", "evil.example:8433")]).expect("refused");
        assert!(!told.contains("trainer.example.org"), "strangers hear no names: {told}");
        refused("/", &[own, ("host", "evil.example")], "server.names");
        for origin in ["http://evil.example", "https://127.0.0.1:8433", "http://127.0.0.1:9000", "null"] {
            refused("/api/state", &[own, ("origin", origin)], "other sites");
        }
        for site in ["cross-site", "same-site"] {
            refused("/api/events", &[own, ("sec-fetch-site", site)], "other sites");
        }
    }

    #[test]
    fn an_origin_has_the_scheme_that_is_spoken() {
        let hosts = Hosts::new(([10, 0, 0, 7], 8433).into(), []);
        let refusal = |scheme: &str, origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("10.0.0.7:8433"));
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
            refusal(&hosts, scheme, &headers, "/api/state")
        };
        assert_eq!(refusal("https", "https://10.0.0.7:8433"), None);
        assert!(
            refusal("https", "http://10.0.0.7:8433").is_some() && refusal("http", "https://10.0.0.7:8433").is_some()
        );
    }
}
