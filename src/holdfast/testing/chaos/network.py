"""Networks on one machine that can be cut: every host of a cluster has a side of its own, and each
direction its switch.

`NamespaceNetwork` (Linux, root) is a real one: each host is in a network namespace, with a cable to
one switch. A cut sends what one host has for another to a hardware address that nobody has: it is
lost in silence, as in a broken network, while connections stay open and know nothing. Servers
listen beyond loopback there, so they get certificates and a password, as on real machines.
Namespaces and mounts belong to processes of this one: nothing is left behind, however it ends.

`ProxyNetwork` works anywhere: hosts share the loopback interface, and reach each other through
proxies that stop carrying bytes. What was on its way is late there, not lost, and connections are
made that lead nowhere.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast import chance, files
from holdfast.children import die_with_parent
from holdfast.errors import ConfigError
from holdfast.host.local_cluster import Place
from holdfast.host.server.nats_server import free_ports
from holdfast.security import Security

_PORT: Final = 4222
_CLUSTER_PORT: Final = 6222
_US: Final = 100
"""The number of this very process's address: it reaches all sides, always."""

_NOBODY: Final = 255
_CURVE: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DISK_BYTES: Final = 512 * 1024 * 1024
_TRIES: Final = 50
NO_CERTIFICATES: Final = "only networks of namespaces, which need Linux and root, use certificates"
NO_DISK: Final = (
    "filling a disk needs Linux, root and network namespaces: it is a file system of its own"
)


class Network(ABC):
    """See the module. Hosts are numbered from 0. ``places`` is there once it is open."""

    kind = ""
    fills = False
    """Whether a host's disk can be filled."""

    renews = False
    """Whether hosts have certificates."""

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self.places: list[Place] = []

    @abstractmethod
    async def open(self, directory: Path) -> None:
        """Build it. Raises `ConfigError` where the machine does not allow that."""

    @abstractmethod
    async def set(self, source: int, target: int, whole: bool) -> None:
        """Cut, or mend, what goes from one host to another."""

    @abstractmethod
    async def close(self) -> None:
        """Take it down, once the hosts have ended."""

    async def renew(self) -> None:
        """Give all hosts a new key and certificate, for them to read. Raises `ConfigError`."""
        raise ConfigError(NO_CERTIFICATES)

    def fill(self) -> None:
        """Leave no byte free on the last host's disk. Raises `ConfigError`."""
        raise ConfigError(NO_DISK)

    def empty(self) -> None:
        """Free what `fill` took. Raises `ConfigError`."""
        raise ConfigError(NO_DISK)


def choose(kind: str, hosts: int, small_disk: bool) -> Network:
    """``namespaces``, ``proxy``, or ``auto``: the better one that works here. Raises
    `ConfigError`."""
    if kind not in ("auto", "namespaces", "proxy"):
        raise ConfigError(f"there is no network {kind!r}: choose auto, namespaces or proxy")
    why = _why_no_namespaces()
    if kind == "namespaces" and why:
        raise ConfigError(
            f"network namespaces cannot be used here: {why}; --network proxy works anywhere"
        )
    return ProxyNetwork(hosts) if kind == "proxy" or why else NamespaceNetwork(hosts, small_disk)


def _why_no_namespaces() -> str:
    if not sys.platform.startswith("linux"):
        return "they are Linux's"
    if os.geteuid() != 0:
        return "they need root"
    missing = [
        tool for tool in ("ip", "nsenter", "unshare", "openssl", "mount") if not _found(tool)
    ]
    return f"there is no {', '.join(missing)}" if missing else ""


def _found(tool: str) -> bool:
    paths = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"]
    return any(os.access(Path(path) / tool, os.X_OK) for path in paths if path)


# Namespaces ---------------------------------------------------------------------------------------


class NamespaceNetwork(Network):
    """See the module. ``small_disk``: the last host gets a small file system of its own, that can
    be filled."""

    kind = "network namespaces"
    renews = True

    def __init__(self, hosts: int, small_disk: bool = False) -> None:
        super().__init__(hosts)
        self.fills = small_disk
        self._number = 0
        self._holders: list[asyncio.subprocess.Process] = []
        """A process for each host's namespaces, and one for the switch's."""
        self._filler = Path()
        self._certificates = Path()

    async def open(self, directory: Path) -> None:
        self._holders = [await self._hold() for _ in range(self.hosts + 1)]
        await self._choose_addresses()
        switch = self._holders[-1].pid
        lines = ["link add switch type bridge", "link set switch up", "link set lo up"]
        for host in range(self.hosts):
            lines += [
                f"link add port{host} type veth peer name eth0 netns {self._holders[host].pid}",
                f"link set port{host} master switch up",
            ]
        await _ip(lines, switch)
        await _ip([f"link add {self._link} type veth peer name us netns {switch}"])
        await _ip(["link set us master switch up"], switch)
        everybody = [*range(self.hosts), _US - 1]
        for number in everybody:
            link, pid = (
                (self._link, 0) if number == _US - 1 else ("eth0", self._holders[number].pid)
            )
            lines = [
                f"link set {link} address {self._hardware(number)}",
                f"address add {self._address(number)}/24 dev {link}",
                f"link set {link} up",
                *(self._neighbour(other, other, link) for other in everybody if other != number),
            ]
            await _ip(lines if pid == 0 else ["link set lo up", *lines], pid)
        security = await self._certify(directory)
        addresses = [self._address(host) for host in range(self.hosts)]
        for host, address in enumerate(addresses):
            others = addresses[host + 1 :] + addresses[:host]
            self.places.append(
                Place(
                    _PORT,
                    _CLUSTER_PORT,
                    tuple(f"{one}:{_CLUSTER_PORT}" for one in [address, *others]),
                    tuple(f"tls://{one}:{_PORT}" for one in others),
                    address,
                    security,
                    command=self._enter(host),
                )
            )
        if self.fills:
            await self._mount(directory / f"h{self.hosts}")

    async def _hold(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--net", "--mount", "sh", "-c", "echo; exec sleep infinity"),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
        assert process.stdout is not None
        if not await process.stdout.readline():
            raise ConfigError("this machine gives root no network namespaces: use --network proxy")
        return process

    async def _choose_addresses(self) -> None:
        """A part of the range that is set aside for tests (198.18.0.0/15) that nobody uses here."""
        used = await _run(["ip", "-4", "-o", "address"])
        random = chance.random()
        for _ in range(_TRIES):
            self._number = random.randrange(1, 255)
            if f" 198.18.{self._number}." not in used:
                return
        raise ConfigError("all of 198.18.0.0/16 is used on this machine: use --network proxy")

    @property
    def _link(self) -> str:
        return f"hf-chaos-{self._number}"

    def _address(self, host: int) -> str:
        return f"198.18.{self._number}.{host + 1}"

    def _hardware(self, host: int) -> str:
        return f"02:00:c6:12:{self._number:02x}:{host + 1:02x}"

    def _neighbour(self, whose: int, hardware: int, link: str) -> str:
        return (
            f"neighbour replace {self._address(whose)} lladdr {self._hardware(hardware)} dev "
            f"{link} nud permanent"
        )

    def _enter(self, host: int) -> tuple[str, ...]:
        return (
            "nsenter",
            "--target",
            str(self._holders[host].pid),
            "--net",
            "--mount",
            f"--wd={Path.cwd()}",
        )

    async def _certify(self, directory: Path) -> Security:
        """A private authority, and one certificate that names all hosts."""
        self._certificates = directory
        ca, ca_key, cert, key = (
            str(directory / name) for name in ("ca.pem", "ca.key", "host.pem", "host.key")
        )
        names = ",".join(f"IP:{self._address(host)}" for host in range(self.hosts))
        (directory / "host.ext").write_text(
            f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n"
        )
        usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        await _run(
            [
                "openssl",
                "req",
                "-x509",
                *_CURVE,
                *usage,
                "-days",
                "30",
                "-subj",
                "/CN=chaos",
                "-keyout",
                ca_key,
                "-out",
                ca,
            ]
        )
        await self.renew()
        return Security(ca, cert, key, "chaos", f"{chance.bits(128):032x}")

    async def renew(self) -> None:
        at = self._certificates
        ca, ca_key, request, extensions, key, cert = (
            str(at / name)
            for name in ("ca.pem", "ca.key", "host.csr", "host.ext", "new.key", "new.pem")
        )
        await _run(
            ["openssl", "req", *_CURVE, "-subj", "/CN=host", "-keyout", key, "-out", request]
        )
        await _run(
            [
                "openssl",
                "x509",
                "-req",
                "-in",
                request,
                "-CA",
                ca,
                "-CAkey",
                ca_key,
                "-CAcreateserial",
                "-days",
                "30",
                "-extfile",
                extensions,
                "-out",
                cert,
            ]
        )
        # whoever reads between the two finds that they do not fit
        Path(key).replace(at / "host.key")
        Path(cert).replace(at / "host.pem")

    async def _mount(self, directory: Path) -> None:
        files.make_directory(directory)
        options = ["-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(directory)]
        await _run([*self._enter(self.hosts - 1), "mount", *options])
        self._filler = Path(f"/proc/{self._holders[self.hosts - 1].pid}/root{directory}/filler")

    async def set(self, source: int, target: int, whole: bool) -> None:
        hardware = target if whole else _NOBODY - 1
        await _ip([self._neighbour(target, hardware, "eth0")], self._holders[source].pid)

    def fill(self) -> None:
        if not self.fills:
            raise ConfigError(NO_DISK)
        with self._filler.open("ab") as file:
            for size in (1 << 20, 4096):
                with suppress(OSError):  # there is no more
                    while True:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    async def close(self) -> None:
        for holder in self._holders:
            if holder.returncode is None:
                holder.kill()
                await holder.wait()


async def _ip(lines: list[str], pid: int = 0) -> None:
    """Run commands of ``ip``, in the namespace of a process."""
    enter = ["nsenter", "--target", str(pid), "--net"] if pid else []
    await _run([*enter, "ip", "-batch", "-"], "\n".join(lines) + "\n")


async def _run(command: list[str], told: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if told else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, problems = await process.communicate(told.encode() or None)
    if process.returncode:
        raise ConfigError(
            f"`{' '.join(command)}` failed: {problems.decode(errors='replace').strip()}; "
            f"{told.strip()}"
        )
    return out.decode(errors="replace")


# Proxies ------------------------------------------------------------------------------------------


class ProxyNetwork(Network):
    """See the module."""

    kind = "proxies"

    def __init__(self, hosts: int) -> None:
        super().__init__(hosts)
        self._open = {(a, b): asyncio.Event() for a in range(hosts) for b in range(hosts) if a != b}
        for event in self._open.values():
            event.set()
        self._listeners: list[asyncio.Server] = []
        self._pumps: set[asyncio.Task[None]] = set()

    async def open(self, directory: Path) -> None:  # noqa: ARG002
        ports = free_ports(2 * self.hosts)
        clients, cluster = ports[: self.hosts], ports[self.hosts :]
        for host in range(self.hosts):
            others = [*range(host + 1, self.hosts), *range(host)]
            routes = [await self._proxy(host, other, cluster[other]) for other in others]
            urls = [await self._proxy(host, other, clients[other]) for other in others]
            self.places.append(
                Place(
                    clients[host],
                    cluster[host],
                    tuple(f"127.0.0.1:{port}" for port in [cluster[host], *routes]),
                    tuple(f"nats://127.0.0.1:{port}" for port in urls),
                    gossip=False,
                )
            )

    async def _proxy(self, source: int, target: int, port: int) -> int:
        """Carry what connects to a new port from one host to a port of another; return the new
        one."""

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._pumps.add(task)
            far: asyncio.StreamWriter | None = None
            try:
                await self._open[source, target].wait()
                back, far = await asyncio.open_connection("127.0.0.1", port)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far, (source, target)))
                    group.create_task(self._pump(back, writer, (target, source)))
            except* OSError:
                pass  # one end is gone; the other hears of it below
            finally:
                self._pumps.discard(task)
                for one in (writer, far):
                    if one is not None:
                        one.transport.abort()

        listener = await asyncio.start_server(carry, "127.0.0.1", 0)
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[int, int]
    ) -> None:
        while data := await reader.read(1 << 16):
            await self._open[way].wait()
            writer.write(data)
            await writer.drain()
        await self._open[way].wait()
        raise ConnectionResetError

    async def set(self, source: int, target: int, whole: bool) -> None:
        event = self._open[source, target]
        if whole:
            event.set()
        else:
            event.clear()

    async def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for task in list(self._pumps):
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
