//! Every bound in the system, by name and with its unit. A bound that is not here does not exist.

/// Bytes of a frame header: magic, version, kind, length, checksum (see `wire::frame`).
pub const FRAME_HEADER_BYTES: usize = 16;
/// Bytes of one control message.
pub const CONTROL_MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of the only message that is read before a peer has shown a certificate (promise P9).
pub const JOIN_MESSAGE_BYTES: usize = 8 << 10;
/// Bytes of one chunk of a bulk transfer.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Streams of one peer that carry chunks at the same time.
pub const CHUNK_STREAMS: u32 = 8;
/// Clients of a daemon's control socket that are served at the same time.
pub const CONTROL_CLIENTS: usize = 8;
/// Bytes of one encoded model or update, and of a decoded one: 1 Gi parameters as f32.
pub const TRANSFER_BYTES: u64 = 4 << 30;
/// Tensors in a manifest.
pub const MANIFEST_TENSORS: usize = 4096;
/// Dimensions of one tensor.
pub const TENSOR_DIMS: usize = 8;
/// Bytes of a tensor's name.
pub const TENSOR_NAME_BYTES: usize = 256;
/// Parameters of a model.
pub const MODEL_PARAMS: usize = 1 << 30;
/// Bytes that a gpt sees at once.
pub const GPT_CONTEXT: u32 = 1 << 14;
/// Transformer blocks of a gpt: their tensors fit in a manifest.
pub const GPT_LAYERS: u32 = 256;
/// Width of a gpt.
pub const GPT_WIDTH: u32 = 1 << 14;
/// Bytes of an agent's or a token's name.
pub const NAME_BYTES: usize = 64;
/// Agents that may be enrolled in one run.
pub const AGENTS: usize = 65_536;
/// Join tokens that are kept at once; the oldest one that is used up, expired or revoked makes room.
pub const TOKENS: usize = 1_024;
/// Bytes of all join tokens as stored.
pub const TOKEN_BOOK_BYTES: usize = 16 << 20;
/// Connections that are open at once, agents and operators together.
pub const CONNECTIONS: usize = 8_192;
/// Connections that have not yet shown a certificate or a token, at once.
pub const PENDING_HANDSHAKES: usize = 256;
/// Connections of one agent that are open at once; beyond it the oldest is closed.
pub const CONNECTIONS_PER_AGENT: usize = 16;
/// Bytes that a peer may have under way to the coordinator before it has shown a certificate.
pub const STRANGER_WINDOW_BYTES: u32 = 64 << 10;
/// Control messages of one agent that are read at once, and ...
pub const AGENT_MESSAGES_BURST: f64 = 1024.0;
/// ... how many of them every second after that.
pub const AGENT_MESSAGES_PER_S: f64 = 1024.0;
/// Past epochs of an agent whose verdicts are remembered.
pub const EPOCHS_KEPT: usize = 8;
/// Verdicts remembered for one epoch, newest first; an older retry is answered by its sequence number alone.
pub const VERDICTS_KEPT: usize = 64;
/// Evaluations remembered for `status`, newest last.
pub const EVALUATIONS_KEPT: usize = 4_096;
/// Buckets of the staleness histogram; the last one holds everything above.
pub const STALENESS_BUCKETS: usize = 24;
/// Updates an agent keeps in its outbox before it stops training.
pub const OUTBOX_UPDATES: usize = 16;
/// Bytes of one value in the store (larger ones make sled's file grow without end; see docs/adr).
pub const STORE_VALUE_BYTES: usize = 128 << 10;
/// Events that wait for the coordinator's loop.
pub const COORDINATOR_QUEUE_EVENTS: usize = 4_096;
/// Control messages that wait for one peer; a peer that does not read its messages is cut off at this many.
pub const PEER_QUEUE_MESSAGES: usize = 256;
/// Bytes of an answer to an operator.
pub const OPERATOR_RESPONSE_BYTES: usize = 16 << 20;
/// Records written with one sync.
pub const GROUP_COMMIT_RECORDS: usize = 512;
/// An upload of at most this many bytes, of a model of at most ...
pub const INLINE_DECODE_BYTES: usize = 32 << 10;
/// ... this many parameters, is decoded by the thread that received it.
pub const INLINE_DECODE_PARAMS: usize = 1 << 18;
/// Bytes of uploads in flight over all peers.
pub const UPLOADS_IN_FLIGHT_BYTES: u64 = 1 << 30;
/// Bytes of them that one agent may hold; a single larger transfer is let in alone.
pub const UPLOAD_BYTES_PER_AGENT: u64 = 128 << 20;
/// An upload that brings no chunk for this long is given up, in milliseconds.
pub const UPLOAD_STALL_MS: u64 = 65_000;
/// While others wait for room, an upload has this long, in milliseconds, and ...
pub const UPLOAD_BUSY_GRACE_MS: u64 = 15_000;
/// ... the time that what it has brought so far takes at this rate, in bytes a second. What is given up over it goes on
/// from disk later.
pub const UPLOAD_BUSY_MIN_BYTES_PER_S: u64 = 256 << 10;
/// Every upload may take this long, in milliseconds, and beside that ...
pub const UPLOAD_GRACE_MS: u64 = 60_000;
/// ... the time that its bytes take at this rate, in bytes a second: half of the thinnest link that must work.
pub const UPLOAD_MIN_BYTES_PER_S: u64 = 16 << 10;
/// Transfers of one peer that the coordinator works on or keeps waiting; a peer that offers more is cut off.
pub const TRANSFERS_PER_PEER: usize = 32;
/// How often the coordinator looks for transfers that are overdue or left behind, in milliseconds.
pub const TRANSFER_LOOK_MS: u64 = 5_000;
/// Half-received uploads of one agent that outlive a connection and the coordinator's process.
pub const PARTIAL_UPLOADS_PER_AGENT: usize = 16;
/// Bytes of the half-received uploads of one agent; a larger one is kept in memory only.
pub const PARTIAL_UPLOAD_BYTES_PER_AGENT: u64 = 512 << 20;
/// Bytes of all half-received uploads on disk.
pub const PARTIAL_UPLOAD_BYTES: u64 = 4 << 30;
/// Bytes of free disk that half-received uploads leave alone: the journal must not run out of space over them.
pub const PARTIAL_UPLOAD_SPARE_BYTES: u64 = 256 << 20;
/// How long a half-received upload is kept after its latest chunk, in milliseconds.
pub const PARTIAL_UPLOAD_AGE_MS: u64 = 24 * 60 * 60 * 1000;
/// Journal records without an accepted update that one agent may cause at once (leases that come to nothing, refusals,
/// restarts, evaluations that nobody asked for), and ...
pub const AGENT_RECORDS_BURST: u64 = 256;
/// ... how many of them are allowed again every second.
pub const AGENT_RECORDS_PER_S: u64 = 4;
/// Leases of one agent that ended without an update and are remembered, newest first.
pub const ENDED_LEASES_KEPT: usize = 64;
/// Rows and problems that `shard inspect` lists.
pub const SHARD_PROBLEMS_SHOWN: usize = 10;
/// Bytes of one line in a CSV shard.
pub const SHARD_LINE_BYTES: usize = 1 << 20;
/// Bytes of one shard file after decompression: what an agent may be made to hold in memory.
pub const SHARD_BYTES: u64 = 16 << 30;
/// Files of one shard of text.
pub const SHARD_FILES: usize = 1 << 20;
/// Folders inside of each other in a shard of text.
pub const SHARD_FOLDERS_DEEP: usize = 64;
/// Examples in a shard.
pub const SHARD_EXAMPLES: usize = 1 << 28;

/// How long an agent's control stream may stay silent before it is given up, in milliseconds.
pub const IDLE_TIMEOUT_MS: u64 = 20_000;
/// How often an agent sends a keep-alive, in milliseconds.
pub const KEEP_ALIVE_MS: u64 = 5_000;
/// How long a peer may take to finish its handshake and its first message, in milliseconds.
pub const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;
/// Addresses of one name that are tried, both families together.
pub const CONNECT_ADDRESSES: usize = 16;
/// How long the newest attempt to connect may go unanswered until the next address is tried beside it, in milliseconds
/// (RFC 8305, section 8: Connection Attempt Delay).
pub const CONNECT_ATTEMPT_DELAY_MS: u64 = 250;
/// How long a short-lived client waits for the connections that it has closed or given up to be told, in milliseconds.
pub const GOODBYE_MS: u64 = 500;
/// Signals that wait to be seen by a daemon's loop.
pub const SIGNALS_QUEUED: usize = 4;
/// How long a request on an open connection may take to be answered, in milliseconds.
pub const REQUEST_TIMEOUT_MS: u64 = 30_000;
/// How long a chunk may take to arrive, in milliseconds.
pub const CHUNK_TIMEOUT_MS: u64 = 60_000;
/// How long an update that was offered or sent may stay unanswered before the agent connects afresh, in milliseconds.
pub const OFFER_TIMEOUT_MS: u64 = 120_000;
/// How long an update waits for its verdict while later ones get theirs, before the agent connects afresh, in
/// milliseconds.
pub const OFFER_FORGOTTEN_MS: u64 = 4 * OFFER_TIMEOUT_MS;
/// How long a model that was asked for may bring no chunk before the agent asks for the missing ones, in milliseconds.
pub const FETCH_RETRY_MS: u64 = 15_000;
/// Chunks of a model that an agent keeps when they overtake the message that announces them.
pub const EARLY_CHUNKS: usize = 16;
/// How long an agent waits for the verdict on its newest update before it asks for the next lease, in milliseconds: a
/// base that contains one's own work is worth a short wait, and a thin link is not worth an idle machine.
pub const VERDICT_PATIENCE_MS: u64 = 1_000;
/// How long an agent that was told to stop goes on handing over finished work, in milliseconds.
pub const SHUTDOWN_FLUSH_MS: u64 = 5_000;
/// Wait before an agent tries again what failed on its own side (a model that did not decode, a delta that was not
/// finite), in milliseconds.
pub const AGENT_RETRY_MS: u64 = 1_000;
/// First and longest wait between an agent's attempts to connect, in milliseconds.
pub const RECONNECT_MS: (u64, u64) = (100, 15_000);
/// Verdicts that an agent's `status` shows, newest last.
pub const AGENT_VERDICTS_SHOWN: usize = 16;
/// Bytes of one line between an agent and its trainer's process, the line's end included.
pub const TRAINER_LINE_BYTES: usize = 1 << 20;
/// Bytes of one line of a trainer's standard error that are logged.
pub const TRAINER_WORDS_BYTES: usize = 8 << 10;
/// Lines of a trainer that wait to be heard.
pub const TRAINER_QUEUE: usize = 64;
/// How long a trainer may take from its start to its first line, in milliseconds: frameworks are slow to import.
pub const TRAINER_START_MS: u64 = 120_000;
/// How long a trainer at work may say nothing, in milliseconds.
pub const TRAINER_SILENCE_MS: u64 = 30_000;
/// How long a trainer may go on after it was asked to stop, and its processes after SIGTERM, in milliseconds.
pub const TRAINER_STOP_MS: u64 = 2_000;
/// How often what is left of a trainer is looked for and killed.
pub const TRAINER_KILLS: usize = 50;
/// How long a trainer at work may make no step, where `agent.toml` says nothing, in seconds.
pub const TRAINER_PATIENCE_S: u64 = 600;
/// How often a trainer that fails before it has a model is started in a row.
pub const TRAINER_STARTS: u32 = 5;
/// How often a long round is written to disk, where `agent.toml` says nothing, in seconds.
pub const ROUND_KEEP_S: u64 = 60;
/// Bytes of the head of such a file.
pub const ROUND_HEAD_BYTES: usize = 64 << 10;
/// Jobs that wait for one of the agent's worker threads.
pub const AGENT_JOBS: usize = 64;
/// Events that wait for the agent's loop.
pub const AGENT_QUEUE_EVENTS: usize = 256;
/// How long a coordinator may leave packets unacknowledged before an agent connects afresh, in milliseconds (longer on
/// paths with long round trips).
pub const SILENCE_MS: u64 = 3_000;
/// How long the process that looks at a machine's GPUs may take, in milliseconds.
pub const DEVICE_PROBE_MS: u64 = 10_000;
/// How long the process that opens a GPU and computes a little on it may take, in milliseconds: drivers compile kernels.
pub const DEVICE_TRIAL_MS: u64 = 60_000;
/// Bytes of each output of those processes that are read.
pub const DEVICE_PROBE_BYTES: u64 = 64 << 10;
/// How often an agent looks whether its machine's owner has a use for the machine, in milliseconds.
pub const MANNERS_LOOK_MS: u64 = 2_000;
