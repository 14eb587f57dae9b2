//! The control socket of a daemon: one line of JSON in, one line out, for its owner alone.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::limits::{CONTROL_CLIENTS, CONTROL_MESSAGE_BYTES, REQUEST_TIMEOUT_MS};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::exit::ExitCode;

/// Bytes of a Unix socket's path: `sun_path` has 108, one of them for the terminating zero.
const SOCKET_PATH_BYTES: usize = 107;
/// A socket is made under its name with this ending, closed to others, and only then put in place.
const NEW_SUFFIX: &str = ".new";

/// Why a control socket cannot be served or asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path does not fit the system's limit.
    #[error("the path of the control socket {path} has {found} bytes, more than the {max} that the system allows",
        path = path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// Somebody serves this socket already.
    #[error("another process serves {path}", path = path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Nobody serves this socket.
    #[error("nothing is running behind {path}", path = path.display())]
    NotRunning {
        /// The path.
        path: PathBuf,
    },
    /// The answer is not one line of at most `CONTROL_MESSAGE_BYTES`.
    #[error("no usable answer from {path}", path = path.display())]
    BadAnswer {
        /// The path.
        path: PathBuf,
    },
    /// No answer in time.
    #[error("no answer from {path} in time", path = path.display())]
    TimedOut {
        /// The path.
        path: PathBuf,
    },
    /// Any other error of the system.
    #[error("cannot use {path}: {source}", path = path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl ControlError {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::PathTooLong { .. } => ExitCode::Config,
            Self::InUse { .. } => ExitCode::Locked,
            Self::NotRunning { .. } | Self::BadAnswer { .. } | Self::TimedOut { .. } => ExitCode::Unavailable,
            Self::Io { .. } => ExitCode::Other,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::PathTooLong { .. } => "use a directory with a shorter path",
            Self::InUse { .. } => "stop the other process, or choose another directory",
            Self::NotRunning { .. } => "start the daemon first, or check the directory",
            _ => return None,
        };
        Some(help.to_owned())
    }
}

fn check_path(path: &Path, room: usize) -> Result<(), ControlError> {
    let (found, max) = (path.as_os_str().len(), SOCKET_PATH_BYTES - room);
    if found > max { Err(ControlError::PathTooLong { path: path.to_owned(), found, max }) } else { Ok(()) }
}

/// A control socket that is being served. Dropping it ends the service and removes the socket.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    accepting: JoinHandle<()>,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.accepting.abort();
        // Best effort: a socket that stays behind is recognised as stale.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves `path` (mode 0600) until the returned socket is dropped: each line of a client is given to `handler`, whose
/// answer goes back as one line. A socket that was left behind by a crash is replaced. Call inside a tokio runtime.
///
/// # Errors
/// See [`ControlError`]; `InUse` if somebody listens there.
pub fn serve<H>(path: &Path, handler: H) -> Result<ControlSocket, ControlError>
where
    H: Fn(String) -> String + Send + Sync + 'static,
{
    check_path(path, NEW_SUFFIX.len())?;
    let at = |source| ControlError::Io { path: path.to_owned(), source };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(ControlError::InUse { path: path.to_owned() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
        Err(error) => return Err(at(error)),
    }
    let mut new = path.as_os_str().to_owned();
    new.push(NEW_SUFFIX);
    let new = PathBuf::from(new);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(at)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).map_err(at)?;
    std::fs::rename(&new, path).map_err(at)?;
    let accepting = tokio::spawn(accept(listener, Arc::new(handler)));
    Ok(ControlSocket { path: path.to_owned(), accepting })
}

async fn accept<H: Fn(String) -> String + Send + Sync + 'static>(listener: UnixListener, handler: Arc<H>) {
    let clients = Arc::new(Semaphore::new(CONTROL_CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    // A client that breaks off is its own affair.
                    let _ = converse(stream, &*handler).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                // Out of descriptors, most likely: without a pause this loop would take a core.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, handler: &(impl Fn(String) -> String + Send + Sync)) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let deadline = Duration::from_millis(REQUEST_TIMEOUT_MS);
    loop {
        let Some(line) = tokio::time::timeout(deadline, read_line(&mut reader)).await?? else {
            return Ok(());
        };
        let mut answer = handler(line);
        answer.push('\n');
        tokio::time::timeout(deadline, writer.write_all(answer.as_bytes())).await??;
    }
}

/// One line without its end; nothing at the end of the stream.
async fn read_line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<String>> {
    let mut line = String::new();
    let limit = CONTROL_MESSAGE_BYTES as u64 + 1;
    if reader.take(limit).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    match line.pop() {
        Some('\n') => Ok(Some(line)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Sends one line to the daemon behind `path` and returns the line it answers.
///
/// # Errors
/// See [`ControlError`]; `NotRunning` if nobody serves the socket.
pub async fn request(path: &Path, line: &str, deadline: Duration) -> Result<String, ControlError> {
    check_path(path, 0)?;
    let answer = tokio::time::timeout(deadline, async {
        let (reader, mut writer) = UnixStream::connect(path).await?.into_split();
        writer.write_all(line.as_bytes()).await?;
        writer.write_all(b"\n").await?;
        read_line(&mut BufReader::new(reader)).await
    });
    let path = path.to_owned();
    match answer.await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(ControlError::BadAnswer { path }),
        Ok(Err(source)) => Err(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning { path },
            io::ErrorKind::InvalidData => ControlError::BadAnswer { path },
            _ => ControlError::Io { path, source },
        }),
        Err(_) => Err(ControlError::TimedOut { path }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn lines_are_answered_and_the_socket_is_private_and_goes_away() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("control.sock");
        let socket = serve(&path, |line| format!("{line}, answered")).expect("serves");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let answer = request(&path, r#"{"ask":"status"}"#, DEADLINE).await.expect("answers");
        assert_eq!(answer, r#"{"ask":"status"}, answered"#);
        assert!(matches!(serve(&path, |line| line), Err(ControlError::InUse { .. })));
        drop(socket);
        let error = request(&path, "{}", DEADLINE).await.expect_err("gone");
        assert!(matches!(error, ControlError::NotRunning { .. }), "{error}");
    }

    /// A daemon that was killed leaves its socket behind; the next one must start.
    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        let error = request(&path, "{}", DEADLINE).await.expect_err("stale");
        assert!(matches!(error, ControlError::NotRunning { .. }), "{error}");
        let _socket = serve(&path, |_| "here".to_owned()).expect("serves");
        assert_eq!(request(&path, "{}", DEADLINE).await.expect("answers"), "here");
    }

    #[tokio::test]
    async fn a_long_path_and_a_long_line_are_refused() {
        let path = PathBuf::from(format!("/{}/control.sock", "d".repeat(120)));
        let error = serve(&path, |line| line).expect_err("too long");
        assert!(error.to_string().contains("134 bytes"), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Config);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("control.sock");
        let _socket = serve(&path, |line| line).expect("serves");
        let line = "x".repeat(CONTROL_MESSAGE_BYTES + 2);
        assert!(request(&path, &line, DEADLINE).await.is_err(), "a line beyond the limit is not handled");
    }
}
