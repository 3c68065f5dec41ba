"""What all tests share. Hypothesis sets no time limit for an example: the machine may be busy."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.hearing import let_children_hear
from tests.patience import wait_longer

from holdfast.engines.base import Engine
from holdfast.engines.local.engine import LocalEngine
from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.server import nats_server
from holdfast.host.server.nats_server import LocalServers

settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("soak", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

let_children_hear()
wait_longer()


def _share_ports(workers: int, number: int) -> None:
    """Give each process of pytest-xdist ports of its own: what one draws, another might draw before
    it is taken.

    Programs that a test starts draw from all ports. ``number``: larger where a process is there for
    one that ended.
    """
    whole = nats_server.ports()
    size = len(whole) // workers
    first = number % workers * size
    nats_server.ports = lambda: whole[first : first + size]


_share_ports(
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
)

_cells = itertools.count(1)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    """Three real nats-servers for tests that do them no harm."""
    cohort = LocalServers(tmp_path_factory.mktemp("servers"))
    with asyncio.Runner() as runner:
        runner.run(cohort.start())
        yield cohort
        runner.run(cohort.stop())


@pytest.fixture(params=["local", "nats"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Where a log of each kind is."""
    if request.param == "local":
        return [f"local:{tmp_path / 'log.db'}"]
    found: LocalServers = request.getfixturevalue("servers")
    return found.urls


@pytest.fixture
async def engine(url: list[str]) -> AsyncIterator[Engine]:
    """An open engine of each kind."""
    made: Engine = (
        LocalEngine(url[0].removeprefix("local:"))
        if url[0].startswith("local:")
        else NatsEngine(url)
    )
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def cell(engine: Engine) -> str:
    """A new cell on that engine, on three replicas where there are three servers."""
    name = f"t{os.getpid()}-{next(_cells)}"
    await engine.ensure_cells([name], 3 if engine.name == "nats" else 1)
    return name
