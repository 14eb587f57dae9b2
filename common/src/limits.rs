//! Every bound in the system, by name and with its unit. A bound that is not here does not exist. Those of the operator's
//! page, of `top`, of pods, of certificates and of object stores are in files of their own.

mod certificates;
mod objects;
mod page;
mod pods;
mod top;

pub use certificates::*;
pub use objects::*;
pub use page::*;
pub use pods::*;
pub use top::*;

pub mod doctor;

/// Bytes of a frame header: magic, version, kind, length, checksum (see `wire::frame`).
pub const FRAME_HEADER_BYTES: usize = 16;
/// Bytes of one control message.
pub const CONTROL_MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of what comes first on an agent's control stream: a hello, or which runs the agent wants.
pub const HELLO_BYTES: usize = FRAME_READ_BYTES;
/// Frames of more than `FRAME_READ_BYTES` that an agent's connection has begun, over all of its control streams, and that
/// the coordinator's queue has not taken.
pub const LARGE_FRAMES: usize = 2;
/// Bytes of the only message that is read before a peer has shown a certificate (promise P9).
pub const JOIN_MESSAGE_BYTES: usize = 8 << 10;
/// Bytes of either frame of a handshake; they are far smaller, and their layout never changes.
pub const HANDSHAKE_MESSAGE_BYTES: usize = 64;
/// Bytes of the header message of a chunk.
pub const CHUNK_HEADER_BYTES: usize = 64;
/// Bytes of a stream that are read at once; a frame is allocated as its bytes arrive, never by
/// what its header promises.
pub const FRAME_READ_BYTES: usize = 16 << 10;
/// Memory of a decoded message of a peer, in lengths of the longest message of its class.
pub const MESSAGE_EXPANSION: usize = 16;
/// Agents in one page of a saved fold. An agent with a full history has about 45 KB: one changed agent rewrites 0.7 MB at
/// most.
pub const FOLD_PAGE_AGENTS: usize = 16;
/// Bytes of one page of a saved fold.
pub const FOLD_PAGE_BYTES: usize = 8 * CONTROL_MESSAGE_BYTES;
/// Unchanged pages of a saved fold that one checkpoint compares with what is stored.
pub const FOLD_PAGES_CHECKED: usize = 8;
/// Bytes of the head of a saved fold.
pub const FOLD_HEAD_BYTES: usize = 16 * CONTROL_MESSAGE_BYTES;
/// Bytes of one saved member or token: a member names every token that it joined with.
pub const ROSTER_ITEM_BYTES: usize = 64 << 10;
/// Bytes of one chunk of a bulk transfer.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Sections of one transfer: what the header of a pod's update belongs to, and one for each part of the model.
pub const TRANSFER_SECTIONS: usize = POD_MEMBERS + 2;
/// Streams of one peer that carry chunks at the same time.
pub const CHUNK_STREAMS: u32 = 8;
/// Streams of one peer that carry requests at the same time, unless it has shown an agent's certificate.
pub const REQUEST_STREAMS: u32 = 4;
/// Runs that one agent takes part in over one connection, each with a control stream; as many entries of a list of runs, and
/// names that one is asked for with.
pub const RUNS_PER_CONNECTION: u32 = 128;
/// Control streams of one agent's connection: one for each run, and one for the list of runs.
pub const CONTROL_STREAMS: u32 = RUNS_PER_CONNECTION + 1;
/// First and longest wait until an agent begins again with a run whose store could not be opened, in milliseconds.
pub const RUN_BEGIN_MS: (u64, u64) = (1_000, 60_000);
/// How long a list of all runs lasts until an agent removes what it has of runs that are not listed, in milliseconds: a
/// coordinator that has just started lists a run only when its store is open.
pub const RUN_UNLISTED_MS: u64 = 600_000;
/// The largest weight of a run; the smallest is 1.
pub const RUN_WEIGHT: u32 = 1_000;
/// Bytes of one stream that a peer may have under way: a chunk, its header and some room, so that
/// a sender never waits for the window in the middle of a chunk.
#[expect(clippy::cast_possible_truncation, reason = "a chunk is 1 MiB")]
pub const STREAM_WINDOW_BYTES: u32 = CHUNK_BYTES as u32 + 4096;
/// Bytes that one peer may have under way to this process, over all streams.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes kept for one peer until it has acknowledged them.
pub const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// Bytes kept of one connection before it is accepted, and ...
pub const INCOMING_BYTES: u64 = 64 << 10;
/// ... of all of them together.
pub const INCOMING_TOTAL_BYTES: u64 = 16 << 20;
/// Bytes asked for as the kernel's buffers of a server's socket; the kernel may give fewer. Its
/// default loses packets when many agents upload at once.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Clients of a daemon's control socket that are served at the same time.
pub const CONTROL_CLIENTS: usize = 8;
/// Bytes of one encoded model or update, and of a decoded one: 1 Gi parameters as f32.
pub const TRANSFER_BYTES: u64 = 4 << 30;
/// Bytes of an encoded manifest: the record and the messages that carry one have room for it.
pub const MANIFEST_BYTES: usize = 256 << 10;
/// Bytes of an encoded run configuration, which travels in the same messages and records.
pub const RUN_SPEC_BYTES: usize = 64 << 10;
/// Base-two logarithm of the largest window of a zstd frame, in bytes: 128 MiB, zstd's own default limit.
pub const ZSTD_WINDOW_LOG: u32 = 27;
/// Tensors in a manifest.
pub const MANIFEST_TENSORS: usize = 4096;
/// Dimensions of one tensor.
pub const TENSOR_DIMS: usize = 8;
/// Bytes of a tensor's name.
pub const TENSOR_NAME_BYTES: usize = 256;
/// Parameters of a model.
pub const MODEL_PARAMS: usize = 1 << 30;
/// Bytes of a model's file that is read: the largest model, and 100 MiB for its header.
pub const MODEL_FILE_BYTES: u64 = 4 * MODEL_PARAMS as u64 + (100 << 20);
/// Hidden layers of an mlp, and convolutions or hidden dense layers of a cnn: their tensors fit in a manifest.
pub const HIDDEN_LAYERS: usize = 1024;
/// Width of a layer or extent of an input: products of four of them stay far below 2^64 where
/// they are multiplied.
pub const LAYER_WIDTH: u64 = 1 << 24;
/// Examples of one optimizer step (`train.batch_size`).
pub const BATCH_EXAMPLES: u32 = 65_536;
/// Updates of one version (`merge.buffer_size`).
pub const MERGE_BUFFER_UPDATES: u32 = 65_536;
/// Deadline of a round behind a barrier (`merge.barrier.deadline_s`), in seconds: a year.
pub const ROUND_DEADLINE_S: f64 = 31_536_000.0;
/// How long a round behind a barrier waits for contributors of the round before to ask for their next lease, in milliseconds:
/// a round trip on the slowest of links.
pub const ROUND_REJOIN_MS: u64 = 10_000;
/// How often an agent hears that its request for a lease stands, in milliseconds.
pub const LEASE_DEFERRED_MS: u64 = REQUEST_TIMEOUT_MS / 3;
/// Step of the recall rule (`merge.step`).
pub const RECALL_STEP: f32 = 1_000.0;
/// Agents whose last updates one contribution recalls.
pub const RECALLED_AGENTS: usize = 64;
/// Agents whose last updates the recall rule keeps, and ...
pub const RECALL_MEMORIES: usize = 256;
/// ... bytes of them, as decoded.
pub const RECALL_MEMORY_BYTES: usize = 256 << 20;
/// Agents whose memories the EF21 rule keeps, and ...
pub const EF21_MEMORIES: usize = 1024;
/// ... bytes of them, of which one is kept in any case.
pub const EF21_MEMORY_BYTES: usize = 256 << 20;
/// Bytes that a gpt sees at once.
pub const GPT_CONTEXT: u32 = 1 << 14;
/// Transformer blocks of a gpt: their tensors fit in a manifest.
pub const GPT_LAYERS: u32 = 256;
/// Width of a gpt.
pub const GPT_WIDTH: u32 = 1 << 14;
/// Bytes of an agent's or a token's name.
pub const NAME_BYTES: usize = 64;
/// Bytes that the coordinator keeps of what an agent says about its software and its device.
pub const AGENT_WORDS_BYTES: usize = 256;
/// Agents that may be enrolled in one run.
pub const AGENTS: usize = 65_536;
/// Join tokens that are kept at once; the oldest one that is used up, expired or revoked makes room.
pub const TOKENS: usize = 1_024;
/// Characters of a join token that are read.
pub const TOKEN_CHARS: usize = 1_280;
/// Life of a join token, in milliseconds: a year.
pub const TOKEN_TTL_MS: u64 = 365 * 24 * 60 * 60 * 1000;
/// Connections that are open at once, agents and operators together.
pub const CONNECTIONS: usize = 8_192;
/// Connections that have not yet shown a certificate or a token, at once.
pub const PENDING_HANDSHAKES: usize = 256;
/// Joins that are not answered yet: their members are being saved, or their certificates issued. The connection of a
/// further one is closed, and its agent tries again.
pub const JOINS_WAITING: usize = 256;
/// Changes of tokens and members that operators have asked for and that are being saved; a further one is refused.
pub const REGISTRY_CHANGES_WAITING: usize = 256;
/// Bytes of a signing request for a renewal: as many as a join can carry. Of each connection, the latest one waits.
pub const SIGNING_REQUEST_BYTES: usize = JOIN_MESSAGE_BYTES;
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
/// Agents whose latest norm is remembered, newest last.
pub const VOTES_KEPT: usize = 255;
/// Evaluations remembered for `status`, newest last; as many aggregates of evaluations beside them.
pub const EVALUATIONS_KEPT: usize = 4_096;
/// How long an agent that was asked to evaluate a version may say nothing, in milliseconds.
pub const EVALUATION_TIMEOUT_MS: u64 = 120_000;
/// Bytes of the reason of a failed evaluation that are kept.
pub const EVALUATION_REASON_BYTES: usize = 1_024;
/// First and longest wait before an agent whose evaluation failed is asked again, in milliseconds.
pub const EVALUATION_RETRY_MS: (u64, u64) = (1_000, 60_000);
/// How much longer an agent that trains is left to train than its last evaluation has kept it from training: evaluating takes
/// at most one twentieth of its time.
pub const EVALUATION_REST: u64 = 19;
/// Longest rest after an evaluation, in milliseconds: an agent's word on what it has cost puts off the next one no longer.
pub const EVALUATION_REST_MS: u64 = 600_000;
/// Failed evaluations in a row after which an evaluator's examples no longer count as known.
pub const EVALUATION_FAILURES: u32 = 3;
/// Leases in a row that every connected agent has given back after which a search closes the trial.
pub const TRIAL_ATTEMPTS: u32 = 8;
/// How long the examples of an evaluator that is away count as known, in milliseconds.
pub const EVALUATOR_AWAY_MS: u64 = 60_000;
/// How long no evaluator may be connected before the log says that a target cannot be judged, in milliseconds: the
/// longest wait between an agent's attempts to connect.
pub const EVALUATOR_MISSING_MS: u64 = RECONNECT_MS.1;
/// How often the coordinator looks whether enough evaluators are connected for an evaluation that is due, in
/// milliseconds.
pub const EVALUATION_LOOK_MS: u64 = 500;
/// Agents in one journal record of models sent.
pub const MODELS_SENT_ENTRIES: usize = 4_096;
/// Buckets of the staleness histogram; the last one holds everything above.
pub const STALENESS_BUCKETS: usize = 24;
/// Updates an agent keeps in its outbox before it stops training.
pub const OUTBOX_UPDATES: usize = 16;
/// Updates of an agent that wait for its line, or are being sent on it, from which on it requests no lease: one is sent, and
/// the next one is ready. More of them would not arrive sooner, and from older bases (docs/adr/0007-overlap.md).
pub const UNSENT_UPDATES: usize = 2;
/// Bytes of payloads in an agent's outbox that stay in memory, to be sent without being read back.
pub const FRESH_PAYLOAD_BYTES: usize = 32 << 20;
/// Bytes of one value in the store (larger ones make sled's file grow without end; see docs/adr).
pub const STORE_VALUE_BYTES: usize = 128 << 10;
/// Bytes of a segment of sled's log in a new store: sled keeps several that are in part empty,
/// whatever little is in them.
pub const STORE_SEGMENT_BYTES: usize = 2 << 20;
/// Bytes of a segment of any store, fixed when the store is created.
pub const STORE_SEGMENT_MAX_BYTES: usize = 16 << 20;
/// Bytes of sled's cache: heads and short values.
pub const STORE_CACHE_BYTES: u64 = 16 << 20;
/// Bytes of a file of several records' chunks, after which a new file begins: so much may be kept
/// for one record's sake.
pub const STORE_SHARED_FILE_BYTES: u64 = 8 << 20;
/// Bytes of a store's lock file that are read: a process id and a line end.
pub const LOCK_FILE_BYTES: u64 = 16;
/// Attempts to open a store whose lock sled's own threads still hold.
pub const STORE_REOPEN_TRIES: u32 = 100;
/// Attempts to read a store while checkpoints come and go under the reader.
pub const STORE_READ_TRIES: u32 = 256;
/// Events that wait for the coordinator's loop.
pub const COORDINATOR_QUEUE_EVENTS: usize = 4_096;
/// Bytes of agents' messages, as sent, that wait for the coordinator's loop.
pub const AGENT_MESSAGES_BYTES: usize = 64 << 20;
/// Batches that a worker of the coordinator has at a time. The owner of each worker's lane says what bounds the jobs that
/// wait for it.
pub const WORKER_JOBS: usize = 1;
/// Answers of the coordinator's workers that wait for its loop. A worker with one more waits for room.
pub const COORDINATOR_ANSWERS: usize = 64;
/// Bytes of published vectors that are kept, unless two of them and what agents evaluate need more. An agent that holds one
/// of them can be sent the bits in which a newer one differs.
pub const PUBLISHED_BYTES: usize = 64 << 20;
/// Published versions that are kept, however small: an agent fetches the base of its lease at
/// once.
pub const PUBLISHED_VERSIONS: usize = 64;
/// Records of the published track that are kept for agents that hold an older version, that an agent takes at once, and ...
pub const TRACK_RECORDS: usize = 4_096;
/// ... bytes of those that are kept.
pub const TRACK_RECORDS_BYTES: usize = 32 << 20;
/// Accepted updates that are kept for agents that hold an older version, that an agent replays at once with their closes,
/// and ...
pub const CHAIN_UPDATES: usize = 4_096;
/// ... bytes of those that are kept.
pub const CHAIN_BYTES: usize = 32 << 20;
/// Forms of published versions that are made or kept for agents that hold the same, and ...
pub const FORMS: usize = 256;
/// ... bytes of those that are kept, unless two of them need more.
pub const FORMS_BYTES: usize = 32 << 20;
/// Memory of the jobs that make such forms, in bytes, with the vectors that they read; a single larger one is done alone.
pub const PACKING_BYTES: u64 = 128 << 20;
/// Bytes of forms on their way to agents, each counted once, beyond which no difference between two vectors is made: agents
/// share the snapshot.
pub const SENDING_BYTES: u64 = 128 << 20;
/// Control messages that wait for one peer, or commands for it that wait for the disk; a peer
/// that does not read its messages, or asks on while nothing can be answered, is cut off at this
/// many.
pub const PEER_QUEUE_MESSAGES: usize = 256;
/// Bytes of an answer to an operator.
pub const OPERATOR_RESPONSE_BYTES: usize = 16 << 20;
/// Records written with one sync, and ...
pub const GROUP_COMMIT_RECORDS: usize = 512;
/// ... bytes of their payloads, after which no further record joins the group.
pub const GROUP_COMMIT_BYTES: usize = 64 << 20;
/// An upload of at most this many bytes, of a model of at most ...
pub const INLINE_DECODE_BYTES: usize = 32 << 10;
/// ... this many parameters, is decoded by the loop itself.
pub const INLINE_DECODE_PARAMS: usize = 1 << 18;
/// Bytes of payloads in memory over all agents, from the first chunk until an update is merged or
/// refused, with the copies of chunks that are on their way.
pub const UPLOADS_IN_FLIGHT_BYTES: u64 = 1 << 30;
/// Bytes of decoded updates and models in memory over all agents, from decoding until they are
/// merged or refused; a single larger one is decoded alone.
pub const DECODED_UPLOADS_BYTES: u64 = 1 << 30;
/// Bytes of payloads that one agent may hold; a single larger transfer is let in alone.
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
/// Journal records that are not durable yet, from which on agents cause no record but that of an accepted update, as if
/// they had no `AGENT_RECORDS_BURST` left.
pub const UNWRITTEN_RECORDS: u64 = 65_536;
/// Journal records without an accepted update that one agent may cause at once (leases that come to nothing, refusals,
/// restarts, evaluations that nobody asked for), and ...
pub const AGENT_RECORDS_BURST: u64 = 256;
/// ... how many of them are allowed again every second.
pub const AGENT_RECORDS_PER_S: u64 = 4;
/// Codecs of a run whose codecs follow the agents' lines, beside the mildest one.
pub const CODEC_LEVELS: usize = 8;
/// Trials of one search: each is a run with a directory of its own, and a process has a bounded number of runs.
pub const SEARCH_TRIALS: u32 = 512;
/// Trials of one search that are active at the same time.
pub const SEARCH_PARALLEL: u32 = 64;
/// The largest `search.eta`.
pub const SEARCH_ETA: u32 = 64;
/// Rungs of one search.
pub const SEARCH_RUNGS: usize = 1_024;
/// The largest `search.max`, in contributions.
pub const SEARCH_CONTRIBUTIONS: u64 = 1 << 40;
/// Keys that a search varies.
pub const SEARCH_KEYS: usize = 32;
/// Choices of one key.
pub const SEARCH_CHOICES: usize = 256;
/// Combinations of a space's bounds that are checked before a search begins, beside each bound by itself.
pub const SEARCH_CORNERS: usize = 1_024;
/// Bytes of a record of a search: the first one holds two configuration files.
pub const SEARCH_RECORD_BYTES: usize = 4 << 20;
/// Bytes of the reason with which a trial is closed.
pub const SEARCH_REASON_BYTES: usize = 1_024;
/// Entries of `upload.policy`.
pub const UPLOAD_POLICIES: usize = 64;
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
/// Dimensions of an IDX file, the number of examples included.
pub const IDX_DIMS: u8 = 4;

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
/// How long an answer may take for which the coordinator reads its journal, in milliseconds.
pub const JOURNAL_REQUEST_MS: u64 = 60 * 60 * 1000;
/// How long the evaluation of a run's last version may take after the run has ended, in milliseconds.
pub const FINAL_EVALUATION_MS: u64 = 10_000;
/// How long messages are read that came before their connection ended, in milliseconds.
pub const LAST_WORDS_MS: u64 = 1_000;
/// How long a daemon waits for its connections and threads to end before its process ends anyway,
/// in milliseconds.
pub const EXIT_MS: u64 = 2_000;
/// How long one attempt to connect may take where it is not known yet what holds the directory, in milliseconds, and ...
pub const REACH_ATTEMPT_MS: u64 = 3_000;
/// ... attempts.
pub const REACH_ATTEMPTS: usize = 4;
/// Attempts of `run` to lock a daemon's directory.
pub const LOCK_ATTEMPTS: usize = 12;
/// How long `join` tries a coordinator that does not answer, in milliseconds.
pub const JOIN_PATIENCE_MS: u64 = 8_000;
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
/// How long an agent's last message on a connection may take to leave, in milliseconds.
pub const FAREWELL_MS: u64 = 1_000;
/// Time between two `Progress` messages of an agent, in milliseconds.
pub const PROGRESS_MS: u64 = 1_000;
/// Time between two reports of a round's progress to an agent's loop, in milliseconds.
pub const ROUND_PROGRESS_MS: u64 = 250;
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
/// Time between two signs of life of a trainer that is a process of this program, in milliseconds.
pub const TRAINER_HEARTBEAT_MS: u64 = 5_000;
/// How long the rest of what a dead child process has written is waited for, or the end of a
/// killed one, in milliseconds.
pub const CHILD_LAST_WORDS_MS: u64 = 500;
/// Free bytes that shared memory must have to be used for a trainer's files: enough for two
/// models of 100 million parameters.
pub const SCRATCH_ROOM_BYTES: u64 = 1 << 30;
/// Bytes of a process's environment that are read to tell whether it belongs to a trainer.
pub const PROCESS_ENVIRONMENT_BYTES: u64 = 1 << 20;
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
/// Events that wait for the agent's loop, and ...
pub const AGENT_QUEUE_EVENTS: usize = 256;
/// ... bytes of messages and chunks among them.
pub const AGENT_QUEUE_BYTES: usize = 16 << 20;
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
/// Bytes of a configuration file that are read.
pub const CONFIG_FILE_BYTES: u64 = 1 << 20;
/// Runs that a coordinator's process has, ended ones included.
pub const RUNS: usize = 1_024;
/// Searches that a coordinator's process has, ended ones included.
pub const SEARCHES: usize = 64;
/// Bytes of a run's configuration that an operator sends, and of a search's.
pub const RUN_CONFIG_BYTES: usize = 256 << 10;
/// Bytes of the token that makes a repeated `runs create` safe.
pub const SUBMIT_TOKEN_BYTES: usize = 256;
/// Bytes of the file that keeps how a run was asked for: two digests in hexadecimal.
pub const SUBMISSION_BYTES: u64 = 256;
/// Runs that a token may be for.
pub const TOKEN_RUNS: usize = 256;
/// Threads that write records of all runs. One more begins when all of them are at work.
pub const RUN_WRITERS: usize = 8;
/// Threads that write checkpoints of all runs, likewise.
pub const RUN_CHECKPOINTERS: usize = 2;
/// Threads that open, create and delete runs, likewise.
pub const RUN_OPENERS: usize = 4;
/// How often the coordinator measures the disk of a run with a quota, in milliseconds.
pub const QUOTA_LOOK_MS: u64 = 10_000;
/// Attempts to remove the directory of a deleted run: sled's threads may still be writing.
pub const RUN_REMOVALS: u32 = 40;
/// Rest between two such attempts, in milliseconds.
pub const RUN_REMOVAL_REST_MS: u64 = 10;
/// Looks whether others still use the store of a run that is to be deleted, with that rest between two of them.
pub const RUN_RELEASES: u32 = 1_000;
/// Clients of the coordinator's HTTP server that are served at the same time; further ones wait to be accepted.
pub const WEB_CONNECTIONS: usize = 64;
/// Those of them that one address of another machine may be; a further one is closed.
pub const WEB_CONNECTIONS_PER_ADDRESS: usize = WEB_CONNECTIONS / 2;
/// How long an HTTP connection takes requests, in milliseconds: those that wait for its place have their turn.
pub const WEB_LIFE_MS: u64 = 60_000;
/// Bytes of a request's head over HTTP.
pub const WEB_HEAD_BYTES: usize = 16 << 10;
/// How long a client may take for the head of its next request, in milliseconds.
pub const WEB_HEAD_MS: u64 = 10_000;
/// How long an answer over HTTP may take to be made, in milliseconds.
pub const WEB_ANSWER_MS: u64 = 10_000;
/// How long a client may take nothing of an answer, in milliseconds.
pub const WEB_SILENCE_MS: u64 = 30_000;
/// Rest after a connection could not be accepted (no free file), in milliseconds.
pub const WEB_ACCEPT_REST_MS: u64 = 100;
/// Least and most time between two snapshots of the process for its figures, in milliseconds, and ...
pub const SNAPSHOT_MS: (u64, u64) = (1_000, 10_000);
/// ... how many times as long as the latest one has taken the loop rests from them: they take one fiftieth of its time.
pub const SNAPSHOT_REST: u32 = 49;
/// How often the coordinator sums up what happened for its figures, in milliseconds: until then each observation is kept.
pub const METRICS_SUM_MS: u64 = 5_000;
/// How long a series of what happened may say nothing until it is forgotten, in milliseconds.
pub const METRICS_IDLE_MS: u64 = 60 * 60 * 1000;
/// Pairs of run and agent that have series of their own in the figures of a coordinator.
pub const METRICS_AGENTS: usize = 1_024;
/// How often version and staleness are written to TensorBoard's files at most, in milliseconds.
pub const TENSORBOARD_SAMPLE_MS: u64 = 5_000;
/// Measurements of a run that has ended in this process that those who watch it still see, newest last.
pub const ENDED_MEASUREMENTS_KEPT: usize = 64;
/// Age of the latest snapshot from which on the process counts as stuck, in milliseconds.
pub const SNAPSHOT_STALE_MS: u64 = 30_000;
/// Requests of operators about ended runs whose stores are read at the same time.
pub const RUN_LOOKS: usize = 16;
