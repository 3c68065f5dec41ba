"""Changing the cohort: who votes and keeps replicas, moved host by host while the cluster works.

What is to be is written into the cohort's record first. Then the step that `holdfast.core.cohort`
names is taken, all is looked at again, and so on until nothing is left to do; the record then says
so. Whoever is killed in between has done whole steps only, and the same command goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from holdfast.admin.fleet.hosts import View, alive_hosts, look
from holdfast.cluster.facts import cohort
from holdfast.cluster.facts.cohort import Cohort, HostEntry
from holdfast.core.cohort import (
    Copies,
    Done,
    Evacuate,
    Remove,
    Situation,
    StandDown,
    Step,
    Vote,
    Wait,
    next_step,
)
from holdfast.errors import ConfigError, Conflict, HoldfastError, NoQuorum, NotDone, NotFound
from holdfast.host.rpc.service import ask_host
from holdfast.node.node import Node

_STUCK_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.3
_STEP_SECONDS: Final = 30.0

Report = Callable[[str], None]
"""Hears what is done, a line at a time."""


async def show(node: Node) -> Cohort:
    """The cohort's record. Raises `NotFound` where the servers are not Holdfast's own,
    `NoQuorum`."""
    record, _ = await cohort.read(node.engine, cohort.CELL)
    if record is None:
        raise NotFound(
            "this cluster has no record of a cohort: its servers are not run by `holdfast up`"
        )
    return record


async def set_members(node: Node, members: Sequence[str], report: Report) -> Cohort:
    """Make exactly these hosts the cohort; return the record when that is done.

    Raises `ConfigError` for a cohort that cannot be, `NotFound` for a host that never joined,
    `NotDone` for one that is not there, `NoQuorum` where a majority is missing or it does not go
    on, `Conflict` where another command took over.
    """
    target = sorted(set(members))
    if len(target) != len(members):
        raise ConfigError("a host is named twice")
    if len(target) not in (3, 5):
        raise ConfigError(
            f"a cohort has 3 or 5 hosts, not {len(target)}: an even number gains no safety, and a "
            "cluster does not shrink to one server, as that would not start again alone"
        )
    view = await look(node.engine)
    _check(view, target)

    def aim(record: Cohort | None) -> Cohort:
        assert record is not None
        if record.members == target and not record.target:
            return record
        return msgspec.structs.replace(record, target=target)

    await cohort.change(node.engine, cohort.CELL, aim)
    return await _carry_out(node, target, view.sequence, report)


async def add(node: Node, hosts: Sequence[str], report: Report) -> Cohort:
    """Add hosts to the cohort; see `set_members`."""
    record = await show(node)
    known = record.target or record.members
    return await set_members(node, [*known, *(host for host in hosts if host not in known)], report)


async def replace(node: Node, old: str, new: str, report: Report) -> Cohort:
    """Put one host in another's place, dead or alive; see `set_members`."""
    record = await show(node)
    known = record.target or record.members
    if old not in record.hosts and old not in known:
        raise NotFound(f"there is no host {old!r}: there are {', '.join(sorted(record.hosts))}")
    if old not in known and new not in known:
        raise ConfigError(
            f"host {old} does not vote, so nobody can replace it: the cohort is {', '.join(known)}"
        )
    return await set_members(
        node, [*(host for host in known if host not in (old, new)), new], report
    )


async def remove(node: Node, host: str, report: Report) -> Cohort:
    """Forget a host that is gone for good. Where it voted, a host that joined without a vote takes
    its place; if there is none, there is one copy less of everything until one is added: the
    record's members tell.

    Raises `NotFound`, `ConfigError` while it is alive, `NoQuorum` where too few are left,
    `Conflict` while the cohort changes.
    """
    view = await look(node.engine)
    record = view.record
    if host not in record.hosts:
        raise NotFound(f"there is no host {host!r}: there are {', '.join(sorted(record.hosts))}")
    server = record.hosts[host].server
    if host in await alive_hosts(node.engine, view) or view.alive.get(server):
        raise ConfigError(
            f"host {host} is alive: stop it first, or replace it with `holdfast cohort replace "
            f"{host} OTHER`"
        )
    if record.target and set(record.target) != set(record.members) - {host}:
        raise Conflict(
            f"the cohort is being changed to {', '.join(record.target)}: finish that with "
            f"`holdfast cohort set {','.join(record.target)}`"
        )
    if host in record.members:
        _check_quorum(view)
        spare = next(
            (
                name
                for name in sorted(view.facts)
                if not record.votes(name) and name in record.hosts
            ),
            "",
        )
        rest = [name for name in record.members if name != host]
        if spare:
            report(f"{spare} takes the place of {host}")
            await set_members(node, [*rest, spare], report)
        else:
            report(
                f"nobody is there to take the place of {host}: everything has one copy less until "
                "a host is added"
            )
            await _remove_server(node, view, server)
            await cohort.change(node.engine, cohort.CELL, lambda found: _with_members(found, rest))
    return await cohort.change(node.engine, cohort.CELL, lambda found: _without(found, host))


def _with_members(record: Cohort | None, members: list[str]) -> Cohort:
    assert record is not None
    return msgspec.structs.replace(record, members=sorted(members), target=[])


def _without(record: Cohort | None, host: str) -> Cohort:
    assert record is not None
    return record.without(host) if host in record.hosts else record


def _check(view: View, target: list[str]) -> None:
    record = view.record
    for host in target:
        if host not in record.hosts:
            raise NotFound(
                f"host {host} never joined: start it with `holdfast up --join`, then try again"
            )
    if not all(record.hosts[host].route for host in target):
        raise ConfigError(
            "a single host does not grow: start a cluster of three with `holdfast up --cohort`"
        )
    _check_quorum(view)
    missing = [host for host in target if host not in view.facts]
    if missing:
        raise NotDone(f"host {', '.join(missing)} is not there: start it, or name another one")


def _check_quorum(view: View) -> None:
    alive = sum(view.alive.values())
    if not view.leader or alive * 2 <= len(view.alive):
        raise NoQuorum(
            f"{alive} of {len(view.alive)} servers that vote are there: no majority, so nothing "
            "can be changed"
        )


# Carrying it out ----------------------------------------------------------------------------------


async def _carry_out(node: Node, target: list[str], before: int, report: Report) -> Cohort:
    """Step by step. ``before``: the record's sequence when it had another target."""
    loop = asyncio.get_running_loop()
    moved_at, progress, waited_for = loop.time(), None, ""
    while True:
        try:
            view = await look(node.engine)
            if (view.record.target or view.record.members) != target:
                if view.sequence <= before:
                    raise NoQuorum("a replica that lags answered")
                raise Conflict(
                    f"another command changes the cohort to {', '.join(view.record.target)}: "
                    "nothing is undone"
                )
            step = next_step(_situation(view, target))
            if isinstance(step, Done):
                break
            if not isinstance(step, Wait):
                report(_said(step, view))
                await _take(node, view, step)
                moved_at = loop.time()
            elif step.reason != waited_for:
                waited_for = step.reason
                report(step.reason)
            trouble = step.reason if isinstance(step, Wait) else ""
            if view.progress != progress:
                moved_at, progress = loop.time(), view.progress
        except Conflict:
            raise
        except HoldfastError as error:
            trouble = str(error)  # somebody leads anew, or was faster: all is looked at again
        if loop.time() - moved_at > _STUCK_SECONDS:
            raise NoQuorum(
                f"it does not go on: {trouble}. What was done stays; the same command goes on from "
                "here"
            )
        await asyncio.sleep(_LOOK_SECONDS)

    def settle(record: Cohort | None) -> Cohort:
        assert record is not None
        if (record.target or record.members) != target:
            raise Conflict(f"another command changes the cohort to {', '.join(record.target)}")
        return _with_members(record, target)

    done = await cohort.change(node.engine, cohort.CELL, settle)
    report(f"the cohort is {', '.join(done.members)}")
    return done


def _situation(view: View, target: list[str]) -> Situation:
    servers = {host: entry.server for host, entry in view.record.hosts.items()}
    servers |= {
        host: facts.entry.server for host, facts in view.facts.items() if facts.entry is not None
    }
    idle = [
        host
        for host, facts in view.facts.items()
        if facts.votes and servers.get(host) not in view.alive
    ]
    copies = {stream: replica.copies for stream, replica in view.leading.items()}
    return Situation(target, servers, view.alive, view.keeps(), copies, view.settled(), idle)


def _said(step: Step, view: View) -> str:
    if isinstance(step, Remove):
        return f"{step.server} loses its vote"
    if isinstance(step, Evacuate):
        return f"the {view.keeps().get(step.server, 0)} replicas of {step.server} are moved"
    if isinstance(step, Vote):
        return f"{step.host} gets a vote"
    if isinstance(step, Copies):
        return f"{step.stream} gets {step.copies} copies"
    return f"{step.host} goes on without a vote" if isinstance(step, StandDown) else "done"


async def _take(node: Node, view: View, step: Step) -> None:
    bus = node.engine.bus
    by = view.host_of(view.leader)
    if isinstance(step, Remove):
        if await _remove_server(node, view, step.server) and view.alive[step.server]:
            await ask_host(
                bus,
                view.host_of(step.server),
                "stand_down",
                HostEntry,
                {"sequence": view.sequence},
                _STEP_SECONDS,
            )
    elif isinstance(step, Evacuate):
        await ask_host(bus, by, "evacuate", type(None), {"server": step.server}, _STEP_SECONDS)
        await _changed(node, lambda found: found.keeps().get(step.server, 0) == 0)
    elif isinstance(step, Vote):
        await ask_host(
            bus, step.host, "vote", HostEntry, {"sequence": view.sequence}, _STEP_SECONDS
        )
        await _changed(node, lambda found: _votes(found, step.host))
    elif isinstance(step, Copies):
        arguments = {"stream": step.stream, "copies": step.copies}
        await ask_host(bus, by, "copies", type(None), arguments, _STEP_SECONDS)
    elif isinstance(step, StandDown):
        await ask_host(
            bus, step.host, "stand_down", HostEntry, {"sequence": view.sequence}, _STEP_SECONDS
        )
        await _changed(
            node,
            lambda found: not found.facts[step.host].votes if step.host in found.facts else False,
        )


def _votes(view: View, host: str) -> bool:
    facts = view.facts.get(host)
    return (
        facts is not None and facts.entry is not None and view.alive.get(facts.entry.server, False)
    )


async def _remove_server(node: Node, view: View, server: str) -> bool:
    """Take its vote, by way of a server that is not the one to lose it. False: another one is to
    lead first."""
    bus = node.engine.bus
    leader = view.leader
    if leader == server:
        leader = next(
            name for name, alive in sorted(view.alive.items()) if alive and name != server
        )
        await ask_host(
            bus,
            view.host_of(server),
            "lead_elsewhere",
            type(None),
            {"server": leader},
            _STEP_SECONDS,
        )
        await _changed(node, lambda found: found.leader not in ("", server))
        return False
    await ask_host(
        bus, view.host_of(leader), "remove", type(None), {"server": server}, _STEP_SECONDS
    )
    return True


async def _changed(node: Node, condition: Callable[[View], bool]) -> None:
    """Wait for a step's effect, for a while: what comes later is seen by the next look."""
    try:
        async with asyncio.timeout(_STEP_SECONDS):
            while not condition(await look(node.engine)):
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise NoQuorum("a step was taken, and its effect is not seen yet") from None


def plain(record: Cohort) -> dict[str, Any]:
    """The record for programs."""
    return {
        "members": record.members,
        "target": record.target,
        "hosts": {
            name: msgspec.structs.asdict(entry) for name, entry in sorted(record.hosts.items())
        },
    }
