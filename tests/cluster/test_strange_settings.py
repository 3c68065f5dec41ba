"""Paths, users and passwords in any script, and IPv6: what is generated for the server means what
was given."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cluster.app import Account

from holdfast import ConfigError, LocalCluster, Node
from holdfast.cli.common import read_password
from holdfast.host.addresses import join
from holdfast.host.local_cluster import Place
from holdfast.host.server.nats_config import ServerSettings, check, quoted, render
from holdfast.host.server.nats_server import find_binary, free_ports
from holdfast.security import Security

APP = str(Path(__file__).parent / "app.py")
STRANGE = 'Jürgen "$HOME" \\ \'{}#;=, 雪 😀'
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)


def has_ipv6() -> bool:
    try:
        return "00000000000000000000000000000001" in Path("/proc/net/if_inet6").read_text()
    except OSError:
        return False


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_ipv6(), reason="there is no ::1 here")
async def test_three_hosts_on_ipv6_with_strange_names_and_passwords(tmp_path: Path) -> None:
    directory = tmp_path / "Größe \"$HOME\" \\ 'x' 雪😀"
    security = Security(user=STRANGE, password=STRANGE[::-1])
    ports = free_ports(6)
    routes = tuple(join("::1", port) for port in ports[3:])
    places = [
        Place(
            ports[n], ports[3 + n], routes, (f"nats://[::1]:{ports[(n + 1) % 3]}",), "::1", security
        )
        for n in range(3)
    ]
    async with LocalCluster(directory, [APP], places=places) as cluster:
        assert cluster.urls == [f"nats://[::1]:{port}" for port in ports[:3]]
        async with Node.join(cluster.urls, user=security.user, password=security.password) as node:
            await node.ready()
            assert await node.agent(Account, "a").ask(Account.add, 3) == 3
            async with asyncio.timeout(240):  # nodes are known once they beat
                while {member.host for member in node.members() if member.kinds} != {
                    "h1",
                    "h2",
                    "h3",
                }:
                    await asyncio.sleep(0.05)
            await cluster.kill_host("h1")  # where the client was connected
            assert await node.agent(Account, "a").ask(Account.add, 4) == 7
        with pytest.raises(ConfigError):
            async with Node.join(cluster.urls[1], user=security.user, password="wrong"):
                pass


@pytest.mark.cluster
@settings(max_examples=12)
@given(user=TEXTS, password=TEXTS, name=TEXTS)
def test_the_server_takes_whatever_is_generated(
    tmp_path_factory: pytest.TempPathFactory, user: str, password: str, name: str
) -> None:
    directory = tmp_path_factory.mktemp("config")
    made = ServerSettings(
        "a",
        f"{directory}/{name}",
        "::1",
        routes=("[::1]:6222",),
        security=Security(user=user, password=password),
    )
    config = directory / "x.conf"
    try:
        config.write_text(render(made, 10**9, "a-1", "s"), encoding="ascii")
    except ConfigError:
        return
    done = subprocess.run(
        [str(find_binary()), "-t", "-c", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@given(st.text())
def test_what_is_quoted_is_plain_and_holds_everything(text: str) -> None:
    made = quoted(text.encode("utf-8", "replace").decode())
    assert made.isascii() and made.isprintable() and made[0] == made[-1] == '"'
    back = bytes(made[1:-1], "ascii").decode("unicode_escape").encode("latin-1")
    assert back == text.encode("utf-8", "replace")


@pytest.mark.parametrize(
    "password", ["$2a$10$abcdefghijklmnopqrstuv", "$2b$", "$2y$12$x", "a\tb", "a\x00"]
)
def test_passwords_that_the_server_would_misread_are_refused(tmp_path: Path, password: str) -> None:
    with pytest.raises(ConfigError, match="password") as refused:
        check(ServerSettings("a", str(tmp_path), security=Security(user="u", password=password)))
    assert password not in str(refused.value)
    check(ServerSettings("a", str(tmp_path), security=Security(user="u", password="a$2a$10$x")))


@pytest.mark.parametrize(
    ("data", "password"),
    [
        (b"secret", "secret"),
        (b"secret\r\nmore\r\n", "secret"),
        (b"\xef\xbb\xbfsecret\n", "secret"),
        (b"  two words \n", "two words"),
        ("pä\u2028ss\n".encode(), "pä\u2028ss"),
    ],
)
def test_a_password_is_the_first_line_however_it_was_saved(
    tmp_path: Path, data: bytes, password: str
) -> None:
    (tmp_path / "secret").write_bytes(data)
    assert read_password(str(tmp_path / "secret")) == password


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\xef\xbb\xbf\r\n", "secret".encode("utf-16"), b"\xff\xfe\xfa"]
)
def test_a_file_without_a_password_is_said(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "secret").write_bytes(data)
    with pytest.raises(ConfigError, match="secret"):
        read_password(str(tmp_path / "secret"))
