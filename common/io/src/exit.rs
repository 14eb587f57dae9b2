//! How a command ends: one stable table of exit codes for both daemons, and the three lines that tell a person what
//! went wrong and what to do about it.

use std::error::Error;
use std::fmt;
use std::fmt::Write as _;

use crate::control::ControlError;
use crate::durable::StorageError;
use crate::frames::{FrameIoError, HandshakeError};
use crate::terminal::visible;
use crate::tls::{BindError, ConnectProblem};

/// Exit codes of `anabranch-coordinator` and `anabranch-agent`. They are stable: scripts and service managers read them.
///
/// | code | meaning | worth a restart |
/// |---|---|---|
/// | 0 | done | |
/// | 1 | anything without a code of its own | no |
/// | 2 | wrong use of the command line | no |
/// | 3 | configuration (`run.toml`, `agent.toml`) | no |
/// | 4 | coordinator unreachable, or the request is not possible now | yes |
/// | 5 | identity refused: token, CA, revoked, role | no |
/// | 6 | storage: no space, sync, permission, corrupt | after it was seen to |
/// | 7 | directory locked by another process | no |
/// | 8 | shard missing, unreadable or unfit | no |
/// | 9 | protocol versions do not match | after an upgrade |
/// | 10 | manifest or model does not match | no |
/// | 11 | the model is no longer finite | no |
/// | 12 | certificate not valid at this machine's clock | after the clock was set |
/// | 13 | port taken, or address not available | after it was seen to |
/// | 14 | the trainer cannot be started, or is of no use | after it was seen to |
/// | 15 | another coordinator has taken the run's store over | no |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Ok = 0,
    /// Anything without a code of its own.
    Other = 1,
    /// Wrong use of the command line.
    Usage = 2,
    /// A configuration file is missing, unreadable or contradicts itself.
    Config = 3,
    /// Coordinator unreachable, or the request is not possible now.
    Unavailable = 4,
    /// Token, CA, revoked certificate or role.
    Identity = 5,
    /// No space, failed sync, permission, corrupt store.
    Storage = 6,
    /// Another process uses the directory.
    Locked = 7,
    /// A shard is missing, unreadable or unfit.
    Shard = 8,
    /// No common protocol version.
    Protocol = 9,
    /// Manifest or model digest does not match, or a model is beyond the bounds of a run.
    Model = 10,
    /// The model is no longer finite.
    NotFinite = 11,
    /// A certificate is not valid at this machine's clock.
    Clock = 12,
    /// Port taken or address not available.
    Address = 13,
    /// The trainer cannot be started, or is of no use.
    Trainer = 14,
    /// Another process has taken the store over.
    Superseded = 15,
}

impl ExitCode {
    /// The number.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        self as u8
    }
}

impl ExitCode {
    /// All of them, by number.
    const ALL: [Self; 16] = [
        Self::Ok,
        Self::Other,
        Self::Usage,
        Self::Config,
        Self::Unavailable,
        Self::Identity,
        Self::Storage,
        Self::Locked,
        Self::Shard,
        Self::Protocol,
        Self::Model,
        Self::NotFinite,
        Self::Clock,
        Self::Address,
        Self::Trainer,
        Self::Superseded,
    ];

    /// Returns the code with this number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_u8() == number)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.as_u8())
    }
}

/// An error that knows its exit code and what to do about it. Commands return it inside `anyhow::Error`.
#[derive(Debug)]
pub struct Fail {
    code: ExitCode,
    message: String,
    help: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Fail {
    /// An error with a code. `message` is a lowercase fragment that says what is wrong.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None, source: None }
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Its exit code.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        self.code
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Fail {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// A storage error as a [`Fail`].
#[must_use]
pub fn storage_fail(error: StorageError) -> Fail {
    let fail = Fail::new(error.exit_code(), error.to_string());
    match error.help() {
        Some(help) => fail.help(help),
        None => fail,
    }
}

/// What one link of an error's chain says about code and help.
fn verdict(link: &(dyn Error + 'static)) -> Option<(ExitCode, Option<String>)> {
    if let Some(fail) = link.downcast_ref::<Fail>() {
        return Some((fail.code, fail.help.clone()));
    }
    if let Some(error) = link.downcast_ref::<StorageError>() {
        return Some((error.exit_code(), error.help()));
    }
    if let Some(error) = link.downcast_ref::<ConnectProblem>() {
        return Some((error.exit_code(), error.help()));
    }
    if let Some(error) = link.downcast_ref::<HandshakeError>() {
        return error.exit_code().map(|code| (code, error.help()));
    }
    if let Some(error) = link.downcast_ref::<FrameIoError>() {
        return error.exit_code().map(|code| (code, None));
    }
    if let Some(error) = link.downcast_ref::<BindError>() {
        return Some((ExitCode::Address, Some(error.help())));
    }
    let control = link.downcast_ref::<ControlError>()?;
    Some((control.exit_code(), control.help()))
}

/// The exit code of an error: that of the outermost link of its chain that has one, else [`ExitCode::Other`].
#[must_use]
pub fn code_of(error: &anyhow::Error) -> ExitCode {
    error.chain().find_map(verdict).map_or(ExitCode::Other, |(code, _)| code)
}

/// The text for a person, without control characters ([`visible`]): `error: ...`, one `cause: ...` line for each cause that adds something, `help: ...` if any.
#[must_use]
pub fn render(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "cause: {cause}");
            said = cause;
        }
    }
    if let Some(help) = error.chain().filter_map(verdict).find_map(|(_, help)| help) {
        let _ = writeln!(text, "help: {help}");
    }
    visible(&text).into_owned()
}

/// Prints [`render`] to stderr and returns the code to exit with.
pub fn report(error: &anyhow::Error) -> ExitCode {
    // Standard error may be a file on the very disk that is full: the code still has to get out.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), render(error).as_bytes());
    code_of(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::LockHolder;

    /// Guards the table that scripts rely on: code, causes without repetition, and help survive `anyhow` context.
    #[test]
    fn code_and_help_are_found_through_context() {
        let fail = Fail::new(ExitCode::Shard, "shard is empty").help("give it rows").because("no rows");
        let error = anyhow::Error::new(fail).context("cannot train");
        assert_eq!(code_of(&error), ExitCode::Shard);
        assert_eq!(render(&error), "error: cannot train\ncause: shard is empty\ncause: no rows\nhelp: give it rows\n");
    }

    #[test]
    fn every_code_is_found_by_its_number() {
        let found: Vec<_> = (0..=16).map(ExitCode::from_u8).collect();
        let expected: Vec<_> = ExitCode::ALL.into_iter().map(Some).chain([None]).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_error_without_a_code_is_1() {
        assert_eq!(code_of(&anyhow::anyhow!("something")).as_u8(), 1);
    }

    #[test]
    fn storage_errors_carry_their_own_code() {
        let locked = StorageError::Locked { path: "store".into(), holder: LockHolder::Process(7) };
        let fail = storage_fail(locked);
        assert_eq!(fail.code(), ExitCode::Locked);
        assert!(fail.to_string().contains("process 7"), "{fail}");
    }
}
