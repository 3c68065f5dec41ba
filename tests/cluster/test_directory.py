"""Whose a host's directory is, and what it was started as: without servers, as the kernel's locks
decide it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from holdfast import limits
from holdfast.cli.up import _adds, _as_known
from holdfast.cluster.facts.cohort import Cohort, HostEntry
from holdfast.errors import ConfigError, DataLoss
from holdfast.host import addresses, directory, processes, state
from holdfast.host.directory import LOCK_FILE, DirectoryLock, Started, agree, recall, remember
from holdfast.host.server.nats_server import free_ports
from holdfast.host.state import STATE_FILE, State

_HOLD = """
import os, subprocess, sys, time
from holdfast.host.directory import DirectoryLock
lock = DirectoryLock(sys.argv[1])
lock.take()
if len(sys.argv) > 2:
    options = {"executable": "/bin/sleep", "pass_fds": lock.descriptors}
    child = subprocess.Popen(["nats-server", "60"], **options)
    lock.note(child.pid)
    print(child.pid, flush=True)
else:
    print(0, flush=True)
time.sleep(60)
"""


@contextmanager
def holder(path: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that has the lock, with a child that has it as well where ``more`` says
    so."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process, child
    finally:
        process.kill()
        process.wait()
        if child:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        DirectoryLock(path).take()
    return str(refused.value)


def test_a_second_host_is_refused_whatever_path_it_takes(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (tmp_path / "link").symlink_to(real)
    with holder(real) as (process, _):
        for path in (real, tmp_path / "link", tmp_path / "x" / ".." / "real"):
            (tmp_path / "x").mkdir(exist_ok=True)
            assert f"process {process.pid}" in refusal(path) and "--dir" in refusal(path)
        (real / LOCK_FILE).unlink()  # as a cleaner of temporary directories does
        assert f"process {process.pid}" in refusal(real)
    DirectoryLock(real).take()


def test_two_hosts_of_one_process_are_refused_as_well(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path) as lock:
        lock.take()
        assert f"process {os.getpid()}" in refusal(tmp_path)
    with DirectoryLock(tmp_path):
        assert (tmp_path / LOCK_FILE).stat().st_mode & 0o777 == 0o600


def test_a_server_that_outlived_its_host_keeps_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_ORPHAN_SECONDS", 0.2)
    with holder(tmp_path, "with a server") as (process, server):
        assert f"nats-server in process {server}" in refusal(tmp_path)
        process.kill()
        process.wait()
        told = refusal(tmp_path)
        assert f"`kill {server}`" in told and f"process {process.pid} is gone" in told
        monkeypatch.setattr(directory, "_ORPHAN_SECONDS", 60.0)
        ending = subprocess.Popen(
            [sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({server}, 9)"]
        )
        # it is waited for: the kernel ends a server soon after its host
        DirectoryLock(tmp_path).take()
        assert ending.wait() == 0


def test_a_host_that_is_about_to_end_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows no command of a process that was killed, which still has its files."""
    monkeypatch.setattr(directory, "_ORPHAN_SECONDS", 240.0)
    with holder(tmp_path) as (process, _):
        shown = processes.command_of
        monkeypatch.setattr(
            processes, "command_of", lambda pid: "" if pid == process.pid else shown(pid)
        )
        monkeypatch.setattr(directory, "_is_there", lambda *_: False)
        ending = threading.Timer(0.3, process.kill)
        ending.start()
        DirectoryLock(tmp_path).take()
        ending.join()


def test_a_number_that_means_nothing_here_is_not_given_for_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a volume that a container still has, whose host is its process 1 as this one may
    be."""
    monkeypatch.setattr(directory, "_ORPHAN_SECONDS", 0.2)
    with holder(tmp_path):
        monkeypatch.setattr(processes, "lockers", lambda _paths: [])
        for pid in (1, os.getpid()):
            noted = {"pid": pid, "command": "holdfast up app.py"}
            (tmp_path / LOCK_FILE).write_bytes(msgspec.json.encode(noted))
            told = refusal(tmp_path)
            assert "container" in told and f"`kill {pid}`" not in told
        (tmp_path / LOCK_FILE).write_bytes(b"\xff not json")
        assert "another process" in refusal(tmp_path)


def test_a_command_is_shown_without_the_password_in_it() -> None:
    url = "nats://u:se@cret@host:4222"
    code = "import sys; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, "--servers", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the kernel shows it from a moment after its start
        shown = processes.command_of(process.pid)
        process.communicate()
    assert shown.endswith("nats://host:4222") and "cret" not in shown


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert "cannot lock files" in refusal(tmp_path) and "local disk" in refusal(tmp_path)


def test_links_files_and_directories_that_cannot_be_written_are_said_in_one_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a" / LOCK_FILE).symlink_to(tmp_path / "victim")
    assert "symbolic link" in refusal(tmp_path / "a")
    assert (tmp_path / "victim").read_text() == "precious"
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "--dir" in refusal(path) and "\n" not in refusal(path)


def test_what_a_directory_was_started_as_is_compared(tmp_path: Path) -> None:
    def had(started: Started | None, *hosts: str) -> Path:
        made = tmp_path / msgspec.json.encode([str(started), *hosts]).hex()[-40:]
        for host in hosts:
            (made / host).mkdir(parents=True, exist_ok=True)
            (made / host / STATE_FILE).write_text("{}")
        made.mkdir(exist_ok=True)
        if started is not None:
            remember(made, started)
        return made

    three = Started(3, below=True)
    single = Started(1, name="a", cohort=(), join="")
    founder = Started(1, name="a", cohort=("a:1", "b:1", "c:1"), join="")
    joined = Started(1, name="a", cohort=(), join="b:4222")
    assert recall(tmp_path / "none") is None and recall(had(single)) is None, (
        "nobody has data there"
    )
    assert recall(had(three, "h1", "h2", "h3")) == three
    assert recall(had(None, "h1", "h2", "h3", "unrelated")) == three, (
        "nothing was noted: the hosts are counted"
    )
    assert recall(had(None, ".")) == Started(1)
    renamed = msgspec.structs.replace(single, name="b")
    moved = msgspec.structs.replace(founder, cohort=("a:1", "b:1", "d:9"))
    stranger = msgspec.structs.replace(founder, cohort=("x:1", "y:1", "z:1"))
    for kept, hosts, same, others in (
        (
            three,
            ("h1", "h2"),
            [three],
            [single, founder, Started(5, below=True), Started(1, below=True)],
        ),
        (single, (".",), [single], [three, founder, joined, renamed]),
        (founder, (".",), [founder, moved], [single, joined, stranger, renamed, three]),
        (
            joined,
            (".",),
            [joined, msgspec.structs.replace(joined, join="c:4222")],
            [founder, three, renamed],
        ),
    ):
        where = had(kept, *hosts)
        for wanted in same:
            agree(where, wanted)
        for wanted in others:
            with pytest.raises(ConfigError, match="holdfast up"):
                agree(where, wanted)


def record(*names: str) -> Cohort:
    """Of hosts whose servers' names end in their own."""
    return Cohort(
        list(names),
        {name: HostEntry(f"{name}-of{name}", f"{name}:1", f"nats://{name}:2") for name in names},
    )


def test_a_host_of_a_cohort_is_not_started_alone_or_under_another_name(tmp_path: Path) -> None:
    def kept(**more: object) -> None:
        state.save(
            tmp_path,
            msgspec.convert({"identity": "ofh1", "votes": True, "address": "h1", **more}, State),
        )

    state.check(tmp_path, "h1", founds=False, joins=False)  # a new one
    for founder in (
        {"founders": ["h1", "h2", "h3"]},
        {"record": msgspec.to_builtins(record("h1", "h2", "h3"))},
    ):
        kept(**founder)
        state.check(tmp_path, "h1", founds=True, joins=False)
        for joins in (False, True):
            with pytest.raises(ConfigError, match="--cohort"):
                state.check(tmp_path, "h1", founds=False, joins=joins)
    with pytest.raises(ConfigError, match="give --name h1"):
        state.check(tmp_path, "h2", founds=True, joins=False)
    assert recall(tmp_path) == Started(1, name="h1"), "its name is in the record"
    kept(others=["h2:1"])
    state.check(tmp_path, "h1", founds=False, joins=False)  # it joined, and knows the way
    kept(founders=["h1", "h2", "h3"], others=["h4:1"])
    with pytest.raises(ConfigError, match="--cohort"):
        state.check(tmp_path, "h1", founds=False, joins=False)


def test_a_command_that_is_refused_leaves_no_name_behind(tmp_path: Path) -> None:
    """What the version before wrote: no record, and nothing of what it was started as."""
    (tmp_path / STATE_FILE).write_text(
        '{"identity":"a","votes":true,"address":"a","founders":["a","b","c"],"sequence":3}'
    )
    command = [
        sys.executable,
        "-m",
        "holdfast",
        "up",
        "--nodes",
        "0",
        "--dir",
        str(tmp_path),
        "--name",
        "other",
    ]
    (port, cluster_port) = free_ports(2)
    command += ["--port", str(port), "--cluster-port", str(cluster_port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 2 and "--hosts N" in done.stdout + done.stderr
    assert not (tmp_path / "started.json").exists() and not (tmp_path / "jetstream").exists()


def test_stores_that_were_put_aside_are_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="put aside"):
        for _ in range(100):
            state.room_aside(tmp_path).mkdir()
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == limits.STORES_ASIDE_MAX and {"jetstream-left", "jetstream-left-2"} <= names


def test_a_host_that_ever_stored_something_does_not_begin_again_without_it(tmp_path: Path) -> None:
    stream = tmp_path / "jetstream" / "jetstream" / "HF" / "streams" / "g1c0"
    single = State("a", True, "a", sequence=1, founded=True)
    cohort = State("a", True, "a", sequence=1, founded=True, founders=["a", "b", "c"])
    state.save(tmp_path, single)
    for gone in (stream / "meta.inf", stream.parents[1], stream.parents[2], stream.parents[3]):
        stream.mkdir(parents=True, exist_ok=True)
        (stream / "meta.inf").write_text("{}")
        assert all(state.check_store(tmp_path, kept, founds=False) for kept in (single, cohort))
        assert not state.is_lost(tmp_path)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with pytest.raises(DataLoss, match="restore"):
            state.check_store(tmp_path, single, founds=False)
        assert state.is_lost(tmp_path)
    assert not state.check_store(tmp_path, cohort, founds=False), "it needs another name"
    assert not state.check_store(tmp_path, single, founds=True), "it had not read the record yet"
    assert state.check_store(tmp_path, State("a", True, "a"), founds=False), "it is new"
    (tmp_path / STATE_FILE).write_text('{"identity":"a","votes":true,"address":"a","sequence":3}')
    assert state.is_lost(tmp_path), "of the version before"


def stored(directory: Path, server: str) -> None:
    """A store that holds something; where no server is named, as the version before left it."""
    (stream := directory / "jetstream" / "jetstream" / "HF" / "streams" / "g1c0").mkdir(
        parents=True
    )
    (stream / "meta.inf").write_text("{}")
    if server:
        state.note_server(directory, server)


def cohort_of(server: str) -> Cohort:
    names = ("h1", "h2", "h3")
    hosts = {
        name: HostEntry(server if name == "h1" else f"{name}-00", f"{name}:1", f"nats://{name}:2")
        for name in names
    }
    return Cohort(sorted(hosts), hosts)


@pytest.mark.parametrize("record", [None, cohort_of("h1-1a")], ids=["no record", "its own record"])
def test_a_store_that_is_put_back_has_its_server_back(
    tmp_path: Path, record: Cohort | None
) -> None:
    """A host that started without it goes by another name since, which never came into the
    record."""
    stored(tmp_path, "h1-1a")
    kept = State("2b", True, "a", founded=True, record=record)
    assert state.adopt(tmp_path, "h1", kept) == State(
        "1a", True, "a", founded=True, record=record, named=True
    )


def test_a_store_of_another_server_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, "h1-1a")
    moved = State("2b", True, "a", founded=True, record=cohort_of("h1-2b"))
    with pytest.raises(ConfigError, match=r"h1-1a.*h1-2b.*move it away"):
        state.adopt(tmp_path, "h1", moved)
    with pytest.raises(ConfigError, match="is that of host h1, not of h2"):
        state.adopt(tmp_path, "h2", State("1a", True, "a"))
    (tmp_path / "jetstream" / state.NAME).write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        state.adopt(tmp_path, "h1", moved)
    (tmp_path / "jetstream" / state.NAME).write_text("h1-2b\n")
    assert state.adopt(tmp_path, "h1", moved) == msgspec.structs.replace(moved, named=True)


def test_a_store_that_lost_its_name_is_refused_and_its_place_is_told(tmp_path: Path) -> None:
    """A server began it after the host was ended at once: there was nobody who looked."""
    kept = State("1a", True, "a", founded=True, named=True)
    assert state.adopt(tmp_path, "h1", kept).votes, "it is empty: another check sees to that"
    stored(tmp_path, "")
    with pytest.raises(
        ConfigError, match=r"begun after .* write h1-1a into .*jetstream/jetstream/HF/server"
    ):
        state.adopt(tmp_path, "h1", kept)
    state.note_server(tmp_path, "h1-1a")
    assert state.adopt(tmp_path, "h1", kept) == kept


def test_a_store_that_names_no_server_is_the_hosts(tmp_path: Path) -> None:
    kept = State("2b", True, "a", founded=True, record=cohort_of("h1-2b"))
    assert state.adopt(tmp_path, "h1", kept) == kept, "there is none"
    stored(tmp_path, "")
    assert state.adopt(tmp_path, "h1", kept) == kept
    assert state.check_store(tmp_path, kept, founds=True)


def test_an_old_store_is_named_and_nothing_is_begun_where_there_is_none(tmp_path: Path) -> None:
    assert not state.name_old_store(tmp_path, "h1-1a")
    assert list(tmp_path.iterdir()) == []
    stored(tmp_path, "")
    assert state.name_old_store(tmp_path, "h1-1a") and state.server_of(tmp_path) == "h1-1a"


def test_a_store_that_only_names_its_server_is_empty(tmp_path: Path) -> None:
    state.note_server(tmp_path, "h1-1a")
    (tmp_path / "jetstream" / "lost+found").mkdir()
    founder = State("1a", True, "a", founded=True, founders=["h1", "h2", "h3"])
    assert not state.check_store(tmp_path, founder, founds=True)
    assert state.put_aside(tmp_path) is None


def test_a_store_that_cannot_be_read_is_neither_empty_nor_another_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, "h1-1a")

    def fail(self: Path, *_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(self))

    kept = State("1a", True, "a", founded=True, founders=["h1", "h2", "h3"])
    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(ConfigError, match="cannot be read"):
        state.check_store(tmp_path, kept, founds=True)
    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(ConfigError, match="cannot be read"):
        state.adopt(tmp_path, "h1", kept)


def test_what_is_put_aside_leaves_an_empty_directory(tmp_path: Path) -> None:
    stored(tmp_path, "h1-1a")
    (room := tmp_path / "jetstream-left")
    assert state.put_aside(tmp_path) == room and state.server_of(tmp_path) == ""
    assert (room / state.NAME).read_text() == "h1-1a"
    assert list((tmp_path / "jetstream").iterdir()) == []


def test_what_a_start_leaves_out_is_taken_from_the_directory() -> None:
    founder = Started(1, name="a", cohort=("a:1", "b:1", "c:1"), join="")
    bare = Started(1, name="", cohort=(), join="")
    assert _as_known(founder, bare) == founder and _adds(founder, "", "", "")
    joined = Started(1, name="a", cohort=(), join="b:4222")
    assert _as_known(joined, bare) == joined and _adds(joined, "a", "", "")
    told = Started(1, name="b", cohort=("x:1", "y:1", "z:1"), join="")
    assert _as_known(founder, told) == told and not _adds(founder, "b", "x,y,z", "")
    new = _as_known(None, bare)
    assert new.name and (new.cohort, new.join) == ((), "")
    alone = Started(1, name=new.name, cohort=(), join="")
    assert _as_known(alone, bare) == alone and not _adds(alone, "", "", "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a", ("a", 1)),
        ("a:7", ("a", 7)),
        ("::1", ("::1", 1)),
        ("[::1]", ("::1", 1)),
        ("[fe80::1%lo]:7", ("fe80::1%lo", 7)),
    ],
)  # fmt: skip
def test_addresses_are_taken_apart_and_joined(text: str, found: tuple[str, int]) -> None:
    assert addresses.split(text, 1, "--join") == found
    assert addresses.split(addresses.join(*found), 2, "--join") == found


@pytest.mark.parametrize(
    "text", ["", ":1", "a:0", "a:65536", "a:x", "a:٣", "[::1]x", "[]:1", "a b:1", "u@a:1", "a/b"]
)
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--join"):
        addresses.split(text, 1, "--join")


def test_a_port_in_use_is_said_with_its_process() -> None:
    (port,) = free_ports(1)
    addresses.check_free("127.0.0.1", port, "--port")
    held = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); "
            "print(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    assert held.stdout is not None
    held.stdout.readline()
    try:
        with pytest.raises(
            ConfigError, match=f"{port} of 127.0.0.1 is in use by process {held.pid} "
        ):
            addresses.check_free("127.0.0.1", port, "--port")
    finally:
        held.kill()
        held.wait()
    with pytest.raises(ConfigError, match="does not have that address"):
        addresses.check_free("192.0.2.1", port, "--port")
