//! Fault injection, scenarios and benchmarks against the real parts.
//!
//! ```text
//!  process     real daemons in real directories: start, kill, stop, wait for a condition, with a deadline
//!  encoder     the GPU's encoder retold on the CPU, and a trainer that encodes with it
//!  ledger      a trainer whose every update adds 1 to a coordinate of its own
//!  invariants  what must hold afterwards, one file a promise
//!  chaos       real daemons behind bad lines, on bad disks, hanging, poisoned: scenarios and scorecards    `anabranch-lab chaos`
//!  hostile     peers with bad intent: an enrolled one that says what a test wants, strangers with raw sockets
//!  kills       kill -9 at every named point, in turn, and at random moments     `anabranch-lab kills`
//!  sim         the real cores in virtual time, thousands of seeds                  `anabranch-lab sim`
//!  ring        queues between replicas in memory: of races, and of what worlds are compared with
//!  race        real training in virtual time or with processes: merge strategies   `anabranch-lab race`
//!  bugs        deliberate bugs, made in a copy of the sources, which sim must find      `anabranch-lab bites`
//!  picture     a run as one HTML page: swim lanes, versions, every event in words
//!  power       power loss below the store: recorded writes, dropped, torn and reordered    `anabranch-lab power`
//!  scale       fleets by their statistics, flat and with regions                   `anabranch-lab scale`
//!  text        sentences to learn from
//!  bench       how fast, how large, how soon back                               `anabranch-lab bench`
//! ```
//! `anabranch-lab` (`lab/main.rs`) is both the command line and every daemon that the tests start: it executes itself.

pub mod bench;
pub mod bugs;
pub mod chaos;
pub mod clock;
pub mod encoder;
pub mod hostile;
pub mod invariants;
pub mod kills;
pub mod ledger;
pub mod picture;
pub mod power;
pub mod process;
pub mod race;
pub mod report;
mod ring;
pub mod scale;
pub mod sim;
pub mod text;
