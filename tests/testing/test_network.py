"""Networks that can be cut: each direction by itself, in silence, and whole again afterwards."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from holdfast import ConfigError
from holdfast.testing.chaos.network import Network, ProxyNetwork, choose

ROOT_ON_LINUX = sys.platform.startswith("linux") and os.geteuid() == 0
KINDS = [
    "proxy",
    pytest.param(
        "namespaces", marks=pytest.mark.skipif(not ROOT_ON_LINUX, reason="needs root on Linux")
    ),
]
ECHO = """
import asyncio, sys
async def echo(reader, writer):
    while data := await reader.read(1000):
        writer.write(data)
async def main():
    server = await asyncio.start_server(echo, sys.argv[1], int(sys.argv[2]))
    print("up", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
TALK = """
import socket, sys
talk = socket.create_connection((sys.argv[1], int(sys.argv[2])), 240)
for line in sys.stdin:
    talk.sendall(line.encode())
    talk.settimeout(float(line.split()[1]))
    try:
        print("heard" if talk.recv(1000) else "ended", flush=True)
    except TimeoutError:
        print("silence", flush=True)
"""


class Talk:
    """A connection from one host to another's server, which says back what is said to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self, timeout_seconds: float = 240.0) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"x {timeout_seconds}\n".encode())
        return (await self.process.stdout.readline()).decode().strip()


async def start(
    network: Network, host: int, code: str, where: tuple[str, str]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(*network.places[host].command, sys.executable, "-c", code, *where),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_each_direction_is_cut_by_itself(tmp_path: Path, kind: str) -> None:
    network = choose(kind, 3, small_disk=False)
    await network.open(tmp_path)
    processes = []
    try:
        there = network.places[1]
        server = await start(network, 1, ECHO, (there.listen, str(there.cluster_port)))
        processes.append(server)
        assert server.stdout is not None and await server.stdout.readline() == b"up\n"
        route = network.places[0].routes[1]
        address, _, port = route.rpartition(":")
        for source, target in ((0, 1), (1, 0)):
            talk = Talk(await start(network, 0, TALK, (address, port)))
            processes.append(talk.process)
            assert await talk.says() == "heard"
            await network.set(0, 2, False)
            assert await talk.says() == "heard"
            await network.set(source, target, False)
            assert await talk.says(0.5) == "silence"
            await network.set(source, target, True)
            assert await talk.says() == "heard"  # connections knew nothing of it
            await network.set(0, 2, True)
    finally:
        for process in processes:
            process.kill()
            await process.wait()
        await network.close()


@pytest.mark.skipif(not ROOT_ON_LINUX, reason="needs root on Linux")
async def test_a_disk_is_filled_and_emptied_and_nothing_stays_behind(tmp_path: Path) -> None:
    network = choose("namespaces", 3, small_disk=True)
    await network.open(tmp_path)
    disk = Path(f"/proc/{network.places[2].command[2]}/root{tmp_path}/h3")
    try:
        network.fill()
        assert os.statvfs(disk).f_bavail == 0
        with pytest.raises(OSError, match="No space"):
            (disk / "x").write_bytes(b"x" * 10_000)
        network.empty()
        (disk / "x").write_bytes(b"x" * 10_000)
    finally:
        await network.close()
    assert not disk.exists()
    assert list((tmp_path / "h3").iterdir()) == []


def test_what_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="bridge"):
        choose("bridge", 3, small_disk=False)
    with pytest.raises(ConfigError, match="disk"):
        ProxyNetwork(3).fill()
    if not ROOT_ON_LINUX:
        with pytest.raises(ConfigError, match="proxy"):
            choose("namespaces", 3, small_disk=False)
