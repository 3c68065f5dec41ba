"""The settings of a host's nats-server, generated: nobody has to know which of them lose data at
their defaults.

The ones that matter: ``sync_interval: always`` (the default acknowledges up to two minutes before
the disk has it), and pings between servers that find a frozen one within three seconds (the default
takes more than a minute).

There are two accounts. Everything of ours is in `ACCOUNT`; the system account is for the host
alone, which asks its server through it what it keeps, and changes who votes. Its password is made
anew for each life of a host, and stands in the settings file only, which nobody but its owner can
read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from holdfast.engines.nats.certificates import Certificates
from holdfast.errors import ConfigError
from holdfast.host import addresses
from holdfast.host.state import ACCOUNT
from holdfast.security import Security

SYSTEM_ACCOUNT: Final = "SYS"
SYSTEM_USER: Final = "holdfast-system"
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\')
_HASH: Final = re.compile(r"\$2[abxy]\$")
_ANYBODY: Final = "anybody"
"""The user that a client is, who gives no password where none is asked for."""

_GREETING_DELAY: Final = "300ms"
"""How long a server waits for a client's handshake before it speaks first, as clients of older
versions expect. What it says then is no secret: the client decides whether to go on, and ours do
only with TLS."""

_HANDSHAKE_SECONDS: Final = 5
"""The server's own limit of two seconds is short for a machine that has much to do."""


class ServerSettings(msgspec.Struct, frozen=True):
    """One nats-server. ``routes``: the founders of the cluster as HOST:PORT, this one included;
    empty for a single server, and for one that joins. A new cluster begins when as many as these
    are there, so no other may be among them.

    ``gossip``: whether it tells others where else they can connect. Without it they know what they
    were told."""

    name: str
    directory: str
    listen: str = "127.0.0.1"
    port: int = 4222
    cluster: str = "holdfast"
    cluster_port: int = 0
    routes: tuple[str, ...] = ()
    gossip: bool = True
    monitor_port: int = 0
    security: Security = Security()
    others: tuple[str, ...] = ()
    """Further servers of the cluster that were learned of later, as HOST:PORT."""
    votes: bool = True
    """Whether it keeps replicas (runs JetStream), or only carries messages."""
    processors: int = 0
    """How many processors it uses at once, where it shares the machine with others of its kind; 0:
    all."""


def check(settings: ServerSettings) -> None:
    """Raises `ConfigError` for settings that would be dangerous, or cannot work."""
    security = settings.security
    if not addresses.is_loopback(settings.listen) and not security.complete:
        raise ConfigError(
            f"listening on {settings.listen}, beyond this machine, needs certificates and a "
            "password: give --tls-ca, --tls-cert, --tls-key, --user and --password-file, or "
            "listen on 127.0.0.1"
        )
    if bool(security.tls_cert) != bool(security.tls_key):
        raise ConfigError(
            "a certificate and its key belong together: give both --tls-cert and --tls-key"
        )
    for path in (security.tls_ca, security.tls_cert, security.tls_key):
        if path and not Path(path).is_file():
            raise ConfigError(f"there is no file {path}: certificates and keys are files in PEM")
    if security.tls_ca or security.tls_cert:
        Certificates(security.tls_ca, security.tls_cert, security.tls_key).check()
    if bool(security.user) != bool(security.password):
        raise ConfigError(
            "a user and a password belong together: give both --user and --password-file"
        )
    for what, text in (("--user", security.user), ("the password", security.password)):
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
            raise ConfigError(f"{what} holds a control character: give one without")
        if not _is_unicode(text):
            raise ConfigError(f"{what} cannot be written in UTF-8: give another")
    if _HASH.match(security.password):
        raise ConfigError(
            "the password begins as a bcrypt hash does ($2a$), and the server would take it for "
            "one: give another password"
        )
    if not _is_unicode(settings.directory):
        raise ConfigError(
            f"the directory {settings.directory!r} cannot be written in UTF-8: give another --dir"
        )
    if security.user in (SYSTEM_USER, _ANYBODY):
        raise ConfigError(f"the user {security.user!r} is the host's own: give another --user")
    if len(settings.routes) in (2, 4):
        raise ConfigError(
            f"a cohort has 1, 3 or 5 hosts, not {len(settings.routes)}: an even one gains no safety"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def quoted(text: str) -> str:
    """A string of the settings file, whatever is in it: the server's own escapes, in ASCII.

    JSON's escapes are others, and the server takes ``$`` outside of quotes for a variable.
    """
    data = text.encode("utf-8", "surrogateescape")
    return '"' + "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in data) + '"'


def render(
    settings: ServerSettings, disk_bytes: int, server_name: str, system_password: str
) -> str:
    """The settings file, for a disk of this size. Raises `ConfigError`."""
    check(settings)
    security = settings.security
    lines = [
        f"server_name: {quoted(server_name)}",
        f"listen: {quoted(addresses.join(settings.listen, settings.port))}",
        'ping_interval: "5s"',
        'write_deadline: "5s"',
        "max_payload: 1MB",
        "max_pending: 128MB",
        'lame_duck_duration: "30s"',
    ]
    if settings.votes:
        lines += [
            "jetstream {",
            f"  store_dir: {quoted(str(Path(settings.directory) / 'jetstream'))}",
            "  sync_interval: always",
            "  max_memory_store: 256MB",
            f"  max_file_store: {disk_bytes * 9 // 10}",
            "}",
        ]
    if settings.monitor_port:
        lines.append(f'http: "127.0.0.1:{settings.monitor_port}"')
    lines += _tls(settings.security, "", first=True)
    user, password = (
        (security.user, security.password) if security.user else (_ANYBODY, system_password)
    )
    lines += [
        f"system_account: {SYSTEM_ACCOUNT}",
        "accounts {",
        f"  {SYSTEM_ACCOUNT} {{ users: [{{ user: {SYSTEM_USER}, password: "
        f"{quoted(system_password)} }}] }}",
        f"  {ACCOUNT} {{ jetstream: enabled, users: [{{ user: {quoted(user)}, password: "
        f"{quoted(password)} }}] }}",
        "}",
    ]
    if not security.user:
        lines.append(f"no_auth_user: {_ANYBODY}")
    routes = [
        *settings.routes,
        *(route for route in settings.others if route not in settings.routes),
    ]
    if routes:
        scheme = "tls" if security.tls_cert else "nats"
        login = ""
        lines += [
            "cluster {",
            f"  name: {quoted(settings.cluster)}",
            f"  listen: {quoted(addresses.join(settings.listen, settings.cluster_port))}",
            '  ping_interval: "1s"',
            "  ping_max: 2",
            '  write_deadline: "2s"',
            "  compression: off",
        ]
        if not settings.gossip:
            lines += ["  no_advertise: true", f"  advertise: {quoted('127.0.0.1:1')}"]
        if security.user:
            lines.append(
                f"  authorization {{ user: {quoted(security.user)}, password: "
                f"{quoted(security.password)} }}"
            )
            login = f"{quote(security.user, safe='')}:{quote(security.password, safe='')}@"
        lines += _tls(security, "  ")
        lines += [
            "  routes: [",
            *(f"    {quoted(f'{scheme}://{login}{route}')}" for route in routes),
            "  ]",
        ]
        lines.append("}")
    return "\n".join(lines) + "\n"


def _tls(security: Security, indent: str, *, first: bool = False) -> list[str]:
    """``first``: whether the handshake comes before a word in clear; routes do that by
    themselves."""
    if not security.tls_cert:
        return []
    lines = [
        f"{indent}tls {{",
        f"{indent}  cert_file: {quoted(security.tls_cert)}",
        f"{indent}  key_file: {quoted(security.tls_key)}",
    ]
    if security.tls_ca:
        lines += [f"{indent}  ca_file: {quoted(security.tls_ca)}", f"{indent}  verify: true"]
    lines.append(f"{indent}  timeout: {_HANDSHAKE_SECONDS}")
    if first:
        lines.append(f"{indent}  handshake_first: {quoted(_GREETING_DELAY)}")
    return [*lines, f"{indent}}}"]
