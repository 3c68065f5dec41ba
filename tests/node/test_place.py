"""What the working directory says about where to connect: only this user's own word counts, and no
password follows it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
from tests.engines.impostors import Impostor

from holdfast.cli import place
from holdfast.errors import ConfigError

COMMAND = [str(Path(sys.executable).parent / "holdfast"), "status"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file that names servers, and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)
    (tmp_path / ".holdfast").mkdir(0o700)
    say(["nats://127.0.0.1:4222"])
    return tmp_path


def say(urls: list[str]) -> None:
    path = place.DIRECTORY / place.WHERE_FILE
    path.write_text(json.dumps(urls))
    path.chmod(0o600)


def test_a_users_own_file_counts() -> None:
    assert place.where("") == ["nats://127.0.0.1:4222"]
    assert place.where("nats://h:1") == ["nats://h:1"]


@pytest.mark.parametrize("what", ["file", "directory", "link", "linked directory", "owner"])
def test_a_file_that_somebody_else_may_have_written_does_not(
    what: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, file = here / ".holdfast", here / ".holdfast" / "cluster.json"
    if what == "file":
        file.chmod(0o620)
    elif what == "directory":
        directory.chmod(0o777)
    elif what == "link":
        file.rename(here / "elsewhere.json")
        file.symlink_to(here / "elsewhere.json")
    elif what == "linked directory":
        directory.rename(here / "elsewhere")
        directory.symlink_to(here / "elsewhere")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="does not count"):
        place.where("")
    assert place.where("nats://h:1") == ["nats://h:1"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 5000, "\x00"])
def test_nonsense_in_it(text: str) -> None:
    (place.DIRECTORY / place.WHERE_FILE).write_text(text)
    with pytest.raises(ConfigError):
        place.where("")


def test_with_a_password_the_servers_are_named_or_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOLDFAST_USER", "somebody")
    with pytest.raises(ConfigError, match="Name the servers"):
        place.where("")
    place.keep_confirmed(place.DIRECTORY / place.WHERE_FILE, ["nats://127.0.0.1:4222"])
    assert place.where("") == ["nats://127.0.0.1:4222"]
    assert place._memory().stat().st_mode & 0o777 == 0o600
    say(["nats://127.0.0.1:4223"])
    with pytest.raises(ConfigError, match="Name the servers"):
        place.where("")
    place._memory().chmod(0o666)
    say(["nats://127.0.0.1:4222"])
    with pytest.raises(ConfigError, match="Name the servers"):
        place.where("")


async def test_no_password_goes_where_a_cloned_directory_says(here: Path) -> None:
    (here / "password").write_text("s3cret-Password\n")
    (here / "password").chmod(0o600)
    async with Impostor(first="none").running() as impostor:
        say([f"nats://{impostor.where}"])
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            env={
                **os.environ,
                "HOLDFAST_USER": "somebody",
                "HOLDFAST_PASSWORD_FILE": str(here / "password"),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
    assert process.returncode == 2, out.decode()
    assert impostor.connections == 0 and impostor.heard == b""


@pytest.mark.parametrize("answer", ["y", "n"])
def test_in_a_terminal_it_is_asked_once(answer: str) -> None:
    say(["nats://127.0.0.1:1"])
    master, slave = pty.openpty()
    process = subprocess.Popen(
        COMMAND,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "HOLDFAST_USER": "somebody"},
    )
    os.close(slave)
    text = b""
    try:
        while b"?" not in text:
            assert select.select([master], [], [], 60)[0], text
            text += os.read(master, 4096)
        os.write(master, answer.encode() + b"\n")
        try:
            while chunk := os.read(master, 4096):
                text += chunk
        except OSError:
            pass  # how Linux says that the other end closed
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert place._memory().exists() is (answer == "y"), text
