//! Bounds of `doctor`: what a check may send, write and wait for, and from which figure on it warns or fails.

/// Bytes of one probing stream that the coordinator returns.
pub const ECHO_BYTES: u64 = 256 << 10;
/// Probing streams of one connection. The coordinator closes the connection after the last one.
pub const PROBES: usize = 16;
/// How long one probing stream may take, in milliseconds: at half of the thinnest link that must work, `ECHO_BYTES` take 16 s.
pub const PROBE_MS: u64 = 20_000;
/// Bytes of an answer to a probe.
pub const ANSWER_BYTES: usize = 1 << 10;
/// Questions that measure the round trip and the clock.
pub const CLOCK_PROBES: usize = 5;

/// Bytes of a datagram that asks for a sign of life: QUIC servers answer no shorter one.
pub const PING_BYTES: usize = 1_200;
/// Datagrams that ask for a sign of life before an address counts as silent.
pub const PING_TRIES: u32 = 4;
/// How long one of them is waited for, in milliseconds.
pub const PING_MS: u64 = 750;
/// How long a TCP connection to a silent address may take, in milliseconds.
pub const TCP_MS: u64 = 1_500;

/// Datagrams of `PING_BYTES` in one train, and ...
pub const TRAIN_DATAGRAMS: [u32; 3] = [25, 100, 300];
/// ... how many of them are sent in a second: 0.5, 1.9 and 7.7 Mbit/s.
pub const TRAIN_PER_S: [u32; 3] = [50, 200, 800];
/// How long answers to a train are waited for after the latest one, in milliseconds.
pub const TRAIN_REST_MS: u64 = 700;
/// Share of a train that may be lost, in percent, before a line counts as one that loses datagrams.
pub const LOSS_PERCENT: u64 = 2;
/// A line whose slowest train loses datagrams loses more by a limit if its fastest train loses so much more, in percent.
pub const LOSS_GROWS_PERCENT: u64 = 15;
/// Bits a second below which a line counts as thin.
pub const THIN_BITS_PER_S: u64 = 256_000;
/// Round trips from this on are told, in milliseconds.
pub const ROUND_TRIP_MS: u64 = 400;
/// How long the search for the path's MTU is watched, in milliseconds.
pub const MTU_MS: u64 = 2_000;
/// Bytes of the largest datagram that the search for the path's MTU tries.
pub const MTU_BYTES: u16 = 1_452;
/// Seconds that `--nat` may take.
pub const NAT_S: u64 = 600;
/// First silence of `--nat`, in seconds; each further one is twice as long.
pub const NAT_FIRST_S: u64 = 5;

/// A clock that differs by so much is told, in milliseconds, and ...
pub const CLOCK_WARN_MS: u64 = 30_000;
/// ... one that is behind by so much fails: certificates are valid from five minutes before they are issued.
pub const CLOCK_FAIL_MS: u64 = 300_000;

/// Bytes that measure how fast a disk is written.
pub const DISK_BYTES: u64 = 32 << 20;
/// Syncs that measure how long one takes.
pub const DISK_SYNCS: usize = 64;
/// How long all of them may take, in milliseconds.
pub const DISK_SYNCS_MS: u64 = 3_000;
/// A median sync below this is faster than flash stores 4 KiB, in microseconds.
pub const DISK_SYNC_HONEST_US: u64 = 30;
/// A median sync from this on is slow, in microseconds.
pub const DISK_SYNC_SLOW_US: u64 = 50_000;
/// Bytes a second below which a disk is slow.
pub const DISK_SLOW_BYTES_PER_S: u64 = 20 << 20;
/// Free bytes below which a disk is told as small, and ...
pub const DISK_SMALL_BYTES: u64 = 2 << 30;
/// ... below which it fails: a store's files grow in pieces of megabytes.
pub const DISK_FULL_BYTES: u64 = 64 << 20;

/// Bytes that a coordinator's process takes beside its runs.
pub const PROCESS_BYTES: u64 = 256 << 20;
/// Open files that a run takes, and ...
pub const FILES_PER_RUN: u64 = 16;
/// ... those of a coordinator's process.
pub const FILES_OF_PROCESS: u64 = 64;
/// A file of the store that was written so far in the future tells that the clock went back, in milliseconds.
pub const FUTURE_FILE_MS: u64 = 60_000;
