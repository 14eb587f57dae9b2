//! Tokens over real TCP: what needs one, and what the loop is asked.

use anabranch_common::ids::Digest;
use anabranch_common::token::{PagePermission, PageToken};
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RunRequest};

use super::*;
use crate::host;
use crate::registry::page_tokens::{NewPageToken, PageTokenBook};
use crate::store::for_tests::MapStore;
use crate::store::{Blobs, Catalogue, Journal, StorageError, Store, StoreUsage};
use crate::transport::{RunFiles, Spool};

const VIEWER: PageToken = PageToken { secret: [1; 32] };
const OPERATOR: PageToken = PageToken { secret: [2; 32] };
const EXPIRED: PageToken = PageToken { secret: [3; 32] };
const STRANGER: PageToken = PageToken { secret: [4; 32] };
/// The run of `run`, as requests name it.
const RUN: &str = "01010101010101010101010101010101";

fn grants() -> PageTokenBook {
    let mut book = PageTokenBook::default();
    let mut create = |token: &PageToken, permission, now_ms| {
        let secret_digest = Digest::of(&token.secret).0;
        let new = NewPageToken { secret_digest, name: Some("anna".into()), permission, ttl_ms: 3_600_000 };
        book.create(new, now_ms).expect("valid");
    };
    let now_ms = crate::clock::unix_ms();
    create(&VIEWER, PagePermission::View, now_ms);
    create(&OPERATOR, PagePermission::Operate, now_ms);
    create(&EXPIRED, PagePermission::Operate, now_ms - 3_600_000);
    book
}

fn with_tokens(viewing: Viewing) -> Served {
    let served = served_to(viewing, vec![run("wards", Vec::new())]);
    served.grants.send_replace(Arc::new(grants().grants()));
    served
}

fn bearer(token: &PageToken) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn status(text: &str) -> u16 {
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

impl Served {
    /// Answers as the loop does, and returns what it was asked and which tokens it was told of.
    fn obey(&mut self) -> tokio::task::JoinHandle<(Vec<OperatorRequest>, usize)> {
        let mut inputs = std::mem::replace(&mut self.inputs, mpsc::channel(1).1);
        tokio::spawn(async move {
            let (mut asked, mut used) = (Vec::new(), 0);
            while let Some(input) = inputs.recv().await {
                match input {
                    Input::Operator { operation, reply } => {
                        let stops = matches!(operation, OperatorRequest::Run { request: RunRequest::Stop, .. });
                        let answer = if stops {
                            OperatorResponse::Conflict("the run has no model yet".into())
                        } else {
                            OperatorResponse::Done("done by the loop".into())
                        };
                        asked.push(operation);
                        reply.send(answer.into()).expect("somebody waits");
                        if stops {
                            break;
                        }
                    }
                    Input::Host(host::Input::PageTokenUsed { .. }) => used += 1,
                    other => panic!("{other:?}"),
                }
            }
            (asked, used)
        })
    }
}

#[tokio::test]
async fn runs_are_operated_with_a_token_to_operate_and_nothing_else() {
    let mut served = with_tokens(Viewing::Open);
    let asked = served.obey();
    let verb = |verb: &str| format!("/api/runs/{RUN}/{verb}");
    for (head, expected) in [
        (String::new(), 401),
        (bearer(&STRANGER), 401),
        (bearer(&EXPIRED), 401),
        (format!("Authorization: Basic {OPERATOR}\r\n"), 401),
        (bearer(&OPERATOR).repeat(2), 401),
        (bearer(&VIEWER), 403),
        (format!("{}Origin: https://evil.example\r\n", bearer(&OPERATOR)), 403),
        (format!("{}Sec-Fetch-Site: cross-site\r\n", bearer(&OPERATOR)), 403),
    ] {
        let text = served.ask("POST", &verb("pause"), &head).await;
        assert_eq!(status(&text), expected, "{head}: {text}");
    }
    let head = bearer(&OPERATOR);
    for (method, path, expected) in [
        ("GET", verb("pause"), 405),
        ("POST", verb("delete"), 404),
        ("POST", "/api/runs/wards/pause".to_owned(), 404),
        ("POST", "/api/token".to_owned(), 405),
    ] {
        assert_eq!(status(&served.ask(method, &path, &head).await), expected, "{method} {path}");
    }
    for (word, expected, told) in
        [("pause", 200, "done by the loop\n"), ("resume", 200, "done by the loop\n"), ("stop", 409, "no model yet\n")]
    {
        let text = served.ask("POST", &verb(word), &head).await;
        assert!(status(&text) == expected && text.ends_with(told), "{text}");
    }
    let (asked, used) = asked.await.expect("the loop ends with the last request");
    let of = |request| OperatorRequest::Run { run: Some(RUN.to_owned()), request };
    assert_eq!(asked, [of(RunRequest::Pause), of(RunRequest::Resume), of(RunRequest::Stop)]);
    assert_eq!(used, 2, "each token's use is told once for a while");
}

#[tokio::test]
async fn models_need_a_token_on_the_loopback_interface_too() {
    let mut served = with_tokens(Viewing::Open);
    let _loop = served.obey();
    let model = format!("/api/runs/{RUN}/model");
    assert_eq!(status(&served.get(&model, "").await), 401);
    assert_eq!(status(&served.get(&model, &bearer(&STRANGER)).await), 401);
    let text = served.get(&model, &bearer(&VIEWER)).await;
    assert!(status(&text) == 404 && text.contains("there is no run"), "the store is looked for: {text}");
    assert_eq!(status(&served.get(&format!("{model}?version=x"), &bearer(&VIEWER)).await), 400);
    let list = format!("/api/runs/{RUN}/checkpoints");
    assert_eq!(status(&served.get(&list, "").await), 404, "their list is part of what is seen");
    assert_eq!(status(&served.get("/api/runs/x/checkpoints", "").await), 404);
}

#[tokio::test]
async fn a_token_is_told_what_it_is_good_for() {
    let mut served = with_tokens(Viewing::Open);
    let _loop = served.obey();
    assert_eq!(status(&served.get("/api/token", "").await), 401);
    let text = served.get("/api/token", &bearer(&VIEWER)).await;
    assert!(status(&text) == 200 && text.contains(r#""name":"anna","permission":"view""#), "{text}");
    let text = served.get("/api/token", &bearer(&OPERATOR)).await;
    assert!(text.contains(r#""permission":"operate""#), "{text}");
    assert!(!text.contains(&OPERATOR.to_string()), "the secret goes one way");
    let text = served.get("/api/token", &bearer(&STRANGER)).await;
    assert!(text.contains("www-authenticate: Bearer\r\n") && text.contains("is not good"), "{text}");
}

#[tokio::test]
async fn where_others_reach_the_page_nothing_is_seen_without_a_token() {
    let mut served = with_tokens(Viewing::WithToken);
    let _loop = served.obey();
    for path in ["/", "/page.js", "/session.js", "/page.css"] {
        assert_eq!(status(&served.get(path, "").await), 200, "what asks for the token");
    }
    let all = ["/api/state", "/api/events", "/api/token", &format!("/api/runs/{RUN}/checkpoints")];
    for path in all {
        let text = served.get(path, "").await;
        assert!(status(&text) == 401 && !text.contains("wards"), "{path}: {text}");
    }
    assert!(served.get("/api/state", &bearer(&VIEWER)).await.contains("wards"));
    assert_eq!(status(&served.get("/api/nowhere", "").await), 404);
}

#[tokio::test]
async fn events_end_with_the_token_of_their_viewer() {
    let mut served = with_tokens(Viewing::WithToken);
    let _loop = served.obey();
    let head = format!("GET /api/events HTTP/1.1\r\nHost: {}\r\n{}\r\n", served.address, bearer(&VIEWER));
    let mut client = served.open(&head).await;
    read_until(&mut client, "event: state\ndata: {").await;
    let mut book = grants();
    let id = Digest(Digest::of(&VIEWER.secret).0).short();
    assert!(book.revoke(&id));
    served.grants.send_replace(Arc::new(book.grants()));
    // Its end is in the body's last chunk; the connection stays for other requests.
    read_until(&mut client, "\r\n0\r\n\r\n").await;
    assert_eq!(status(&served.get("/api/state", &bearer(&VIEWER)).await), 401);
    assert_eq!(status(&served.get("/api/state", &bearer(&OPERATOR)).await), 200);
}

#[tokio::test]
async fn wrong_tokens_beyond_the_bound_are_told_to_come_later_and_good_ones_are_taken() {
    let mut served = with_tokens(Viewing::Open);
    let _loop = served.obey();
    for number in 0..limits::PAGE_WRONG_TOKENS {
        let guess = PageToken { secret: std::array::from_fn(|_| u8::try_from(100 + number).expect("few")) };
        assert_eq!(status(&served.get("/api/token", &bearer(&guess)).await), 401, "guess {number}");
    }
    let text = served.get("/api/token", &bearer(&STRANGER)).await;
    assert!(
        status(&text) == 429 && text.contains("retry-after: 60\r\n") && text.contains("connection: close"),
        "{text}"
    );
    assert_eq!(status(&served.get("/api/token", &bearer(&OPERATOR)).await), 200);
    assert_eq!(status(&served.get("/api/state", "").await), 200, "to see the page needs none here");
}

#[tokio::test]
async fn requests_beyond_what_is_asked_at_once_are_told_so() {
    let mut served = with_tokens(Viewing::Open);
    // The loop takes requests and answers none of them yet.
    let mut inputs = std::mem::replace(&mut served.inputs, mpsc::channel(1).1);
    let head = |verb: &str| {
        let (host, token) = (&served.address, bearer(&OPERATOR));
        format!("POST /api/runs/{RUN}/{verb} HTTP/1.1\r\nHost: {host}\r\n{token}Connection: close\r\n\r\n")
    };
    let (mut clients, mut replies) = (Vec::new(), Vec::new());
    while replies.len() < limits::PAGE_OPERATIONS {
        clients.push(served.open(&head("pause")).await);
        loop {
            match inputs.recv().await.expect("a request") {
                Input::Operator { reply, .. } => break replies.push(reply),
                Input::Host(host::Input::PageTokenUsed { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let text = served.ask("POST", &format!("/api/runs/{RUN}/resume"), &bearer(&OPERATOR)).await;
    assert!(status(&text) == 503 && text.contains("too much is asked for at once"), "{text}");
    for (reply, mut client) in replies.into_iter().zip(clients) {
        reply.send(OperatorResponse::Done("paused".into()).into()).expect("it waits");
        let mut text = String::new();
        client.read_to_string(&mut text).await.expect("an answer");
        assert!(status(&text) == 200 && text.ends_with("\r\n\r\npaused\n"), "{text}");
    }
}

/// A store whose catalogue is read when the other end of its gate is dropped.
#[derive(Debug)]
struct Gated {
    store: MapStore,
    gate: parking_lot::Mutex<std::sync::mpsc::Receiver<()>>,
    /// Told of each reader that comes.
    readers: mpsc::Sender<()>,
}

impl Store for Gated {
    fn journal(&self) -> &dyn Journal {
        self.store.journal()
    }

    fn blobs(&self) -> &dyn Blobs {
        self.store.blobs()
    }

    fn catalogue(&self) -> &dyn Catalogue {
        self.readers.try_send(()).expect("each reader comes once");
        self.gate.lock().recv().expect_err("nothing is sent");
        self.store.catalogue()
    }

    fn usage(&self) -> Result<StoreUsage, StorageError> {
        self.store.usage()
    }
}

#[tokio::test]
async fn few_lists_and_few_models_are_read_at_once_and_neither_waits_for_the_other() {
    let served = with_tokens(Viewing::Open);
    let folder = tempfile::tempdir().expect("a folder");
    let (closed, gate) = std::sync::mpsc::sync_channel(1);
    let (readers, mut reads) = mpsc::channel(limits::PAGE_LISTS + limits::PAGE_DOWNLOADS);
    let store = Gated { store: MapStore::new(), gate: parking_lot::Mutex::new(gate), readers };
    let files = RunFiles {
        name: "wards".into(),
        is_served: true,
        store: Arc::new(store),
        spool: Arc::new(Spool::open(folder.path().join("uploads")).0),
        events: None,
    };
    served.shared.add_run(RUN.parse().expect("an id"), files);
    let list = format!("/api/runs/{RUN}/checkpoints");
    let head = format!("GET {list} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", served.address);
    let mut clients = Vec::new();
    for _ in 0..limits::PAGE_LISTS {
        clients.push(served.open(&head).await);
        reads.recv().await.expect("it reads");
    }
    let text = served.get(&list, "").await;
    assert!(status(&text) == 503 && text.contains("try again soon"), "{text}");
    let model = format!("/api/runs/{RUN}/model");
    let token = bearer(&VIEWER);
    let wanted = format!("GET {model} HTTP/1.1\r\nHost: {}\r\n{token}Connection: close\r\n\r\n", served.address);
    let mut downloads = Vec::new();
    for _ in 0..limits::PAGE_DOWNLOADS {
        downloads.push(served.open(&wanted).await);
        reads.recv().await.expect("it reads, whatever the lists do");
    }
    let text = served.get(&model, &token).await;
    assert!(status(&text) == 503 && text.contains("try again soon"), "{text}");
    drop(closed);
    for mut client in clients {
        let mut text = String::new();
        client.read_to_string(&mut text).await.expect("an answer");
        assert!(status(&text) == 200 && text.ends_with(r#"{"rows":[],"more":0}"#), "{text}");
    }
}
