"""Addresses as HOST:PORT, with IPv6 in brackets wherever a port follows; and whether a port here is
free.

A port that another process has is found before a server is started, and that process is named: the
server itself would say so in its log, after half a minute of silence.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Final

from holdfast.errors import ConfigError
from holdfast.host import processes

CLUSTER_PORT: Final = 6222
CLIENT_PORT: Final = 4222
EVERYWHERE: Final = ("0.0.0.0", "::")


def join(host: str, port: int) -> str:
    """HOST:PORT, or [HOST]:PORT for IPv6."""
    return f"[{bare(host)}]:{port}" if ":" in host else f"{host}:{port}"


def bare(host: str) -> str:
    """A host without brackets."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def split(text: str, default_port: int, option: str) -> tuple[str, int]:
    """The host and the port of HOST, HOST:PORT, [IPV6]:PORT or a bare IPv6 address. Raises
    `ConfigError`."""
    host, port = text.strip(), ""
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise ConfigError(
                f"{option} {text}: write HOST:PORT, and an IPv6 address as [ADDRESS]:PORT"
            )
        port = rest[1:]
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    if not host or any(character.isspace() or character in "/@," for character in host):
        raise ConfigError(
            f"{option} {text}: write HOST:PORT, and an IPv6 address as [ADDRESS]:PORT"
        )
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536):
        raise ConfigError(f"{option} {text}: the port is a number from 1 to 65535")
    return host, int(port) if port else default_port


def is_loopback(address: str) -> bool:
    """Whether an address is only reached from this very machine."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare(address)).is_loopback
    except ValueError:
        return False


def own(listen: str) -> str:
    """Where this machine reaches a server that listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)


def check_listen(listen: str) -> str:
    """The address without brackets, if it can be one. Raises `ConfigError`."""
    host, port = split(listen, 0, "--listen")
    if port:
        raise ConfigError(f"--listen {listen}: give the address alone, and the port with --port")
    return host


def check_free(listen: str, port: int, option: str) -> None:
    """Raises `ConfigError` where a server could not listen on this address and port; it names the
    process that does."""
    try:
        found = socket.getaddrinfo(listen, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"--listen {listen}: this is not an address of this machine ({error.strerror})"
        ) from None
    family, kind, _, _, address = found[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise ConfigError(_why_not(error, listen, port, option)) from None


def _why_not(error: OSError, listen: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        user = processes.listener_on(port) or "another process"
        return (
            f"the port {port} of {listen} is in use by {user}: end that one, or give another "
            f"{option}"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--listen {listen}: this machine does not have that address"
    if error.errno == errno.EACCES:
        return f"{option} {port}: this user may not listen on that port; give one above 1023"
    return f"nobody can listen on {join(listen, port)}: {error.strerror or error}"
