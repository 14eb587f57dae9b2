//! The page where other machines reach it: over HTTPS, and for owners of tokens alone.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anabranch_tests::ledger::Settings;
use anabranch_tests::process::{Browser, Cluster, PATIENCE};

use crate::LAB;
use crate::scene::{DESK, look_at, page_token, pictures};

#[test]
fn on_the_network_the_page_speaks_tls_and_shows_nothing_without_a_token() -> anyhow::Result<()> {
    let Some(mut browser) = Browser::start()? else {
        println!("not done: there is no chromium to open the page with");
        return Ok(());
    };
    let mut cluster = Cluster::new(Path::new(LAB), &Settings::default().run_toml())?;
    // A stopped coordinator makes tokens, too.
    let viewer = page_token(&cluster, &["--name", "vera"])?;
    let revoked = page_token(&cluster, &["--json"])?;
    let revoked: serde_json::Value = serde_json::from_str(&revoked)?;
    let (id, revoked) = (&revoked["id"], &revoked["token"]);
    cluster.coordinate(&["page", "token", "revoke", id.as_str().unwrap_or_default()], &[])?.code(0)?;
    let listed = cluster.coordinate(&["page", "token", "list"], &[])?.code(0)?.stdout;
    assert!(listed.contains("vera  view  good") && listed.contains("revoked") && listed.contains("never"), "{listed}");

    let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
    cluster.serve_with(&["--page", &format!("0.0.0.0:{port}")]);
    cluster.start_coordinator()?;
    cluster.join("one")?;
    cluster.start_ledger_agent("one", &[])?;
    let mut plain = TcpStream::connect(("127.0.0.1", port))?;
    plain.set_read_timeout(Some(PATIENCE))?;
    write!(plain, "GET /api/state HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n")?;
    let mut heard = Vec::new();
    // It may be reset: what counts is that no word was answered.
    let _ = plain.read_to_end(&mut heard);
    assert!(!String::from_utf8_lossy(&heard).contains("HTTP/1.1"), "nothing is said in the clear");

    browser.look(DESK)?;
    let page = format!("https://localhost:{port}/");
    let unknown = browser.open(&page).expect_err("no CA that the browser knows");
    assert!(unknown.to_string().contains("ERR_CERT_AUTHORITY_INVALID"), "{unknown}");
    browser.take_any_certificate()?;
    browser.complaints.clear();
    browser.open(&page)?;
    browser.wait_for("document.getElementById('ask').open")?;
    let shown = browser.eval("document.body.innerText")?;
    assert!(!shown.as_str().unwrap_or_default().contains("ledger"), "nothing is shown: {shown}");
    look_at(&mut browser, &pictures()?, "locked")?;
    browser.press("Escape")?;
    browser.wait_for("document.activeElement.id !== 'ask-field' && document.getElementById('unlock') !== null")?;
    look_at(&mut browser, &pictures()?, "without-token")?;

    browser.click("#unlock")?;
    browser.wait_for("document.activeElement.id === 'ask-field'")?;
    browser.type_text(revoked.as_str().unwrap_or_default())?;
    browser.press("Enter")?;
    browser.wait_for("document.getElementById('ask-problem').innerText.includes('is not good')")?;
    browser.eval("document.getElementById('ask-field').select()")?;
    browser.type_text(&viewer)?;
    browser.press("Enter")?;
    browser
        .wait_for("document.querySelector('#live.now') && document.querySelector(\"#runs a[href='#/run/ledger']\")")?;
    browser.wait_for_text("vera, to view")?;
    // The token is gone with the page.
    browser.eval("location.reload()")?;
    browser.wait_for("document.getElementById('ask') && document.getElementById('ask').open")?;
    // The browser's own warning has pictures that come from no server.
    let is_elsewhere = |address: &&String| address.starts_with("http") && !address.starts_with(&page);
    assert_eq!(browser.requests.iter().find(is_elsewhere), None, "everything comes from the coordinator");
    // The browser notes each answer that is no 2xx, and complains of nothing else.
    assert!(browser.complaints.iter().all(|text| text.contains("401")), "{:?}", browser.complaints);
    Ok(())
}
