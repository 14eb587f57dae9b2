//! What agents say while they run, read from their logs (JSON lines) as it appears, timed by the lab's own clock: theirs
//! may be wrong on purpose.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use serde_json::Value;

/// One thing that an agent said.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Milliseconds on the lab's clock.
    pub at_ms: u64,
    /// Which agent.
    pub agent: String,
    /// What it said.
    pub what: What,
}

/// What agents say.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// It has a connection.
    Connected,
    /// It has lost it, or got none.
    Disconnected(String),
    /// It has a lease.
    Leased,
    /// A local round is done; it took so many milliseconds.
    Trained(u64),
    /// It has offered an update: epoch and number.
    Offered(u64, u64),
    /// That update is in the model from this version on.
    Accepted {
        /// Epoch and number.
        key: (u64, u64),
        /// Version after it.
        version: u64,
    },
    /// That update was refused.
    Refused(String),
    /// The accuracy of a version.
    Evaluated {
        /// Version.
        version: u64,
        /// 0..1.
        accuracy: f64,
    },
}

/// Reads one agent's log as it grows.
#[derive(Debug)]
pub struct Tail {
    agent: String,
    path: PathBuf,
    read: u64,
    /// The beginning of a line whose end is not there yet.
    rest: Vec<u8>,
}

impl Tail {
    /// From the beginning of the log at `path`, which need not be there yet.
    #[must_use]
    pub fn new(agent: &str, path: PathBuf) -> Self {
        Self { agent: agent.to_owned(), path, read: 0, rest: Vec::new() }
    }

    /// What was said since the last time.
    ///
    /// # Errors
    /// The log is there and cannot be read.
    pub fn read(&mut self, at_ms: u64, seen: &mut Vec<Seen>) -> anyhow::Result<()> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(()) };
        file.seek(SeekFrom::Start(self.read))?;
        self.read += file.read_to_end(&mut self.rest)? as u64;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        for line in lines.split(|byte| *byte == b'\n') {
            // A kill may have cut a line off; the next life goes on after it.
            let Ok(entry) = serde_json::from_slice::<Value>(line) else { continue };
            if let Some(what) = what(&entry) {
                seen.push(Seen { at_ms, agent: self.agent.clone(), what });
            }
        }
        Ok(())
    }
}

fn what(entry: &Value) -> Option<What> {
    let number = |field: &str| entry[field].as_u64();
    let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    Some(match entry["message"].as_str()? {
        message if message.starts_with("connected as") => What::Connected,
        "not connected; trying again" => What::Disconnected(text("why")),
        "lease" => What::Leased,
        "trained" => What::Trained(number("ms")?),
        "offering an update" => What::Offered(number("epoch")?, number("seq")?),
        "update accepted" => What::Accepted { key: (number("epoch")?, number("seq")?), version: number("version")? },
        "update refused" => What::Refused(text("reason")),
        "evaluated" => What::Evaluated { version: number("version")?, accuracy: entry["accuracy"].as_f64()? },
        _ => return None,
    })
}

/// The numbers behind `field=` in the lines of a log that contain `text`.
#[must_use]
pub fn numbers(log: &str, text: &str, field: &str) -> Vec<u64> {
    let field = format!("{field}=");
    let of_line = |line: &str| {
        let (_, rest) = line.split_once(&field)?;
        rest.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
    };
    // A log for a terminal would have colours between the names and the numbers.
    log.lines().filter(|line| line.contains(text)).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Lines that are written in pieces, or cut off by a kill, are neither lost nor read twice.
    #[test]
    fn a_log_is_read_once_however_it_grows() -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        let mut tail = Tail::new("one", file.path().to_owned());
        let mut seen = Vec::new();
        file.write_all(b"{\"message\":\"lease\"}\n{\"message\":\"tra")?;
        tail.read(1, &mut seen)?;
        assert_eq!(seen.len(), 1);
        file.write_all(b"ined\",\"ms\":7}\n{\"mess\n{\"message\":\"evaluated\",\"version\":2,\"accuracy\":0.5}\n")?;
        tail.read(2, &mut seen)?;
        tail.read(3, &mut seen)?;
        let whats: Vec<What> = seen.into_iter().map(|seen| seen.what).collect();
        assert_eq!(whats, [What::Leased, What::Trained(7), What::Evaluated { version: 2, accuracy: 0.5 }]);
        Ok(())
    }

    /// An update that was refused, or whose line was cut off, was not accepted; a name is not a message.
    #[test]
    fn only_what_was_accepted_counts() -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        let log = "{\"message\":\"connected as lease\"}\n\
                   {\"message\":\"update accepted\",\"epoch\":2,\"seq\":7,\"version\":3}\n\
                   {\"message\":\"update refused\",\"epoch\":2,\"seq\":8,\"reason\":\"stale\"}\n{\"message\":\"update acc";
        file.write_all(log.as_bytes())?;
        let mut seen = Vec::new();
        Tail::new("one", file.path().to_owned()).read(1, &mut seen)?;
        let whats: Vec<What> = seen.into_iter().map(|seen| seen.what).collect();
        let accepted = What::Accepted { key: (2, 7), version: 3 };
        assert_eq!(whats, [What::Connected, accepted, What::Refused("stale".to_owned())]);
        Ok(())
    }
}
