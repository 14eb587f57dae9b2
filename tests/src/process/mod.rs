//! Real daemons: this crate's binary, executed again as one of them.
//!
//! ```text
//!  Cluster ── directories, certificates, tokens, one coordinator, agents by name
//!     ├── Process ── a child with its log: signals, exit, what it said since it was started; killed when dropped
//!     ├── be_agent ── an agent with a trainer of the tests
//!     ├── TimedRun ── a cluster whose processes start at one moment and are watched from then on
//!     └── Tail ── what an agent says in its log, as it is written
//!  OnTerminal ── a command on a pseudo-terminal: keys, what is on its screen, whether it gives the terminal back
//!  Browser ── Chromium without a window: clicks, keys, pictures
//!  Usage ── memory and processor time of processes, looked up while they run
//!  MemoryGroup ── a cgroup with a limit, where a test may make one
//!  Recording ── the bytes of an agent's session, said again
//!  Line ── a relay for UDP that can be cut in the middle of something
//!  http_get, http_post, series ── requests and figures over HTTP
//!  Role ── which daemon, and how the binary becomes it
//! ```

mod agent;
mod browser;
mod cgroup;
mod child;
mod cluster;
mod digits;
mod http;
mod line;
mod preload;
mod pty;
mod python;
mod recorded;
mod role;
mod screen;
mod timed;
mod usage;
mod watch;

pub use agent::be_agent;
pub use browser::{Browser, Look};
pub use cgroup::MemoryGroup;
pub use child::{Ended, Process, call};
pub use cluster::{Cluster, PATIENCE};
pub use digits::{DIGITS, example};
pub use http::{http_get, http_post, series};
pub use line::{Line, Way};
pub use preload::compile;
pub use pty::OnTerminal;
pub use python::{PYTHON_PACKAGE, python_for_packages, python_has, python_with_torch};
pub use recorded::{Answers, Recording};
pub use role::Role;
pub use timed::{AgentStart, Counted, LOOK, TimedRun, agent_name};
pub(crate) use usage::{Usage, cpu_s};
pub use watch::{Seen, Tail, What, numbers};
