//! Bounds of the operator's page.

/// Clients that get events of the operator's page at the same time; a further one is told so.
pub const PAGE_CLIENTS: usize = 16;
/// Events that wait for one of them; it misses later pages until it has read one.
pub const PAGE_CLIENT_EVENTS: usize = 1;
/// How long such a client hears nothing while the page stays the same, in milliseconds.
pub const PAGE_HEARTBEAT_MS: u64 = 15_000;
/// Events of the page's log that are kept, newest last, ...
pub const PAGE_EVENTS: usize = 512;
/// ... those of them that measurements and checkpoints are, ...
pub const PAGE_ROUTINE_EVENTS: usize = 40;
/// ... that one snapshot adds, and ...
pub const PAGE_EVENTS_AT_ONCE: usize = 64;
/// ... that are shown.
pub const PAGE_EVENTS_SHOWN: usize = 100;
/// Runs that the page lists: those that have failed first, those that have ended last.
pub const PAGE_RUNS: usize = 200;
/// Agents of one run that the page lists: those that need the operator first.
pub const PAGE_AGENTS: usize = 250;
/// Points of a curve on the page, and ...
pub const PAGE_POINTS: usize = 300;
/// ... of the small one in the list of runs.
pub const PAGE_SPARK_POINTS: usize = 40;
/// Measurements that the page lists.
pub const PAGE_MEASURED: usize = 8;
/// Lines about what needs the operator.
pub const PAGE_NOTES: usize = 50;
/// Snapshots from which the speed of a run is taken, and ...
pub const PAGE_SAMPLES: usize = 64;
/// ... the time that they go back, in milliseconds.
pub const PAGE_RATE_MS: u64 = 60_000;
/// The least time of which a speed is said, in milliseconds.
pub const PAGE_RATE_LEAST_MS: u64 = 5_000;
/// Rest of a certificate's life from which on the page warns of its end, in seconds: as the alerts do.
pub const PAGE_CERTIFICATE_S: i64 = 14 * 24 * 60 * 60;

/// Page tokens that are kept at once; the oldest one that is expired or revoked makes room.
pub const PAGE_TOKENS: usize = 64;
/// Life of a page token, in milliseconds: a year.
pub const PAGE_TOKEN_TTL_MS: u64 = 365 * 24 * 60 * 60 * 1000;
/// How often a use of a page token is noted, in milliseconds.
pub const PAGE_TOKEN_USE_MS: u64 = 60_000;
/// Wrong tokens of one address that are answered one by one, ...
pub const PAGE_WRONG_TOKENS: u32 = 10;
/// ... in so many milliseconds, and ...
pub const PAGE_WRONG_MS: u64 = 60_000;
/// ... addresses for which they are counted; the one whose time began first makes room.
pub const PAGE_WRONG_ADDRESSES: usize = 1_024;
/// Requests of page tokens that the loop is asked at the same time.
pub const PAGE_OPERATIONS: usize = 8;
/// Models that are read and sent to clients of the page at the same time: each is held in memory.
pub const PAGE_DOWNLOADS: usize = 2;
/// Time that a client has for any model, in milliseconds, ...
pub const PAGE_DOWNLOAD_MS: u64 = 5 * 60 * 1000;
/// ... and the least bytes a second at which it has more time for a large one.
pub const PAGE_DOWNLOAD_BYTES_PER_S: u64 = 128 << 10;
/// Bytes of a model that are made at once for a client: between two such parts its token and its time are checked.
pub const PAGE_DOWNLOAD_CHUNK_BYTES: usize = 64 << 10;
/// Lists of checkpoints that are read for the page at the same time.
pub const PAGE_LISTS: usize = 2;
/// Checkpoints of one run that the page lists, newest first.
pub const PAGE_CHECKPOINTS: usize = 200;
/// Pods of one run that a status lists, those at work first.
pub const PODS_LISTED: usize = 64;
