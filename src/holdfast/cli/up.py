"""`holdfast up`: this machine as a host of a cluster, or several complete hosts on it for
development."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from holdfast import files, said
from holdfast.cli.common import Json, execute, read_password, warn_of_open_secrets
from holdfast.cli.place import DIRECTORY, WHERE_FILE, keep_confirmed
from holdfast.cli.printing import Printer, Styled
from holdfast.engines.nats.urls import shown
from holdfast.errors import ConfigError
from holdfast.host import addresses, state
from holdfast.host.addresses import CLIENT_PORT, CLUSTER_PORT
from holdfast.host.directory import DirectoryLock, Started, agree, explain, recall, remember
from holdfast.host.local_cluster import LocalCluster
from holdfast.host.process import begin_again, serve
from holdfast.host.server.nats_config import ServerSettings, check
from holdfast.host.settings import HostSettings
from holdfast.ids import check_machine
from holdfast.limits import CAPACITY_MAX, CAPACITY_MIN
from holdfast.node.loading import load_agents
from holdfast.pipes import Writer, write_all
from holdfast.security import Security
from holdfast.signals import Signals

T = TypeVar("T")


def up(
    apps: Annotated[
        list[str] | None, typer.Argument(metavar="[APP]...", help="What the nodes serve: app.py.")
    ] = None,
    hosts: Annotated[
        int | None,
        typer.Option(
            "--hosts",
            help="Complete hosts on loopback, for development: 1, or 3 and more. Default: as many "
            "as --dir has, or 1.",
        ),
    ] = None,
    nodes: Annotated[
        int, typer.Option("--nodes", min=0, max=256, help="Node processes per host.")
    ] = 1,
    directory: Annotated[Path, typer.Option("--dir", help="Where the data lie.")] = DIRECTORY,
    name: Annotated[
        str, typer.Option("--name", help="This host's name; it stays the same for its life.")
    ] = "",
    listen: Annotated[
        str, typer.Option("--listen", help="Address for clients and other hosts.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port for clients.")
    ] = CLIENT_PORT,
    cluster_port: Annotated[
        int, typer.Option("--cluster-port", min=1, max=65535, help="Port for other hosts.")
    ] = CLUSTER_PORT,
    cohort: Annotated[
        str,
        typer.Option(
            "--cohort",
            metavar="HOST:PORT,...",
            help="All 3 or 5 founders, this one too; the same everywhere.",
        ),
    ] = "",
    join: Annotated[
        str,
        typer.Option(
            "--join",
            metavar="HOST[:PORT]",
            help="Any host of the cluster that this one is to join.",
        ),
    ] = "",
    servers: Annotated[
        str,
        typer.Option(
            "--servers", metavar="URL,...", help="Start no server: use these, of your own."
        ),
    ] = "",
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label", help="What its nodes have, for pools that ask for it: gpu, zone=a."
        ),
    ] = None,
    capacity: Annotated[
        float, typer.Option("--capacity", help="How much each node can carry, 0.01 to 1000.")
    ] = 1.0,
    tls_ca: Annotated[
        str, typer.Option("--tls-ca", envvar="HOLDFAST_TLS_CA", help="PEM file.")
    ] = "",
    tls_cert: Annotated[
        str, typer.Option("--tls-cert", envvar="HOLDFAST_TLS_CERT", help="PEM file.")
    ] = "",
    tls_key: Annotated[
        str, typer.Option("--tls-key", envvar="HOLDFAST_TLS_KEY", help="PEM file.")
    ] = "",
    user: Annotated[str, typer.Option("--user", envvar="HOLDFAST_USER")] = "",
    password_file: Annotated[
        str, typer.Option("--password-file", envvar="HOLDFAST_PASSWORD_FILE")
    ] = "",
    as_json: Json = False,
) -> None:
    """Run this machine's host until Ctrl-C: one nats-server, and nodes that serve the APPs.

    What is stored is found again by the next start in the same directory.
    """

    say = _Speaker(as_json)

    async def work() -> bool:
        if not CAPACITY_MIN <= capacity <= CAPACITY_MAX:  # not a number is not between them either
            raise ConfigError(
                f"--capacity {capacity}: give a number from {CAPACITY_MIN} to {CAPACITY_MAX:.0f}"
            )
        if apps and not nodes:
            raise ConfigError(
                f"--nodes 0: nobody would serve {', '.join(apps)}; leave it out, or give 1 and more"
            )
        for app in apps or ():
            load_agents(app)  # a mistake in it is said here, once, and not by every node
        said.log_to(say.errors)
        warn_of_open_secrets(tls_key, password_file)
        security = Security(tls_ca, tls_cert, tls_key, user, read_password(password_file))
        _check_ways(cohort, join, servers)
        network = bool(cohort or join or servers or security != Security() or listen != "127.0.0.1")
        # what _up_many has no use for
        single = bool(labels or capacity != 1.0 or cluster_port != CLUSTER_PORT)
        if hosts is not None and hosts != 1 and (network or name or single):
            raise ConfigError(_ALONE)
        with DirectoryLock(directory) as lock:
            known = None if servers else recall(directory)
            if hosts is None and known is not None and known.below and not (network or name):
                if single:
                    raise ConfigError(
                        f"{directory} has {known.text}, which is started again: {_ALONE}"
                    )
                say("again", {"directory": str(directory), "what": known.text})
                await _up_many(known.hosts, nodes, directory, port, apps or [], say, lock)
                return False
            if hosts is not None and hosts != 1:
                await _up_many(hosts, nodes, directory, port, apps or [], say, lock)
                return False
            urls = [url.strip() for url in servers.split(",") if url.strip()]
            started = _as_known(known, Started(1, False, name, _cohort(cohort), _with_port(join)))
            server = None
            if not urls:
                agree(directory, started)
                if known is not None and _adds(known, name, cohort, join):
                    say("again", {"directory": str(directory), "what": known.text})
                address = addresses.check_listen(listen)
                server = ServerSettings(
                    started.name,
                    str(directory.resolve()),
                    address,
                    port,
                    cluster_port=cluster_port,
                    routes=started.cohort or (),
                    security=security,
                )
                check(server)
                state.check(directory, started.name, bool(started.cohort), bool(started.join))
                addresses.check_free(address, port, "--port")
                remember(directory, started)
                scheme = "tls" if security.tls_cert else "nats"
                urls_here = [f"{scheme}://{addresses.join(addresses.own(address), port)}"]
            settings = HostSettings(
                started.name,
                server,
                urls,
                nodes,
                apps or [],
                None if urls or started.join else len(started.cohort or ()) or 1,
                labels or [],
                capacity,
                security,
                started.join or "",
            )
            with _Where(directory, urls or urls_here, security != Security()):
                return await serve(settings, say, lock)

    try:
        again = execute(say.before_its_error(work()), as_json)
    finally:
        say.close()
    if again:
        begin_again()


_ALONE: Final = (
    "--hosts is for development on loopback: leave --name, --cohort, --join, --servers, --listen, "
    "--label, --capacity, --cluster-port and TLS out"
)


def _check_ways(cohort: str, join: str, servers: str) -> None:
    if sum(map(bool, (cohort, join, servers))) > 1:
        raise ConfigError(
            "--cohort founds a cluster, --join joins one, --servers uses servers of your own: give "
            "one of them"
        )
    if "://" in join or "," in join:
        raise ConfigError(
            f"--join {join}: write HOST or HOST:PORT of one host of a cluster. For servers of your "
            "own, give --servers URL"
        )
    if servers and not all("://" in url for url in servers.split(",")):
        raise ConfigError(
            f"--servers {shown(servers)}: write nats://HOST:PORT, several with commas. To join a "
            "cluster, give --join"
        )


def _cohort(text: str) -> tuple[str, ...]:
    """The founders, each with its port. Raises `ConfigError`."""
    found = [
        addresses.split(one, CLUSTER_PORT, "--cohort") for one in text.split(",") if one.strip()
    ]
    if found and len(found) not in (3, 5):
        raise ConfigError(
            f"--cohort: a cohort has 3 or 5 hosts, not {len(found)}; a single host needs no "
            "--cohort, and an even number gains no safety"
        )
    if len(set(found)) != len(found):
        raise ConfigError(f"--cohort {text}: a host is named twice")
    return tuple(addresses.join(*one) for one in found)


def _with_port(join: str) -> str:
    """HOST:PORT, with the port that clients use where none is given. Raises `ConfigError`."""
    return addresses.join(*addresses.split(join, CLIENT_PORT, "--join")) if join else ""


def _as_known(known: Started | None, given: Started) -> Started:
    """What to start: what was given, and for what was not given, what the directory was started
    as."""
    if given.name:
        check_machine(given.name, "host")
    if known is None or known.below:
        return msgspec.structs.replace(given, name=given.name or _machine())
    wanted = msgspec.structs.replace(given, name=given.name or known.name or _machine())
    if given.cohort or given.join:
        return wanted
    return msgspec.structs.replace(wanted, cohort=known.cohort, join=known.join)


def _adds(known: Started, name: str, cohort: str, join: str) -> bool:
    """Whether the directory knows something that the command left out, and that a new directory
    would not have."""
    network = not cohort and not join and bool(known.cohort or known.join)
    return network or (not name and known.name not in ("", socket.gethostname()))


def _machine() -> str:
    """This machine's name, as a host's. Raises `ConfigError`."""
    try:
        return check_machine(socket.gethostname(), "host")
    except ConfigError as error:
        raise ConfigError(f"{error}; give another with --name") from None


async def _up_many(
    hosts: int,
    nodes: int,
    directory: Path,
    port: int,
    apps: list[str],
    say: _Speaker,
    lock: DirectoryLock,
) -> None:
    cluster = LocalCluster(
        directory, apps, hosts=hosts, nodes=nodes, ports=port, report=say, lock=lock
    )
    with Signals(cluster.reload, cluster.kill_at_once) as heard:
        starting = asyncio.ensure_future(cluster.start())
        stopping = asyncio.ensure_future(heard.stop.wait())
        keeping: asyncio.Future[None] | None = None
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                keeping = asyncio.ensure_future(cluster.keep())
                with _Where(directory, cluster.urls):
                    say("up", {"urls": cluster.urls})
                    await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if keeping.done():
                        keeping.result()
        finally:
            tasks = [task for task in (starting, stopping, keeping) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await cluster.stop()


class _Where:
    """The file that tells the other commands where this cluster is, as long as it is up."""

    def __init__(self, directory: Path, urls: list[str], secret: bool = False) -> None:
        self._secret = secret
        self._path = directory / WHERE_FILE
        self._urls = shown(urls).split(", ")  # without a password that stands in them
        self._text = json.dumps(self._urls)

    def __enter__(self) -> None:
        try:
            files.write_private(self._path, self._text)
        except OSError as error:
            raise ConfigError(explain(error, self._path.parent)) from None
        if self._secret:
            keep_confirmed(self._path, self._urls)  # this user just said what they are

    def __exit__(self, *_: object) -> None:
        if self._path.exists() and self._path.read_text() == self._text:
            self._path.unlink()


_TEXTS: Final = {
    "server": "server {server} listens at {url}",
    "server-ended": "server {server} ended with code {code}; it is started again",
    "server-failed": "server {server} does not start: {error}",
    "server-stores-nothing": "server {server} stores nothing any more: {why}; it is started again",
    "server-frozen": "server {server} is frozen: {why}; it is killed and started again if that "
    "lasts",
    "server-back": "server {server} answers again",
    "copy-discarded": "the copy of {stream} is thrown away; the others send a new one",
    "copy-whole": "the copy of {stream} is whole again",
    "copy-not-whole": "the copy of {stream} gets no further; run holdfast doctor",
    "store-unchanged": "the store of server {server} stays as it is: {error}",
    "store-gone": "server {server} was stopped: {text}",
    "nothing-left": "server {server}: {text}",
    "node-ready": "node {node} serves {kinds} (pid {node_pid})",
    "node-still": "node {node} {text}: its host ends it when that goes on",
    "node-ended": "node {node} ended with code {code}; it is started again. {error}",
    "node-said": "{who}: {text}",
    "host-said": "{who}: {text}",
    "reloaded": "settings and certificates were read again",
    "reload-failed": "settings were not read again: {error}",
    "host-frozen": "host {host} is frozen: {why}; it is killed and started again if that lasts",
    "host-back": "host {host} goes on",
    "host-ended": "host {host} ended with code {code}; it is started again",
    "host-failed": "host {host} does not start: {error}",
    "again": "{directory} has {what}: that is started again",
    "up": "up: join it with {urls}; Ctrl-C ends it",
    "stopping": "finishing what runs",
    "stopped": "stopped",
    "failed": "{error}",
}
_STYLES: Final = {
    "server-failed": "red",
    "server-stores-nothing": "red",
    "server-frozen": "red",
    "copy-not-whole": "red",
    "store-gone": "red",
    "store-unchanged": "red",
    "nothing-left": "red",
    "node-still": "red",
    "reload-failed": "red",
    "host-frozen": "red",
    "host-ended": "red",
    "host-failed": "red",
    "node-ended": "red",
    "node-said": "dim",
    "host-said": "dim",
    "up": "bold green",
    "stopping": "dim",
    "stopped": "dim",
    "failed": "red",
}


class _Speaker:
    """Says what happens: a line for people, or JSON lines for programs."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._started = time.monotonic()
        self._out = _Out()
        self.errors = Writer(
            lambda text: write_all(2, f"{text}\n".encode(errors="backslashreplace"))
        )

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        if self._as_json:
            self._out.json({"event": event, "pid": os.getpid(), **facts}, indent=None)
        elif event in _TEXTS:
            values = {
                key: ", ".join(value) if isinstance(value, list) else value
                for key, value in facts.items()
            }
            values["who"] = said.who(facts)
            text = _TEXTS[event].format_map({**values, "kinds": values.get("kinds") or "nothing"})
            host = f"{facts['host']:<6}" if "host" in facts else ""
            lead = (Styled(f"{time.monotonic() - self._started:6.1f} s", "dim"), f"  {host}")
            self._out.block(text, *lead, style=_STYLES.get(event, ""), indent=" " * 10)

    async def before_its_error(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work. What was said meanwhile is written before its error, which is the last
        line."""
        try:
            return await work
        finally:
            self.close()

    def close(self) -> None:
        """Write what waits, if somebody reads it."""
        self._out.writer.close()
        self.errors.close()


class _Out(Printer):
    """A terminal that is stopped, or a pipe that nobody reads, stops no host."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = Writer(lambda text: write_all(1, text.encode(errors="backslashreplace")))

    def _write(self, text: str) -> None:
        self.writer.put(text)
