"""A host that starts where another cluster is by now keeps its data, and believes nothing that the
other says of hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from tests.cluster.app import Account
from tests.node.test_cli import free_base

from holdfast import ConfigError, LocalCluster, Node
from holdfast.cluster.facts.cohort import Cohort, HostEntry
from holdfast.errors import DataLoss
from holdfast.host import state
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import NatsServer
from holdfast.host.voting import arrival
from holdfast.host.voting.voter import Voter

CLUSTER_APP = "tests.cluster.app"


def record(**servers: str) -> Cohort:
    return Cohort(
        sorted(servers),
        {name: HostEntry(server, f"{name}:6222", "") for name, server in servers.items()},
    )


KEPT = record(h1="h1-1a", h2="h2-2a", h3="h3-3a")


@pytest.mark.parametrize(
    ("found", "same"),
    [
        (KEPT, True),
        (record(h1="h1-9f", h2="h2-2a", h3="h3-3a"), True),
        (record(h1="h1-9f", h2="h2-2a", h3="h3-9f"), True),
        (record(h2="h2-2a", h4="h4-4a"), True),
        (record(h1="h1-1a", h2="h2-9f", h3="h3-9f"), True),
        (record(h1="h1-9f", h2="h2-9f", h3="h3-9f"), False),
        (record(h4="h4-4a"), False),
    ],
)
def test_a_cluster_is_known_by_its_servers(found: Cohort, same: bool) -> None:
    assert state.is_foreign(found, KEPT) is not same
    assert not state.is_foreign(found, None)


async def test_addresses_are_the_same_by_whatever_name() -> None:
    some = ["localhost:6222", "127.0.0.1:6223", "no-such-host.invalid:6222", ""]
    others = ["127.0.0.1:6222", "[::1]:7222", "no-such-host.invalid:6222", "127.0.0.1:1"]
    assert await arrival.same_places(some, others) == {
        "localhost:6222",
        "no-such-host.invalid:6222",
    }
    assert await arrival.same_places(["[::1]:7222"], others) == {"[::1]:7222"}
    assert await arrival.same_places(some, []) == set()


async def test_a_host_that_hears_another_cluster_only_later_follows_it_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServerSettings("h1", str(tmp_path), routes=("a:1", "b:1", "c:1"))
    seat = Voter("h1", NatsServer(settings), "", cast(Any, None), lambda *_: None)
    seat._state = state.State("1a", True, "127.0.0.1", sequence=3, record=KEPT, founded=True)

    async def foreign(_: object) -> tuple[Cohort, int]:
        return record(h2="h2-9f", h3="h3-9f"), 7

    monkeypatch.setattr(arrival, "read", foreign)
    assert not await seat._fit(cast(Any, None), cast(Any, None), cast(Any, None))
    assert "hosts of another cluster" in seat.trouble
    assert (seat.record, seat.sequence, seat.votes) == (KEPT, 3, True)
    assert list(tmp_path.iterdir()) == []


async def count(cluster: LocalCluster) -> int:
    async with Node.join(cluster.urls) as node:
        return await node.agent(Account, "a").ask(Account.add, 1)


async def recorded(directory: Path, names: Iterable[str]) -> None:
    """Wait until each host keeps the record of its cohort."""
    async with asyncio.timeout(240):
        while any(
            (kept := state.load(directory / name)) is None or kept.record is None for name in names
        ):
            await asyncio.sleep(0.1)


@pytest.mark.cluster
@pytest.mark.parametrize("hosts", [3, 4])
async def test_a_cluster_that_starts_where_another_is_keeps_its_stores(
    tmp_path: Path, hosts: int
) -> None:
    ports, old, new = free_base(), tmp_path / "old", tmp_path / "new"

    def stores() -> dict[str, tuple[str, list[Path]]]:
        return {
            path.name: ((path / state.STORE / state.NAME).read_text(), state.stores_aside(path))
            for path in old.iterdir()
            if (path / state.STORE / state.NAME).exists()
        }

    async with LocalCluster(
        old, [CLUSTER_APP], hosts=hosts, ports=ports, log=tmp_path / "log"
    ) as cluster:
        assert [await count(cluster) for _ in range(3)] == [1, 2, 3]
        await recorded(old, cluster.hosts)
    before = stores()
    assert len(before) == 3
    async with LocalCluster(new, [CLUSTER_APP], ports=ports, log=tmp_path / "log") as other:
        assert await count(other) == 1
        await recorded(new, other.hosts)
        async with asyncio.timeout(240):
            while True:
                with pytest.raises(ConfigError) as refused:
                    async with LocalCluster(
                        old, [CLUSTER_APP], hosts=hosts, ports=ports, log=tmp_path / "log"
                    ):
                        pass
                assert stores() == before
                # a host that had no time to look finds its port taken
                if "in use" not in str(refused.value):
                    break
        assert "hosts of another cluster" in str(refused.value)
        if hosts == 3:  # elsewhere it may run beside it
            async with LocalCluster(
                old, [CLUSTER_APP], ports=free_base(), log=tmp_path / "log"
            ) as cluster:
                assert await count(cluster) == 4
        assert await count(other) == 2
        await asyncio.sleep(2.0)
    assert stores() == before
    async with LocalCluster(
        old, [CLUSTER_APP], hosts=hosts, ports=ports, log=tmp_path / "log"
    ) as cluster:
        assert await count(cluster) == (5 if hosts == 3 else 4)


async def test_stores_that_were_put_aside_are_told_where_data_are_lost(tmp_path: Path) -> None:
    for name in ("h1", "h2"):
        (tmp_path / name / "jetstream-left").mkdir(parents=True)
    cluster = LocalCluster(tmp_path, [CLUSTER_APP], log=tmp_path / "log")
    with pytest.raises(DataLoss, match=r"h1/jetstream-left.*h2/jetstream-left"):
        cluster._refuse_loss("h1", ["h1", "h2"])
