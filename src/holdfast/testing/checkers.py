"""Each promise as a function from a history to what is wrong with it: nothing, in the best case.

They know nothing of how Holdfast works, but for the layout of an agent's record and of a relay's
cursor. The numbers are those of the invariants in `docs/simulation.md`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from holdfast.errors import DeadlineExceeded, HandlerFailed, NoQuorum
from holdfast.records import agent_record
from holdfast.testing.history import History, Operation

Checker = Callable[[History], Iterator[str]]
_TURNS = {"add", "slow", "spread", "nested", "remind", "forget", "swell", "retry"}
_READS = {"read", "peek"}
_NOT_DONE = {DeadlineExceeded.__name__, NoQuorum.__name__}


def one_line(history: History) -> Iterator[str]:
    """Per agent, commits form one line: each version is the one before plus one, and names it.

    Where some commits may be missing, each version is later than the one before, and names it if it
    is the next.
    """
    newest: dict[str, tuple[int, int]] = {}
    for commit in history.commits:
        for stored in commit.batch:
            if ".st." in stored.subject:
                record = agent_record.decode(stored.payload, stored.subject)
                version, sequence = newest.get(stored.subject, (0, 0))
                skipped = not history.commits_are_all and record.version > version + 1
                if (record.version, record.previous) != (version + 1, sequence) and not skipped:
                    yield (
                        f"{commit.at:.3f} {stored.subject} {stored.sequence}: version "
                        f"{record.version} built on {record.previous}, after version {version} at "
                        f"{sequence}"
                    )
                newest[stored.subject] = record.version, stored.sequence


def acknowledged_is_there(history: History) -> Iterator[str]:
    """What was acknowledged is in the state at the end."""
    for op in history.operations:
        if op.kind in _TURNS and op.fate == "done" and not _found(history, op.agent, op.label):
            yield (
                f"{op.kind} {op.label} of {op.agent} was acknowledged at {op.ended:.3f}, and is "
                "lost"
            )


def not_done_is_not_there(history: History) -> Iterator[str]:
    """What was reported as not done has not been done, and was not done later."""
    for op in history.operations:
        tried_again = op.kind == "retry"
        if (
            op.kind in _TURNS
            and op.fate == "not done"
            and not tried_again
            and _found(history, op.agent, op.label)
        ):
            yield (
                f"{op.kind} {op.label} of {op.agent} was reported as not done at {op.ended:.3f}, "
                "and was done"
            )
        if (
            op.kind == "send"
            and op.fate == "not done"
            and op.label in history.tapes.get(op.agent, ())
        ):
            yield (
                f"send {op.label} to {op.agent} was reported as not done at {op.ended:.3f}, and "
                "was done"
            )


def once_each(history: History) -> Iterator[str]:
    """Nothing has two effects."""
    for agent, tape in history.tapes.items():
        counts: dict[str, int] = defaultdict(int)
        for entry in tape:
            counts[entry] += 1
        yield from (
            f"{agent} did {entry} {count} times" for entry, count in counts.items() if count > 1
        )


def inbox_complete(history: History) -> Iterator[str]:
    """An acknowledged send is applied, or is a dead letter; so is what a committed turn sent."""
    for op in history.operations:
        if op.kind == "send" and op.fate == "done" and not _applied(history, op.agent, op.label):
            yield f"send {op.label} to {op.agent} was acknowledged at {op.ended:.3f}, and is lost"
    for sender, tape in history.tapes.items():
        for entry in tape:
            if entry.startswith("spread "):
                _, number, receivers, _ = entry.split(" ")
                for receiver in receivers.split(","):
                    if not _applied(history, receiver, f"take {sender} {number}"):
                        yield (
                            f"{sender} sent {number} to {receiver} in a committed turn, and it did "
                            "not arrive"
                        )


def relay_prefix(history: History) -> Iterator[str]:
    """What one cell's outbox sends to another arrives there in order, without a gap, and once.

    Where some commits may be missing a gap is none: `inbox_complete` finds what did not arrive.
    """
    sent: dict[tuple[str, str], list[str]] = defaultdict(list)
    arrived: dict[tuple[str, str], list[str]] = defaultdict(list)
    for commit in history.commits:
        for stored in commit.batch:
            parts = stored.subject.split(".")
            if len(parts) > 3 and parts[2] == "out":
                sent[f"{commit.cell}-{parts[1]}", parts[3]].append(parts[-1])
        cursor = next(
            (stored.subject.split(".") for stored in commit.batch if ".rl." in stored.subject), None
        )
        if cursor is not None:
            names = [
                stored.subject.rpartition(".")[2]
                for stored in commit.batch
                if ".in." in stored.subject
            ]
            arrived[cursor[2], commit.cell] += names
    for way, names in arrived.items():
        if not history.commits_are_all:
            seen = set(sent[way])
            names = [name for name in names if name in seen]
            came = set(names)
            sent[way] = [name for name in sent[way] if name in came]
        if names != sent[way][: len(names)]:
            carried = f"carried {names[:20]}…, of {sent[way][:20]}…"
            yield f"the relay from {way[0]} to {way[1]} {carried}"


def fifo(history: History) -> Iterator[str]:
    """What one sender sends to one receiver arrives in its order."""
    for agent, tape in history.tapes.items():
        newest: dict[str, int] = {}
        for entry in tape:
            if entry.startswith("take "):
                _, sender, number = entry.split(" ")
                if int(number) < newest.get(sender, -1):
                    yield (
                        f"{agent} got the {number}th message of {sender} after the "
                        f"{newest[sender]}th"
                    )
                newest[sender] = int(number)


def memory_is_the_log(history: History) -> Iterator[str]:
    """At the end, what owners have in memory is what the log has."""
    yield from history.differences


def no_ghost_read(history: History) -> Iterator[str]:
    """Who reads sees what was acknowledged, and what was read, before; and never what is then
    undone."""
    ends: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for op in history.operations:
        if op.fate == "done" and isinstance(op.result, int) and op.kind in _TURNS | _READS:
            ends[op.agent].append((op.ended, op.result))
    for op in history.operations:
        if op.kind in _READS and op.fate == "done":
            known = max((length for at, length in ends[op.agent] if at < op.began), default=0)
            if op.result < known:
                yield (
                    f"{op.label} read {op.result} things of {op.agent} between {op.began:.3f} and "
                    f"{op.ended:.3f}, when {known} were known"
                )


def one_actor(history: History) -> Iterator[str]:
    """Handlers of an older activation run no code once one of a newer epoch has."""
    newest: dict[str, tuple[int, str, float]] = {}
    for mark in history.marks:
        epoch, process, at = newest.get(mark.agent, (0, "", 0.0))
        if mark.epoch < epoch:
            yield (
                f"{mark.at:.3f} {mark.agent} ran in {mark.process} under epoch {mark.epoch}, "
                f"after it ran in {process} under {epoch} at {at:.3f}"
            )
        else:
            newest[mark.agent] = mark.epoch, mark.process, mark.at


def timer_once(history: History) -> Iterator[str]:
    """A timer that is set fires once; one that was cancelled or set anew does not."""
    for agent, tape in history.tapes.items():
        armed: dict[str, str] = {}
        for entry in tape:
            what, _, rest = entry.partition(" ")
            name, _, label = rest.partition(" ")
            if what == "set":
                armed[name] = label
            elif what == "cancel":
                armed.pop(name, None)
            elif what == "ring" and armed.pop(name, None) != label:
                yield f"{agent}: timer {name} of {label} fired, and was not set"
        for name, label in armed.items():
            if f"ring {name} {label}" not in history.dead_letters:
                yield f"{agent}: timer {name} of {label} never fired"


def no_contagion(history: History) -> Iterator[str]:
    """A turn that fails fails alone, and a deadly message ends three processes at most."""
    for op in history.operations:
        if op.kind == "bad" and op.fate == "done":
            yield f"{op.label} was to fail, and did not"
        if op.kind == "bad" and _found(history, op.agent, op.label):
            yield f"{op.label} failed, and its change is there"
        if (
            op.kind in _TURNS
            and op.fate == "refused"
            and op.kind != "retry"
            and _found(history, op.agent, op.label)
        ):
            yield f"{op.kind} {op.label} of {op.agent} was refused, and its change is there"
        given_up = (history.harmed or history.deaths or not _all_told(history)) and _given_up(
            op.result
        )
        if (
            op.kind not in {"bad", "deadly", "still"}
            and op.fate == "refused"
            and not (given_up or _not_asked(op))
        ):
            yield f"{op.kind} {op.label} of {op.agent} was refused: {op.result}"
    for label, count in history.deaths.items():
        if count > 3:
            yield f"{label} ended {count} processes"


def stands_still_alone(history: History) -> Iterator[str]:
    """What stands still does so on two nodes at most, on three where a host could not say so, and
    costs others a wait."""
    for label, told in history.standstills.items():
        if len(told) > (2 if all(told) else 3):
            yield f"{label} stood still on {len(told)} nodes"
    calm = history.standstills and not history.harmed and _all_told(history)
    for op in history.operations:
        if op.kind == "still" and op.fate == "done":
            yield f"{op.label} of {op.agent} stands still, and was done"
        if calm and op.kind in {"add", "read"} and op.fate != "done":
            yield (
                f"{op.kind} {op.label} of {op.agent} was not done while others' nodes stood "
                f"still: {op.result}"
            )


def settles(history: History) -> Iterator[str]:
    """When the faults are over, every shard has one owner, every client is answered, and nothing
    moves any more."""
    for shard, owners in history.owners.items():
        if len(owners) != 1:
            yield f"shard {shard} is served by {owners or 'nobody'}"
    before, after = history.epochs_at_rest
    moved = sorted(shard for shard, epoch in after.items() if before.get(shard) != epoch)
    if moved:
        yield f"shards still move when all faults are over: {moved[:10]}"
    for op in history.operations:
        if op.fate == "open":
            yield f"{op.kind} {op.label} of {op.agent}, begun at {op.began:.3f}, was never answered"


def founded_as_told(history: History) -> Iterator[str]:
    """Only processes that were told to make cells, with the copies that were said, however few
    servers they see."""
    for process, told, copies, wanted in history.founders:
        if not told or copies != wanted:
            yield f"{process} made cells with {copies} copies: there were to be {wanted}" + (
                "" if told else ", by others"
            )


def _found(history: History, agent: str, label: str) -> bool:
    return any(
        entry == label or entry.endswith(f" {label}") for entry in history.tapes.get(agent, ())
    )


def _applied(history: History, agent: str, label: str) -> bool:
    return label in history.tapes.get(agent, ()) or label in history.dead_letters


def _given_up(error: object) -> bool:
    """Whether three processes were killed from outside with this very message in their hands."""
    return isinstance(error, HandlerFailed) and "ended 3 processes" in str(error)


def _all_told(history: History) -> bool:
    """Whether the hosts of all nodes that stood still could say so."""
    return all(all(told) for told in history.standstills.values())


def _not_asked(op: Operation) -> bool:
    """Whether the call that this turn made was not done in its time, so that the turn failed with
    it."""
    return (
        op.kind == "nested"
        and isinstance(op.result, HandlerFailed)
        and op.result.kind_of_error in _NOT_DONE
    )


ALL: tuple[Checker, ...] = (
    one_line,
    acknowledged_is_there,
    not_done_is_not_there,
    once_each,
    inbox_complete,
    relay_prefix,
    fifo,
    memory_is_the_log,
    no_ghost_read,
    one_actor,
    timer_once,
    no_contagion,
    stands_still_alone,
    settles,
    founded_as_told,
)
