"""The operations by which a command changes who votes: single steps, each answered when it is done.

The command decides what comes next (`holdfast.admin.fleet.cohort`); the host that carries a step
out checks for itself that the step fits the cohort's record and costs no majority
(`holdfast.host.guards`).
"""

from __future__ import annotations

import msgspec

from holdfast.cluster.door import Count
from holdfast.cluster.facts.cohort import HostEntry
from holdfast.engines.nats import streams
from holdfast.errors import ConfigError
from holdfast.host.guards import Guards
from holdfast.host.rpc.service import Nothing, Operation
from holdfast.host.server.server_admin import ServerAdmin, Voters
from holdfast.host.this_host import ThisHost
from holdfast.host.voting.voter import Voter


class Since(msgspec.Struct, forbid_unknown_fields=True):
    """``sequence``: of the cohort's record that asks for it."""

    sequence: Count


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """``server``: its name in the engine."""

    server: str


class Copies(msgspec.Struct, forbid_unknown_fields=True):
    """How many replicas a stream is to have."""

    stream: str
    copies: int


def table(host: ThisHost, guards: Guards) -> dict[str, Operation]:
    """All of them, by name."""

    def seat() -> Voter:
        if host.seat is None:
            raise ConfigError(f"host {host.settings.name} runs no server of its own")
        return host.seat

    def system() -> ServerAdmin:
        if host.system is None:
            raise ConfigError(f"host {host.settings.name} runs no server of its own")
        return host.system

    async def vote(since: Since) -> HostEntry:
        await guards.may_vote(True, since.sequence)
        return await seat().vote(since.sequence)

    async def stand_down(since: Since) -> HostEntry:
        await guards.may_vote(False, since.sequence)
        return await seat().stand_down(since.sequence)

    async def voters(_: Nothing) -> Voters:
        return await system().voters()

    async def evacuate(which: Which) -> None:
        await guards.may_be_emptied(which.server)
        await system().evacuate(which.server)

    async def remove(which: Which) -> None:
        await guards.may_leave(which.server)
        await system().remove(which.server)

    async def lead_elsewhere(which: Which) -> None:
        await guards.may_lead(which.server)
        await system().lead_elsewhere(which.server)

    async def copies(wanted: Copies) -> None:
        await guards.may_have_copies(wanted.stream, wanted.copies)
        await streams.set_copies(host.engine.connection, wanted.stream, wanted.copies)

    async def heard(_: Nothing) -> dict[str, float]:
        return host.heard.ago()

    return {
        "vote": Operation(Since, vote),
        "stand_down": Operation(Since, stand_down),
        "voters": Operation(Nothing, voters),
        "evacuate": Operation(Which, evacuate),
        "remove": Operation(Which, remove),
        "lead_elsewhere": Operation(Which, lead_elsewhere),
        "copies": Operation(Copies, copies),
        "heard": Operation(Nothing, heard),
    }
