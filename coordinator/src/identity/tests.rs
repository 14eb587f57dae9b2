//! Certificates say what they should, belong together, and are renewed in time.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{CertificateParams, KeyPair};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

const NOW_MS: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn csr(key: &KeyPair, names: &[String]) -> Vec<u8> {
    let params = CertificateParams::new(names).expect("names");
    params.serialize_request(key).expect("signed").der().to_vec()
}

fn subject(der: &[u8]) -> String {
    X509Certificate::from_der(der).expect("a certificate").1.subject().to_string()
}

fn validity_s(der: &[u8]) -> (i64, i64) {
    let (_, certificate) = X509Certificate::from_der(der).expect("a certificate");
    (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp())
}

#[test]
fn what_was_created_is_what_is_loaded_and_nobody_else_can_read_the_keys() {
    let dir = folder();
    let names = ["trainer.example.org".to_owned(), "10.0.0.7".to_owned()];
    let made = Identity::create(dir.path(), &names, NOW_MS).expect("created");
    let loaded = Identity::load(dir.path()).expect("loaded");
    assert_eq!(made.ca_fingerprint(), loaded.ca_fingerprint());
    assert_eq!(made.server().certificate_der, loaded.server().certificate_der);
    assert_eq!(made.server().key_der, loaded.server().key_der);
    assert_eq!(made.operator().certificate_der, loaded.operator().certificate_der);
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("tls")), 0o700);
    for name in ["ca", "server", "operator"] {
        assert_eq!(mode(&dir.path().join(format!("tls/{name}.key"))), 0o600, "{name}.key");
    }
    assert!(issue::covers(&loaded.server().certificate_der, &names));
    let local = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    assert!(issue::covers(&loaded.server().certificate_der, &local));
    assert!(!issue::covers(&loaded.server().certificate_der, &["other.example.org".to_owned()]));
    assert!(subject(&loaded.server().certificate_der).contains("OU=server"));
    assert!(subject(&loaded.operator().certificate_der).contains("OU=operator"));
    let (start, end) = validity_s(loaded.ca_der());
    assert_eq!((start, end), ((NOW_MS / 1000) as i64 - 300, ((NOW_MS + 3650 * DAY_MS) / 1000) as i64));
}

#[test]
fn nothing_is_overwritten_and_a_half_made_folder_is_no_obstacle() {
    let dir = folder();
    std::fs::create_dir(dir.path().join("tls.partial")).expect("made");
    std::fs::write(dir.path().join("tls.partial/ca.key"), "half").expect("written");
    let fingerprint = Identity::create(dir.path(), &[], NOW_MS).expect("created").ca_fingerprint();
    assert!(matches!(Identity::create(dir.path(), &[], NOW_MS), Err(IdentityError::Exists(_))));
    assert_eq!(Identity::load(dir.path()).expect("loaded").ca_fingerprint(), fingerprint);
}

#[test]
fn only_the_key_of_a_request_counts() {
    let dir = folder();
    let identity = Identity::create(dir.path(), &[], NOW_MS).expect("created");
    let key = KeyPair::generate().expect("a key");
    let request = csr(&key, &["operator".to_owned()]);
    let issued = identity.issue_agent(&request, "clinic", 30, NOW_MS).expect("issued");
    assert_eq!(issued.agent, AgentId::of_public_key(&rcgen::PublicKeyData::subject_public_key_info(&key)));
    assert_eq!(requester(&request), Ok(issued.agent));
    let subject = subject(&issued.certificate_der);
    assert!(
        subject.contains("O=Anabranch") && subject.contains("OU=agent") && subject.contains("CN=clinic"),
        "{subject}"
    );
    assert!(issue::signed_by(&issued.certificate_der, identity.ca_der()));
    let (_, certificate) = X509Certificate::from_der(&issued.certificate_der).expect("a certificate");
    assert!(certificate.subject_alternative_name().expect("readable").is_none(), "names asked for are not given");
    assert!(!certificate.is_ca());
    let (start, end) = validity_s(&issued.certificate_der);
    assert_eq!((start, end), ((NOW_MS / 1000) as i64 - 300, ((NOW_MS + 30 * DAY_MS) / 1000) as i64));
    let again = identity.issue_agent(&request, "clinic", 30, NOW_MS).expect("issued");
    let (_, again) = X509Certificate::from_der(&again.certificate_der).expect("a certificate");
    assert_eq!(certificate.raw_serial(), again.raw_serial(), "the same key gets an equivalent certificate");
    assert_eq!(certificate.tbs_certificate.as_ref(), again.tbs_certificate.as_ref());
}

#[test]
fn a_request_that_its_own_key_did_not_sign_is_refused() {
    let dir = folder();
    let identity = Identity::create(dir.path(), &[], NOW_MS).expect("created");
    let request = csr(&KeyPair::generate().expect("a key"), &[]);
    for at in [request.len() - 1, request.len() / 2] {
        let mut broken = request.clone();
        broken[at] ^= 1;
        assert_eq!(identity.issue_agent(&broken, "clinic", 30, NOW_MS), Err(IssueError::BadRequest), "byte {at}");
        assert_eq!(requester(&broken), Err(IssueError::BadRequest), "byte {at}");
    }
    assert_eq!(identity.issue_agent(b"", "clinic", 30, NOW_MS), Err(IssueError::BadRequest));
    let bad_name = identity.issue_agent(&request, "a/b", 30, NOW_MS);
    assert!(matches!(bad_name, Err(IssueError::BadName(_))), "{bad_name:?}");
}

#[test]
fn certificates_are_renewed_at_two_thirds_of_their_life_and_for_new_names() {
    let dir = folder();
    let mut identity = Identity::create(dir.path(), &[], NOW_MS).expect("created");
    let key = identity.server().key_der.clone();
    assert_eq!(identity.renew(&[], NOW_MS + 480 * DAY_MS).expect("fine"), [""; 0]);
    let names = ["new.example.org".to_owned()];
    assert_eq!(identity.renew(&names, NOW_MS).expect("renewed"), ["server"]);
    assert_eq!(identity.renew(&names, NOW_MS + 490 * DAY_MS).expect("renewed"), ["server", "operator"]);
    let loaded = Identity::load(dir.path()).expect("what was written is whole");
    assert_eq!(loaded.server().key_der, key, "the key stays");
    assert!(issue::covers(&loaded.server().certificate_der, &names));
    let early = identity.renew(&names, NOW_MS - 10 * DAY_MS).expect_err("the CA is not valid yet");
    let expected = "the run's CA is valid from 2027-01-15 07:55 UTC to 2037-01-12 08:00 UTC, but this machine's clock says 2027-01-05 08:00 UTC";
    assert_eq!(early.to_string(), expected);
    let bad = identity.renew(&["no name".to_owned()], NOW_MS);
    assert!(matches!(bad, Err(IdentityError::BadName(_))), "{bad:?}");
}

#[test]
fn files_that_do_not_belong_together_are_noticed() {
    let (one, other) = (folder(), folder());
    Identity::create(one.path(), &[], NOW_MS).expect("created");
    Identity::create(other.path(), &[], NOW_MS).expect("created");
    let copy = |name: &str| std::fs::copy(other.path().join(name), one.path().join(name)).map(|_| ()).expect("copied");
    let load = |what: &str| match Identity::load(one.path()) {
        Err(IdentityError::Damaged { path, problem }) => (path, problem),
        result => panic!("{what} went unnoticed: {result:?}"),
    };
    copy("tls/server.key");
    let (path, problem) = load("a foreign key");
    assert!(path.ends_with("tls/server.crt") && problem.contains("does not belong to"), "{problem}");
    copy("tls/server.crt");
    let (path, problem) = load("a foreign certificate");
    assert!(path.ends_with("tls/server.crt") && problem.contains("not issued by ca.crt"), "{problem}");
    std::fs::write(one.path().join("tls/server.crt"), "").expect("written");
    assert!(load("an empty file").1.contains("no certificate in it"));
    std::fs::remove_file(one.path().join("tls/server.crt")).expect("removed");
    assert!(matches!(Identity::load(one.path()), Err(IdentityError::Unreadable { .. })));
}

#[test]
fn server_names_are_host_names_and_addresses() {
    for good in ["localhost", "a-b.example.org", "10.0.0.7", "::1", "fd00::7", "x1"] {
        assert!(is_server_name(good), "{good}");
    }
    for bad in ["", "a b", "a:1", "-a", "a-", "a..b", "999.1.1.1", "https://a", "10.0.0.7:1", "ä", &"a".repeat(64)] {
        assert!(!is_server_name(bad), "{bad}");
    }
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: &str| (name.to_owned(), std::fs::read(dir.join(name)).expect("a file"));
    own::FILES.map(read).to_vec()
}

/// A rollover in each state in which a killed process leaves it.
#[test]
fn a_rollover_that_is_cut_off_leaves_a_folder_that_loads() {
    let dir = folder();
    let tls = dir.path().join("tls");
    let names = ["trainer.example.org".to_owned()];
    let mut identity = Identity::create(dir.path(), &names, NOW_MS).expect("created");
    let old = identity.ca_fingerprint();
    assert!(matches!(identity.finish_rollover(), Err(IdentityError::NoRollover)));

    std::fs::create_dir(tls.join("next.partial")).expect("made");
    std::fs::write(tls.join("next.partial/ca.key"), "half").expect("written");
    let loaded = Identity::load(dir.path()).expect("killed while the next CA was made");
    assert_eq!(loaded.authorities().fingerprints(), [old]);

    identity.begin_rollover(&names, NOW_MS).expect("begun");
    assert!(matches!(identity.begin_rollover(&names, NOW_MS), Err(IdentityError::Exists(_))));
    let loaded = Identity::load(dir.path()).expect("loaded");
    let [first, new] = loaded.authorities().fingerprints()[..] else { panic!("two CAs") };
    assert!(first == old && new != old);
    assert_eq!(loaded.server().certificate_der, identity.server().certificate_der, "every member trusts it");
    let issued = loaded.issue_agent(&csr(&KeyPair::generate().expect("a key"), &[]), "clinic", 30, NOW_MS);
    let issued = issued.expect("issued").certificate_der;
    assert!(loaded.next_ca_der().is_some_and(|next| issue::signed_by(&issued, next)));
    assert_eq!(loaded.expiries().len(), 6);

    std::fs::rename(tls.join("next"), tls.join("finishing")).expect("renamed");
    let new_files = files(&tls.join("finishing"));
    for copied in 0..=own::FILES.len() {
        for (name, content) in new_files.iter().take(copied) {
            std::fs::write(tls.join(name), content).expect("written");
        }
        let loaded = Identity::load(dir.path()).expect("killed while files were copied");
        assert_eq!(loaded.authorities().fingerprints(), [new], "{copied} files are in their place");
    }
    let mut loaded = Identity::load(dir.path()).expect("loaded");
    loaded.settle().expect("settled");
    assert_eq!(files(&tls), new_files);
    assert!(!tls.join("finishing").exists() && !tls.join("next.partial").exists());
    let mode = std::fs::metadata(tls.join("ca.key")).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let loaded = Identity::load(dir.path()).expect("loaded");
    assert_eq!(loaded.authorities().fingerprints(), [new]);
    assert!(issue::covers(&loaded.server().certificate_der, &names));
}

#[test]
fn a_certificate_for_a_later_key_says_whose_it_is() {
    let dir = folder();
    let mut identity = Identity::create(dir.path(), &[], NOW_MS).expect("created");
    let request = csr(&KeyPair::generate().expect("a key"), &[]);
    let key = requester(&request).expect("signed");
    let agent = AgentId([7; 16]);
    let issued = identity.issue_member(Member { agent, name: "clinic" }, &request, 30, NOW_MS).expect("issued");
    assert_eq!((issued.agent, issued.key), (agent, key));
    let peer = anabranch_io::tls::parse_peer(&issued.certificate_der).expect("an agent's");
    assert_eq!((peer.agent, peer.key), (agent, key));
    assert_eq!(peer.authority, anabranch_io::tls::authority_id(identity.ca_der()));
    identity.begin_rollover(&[], NOW_MS).expect("begun");
    identity.finish_rollover().expect("ended");
    let issued = identity.issue_agent(&request, "clinic", 30, NOW_MS).expect("issued");
    let peer = anabranch_io::tls::parse_peer(&issued.certificate_der).expect("an agent's");
    assert_eq!((peer.agent, peer.authority), (key, anabranch_io::tls::authority_id(identity.ca_der())));
    assert!(anabranch_io::tls::is_of_authority(&identity.server().certificate_der, identity.ca_der()));
    assert!(!anabranch_io::tls::is_of_authority(&issued.certificate_der, identity.ca_der()), "not a server's");
}

/// As where the rename is done, and making it durable fails.
#[test]
fn a_next_ca_whose_folder_is_there_is_known() {
    let dir = folder();
    let mut identity = Identity::create(dir.path(), &[], NOW_MS).expect("created");
    let mut other = Identity::load(dir.path()).expect("loaded");
    other.begin_rollover(&[], NOW_MS).expect("begun");
    identity.begin_rollover(&[], NOW_MS).expect("it is there");
    assert_eq!(identity.authorities().fingerprints(), other.authorities().fingerprints());
    assert_eq!(identity.authorities().len(), 2);
}
