"""Every bound in Holdfast, and the relations that must hold between them.

A bound that is not here does not exist: each queue, table, retry and message has its limit in this
file. Sizes are in bytes, times in seconds. The relations are asserted at import, so that a changed
number cannot break another in silence.
"""

from __future__ import annotations

from typing import Final

# Sizes --------------------------------------------------------------------------------------------
RECORD_BYTES_MAX: Final = 1024 * 1024 - 16 * 1024
"""One record's subject, headers and payload. The engine's own limit is 1 MiB; the rest is slack for
headers."""

BLOB_THRESHOLD_BYTES: Final = 512 * 1024
"""A state larger than this is kept as a blob, and its record only names it."""

BLOB_BYTES_MAX: Final = 256 * 1024 * 1024
MESSAGE_BYTES_MAX: Final = 512 * 1024
"""A message's encoded arguments, and an encoded reply."""

ANSWERS_BYTES_MAX: Final = 256 * 1024
"""All answers that one agent's record keeps for callers that may still retry; over it, it takes no
more calls."""

REPLY_BYTES_MAX: Final = 256 * 1024
"""A handler's encoded reply: it is kept in the agent's record. (A reader's is only sent:
`MESSAGE_BYTES_MAX`.)"""

TIMERS_BYTES_MAX: Final = 64 * 1024
"""The arguments of all timers of one agent."""

STATE_BYTES_MAX: Final = 128 * 1024 * 1024
TEXT_ARRAY_BYTES_MAX: Final = 16 * 1024 * 1024
"""An array that is made of a list of texts: each item takes as much as the longest."""

EMPTY_ARRAY_ROWS_MAX: Final = 65_536
"""Rows of an array without items: they take no bytes, but each is an object where the array is
shown."""

COLLISIONS_MAX: Final = 1000
"""Items of one set or dict in a message that may have the same hash: each costs as much as there
are before it."""

NAME_BYTES_MAX: Final = 256
"""An agent's name, in UTF-8. Quoted in a subject it is at most three times as long."""

METADATA_BYTES_MAX: Final = 64 * 1024
CAPABILITIES_MAX: Final = 64
"""Capabilities of one agent."""

FRAME_BYTES_MAX: Final = 256 * 1024
"""Messages to one node are joined into one frame up to this size."""

# Processes ----------------------------------------------------------------------------------------
EVENT_BYTES_MAX: Final = 256 * 1024
"""One event that a process tells its parent; a longer one is dropped."""

EVENTS_WAITING_BYTES_MAX: Final = 1024 * 1024
"""Events that a process keeps while its parent does not read them; further ones are dropped."""

SAID_LINE_BYTES_MAX: Final = 8 * 1024
"""One printed line; what is longer is cut."""

SAID_LINES_PER_SECOND: Final = 200.0
"""Printed lines of one process that are carried, after the burst; further ones are dropped, and
counted."""

SAID_LINES_BURST: Final = 2000
SAID_PART_SECONDS: Final = 1.0
"""Printed text without an end of the line is taken for a line after this."""

WRITER_LINES_MAX: Final = 4000
"""Lines of a host that wait until its output is read; further ones are dropped, and counted."""

ORPHANED_PIPES_MAX: Final = 16
"""Outputs that a host still reads though the node ended: of programs that its handlers started, and
that go on."""

WORKER_FRAME_BYTES_MAX: Final = 192 * 1024 * 1024
"""What a node and a worker process say to each other at once: a state with a message."""

WORKER_BEGIN_SECONDS: Final = 120.0
"""How long a worker process may take to start and to import an application before its job is given
to another."""

WORKER_ATTEMPTS_MAX: Final = 2
"""Worker processes that may fail to begin a job before it fails."""

WORKER_GRACE_SECONDS: Final = 10.0
"""A job in a worker process whose caller gave up is ended this long after."""

WORKER_CLOSE_SECONDS: Final = 2.0
"""How long a worker process may take to end before it is killed."""

WORKER_IDLE_SECONDS: Final = 300.0
"""A worker process without a job ends after this."""

WORKERS_IDLE_MAX: Final = 16
"""Worker processes of one node that wait for jobs; over it, the one that waits the longest ends."""

WORKER_CAUSES_MAX: Final = 64
"""Errors of one kind of agents that a node remembers, so that it does not replace processes in
vain."""

WORKER_DOUBT_SECONDS: Final = 60.0
WORKER_CODE_SECONDS: Final = 600.0
"""A process is replaced for one error of two agents in a row so often at most; the latter where a
new one began with it."""

# Batches ------------------------------------------------------------------------------------------
BATCH_RECORDS_MAX: Final = 900
"""Records in one atomic batch (NATS refuses more than 1,000)."""

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
LINGER_SECONDS_MAX: Final = 0.01
"""How long a committer waits at most after a batch for more that is about to come."""

LINGER_TURNS: Final = 32
"""Where more turns than this, those just written and those that wait, may share the next batch, it
waits longer than an append takes, up to twice as long. Where none waits yet, it waits less for
fewer, and not at all for a quarter of this."""

PACK_AGENTS_MIN: Final = 8
"""Records of so many agents in one batch are worth a pack."""

PACKED_BYTES_MAX: Final = 4096
"""A larger record of an agent is no burden for being one of its own."""

PACK_BYTES_MAX: Final = 128 * 1024
PACKS_MAX: Final = 256
"""Packs of one node in one cell that are needed. A takeover reads them all."""

PACKED_SECONDS: Final = 30.0
"""An agent that is not written for so long gets a record of its own."""

MOVES_MAX: Final = 200
"""Records that leave packs with one batch."""

TURN_RECORDS_MAX: Final = 256
"""Records that one turn may add to its batch: its state, its timers and the messages that it
sent."""

TURN_BYTES_MAX: Final = 2 * 1024 * 1024
"""The arguments of all messages that one turn sends."""

# Agents -------------------------------------------------------------------------------------------
MAILBOX_MESSAGES_MAX: Final = 4096
"""Messages that wait for one agent, or for their acknowledgement; the next one is refused with
`Overloaded`."""

STALL_SECONDS: Final = 0.5
"""A node's loop that stands still for longer is reported."""

DEGRADED_SECONDS: Final = 60.0
"""For so long after it a node counts as degraded."""

HANDLER_THREADS_MAX: Final = 32
"""Handlers of one node that run in threads at a time; more wait, but for the first one of a
kind."""

LONG_JOB_SECONDS: Final = 60.0
"""A handler that runs in a thread or a process for so long is told of in the log, and again each
time that this doubles."""

CIRCLE_MAX: Final = 32
"""Agents whose turns wait for one another in a circle that is found; a longer one ends with its
deadlines."""

COMPLAINT_SECONDS: Final = 1.0
"""So often the same failure in users' code is said in the log."""

UNKNOWN_FIELDS_OF_LOAD: Final = 8
"""Stored values without a field in the state's type that the log names when one agent is loaded."""

UNKNOWN_FIELDS_MAX: Final = 64
"""… and of one kind of agents in all."""

COMPLAINTS_MAX: Final = 256
"""Different failures that are told apart for that."""

UNWRITTEN_TURNS_MAX: Final = 4096
"""Turns of one node in one cell that wait to be written; further calls from outside are refused
with `Overloaded`. So those that are taken are answered in a time that does not grow, and memory
does not either, however many come."""

CALLERS_MAX: Final = 4096
MESSAGE_IDS_MAX: Final = 4096
TIMERS_MAX: Final = 1024
ATTEMPTS_MAX: Final = 5
"""Attempts at a message from the inbox before it becomes a dead letter."""

UNCLEAN_ENDS_MAX: Final = 3
"""Processes that one message may take down before it becomes a dead letter."""

ALONE_ENDS_MAX: Final = 3
"""Processes that may end while a message runs alone, where something else is known to have ended
them."""

STANDSTILLS_MAX: Final = 256
"""Standstills of others' nodes that a process remembers to have heard of."""

ATTEMPT_MARKS_MAX: Final = 16
"""Messages of one agent that are marked as having ended processes; the oldest marks go first."""

MARKS_MAX: Final = 10_000
"""Marks that a process remembers to have outlived."""

MESSAGE_ID_BYTES_MAX: Final = 128
WARM_BYTES_MAX: Final = 256 * 1024 * 1024
"""Records that a node keeps in memory after a recovery, so that the first message to an agent reads
nothing."""

GENERATION_BITS: Final = 40
"""A restored cluster's sequences begin at its generation, shifted by so much: above all that
generations before had."""

GENERATION_MAX: Final = 999_999
SUBMISSIONS_MAX: Final = 20_000
"""Durable sends and registrations of one process that wait for their batch."""

OPEN_CALLS_MAX: Final = 100_000
"""Asks of one process that wait for their answer."""

INBOX_READ_AHEAD: Final = 512
"""Inbox messages of one agent held in memory; further ones wait in the log."""

ERROR_TEXT_MAX: Final = 2048
"""Characters of an error's text, as it travels."""

ERROR_DETAILS_MAX: Final = 8192
"""… and of the traceback that goes with it."""

# Times --------------------------------------------------------------------------------------------
ASK_TIMEOUT_SECONDS: Final = 30.0
ATTEMPT_SECONDS: Final = 2.0
"""How long one attempt of an ask may stay unanswered before the caller asks again (the owner joins
the two)."""

DEDUP_SECONDS: Final = 300.0
"""How long an id given by the user is remembered."""

CLOCK_SKEW_SECONDS: Final = 5.0
"""The largest difference between two hosts' clocks that deadlines allow for."""

IDLE_SECONDS: Final = 300.0
"""An agent without messages leaves memory after this."""

BEAT_SECONDS: Final = 0.4
ISOLATE_SECONDS: Final = 2.0
"""How long a node's proof of life lasts: after this without another it drops its shards."""

LIFTING_BEATS: Final = 2
"""Beats of a node that were sent after it was called dead, and show that it lives. One may have
been under way."""

SUSPECT_SECONDS: Final = 1.6
"""Silence after which others try to condemn a node."""

TAKEOVER_SECONDS: Final = 4.0
"""The silence after which a node's shards are claimed by others, when a majority of the cells
answers."""

STANDSTILL_SECONDS: Final = 5.0
"""A node whose loop stands still for so long is ended by its host, and what it had in hand is tried
once more, elsewhere."""
STARVED_SECONDS: Final = 20.0
"""… also where it was the machine that gave it no processor for most of so long a time, or where it
used none."""

QUIET_SECONDS: Final = 1.5
"""A node of which its host hears nothing for so long is taken to stand still."""

FROZEN_SECONDS: Final = 10.0
"""A node that was stopped from outside (``SIGSTOP``) is ended by its host after this, and begun
anew."""

LOAD_REST_SECONDS: Final = 60.0
"""An agent in whose loading a node stood still is not loaded for so long; four times as long after
each further one."""

LOAD_REST_SECONDS_MAX: Final = 3600.0

SWEEP_SECONDS: Final = 60.0
"""So often packs that nothing needs any more are looked for."""

PURGE_SECONDS: Final = 5.0
"""A shard's inbox messages that were handled are forgotten so often: each purge costs the log a
write of its own."""

STABLE_SECONDS: Final = 2.0
"""Shards move to a node that joined only when the view of who is there has not changed for so
long."""

MOVE_REST_SECONDS: Final = 10.0
"""A shard that was claimed is not moved again for the sake of balance before this."""

WARM_WAIT_SECONDS: Final = 5.0
"""How long an owner waits with a move until the next owner has the shard's records in memory."""

HANDOFF_SHARDS_MAX: Final = 8
"""Shards that a node hands over at once: the fewer, the shorter are their agents away."""

CONTEST_SECONDS_MIN: Final = 0.5
CONTEST_SECONDS_MAX: Final = 20.0
"""How long a node waits before it takes over a shard that was taken from it while it lived: longer
each time."""

DEGRADED_TEXT_MAX: Final = 4000
"""Characters that a node says of its own troubles with each beat."""

POOL_SHARDS_MAX: Final = 4096
CAPACITY_MIN: Final = 0.01
CAPACITY_MAX: Final = 1000.0
"""How much one node can carry, next to a node of capacity 1."""

STANDBYS_MAX: Final = 2
PARKED_MAX: Final = 10_000
"""Calls that a node keeps for shards that it is about to own; further ones are turned away."""

EVENTS_MAX: Final = 10_000
"""Events that the log keeps; older ones are forgotten."""

DRAIN_SECONDS: Final = 10.0
"""How long turns that run may take to finish before their shard is let go of."""
CANCELLED_SECONDS: Final = 2.0
"""… and to end once they are cancelled after that, as their node closes; who goes on is left to
itself."""
LEFT_SECONDS: Final = 3.0
"""How long a program waits at its end for tasks that it cancelled, and then as long for
generators."""

APPEND_TIMEOUT_SECONDS: Final = 5.0
"""After this an append that was not answered has the outcome `Unknown`."""

SERVER_FROZEN_LOOKS: Final = 3
"""So many looks in a row, a second apart, that find a server, or a host below ``up --hosts``,
frozen: that is said."""
SERVER_FROZEN_LOOKS_MAX: Final = 10
"""So many, and it is killed and started again."""

SERVER_IDLE_SECONDS: Final = 20.0
"""A server that starts, takes no connections yet, and used no processor time for so long is killed
and started again."""

SERVER_START_SECONDS_MAX: Final = 1800.0
"""… and so is one that still takes none after this: it reads what it stores before, at 100 MB/s or
so."""

HOSTS_HEARD_MAX: Final = 1000
"""Hosts that one host remembers to have heard; further ones are not noted."""

HOST_REMEMBERED_SECONDS: Final = 600.0
"""For so long a host that no record names is missed; then it is forgotten."""

EXCLUSIVE_SECONDS: Final = 30.0
"""Work that takes copies or a server away belongs to nobody any more, when its host did not write
so again for this long."""

EXCLUSIVE_RENEW_SECONDS: Final = 5.0

REBUILD_SECONDS: Final = 120.0
"""How long a copy may get no further while it is copied again, before its host says so."""

CONNECT_SECONDS: Final = 5.0
"""How long a process looks for a server before it says that none answers."""

RECONNECT_SECONDS_MIN: Final = 0.1
RECONNECT_SECONDS_MAX: Final = 2.0
"""How long a server that failed is left alone: longer each time, with jitter, until a connection
lasted longer than the most."""

JOIN_SECONDS: Final = 30.0
"""How long a process tries to join before it says that no majority answers: longer than an election
of the engine."""

FOUND_SECONDS: Final = 60.0
"""How long a node of a host tries to join, or to found: the servers of a new cohort have to find
each other first."""

QUORUM_WAIT_SECONDS: Final = 15.0
"""How long a refused-for-want-of-quorum append is tried again: an election of the engine takes 4 to
9 s."""

DONE_LETTER_SECONDS: Final = 86400.0
"""How long it is remembered that a dead letter was replayed or dropped; a backup that takes longer
is given up."""

CUT_ATTEMPTS_MAX: Final = 30
"""Attempts of a backup to find the cluster still for a moment."""

HOLD_SECONDS: Final = 2.0
"""How long a process holds its writes at most, while a backup notes how far each cell goes or a
cell gets another leader."""

STORES_ASIDE_MAX: Final = 8
"""How many stores a host keeps that its server had before it lost its vote; nobody else deletes
them."""

KEEP_BLOBS_SECONDS: Final = 10.0
"""How long blobs that nothing names any more stay while a backup runs; it asks again every
second."""

BACKOFF_SECONDS_MIN: Final = 0.01
BACKOFF_SECONDS_MAX: Final = 1.0

assert SAID_LINE_BYTES_MAX * 8 < EVENT_BYTES_MAX < EVENTS_WAITING_BYTES_MAX, (
    "a printed line fits an event, escaped"
)
assert SAID_LINES_BURST < WRITER_LINES_MAX, "what one process may print at once can wait"
assert STATE_BYTES_MAX + 2 * MESSAGE_BYTES_MAX + TURN_BYTES_MAX < WORKER_FRAME_BYTES_MAX, (
    "a job fits a frame"
)
assert WORKER_DOUBT_SECONDS < WORKER_CODE_SECONDS, (
    "what looks like the code is a weaker reason than what is not known"
)
assert CLOCK_SKEW_SECONDS < WORKER_GRACE_SECONDS, "a job is not ended before its caller gave up"
assert BLOB_THRESHOLD_BYTES + ANSWERS_BYTES_MAX < RECORD_BYTES_MAX, (
    "a state, its answers: one record"
)
assert ANSWERS_BYTES_MAX + REPLY_BYTES_MAX + TIMERS_BYTES_MAX < RECORD_BYTES_MAX * 3 // 4, (
    "the rest fits beside a blob"
)
assert MESSAGE_BYTES_MAX < RECORD_BYTES_MAX, "a message fits a record"
assert RECORD_BYTES_MAX < BATCH_BYTES_MAX, "a record fits a batch"
assert TURN_BYTES_MAX * 5 // 4 + RECORD_BYTES_MAX < BATCH_BYTES_MAX, (
    "an agent's turns until their commit fit a batch"
)
assert PACKED_BYTES_MAX <= PACK_BYTES_MAX < RECORD_BYTES_MAX, (
    "a packed record fits a pack, a pack is a record"
)
assert MOVES_MAX < BATCH_RECORDS_MAX, "what leaves packs fits a batch"
assert TURN_RECORDS_MAX * 2 < BATCH_RECORDS_MAX, "an agent's turns until their commit fit a batch"
assert TURN_RECORDS_MAX < BATCH_RECORDS_MAX < 1000, "a turn fits a batch, a batch fits the engine"
assert MESSAGE_BYTES_MAX * 4 < TEXT_ARRAY_BYTES_MAX <= STATE_BYTES_MAX, (
    "a message of one text fits an array"
)
assert COLLISIONS_MAX * 100 < MESSAGE_BYTES_MAX, "small messages are not looked at"
assert STATE_BYTES_MAX <= BLOB_BYTES_MAX, "a state fits a blob"
assert BEAT_SECONDS * 3 < SUSPECT_SECONDS, "never suspected for one lost beat"
assert BEAT_SECONDS * (LIFTING_BEATS + 1) < SUSPECT_SECONDS, (
    "a word is lifted before silence counts"
)
assert CONTEST_SECONDS_MIN > BEAT_SECONDS, "who lives is heard before its shards are taken again"
assert SUSPECT_SECONDS + ISOLATE_SECONDS * 1.1 < TAKEOVER_SECONDS, "isolated before taken over"
assert RECONNECT_SECONDS_MIN < RECONNECT_SECONDS_MAX < TAKEOVER_SECONDS, (
    "who comes back is not taken over for a pause"
)
assert RECONNECT_SECONDS_MAX < CONNECT_SECONDS, (
    "a server that failed is tried again before nothing is said to answer"
)
assert CONNECT_SECONDS + QUORUM_WAIT_SECONDS < JOIN_SECONDS <= FOUND_SECONDS, (
    "a join outlasts what it waits for"
)
assert EXCLUSIVE_RENEW_SECONDS + QUORUM_WAIT_SECONDS < EXCLUSIVE_SECONDS, (
    "an election does not end what is exclusive"
)
assert SERVER_FROZEN_LOOKS_MAX < SERVER_IDLE_SECONDS < SERVER_START_SECONDS_MAX, (
    "who starts is given longer"
)
assert HOSTS_HEARD_MAX * (NAME_BYTES_MAX + 16) < MESSAGE_BYTES_MAX, (
    "all that are remembered fit an answer"
)
assert TAKEOVER_SECONDS < HOST_REMEMBERED_SECONDS, "who is gone is missed before it is forgotten"
assert 1 < SERVER_FROZEN_LOOKS < SERVER_FROZEN_LOOKS_MAX, (
    "a server is said to be frozen before it is killed for it"
)
assert QUIET_SECONDS < TAKEOVER_SECONDS < STANDSTILL_SECONDS, (
    "told before it is taken over, ended after"
)
assert 4 * STANDSTILL_SECONDS < ASK_TIMEOUT_SECONDS, (
    "an ask that stands still is answered in its time"
)
assert CANCELLED_SECONDS + 2 * LEFT_SECONDS < DRAIN_SECONDS, (
    "a host, which waits for two drains, kills no node"
)
assert STANDSTILL_SECONDS < FROZEN_SECONDS < STARVED_SECONDS <= ASK_TIMEOUT_SECONDS, (
    "ended for certain in the end"
)
assert STALL_SECONDS < QUIET_SECONDS, "a stall is no standstill"
assert ALONE_ENDS_MAX <= 3, "it fits a mark"
assert ATTEMPT_SECONDS < ASK_TIMEOUT_SECONDS, "an ask has several attempts"
assert GENERATION_MAX << GENERATION_BITS < 1 << 61, (
    "a sequence fits 64 bits, and a purge of everything is above it"
)
