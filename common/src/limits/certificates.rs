//! Bounds of certificates, and of the addresses under which a coordinator is found.

/// Addresses of one coordinator that a token carries and an agent tries.
pub const COORDINATOR_ADDRESSES: usize = 8;
/// How long an attempt to connect to one address of a coordinator goes unanswered until the next address is tried beside it,
/// in milliseconds.
pub const COORDINATOR_TURN_MS: u64 = 2_000;
/// How long an attempt to connect to one of several addresses may take in the first `OUTAGE_MS` of an outage, in
/// milliseconds: QUIC repeats its first datagram after 1 and after 3 seconds, and then rests for 4.
pub const COORDINATOR_ATTEMPT_MS: u64 = 4_000;
/// The first part of an outage, in milliseconds, in which an agent rests for at most ...
pub const OUTAGE_MS: u64 = 60_000;
/// ... this long between two attempts to connect, in milliseconds.
pub const OUTAGE_RECONNECT_MS: u64 = 2_000;
/// CAs that are trusted at the same time: the one that is replaced in a rollover, and the next one.
pub const AUTHORITIES: usize = 2;
/// Bytes of a file with the certificates of these CAs.
pub const AUTHORITIES_FILE_BYTES: u64 = 64 << 10;
/// How often an agent compares its wall clock with the life of its certificate, in milliseconds: a machine that has slept wakes
/// up with a certificate that is nearer to its end than the monotonic clock says.
pub const CERTIFICATE_LOOK_MS: u64 = 10_000;
/// Members that an answer about a rollover names.
pub const MEMBERS_NAMED: usize = 10;
