"""What a host keeps of itself beside its data, and what that says of the store before a server
opens it.

A server started on a store that is not its own, or that is not whole, does harm at once: alone on a
cohort's store it makes every stream anew with one copy, and on an empty one it begins a cluster in
which nothing ever was. So a host looks at what it kept first, and refuses in words what it cannot
mend.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from holdfast import files, limits
from holdfast.cluster.facts.cohort import Cohort
from holdfast.errors import ConfigError, DataLoss

ACCOUNT: Final = "HF"
"""The server's account that has the cells, the blobs and the bus."""

STATE_FILE: Final = "host.json"
"""Its presence shows that a host has data here."""

STORE: Final = "jetstream"
NAME: Final = Path("jetstream", ACCOUNT, "server")
"""In a store: which server's it is. A store that is moved, or put back, brings that along. Above
the account's directory a server deletes what it does not know."""

_LEFT: Final = "jetstream-left"
"""What a server kept when it lost its vote, or began after its store was removed; with a number
from the second on."""


class State(msgspec.Struct):
    """What is in the file. ``sequence``: of the newest record seen, so that a stale one is known
    for that."""

    identity: str
    votes: bool
    address: str
    others: list[str] = []
    urls: list[str] = []
    founders: list[str] = []
    """The hosts that the command line's routes lead to."""
    sequence: int = 0
    record: Cohort | None = None
    """The newest record seen: what this host knows of the others while no majority answers."""
    founded: bool | None = None
    """Whether it ever saw a cluster, so that it founds none any more; None in a file of a version
    that did not note it."""
    named: bool = False
    """Whether its store says whose it is."""

    @property
    def owner(self) -> str:
        """The host whose server this is by the record; empty where it does not say."""
        hosts = {} if self.record is None else self.record.hosts
        return next(
            (name for name, entry in hosts.items() if entry.server == f"{name}-{self.identity}"), ""
        )

    @property
    def in_cohort(self) -> bool:
        """Whether it is one of several hosts."""
        hosts = {} if self.record is None else self.record.hosts
        return bool(self.founders or self.others or any(entry.route for entry in hosts.values()))


def load(directory: Path) -> State | None:
    """What a host kept; None where there is none. Raises `ConfigError`."""
    path = directory / STATE_FILE
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): restore it, or move the directory away"
        ) from None
    if state.founded is None:
        state.founded = state.sequence > 0
    return state


def save(directory: Path, state: State) -> None:
    """Keep it. Raises `OSError`."""
    files.write_private(directory / STATE_FILE, msgspec.json.encode(state).decode())


def is_there(directory: Path) -> bool:
    """Whether a host kept anything; also where that cannot be read."""
    try:
        (directory / STATE_FILE).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # its start says that
    return True


def _readable(directory: Path) -> State | None:
    """What a host kept; None where that is nothing, or cannot be read: its start says that."""
    try:
        return load(directory)
    except ConfigError:
        return None


def owner(directory: Path) -> str:
    """The name of the host whose directory this is; empty where nothing says it."""
    state = _readable(directory)
    return "" if state is None else state.owner


def check(directory: Path, name: str, founds: bool, joins: bool) -> None:
    """Raises `ConfigError` where a host would start alone, or under another's name, on what a host
    of a cohort kept.

    ``founds``: whether it was told all founders; ``joins``: whether it was told a host of its
    cluster.
    """
    state = load(directory)
    if state is None:
        return
    if state.owner and state.owner != name:
        raise ConfigError(
            f"{directory} is the directory of host {state.owner}, not of {name}: give --name "
            f"{state.owner}"
        )
    alone = not founds and (not state.others or (bool(state.founders) and not joins))
    if state.in_cohort and alone:
        raise ConfigError(
            f"{directory} is the directory of one of several hosts, and alone it would lose what "
            "they acknowledged: start it with --cohort HOST:PORT,... as before, or all of one "
            "machine with `holdfast up --hosts N --dir PARENT`"
        )


def adopt(directory: Path, host: str, state: State) -> State:
    """What a host keeps, under the name of the server whose store this is.

    A host that started without its store took another name. Under that name its server would delete
    what is in a store that was put back, as it is no member of its own groups.

    Raises `ConfigError` where the store is another host's, where the host's data moved on to
    another server since, where the store lost its name, as one that a server began after the store
    was removed, and where it cannot be read.
    """
    of, own = server_of(directory), f"{host}-{state.identity}"
    if state.votes and state.named and not of and not is_empty(directory):
        raise ConfigError(
            f"what is in {directory / STORE} was begun after this host's store was removed, as "
            f"{NAME.name!r} is not in it: put the right one there, or move it away. Where it is "
            f"the right one, write {own} into {directory / STORE / NAME}"
        )
    if not state.votes or not of or of == own:
        return msgspec.structs.replace(state, named=state.votes and bool(of))
    name, _, identity = of.rpartition("-")
    if name != host:
        raise ConfigError(
            f"the store in {directory / STORE} is that of host {name}, not of {host}: move it away"
        )
    if server_in(state.record, host) in ("", of):
        return msgspec.structs.replace(state, identity=identity, named=True)
    raise ConfigError(
        f"the store in {directory / STORE} is that of server {of}, and this host's server is {own} "
        "now: put the right one there; or move it away, and this host gets its data from the "
        "others"
    )


def server_in(record: Cohort | None, host: str) -> str:
    """A host's server by a record; empty where the record does not say."""
    entry = None if record is None else record.hosts.get(host)
    return "" if entry is None else entry.server


def is_foreign(found: Cohort, kept: Cohort | None) -> bool:
    """Whether a record is that of another cluster, as far as a host can know from the one that it
    kept: no host has the server in both, whose name nobody else ever has."""
    return kept is not None and all(
        server_in(kept, name) != entry.server for name, entry in found.hosts.items()
    )


def foreign_text(directory: Path, places: Iterable[str]) -> str:
    """For people: that the hosts at some addresses are not of the cluster whose data these are."""
    return (
        f"at {', '.join(sorted(places))} are hosts of another cluster than the one whose data are "
        f"in {directory}: end them first, or give this one other ports. If it is the same cluster, "
        f"and all its hosts were replaced while this one was away, move {directory} away and start "
        "with an empty --dir"
    )


def server_of(directory: Path) -> str:
    """The server whose store this is; empty where it does not say. Raises `ConfigError`."""
    path = directory / STORE / NAME
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): it has the name of the server whose store this is"
        ) from None


def note_server(directory: Path, server: str) -> None:
    """Note in a store whose it is, before that server opens it. Raises `OSError`."""
    path = directory / STORE / NAME
    files.make_directory(path.parent)
    files.write_private(path, server)


def name_old_store(directory: Path, server: str) -> bool:
    """Note whose a store is that a version before left without a name. Whether it has one now.
    Raises `OSError`."""
    if not _has_streams(directory):
        return False
    note_server(directory, server)
    return True


def check_store(directory: Path, state: State, founds: bool) -> bool:
    """Whether a server may keep its name: one whose store was removed may not. ``founds``: whether
    it has fellow founders.

    Raises `DataLoss` where nobody else has what was in it.
    """
    if not state.votes or not (state.sequence or state.founded):
        return True
    if not founds and not state.in_cohort and not _has_streams(directory):
        raise DataLoss(
            f"the data in {directory / STORE} are gone: put them back, or remove {directory} to "
            "begin anew, or to restore a backup into it"
        )
    return not is_empty(directory)


def is_lost(directory: Path) -> bool:
    """Whether a host votes that saw a cluster, and has nothing of it any more."""
    state = _readable(directory)
    return state is not None and state.votes and bool(state.founded) and not _has_streams(directory)


def counts(directory: Path) -> bool:
    """Whether a host votes, or did before its directory was removed, as far as that can be read."""
    state = _readable(directory)
    return state is None or state.votes


def is_empty(directory: Path) -> bool:
    """Whether a server would begin anew there. Raises `ConfigError` where that cannot be told."""
    name = directory / STORE / NAME
    return all(
        path in (name.parent, name) for path in _entries(name.parents[1]) + _entries(name.parent)
    )


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be read ({error}): no server is started on it"
        ) from None


def _has_streams(directory: Path) -> bool:
    return any((directory / STORE / "jetstream").glob("*/streams/*/meta.inf"))


def put_aside(directory: Path) -> Path | None:
    """Move a store out of the way, beside the data. Return where it is, None if it was empty.
    Raises `OSError`, `ConfigError`."""
    store = directory / STORE
    if is_empty(directory):
        return None
    store.rename(room := room_aside(directory))
    files.make_directory(store)  # a disk may be mounted there
    return room


def room_aside(directory: Path) -> Path:
    """Where to put a store that lost its vote; none that lies there is replaced. Raises
    `ConfigError` for too many."""
    for number in range(1, limits.STORES_ASIDE_MAX + 1):
        path = directory / (_LEFT if number == 1 else f"{_LEFT}-{number}")
        if not path.exists():
            return path
    raise ConfigError(
        f"{directory} has {limits.STORES_ASIDE_MAX} stores that were put aside ({_LEFT}, "
        f"{_LEFT}-2, ...): remove those that nobody needs"
    )


def stores_aside(directory: Path) -> list[Path]:
    """The stores that were put aside there."""
    return sorted(directory.glob(f"{_LEFT}*"))
