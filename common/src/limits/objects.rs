//! Bounds of stores in a bucket.

/// Attempts of one request to an object store.
pub const OBJECT_ATTEMPTS: u32 = 10;
/// First and longest rest between two of them, in milliseconds.
pub const OBJECT_REST_MS: (u64, u64) = (50, 3_000);
/// How long one request, or the next part of its answer, may take, in milliseconds.
pub const OBJECT_REQUEST_MS: u64 = 30_000;
/// So many bytes of an object are put in a millisecond at least: the time for a longer one grows with it.
pub const OBJECT_PUT_BYTES_PER_MS: u64 = 500;
/// Bytes of the records of one object, unless one record alone has more.
pub const OBJECT_GROUP_BYTES: usize = 32 << 20;
/// Bytes of records that are kept in memory once they were read or written.
pub const OBJECT_CACHE_BYTES: u64 = 64 << 20;
/// Bits of the number of a snapshot: so many can a process write, less one.
pub const OBJECT_SNAPSHOT_BITS: u32 = 24;
/// Bytes of the name of a writer.
pub const OBJECT_WRITER_BYTES: usize = 128;
/// Looks at a bucket that another process changes meanwhile.
pub const OBJECT_LOOKS: u32 = 16;
/// Writers that race for a key when a bucket is checked.
pub const OBJECT_RACERS: u32 = 64;
/// Keys that they race for.
pub const OBJECT_RACES: u32 = 10_000;
