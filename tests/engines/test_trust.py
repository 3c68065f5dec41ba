"""A connection that was told to use TLS says nothing to a server that does not prove who it is; and
one that is lost comes back without hurry."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import nats
import pytest
from msgspec.structs import asdict
from tests.authority import Authority
from tests.engines.impostors import Impostor
from tests.patience import again, connect_within, until

from holdfast import ConfigError, HoldfastError, Node, NoQuorum
from holdfast.cli.common import EXIT_NOT_DONE
from holdfast.engines.nats.certificates import Certificates
from holdfast.engines.nats.engine import NatsEngine
from holdfast.host.server.nats_config import ServerSettings
from holdfast.host.server.nats_server import NatsServer, free_ports
from holdfast.host.server.server_admin import ServerAdmin
from holdfast.node.settings import parse
from holdfast.security import Security

pytestmark = pytest.mark.timeout(900)
SECRET = "s3cret-Password"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.security()
    return made


@pytest.fixture
def keys(authority: Authority) -> Security:
    files = ("authority.pem", "node.pem", "node.key")
    return Security(*(str(authority.directory / name) for name in files), "somebody", SECRET)


def context(directory: Path, certificate: bytes, key: bytes) -> ssl.SSLContext:
    """Of a server that shows this certificate."""
    (directory / "shown.pem").write_bytes(certificate + key)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(directory / "shown.pem")
    return made


async def client(url: str, keys: Security, _: Path) -> str:
    engine = NatsEngine([url], keys)
    with pytest.raises(ConfigError) as caught:
        await engine.open()
    return str(caught.value)


async def node(url: str, keys: Security, _: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        async with Node.join(url, security=keys):
            pass
    return str(caught.value)


async def host(url: str, keys: Security, _: Path) -> str:
    """The connection of a host to its own server, as its operator."""
    system = ServerAdmin(url, keys.password, Certificates(keys.tls_ca, keys.tls_cert, keys.tls_key))
    with pytest.raises(ConfigError) as caught:
        await system.open()
    return str(caught.value)


async def run(directory: Path, keys: Security, *arguments: str) -> tuple[int | None, str]:
    """Run a command, and return how it ended and what it said."""
    (directory / "password").write_text(keys.password + "\n")
    (directory / "password").chmod(0o600)
    names = {
        f"HOLDFAST_{name.upper()}": value
        for name, value in asdict(keys).items()
        if name != "password"
    }
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).parent / "holdfast"), *arguments),
        env={
            **os.environ,
            **names,
            "HOLDFAST_PASSWORD_FILE": str(directory / "password"),
            "COLUMNS": "500",
        },
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def said_by(directory: Path, keys: Security, *arguments: str) -> str:
    """What a command says that cannot work as its settings are."""
    code, said = await run(directory, keys, *arguments)
    assert code == 2, said
    return said


async def command(url: str, keys: Security, directory: Path) -> str:
    return await said_by(directory, keys, "status", "--at", url, "--wait", "--timeout", "240")


async def host_process(url: str, keys: Security, directory: Path) -> str:
    """A host on servers of somebody else: its own connection, before it starts a node."""
    return await said_by(directory, keys, "up", "--servers", url, "--dir", str(directory / "host"))


def an_impostor(kind: str, authority: Authority, directory: Path) -> Impostor:
    """One without TLS, with a certificate of another authority or for another name, or with a true
    one (``good``)."""
    if kind == "no-tls":
        return Impostor(first="none")
    whose = Authority(directory / "other") if kind == "anothers" else authority
    certificate, key = whose.issue("another.example") if kind == "another-name" else whose.issue()
    return Impostor(first="required", context=context(directory, certificate, key))


WHO = [client, node, host, command, host_process]


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("kind", ["no-tls", "anothers", "another-name"])
async def test_nothing_is_said_to_an_impostor(
    who: Callable[[str, Security, Path], Awaitable[str]],
    kind: str,
    keys: Security,
    authority: Authority,
    tmp_path: Path,
) -> None:
    impostor = an_impostor(kind, authority, tmp_path)
    says = "does not offer TLS" if kind == "no-tls" else "is not trusted"
    async with impostor.running():
        text = await who(f"tls://{impostor.where}", keys, tmp_path)
    assert b"CONNECT" not in impostor.heard and SECRET.encode() not in impostor.heard
    assert SECRET not in text and says in text.replace("\n", " ")


@pytest.mark.parametrize("kind", ["no-tls", "anothers", "another-name", "good"])
async def test_a_server_says_nothing_to_an_impostor_in_the_place_of_another_hosts_server(
    kind: str, authority: Authority, tmp_path: Path
) -> None:
    security = msgspec.structs.replace(authority.security(), user="somebody", password=SECRET)
    impostor = an_impostor(kind, authority, tmp_path)
    port, own, third = free_ports(3)
    async with impostor.running():
        routes = (f"127.0.0.1:{own}", impostor.where, f"127.0.0.1:{third}")
        server = NatsServer(
            ServerSettings(
                "s",
                str(tmp_path / "s"),
                port=port,
                cluster_port=own,
                routes=routes,
                security=security,
            )
        )
        refused = re.compile(rf"{re.escape(impostor.where)} .* TLS route handshake error")
        await server.start()
        try:
            async with asyncio.timeout(240):
                # It tries again and again; where there is no TLS it gets as far as the beginning of
                # a handshake.
                while (
                    b"CONNECT" not in impostor.heard
                    and len(refused.findall(server.log_path.read_text())) < 4
                ):
                    await asyncio.sleep(0.05)
        finally:
            await server.kill()
    assert (SECRET.encode() in impostor.heard) is (kind == "good"), (
        "only who proves to be of the cluster is told"
    )
    assert (b"CONNECT" in impostor.heard) is (
        kind == "good"
    ) and SECRET not in server.log_path.read_text()
    if kind == "no-tls":
        assert impostor.heard.startswith(b"\x16\x03") and impostor.connections >= 4


@pytest.mark.parametrize("first", ["none", "required", "available"])
@pytest.mark.parametrize("url", ["tls", "nats"])
async def test_nothing_is_said_in_clear(first: str, url: str, keys: Security) -> None:
    # One that promises TLS and does not speak it gets the beginning of a handshake. Certificates
    # are enough to want TLS.
    refuses = first == "none"
    async with Impostor(first=first).running() as impostor:
        with pytest.raises(ConfigError if refuses else NoQuorum):
            await NatsEngine(
                [f"{url}://{impostor.where}"], keys, connect_seconds=240.0 if refuses else 10.0
            ).open()
    assert impostor.heard and impostor.connections > 1
    assert b"CONNECT" not in impostor.heard and SECRET.encode() not in impostor.heard


@pytest.fixture
async def server(authority: Authority, tmp_path: Path) -> AsyncIterator[NatsServer]:
    """One real server with certificates, as a host runs it."""
    security = msgspec.structs.replace(authority.security(), user="somebody", password=SECRET)
    made = NatsServer(
        ServerSettings("alone", str(tmp_path / "alone"), port=free_ports(1)[0], security=security)
    )
    await made.start()
    yield made
    await made.kill()


async def test_a_proxy_that_strips_the_word_on_tls_gets_nothing(
    server: NatsServer, keys: Security
) -> None:
    impostor = Impostor(first="none")
    impostor.forward = server.settings.port
    async with impostor.running():
        with pytest.raises(ConfigError, match="does not offer TLS"):
            await NatsEngine([f"tls://{impostor.where}"], keys).open()
    assert b"CONNECT" not in impostor.heard and SECRET.encode() not in impostor.heard


@pytest.mark.parametrize("first", ['handshake_first: "300ms"', "handshake_first: true", ""])
async def test_servers_of_all_ways_are_connected_to(
    server: NatsServer, keys: Security, first: str, tmp_path: Path
) -> None:
    # As a host runs it, as its owner may have set it, and one that speaks before the handshake.
    text = server.config_path.read_text()
    assert 'handshake_first: "300ms"' in text
    server.config_path.write_text(text.replace('handshake_first: "300ms"', first))
    server.send_signal(signal.SIGHUP)
    async with asyncio.timeout(240):
        while "Reloaded" not in server.log_path.read_text():
            await asyncio.sleep(0.05)
    engine = NatsEngine([server.url], keys)
    await engine.open()
    assert engine.connection._transport.secured  # type: ignore[union-attr]
    await engine.close()

    async def status() -> tuple[int | None, str]:
        code, said = await run(tmp_path, keys, "status", "--at", server.url)
        assert code != EXIT_NOT_DONE, said  # no server answered in time
        return code, said

    code, said = await again(status, AssertionError)
    assert code == 1, said
    assert "there is no cluster here yet" in said and "eof_received" not in said, (
        "asyncio's warnings are no news"
    )


async def test_a_client_that_lets_the_server_speak_first_still_connects(
    server: NatsServer, keys: Security
) -> None:
    # As every NATS client does by default, and ours of the version before: for upgrades, host by
    # host.
    context = Certificates(keys.tls_ca, keys.tls_cert, keys.tls_key).context()
    other = await nats.connect(
        server.url, tls=context, user=keys.user, password=keys.password, connect_timeout=120
    )
    assert other.is_connected
    await other.close()


@pytest.mark.parametrize("missing", ["tls_cert", "password"])
async def test_a_server_that_does_not_take_us_is_told_of_at_once(
    server: NatsServer, keys: Security, missing: str
) -> None:
    other = {"tls_cert": "", "tls_key": ""} if missing == "tls_cert" else {"password": "wrong-one"}
    shown = msgspec.structs.replace(keys, **other)
    with pytest.raises(ConfigError) as caught:
        await NatsEngine([server.url], shown).open()
    assert "wrong-one" not in str(caught.value)
    assert ("certificate" if missing == "tls_cert" else "Authorization Violation") in str(
        caught.value
    )


async def test_one_impostor_among_several_servers_is_passed_over(
    server: NatsServer, keys: Security
) -> None:
    async with Impostor(first="none").running() as impostor:
        engine = NatsEngine([f"tls://{impostor.where}", server.url], keys)
        await engine.open()
        assert engine.server_name == "alone"
        await engine.close()
    assert b"CONNECT" not in impostor.heard


async def test_a_password_without_tls_goes_to_no_address_that_was_only_heard_of() -> None:
    async with Impostor(first="none").running() as heard_of:
        info = Impostor.info

        class Telling(Impostor):
            def info(self) -> dict:  # type: ignore[type-arg]
                return info(self) | {"connect_urls": [heard_of.where]}

        async with Telling(first="none", closes="greeted").running() as named:
            engine = NatsEngine(
                [f"nats://{named.where}"], Security(user="somebody", password=SECRET)
            )
            with suppress(HoldfastError):
                await engine.open()
            async with asyncio.timeout(240):
                while named.connections < 8:
                    await asyncio.sleep(0.05)
            await engine.close()
        assert SECRET.encode() in named.heard  # that one was named, and TLS was not asked for
        assert heard_of.connections == 0


@pytest.mark.parametrize("closes", ["at once", "greeted"])
async def test_a_server_that_closes_is_not_tried_without_a_pause(
    closes: str,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if closes == "at once":
        connect_within(monkeypatch, 5.0)
    unretrieved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))
    caplog.set_level(logging.INFO)
    began_at = time.monotonic()
    async with Impostor(first="none", closes=closes).running() as impostor:
        seconds = 5.0 if closes == "at once" else 240.0
        engine = NatsEngine([f"nats://{impostor.where}"], connect_seconds=seconds)
        try:
            await engine.open()
        except NoQuorum:
            assert closes == "at once"
        else:
            async with asyncio.timeout(240):
                while impostor.connections < 8:
                    await asyncio.sleep(0.05)
        await engine.close()
    # Two connections, each with a pause of 0.1 s at the least before all but its first attempts.
    assert time.monotonic() - began_at > (impostor.connections / 2 - 3) * 0.1
    assert not unretrieved and not recwarn.list
    assert len(caplog.records) <= 1, caplog.text


async def test_who_is_not_let_in_again_says_so_once_and_goes_on_trying(
    server: NatsServer, keys: Security, caplog: pytest.LogCaptureFixture
) -> None:
    engine = NatsEngine([server.url], keys)
    await engine.open()
    was = server.settings
    security = msgspec.structs.replace(was.security, password="another-one")
    server.settings = msgspec.structs.replace(was, security=security)
    await server.kill()
    await server.start()

    def said() -> list[str]:
        texts = (record.getMessage() for record in caplog.records)
        return [text for text in texts if "cannot be made again" in text]

    await until(said)  # the attempts before found no server
    refused = engine.connection._pool.current.failures
    await until(lambda: engine.connection._pool.current.failures >= refused + 4)
    texts = said()
    assert len(texts) == 1 and "Authorization Violation" in texts[0] and SECRET not in caplog.text
    server.settings = was
    await server.kill()
    await server.start()
    async with asyncio.timeout(240):
        while not engine.connected():
            await asyncio.sleep(0.05)
    await engine.close()


async def test_urls_with_a_password_are_used_and_never_shown(
    server: NatsServer, keys: Security, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url.replace("tls://", f"tls://somebody:{SECRET}@")
    engine = NatsEngine([url], msgspec.structs.replace(keys, user="", password=""))
    await engine.open()
    await engine.close()
    (port,) = free_ports(1)
    connect_within(monkeypatch, 5.0)  # nobody listens there
    for bad in (
        f"nats://somebody:{SECRET}@127.0.0.1:{port}",
        f"nats://somebody:{SECRET}@127.0.0.1:x",
        f"ftp://somebody:{SECRET}@127.0.0.1",
        f"nats://somebody:{SECRET}@127.0.0.1,nats://other:{SECRET}@127.0.0.1",
        f"nats://somebody:{SECRET}@127.0.0.1,tls://somebody:{SECRET}@127.0.0.1",
        f"nats://{SECRET}@127.0.0.1",
    ):
        with pytest.raises(HoldfastError) as caught:
            async with Node.join(bad):
                pass
        assert SECRET not in str(caught.value)
    assert SECRET not in repr(parse(f"nats://somebody:{SECRET}@127.0.0.1"))
    assert SECRET not in repr(Security(user="a", password=SECRET))
