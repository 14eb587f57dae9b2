//! Bounds of pods and of what their members send each other.

use super::TRANSFER_LOOK_MS;

/// Members of a pod. The best cut of the deepest model for as many takes tens of milliseconds.
pub const POD_MEMBERS: usize = 64;
/// Bytes of the address at which a member of a pod is reached.
pub const POD_ADDRESS_BYTES: usize = 280;
/// Bytes of the name of a site, whose agents form pods of replicas.
pub const POD_SITE_BYTES: usize = 64;
/// Values of a gradient that replicas pass on at a time, 256 KiB: few enough that all links of a ring carry something.
pub const REPLICA_CHUNK_VALUES: usize = 1 << 16;
/// Stages of a replica, whose gradients are summed one after the other while those of earlier ones are computed.
pub const REPLICA_STAGES: usize = 8;
/// Values of a stage of a replica at least, unless the model has fewer: 1 MiB takes longer than a few round trips of a local line.
pub const REPLICA_STAGE_VALUES: usize = 1 << 18;
/// Bytes of why an attempt at the round of a pod came to nothing.
pub const POD_REASON_BYTES: usize = 256;
/// Bytes of either frame with which a link between members begins: a refusal in words is the longest.
pub const POD_GREETING_BYTES: usize = 512;
/// Bytes of the head of a parcel.
pub const POD_PARCEL_HEAD_BYTES: usize = 96;
/// Parcels for one member that wait to be sent.
pub const POD_PARCELS_QUEUED: usize = 64;
/// Parcels of one kind between two members that wait here, for each part of the model: what the order of a round allows, and
/// some room.
pub const POD_PARCELS_AHEAD: usize = 2;
/// Bytes that a member may have under way to another one, and that are kept until they are acknowledged.
pub const POD_WINDOW_BYTES: u32 = 4 << 20;
/// Connections to an agent's port for members that have not finished their TLS handshake, at once.
pub const POD_HANDSHAKES: usize = 64;
/// Agents that no round names yet and whose connections wait, at once; each has one of them.
pub const POD_WAITING: usize = POD_MEMBERS;
/// Leases whose latest attempt is remembered: a late connection for an attempt that is over is told so.
pub const POD_LEASES_REMEMBERED: usize = 64;
/// Attempts at the round of one lease that one process of the coordinator numbers: after the first few they are seconds apart. The
/// numbers of a million processes differ.
pub const POD_ATTEMPTS_PER_START: u32 = 4_096;
/// Attempts at the round of one lease that a member could not compute, as it says of itself: after as many the lease goes back.
pub const POD_OWN_FAILURES: u32 = 8;
/// How long the owner of such a round begins no other one, in milliseconds: first, and at most.
pub const POD_OWNER_REST_MS: (u64, u64) = (10_000, 600_000);
/// How often a lease whose time is over is looked at while a pod computes its round.
pub const POD_LEASE_LOOK_MS: u64 = 1_000;
/// How long a member of a pod may be without a connection to the coordinator, in milliseconds, before its attempt is begun anew.
pub const POD_ABSENCE_MS: u64 = 3_000;
/// How long a member is left out of pods after attempts that failed over it, in milliseconds: first, and at most.
pub const POD_REST_MS: (u64, u64) = (1_000, 60_000);
/// How long an attempt waits after several that failed at once, in milliseconds: first, and at most.
pub const POD_RETRY_MS: (u64, u64) = (250, 8_000);
/// For how long no pod can be formed before the log says why, in milliseconds.
pub const POD_PROBLEM_MS: u64 = 5_000;
/// Bytes of what a helper's part comes to from which on the helper uploads it. Fewer take the owner's line less time (0.2 s at
/// 10 Mbit/s) than a silent helper costs.
pub const POD_SECTION_BYTES: u64 = 256 << 10;
/// Bytes of what a helper's parts come to that it keeps in memory until the update is decided.
pub const POD_KEPT_BYTES: usize = 128 << 20;
/// A helper that brings no chunk of an update for this long is not awaited any more, in milliseconds: its owner sends the rest.
/// Looked at every [`TRANSFER_LOOK_MS`].
pub const POD_SECTION_SILENCE_MS: u64 = 2 * TRANSFER_LOOK_MS;
/// The same for a link between members of a pod, and ...
pub const POD_IDLE_TIMEOUT_MS: u64 = 4_000;
/// ... how often either of them sends a keep-alive, in milliseconds.
pub const POD_KEEP_ALIVE_MS: u64 = 1_000;
/// How long one attempt of a member to reach another one may take, the answer to its greeting included, in milliseconds.
pub const POD_DIAL_MS: u64 = 3_000;
/// How long a connection waits until a round here names its agent and its attempt, in milliseconds.
pub const POD_WAIT_MS: u64 = 1_000;
/// Time between two attempts of a member to reach another one, in milliseconds.
pub const POD_DIAL_RETRY_MS: u64 = 100;
/// A link on which nothing came for so long may be given up, whatever `pod.deadline_s` says, in milliseconds: two signs of life are
/// missing.
pub const POD_SILENCE_MS: u64 = 2 * POD_KEEP_ALIVE_MS;
/// How long the helpers of a pod wait for its owner, which may have to fetch its base first, in milliseconds.
pub const POD_OWNER_MS: u64 = 600_000;
/// How often a thread that waits for other members looks whether it is to stop, in milliseconds.
pub const POD_LOOK_MS: u64 = 50;
