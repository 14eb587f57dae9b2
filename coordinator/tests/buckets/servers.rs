//! Servers that the tests start.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anabranch_coordinator::clock;

use super::proxy::serialise;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The bucket that is there.
const BUCKET: &str = "training";

/// An implementation of S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `moto_server`, from PyPI.
    Moto,
    /// `s3s-fs`, from crates.io.
    S3s,
}

/// A server that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    direct: SocketAddr,
    proxied: SocketAddr,
    _root: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Moto, Self::S3s];

    /// The program: what a variable names, otherwise what is in the path.
    fn program(self) -> PathBuf {
        let (variable, name) = match self {
            Self::Moto => ("ANABRANCH_MOTO_SERVER", "moto_server"),
            Self::S3s => ("ANABRANCH_S3S_FS", "s3s-fs"),
        };
        std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
    }

    /// Starts a server with an empty bucket. None where it is not installed, which CI does not allow.
    pub(crate) fn start(self) -> Option<Server> {
        let root = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(root.path().join(BUCKET)).expect("created");
        // The port is free when it was free a moment ago; a server that cannot have it ends, and this panics.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let mut command = Command::new(self.program());
        match self {
            Self::Moto => command.args(["-H", "127.0.0.1", "-p", &port.to_string()]),
            Self::S3s => command
                .args(["--host", "127.0.0.1", "--port", &port.to_string()])
                .args(["--access-key", "key", "--secret-key", "secret"])
                .arg(root.path()),
        };
        let child = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "CI needs {}: {error}", self.program().display());
                eprintln!("not checked: there is no {} here", self.program().display());
                return None;
            }
        };
        let direct = SocketAddr::from(([127, 0, 0, 1], port));
        let mut server = Server { child, direct, proxied: serialise(direct), _root: root };
        server.wait_until_it_listens();
        if self == Self::Moto {
            server.make_bucket();
        }
        Some(server)
    }
}

impl Server {
    fn wait_until_it_listens(&mut self) {
        let began = clock::monotonic();
        while TcpStream::connect(self.direct).is_err() {
            assert!(self.child.try_wait().expect("asked").is_none(), "the server has ended");
            assert!(began.elapsed() < PATIENCE, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn make_bucket(&self) {
        let mut stream = TcpStream::connect(self.direct).expect("it listens");
        let request =
            format!("PUT /{BUCKET} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// The address of a store in its bucket.
    pub(crate) fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The environment that leads to it, one request at a time.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        environment(self.proxied)
    }

    /// The environment that leads to it without the proxy.
    pub(crate) fn direct_environment(&self) -> BTreeMap<String, String> {
        environment(self.direct)
    }
}

fn environment(address: SocketAddr) -> BTreeMap<String, String> {
    let settings = [
        ("AWS_ACCESS_KEY_ID", "key".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ENDPOINT", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
    ];
    settings.map(|(key, value)| (key.to_owned(), value)).into()
}
