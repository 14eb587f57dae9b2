//! Verbs on a running coordinator go over QUIC with the operator certificate.

use std::time::Duration;

use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::{Agree, Propose};
use anabranch_coordinator::identity::Identity;
use anabranch_io::{frames, tls};

use crate::support::{Directory, call, write_safetensors};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn an_operator_works_with_a_running_coordinator_as_with_a_stopped_one() {
    let directory = Directory::init_custom();
    let file = directory.file("model.safetensors");
    write_safetensors(&file, &[("w", &[3], &[1.0, 2.0, 3.0])]);
    directory.call(&["checkpoint", "import"], &[&file.display().to_string()]).code(0);
    let run = json(&directory.call(&["status"], &["--json"]).code(0).stdout)["run"].clone();

    let serving = directory.serve();
    let status = json(&directory.call(&["status"], &["--json"]).code(0).stdout);
    assert_eq!((status["serving"].as_bool(), status["state"].as_str()), (Some(true), Some("running")));
    assert_eq!(status["run"], run);
    let token = directory.call(&["token", "create"], &["--name", "clinic"]).code(0).stdout;
    assert!(token.starts_with("anb1-"), "{token}");
    assert!(directory.call(&["token", "list"], &[]).code(0).stdout.contains("clinic"));
    assert!(directory.call(&["pause"], &[]).code(0).stdout.contains("paused"));
    assert_eq!(json(&directory.call(&["status"], &["--json"]).code(0).stdout)["state"], "paused");
    assert!(directory.call(&["resume"], &[]).code(0).stdout.contains("resumed"));
    directory.call(&["agents", "revoke"], &["nobody"]).code(1).says("nobody");
    assert!(directory.call(&["checkpoint", "verify"], &[]).code(0).stdout.contains("everything holds"));
    let out = directory.file("out.safetensors");
    directory.call(&["checkpoint", "export"], &["--out", &out.display().to_string()]).code(0);
    let data: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(std::fs::read(&out).expect("exported").ends_with(&data));

    let never = directory.file("never.safetensors").display().to_string();
    let gone = || directory.call(&["checkpoint", "export"], &["--out", &never, "--version", "7"]).code(4);
    let help = "set `retention = \"all\"` before the next run";
    gone().says("version 7").says(help);

    let (code, log) = serving.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("parked"), "{log}");
    gone().says("version 7").says(help);
    assert!(directory.call(&["token", "list"], &[]).code(0).stdout.contains("clinic"), "tokens outlive a restart");
    assert_eq!(json(&directory.call(&["status"], &["--json"]).code(0).stdout)["state"], "running");
}

#[test]
fn a_directory_that_is_in_use_is_neither_served_twice_nor_imported_into() {
    let directory = Directory::init_custom();
    let _serving = directory.serve();
    directory.call(&["run"], &[]).code(7).says("is in use by process");
    let file = directory.file("model.safetensors");
    write_safetensors(&file, &[("w", &[1], &[1.0])]);
    let import = directory.call(&["checkpoint", "import"], &[&file.display().to_string()]);
    import.code(7).says("this needs a stopped coordinator");
    assert_eq!(json(&directory.call(&["status"], &["--json"]).code(0).stdout)["serving"], true, "it goes on serving");
}

#[test]
fn operators_of_other_coordinators_and_other_roles_are_refused() {
    let (directory, other) = (Directory::init(), Directory::init());
    let _serving = directory.serve();
    let address = format!("127.0.0.1:{}", directory.port);
    let status = |certificates: &Directory, name: &str, ca: &Directory| {
        let file = |name: String| certificates.file(&name).display().to_string();
        let (cert, key) = (file(format!("tls/{name}.crt")), file(format!("tls/{name}.key")));
        let ca = ca.file("tls/ca.crt").display().to_string();
        call(&["status", "--json", "--connect", &address, "--cert", &cert, "--key", &key, "--ca", &ca])
    };
    status(&directory, "operator", &directory).code(0);
    status(&directory, "operator", &other).code(5).says("not issued by the CA");
    status(&other, "operator", &directory).code(5).says("does not know the CA");
    status(&directory, "server", &directory).code(5).says("certificate");
}

#[test]
fn a_stopped_run_ends_with_zero_and_says_so_ever_after() {
    let directory = Directory::init_custom();
    let file = directory.file("model.safetensors");
    write_safetensors(&file, &[("w", &[1], &[1.0])]);
    directory.call(&["checkpoint", "import"], &[&file.display().to_string()]).code(0);
    let serving = directory.serve();
    assert!(directory.call(&["stop"], &[]).code(0).stdout.contains("stopped at version 0"));
    let (code, log) = serving.wait();
    assert_eq!(code, Some(0), "{log}");
    let status = json(&directory.call(&["status"], &["--json"]).code(0).stdout);
    assert_eq!((status["state"].as_str(), status["finished"].as_str()), (Some("finished"), Some("stopped")));
    let watched = directory.call(&["status"], &["--watch"]).code(0).stdout;
    assert!(watched.starts_with("finished ") && watched.lines().count() == 1, "{watched}");
}

/// The watcher is halted while the run ends, so that it cannot see the end before the connection closes.
#[test]
fn a_watcher_without_a_terminal_tells_how_a_run_ended_whose_coordinator_is_gone() {
    let directory = Directory::init_custom();
    let file = directory.file("model.safetensors");
    write_safetensors(&file, &[("w", &[1], &[1.0])]);
    directory.call(&["checkpoint", "import"], &[&file.display().to_string()]).code(0);

    let serving = directory.serve();
    let mut watcher = directory.watch();
    assert!(watcher.line().starts_with("running "));
    assert_eq!(serving.terminate().0, Some(0));
    watcher.lines_until("parked ");

    let serving = directory.serve();
    watcher.lines_until("running ");
    watcher.signal("STOP");
    directory.call(&["stop"], &[]).code(0);
    assert_eq!(serving.wait().0, Some(0));
    watcher.signal("CONT");
    let (last, ended) = watcher.wait();
    assert!(ended.code(0).stderr.is_empty());
    assert!(last.starts_with("finished "), "{last}");
}

#[test]
fn an_operator_certificate_that_has_expired_is_blamed_on_a_clock() {
    let directory = Directory::init_at(-3 * 365);
    let copy = |name: &str| {
        let to = directory.file(&format!("old-{name}"));
        std::fs::copy(directory.file(&format!("tls/{name}")), &to).expect("copied");
        to.display().to_string()
    };
    let (cert, key, ca) = (copy("operator.crt"), copy("operator.key"), copy("ca.crt"));
    let _serving = directory.serve();
    let address = format!("127.0.0.1:{}", directory.port);
    let old = call(&["status", "--connect", &address, "--cert", &cert, "--key", &key, "--ca", &ca]);
    old.code(12).says("has expired at the other side's clock");
    directory.call(&["status"], &[]).code(0);
}

/// A coordinator from a future version, as far as its first answer.
async fn serve_from_the_future(endpoint: quinn::Endpoint) {
    let connection = endpoint.accept().await.expect("open").await.expect("connected");
    let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
    let second = Duration::from_secs(1);
    let proposal: Propose = frames::recv_one(&mut recv, FrameKind::Propose, 64, second).await.expect("a proposal");
    assert_eq!(proposal.max, anabranch_common::wire::handshake::MAX_PROTOCOL);
    let answer = Agree::Unsupported { min: 700, max: 900 };
    frames::send(&mut send, FrameKind::Agree, &answer, 64, second).await.expect("sent");
    send.finish().expect("open");
    connection.closed().await;
}

#[test]
fn a_coordinator_of_another_version_is_told_from_a_broken_one() {
    let directory = Directory::init();
    let identity = Identity::load(&directory.path()).expect("loaded");
    let server = identity.server();
    let config = tls::server(identity.ca_der(), &server.certificate_der, &server.key_der).expect("TLS");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], directory.port));
    let endpoint = runtime.block_on(async { tls::server_endpoint(listen, config) }).expect("bound");
    runtime.spawn(serve_from_the_future(endpoint));
    let file = |name: &str| directory.file(name).display().to_string();
    let (cert, key, ca) = (file("tls/operator.crt"), file("tls/operator.key"), file("tls/ca.crt"));
    let address = format!("127.0.0.1:{}", directory.port);
    let status = call(&["status", "--connect", &address, "--cert", &cert, "--key", &key, "--ca", &ca]);
    status.code(9).says("speaks protocol 700 to 900").says("upgrade this side");
}
