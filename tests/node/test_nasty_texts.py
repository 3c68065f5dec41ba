"""Nasty texts of users through every command that shows them: none ends a command, none reaches the
terminal as it is."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast import said
from holdfast.admin.doctor.doctor import Diagnosis
from holdfast.admin.doctor.findings import KINDS, Finding
from holdfast.admin.fleet.hosts import HostView
from holdfast.admin.presence import Presence
from holdfast.cli import backup, doctor, hosts, scrub, up
from holdfast.cli.main import app
from holdfast.node.node import Node
from holdfast.node.views import MemberInfo

NASTY = (
    "[/x][link=http://e.example]l[/link]\x1b[2J\x1b]0;t\x07\x9b31m\rr\nHoldfast: all is "
    "well\u202egpj [/INST]"
)
NAMED = "[/x]\x1b[2J\u202en\nx"
"""As an agent's name."""
SEEN = "[/x][link=http://e.example]l[/link]"

APP = f"""
import asyncio
from typing import Any
from holdfast import Agent, Node, State, handler, reader

NASTY = {NASTY!r}

class Number(State):
    text: str = NASTY
    maps: dict[tuple[int, str], float] = {{}}
    data: bytes = b"\\xff\\x1b"

class Adder(Agent[Number], capabilities={{"adding"}}):
    @handler
    async def put(self, text: str) -> str:
        self.state.text = text
        self.state.maps[(1, text)] = float("nan")
        return text

    @handler
    async def fail(self, text: str = "") -> None:
        raise ValueError(NASTY)

    @reader
    async def value(self) -> Any:
        return {{"nan": float("inf"), NASTY: [NASTY]}}

async def main(node: Node) -> None:
    await node.register(Adder, {NAMED!r}, metadata={{"region": NASTY, "[/y]": {{"a": [NASTY]}}}})
    await node.agent(Adder, {NAMED!r}).ask(Adder.put, NASTY)
    await node.agent(Adder, "plain").send(Adder.fail, NASTY)
    node.events.say("pool-changed", NASTY, text=NASTY)
    while not await node.dead_letters.all():
        await asyncio.sleep(0.05)
"""


def clean(text: str) -> None:
    """Nothing in it but lines of what can be seen."""
    assert all(line.isprintable() for line in text.split("\n")), text
    assert not any(line.startswith("Holdfast: all is well") for line in text.split("\n")), text


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("nasty")
    (made / "nasty_app.py").write_text(APP)
    done = CliRunner().invoke(
        app, ["run", str(made / "nasty_app.py"), "--at", f"local:{made}/x.db"]
    )
    assert done.exit_code == 0, done.output + str(done.exception)
    return made


@pytest.fixture
def run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(directory)
    monkeypatch.setenv("HOLDFAST_AT", f"local:{directory}/x.db")

    def invoke(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*arguments])
        assert done.exit_code == code, (arguments, done.output, done.exception)
        clean(
            done.output.replace("\nHoldfast: all", " ")
            if arguments[2:3] == ("put",)
            else done.output
        )  # a reply has lines
        return done.output

    yield invoke


AGENT = f"Adder/{NAMED}"
WITH_APP = ("--app", "nasty_app.py")
COMMANDS = [
    (("status",), 0, ""),
    (("agents", "list"), 0, SEEN),
    (("agents", "find", "adding", "--where", f'region eq "{"x"}"'), 0, "0 agents"),
    (("agents", "show", AGENT), 0, SEEN),
    (("agents", "show", f"Adder/{NASTY}"), 1, SEEN),
    (("agents", "show", NASTY), 1, "InvalidName"),
    (("events",), 0, SEEN),
    (("dead-letters", "list"), 0, SEEN),
    (("dead-letters", "show", NASTY), 1, SEEN),
    (("dead-letters", "replay", NASTY), 1, SEEN),
    (("call", AGENT, "value", *WITH_APP), 0, SEEN),
    (("call", AGENT, "put", NASTY, *WITH_APP), 0, SEEN),
    (("call", AGENT, "fail", NASTY, *WITH_APP), 1, SEEN),
    (("call", AGENT, NASTY, *WITH_APP), 1, SEEN),
    (("send", f"Adder/{NASTY}", "put", NASTY), 0, SEEN),
    (("cordon", NASTY), 1, SEEN),
    (("pools", "set", NASTY, "--standbys", "1"), 2, ""),
    (("pools", "list"), 0, "main"),
    (("status", "--at", NASTY), 2, ""),
    (("run", NASTY), 2, ""),
    (("up", NASTY), 2, ""),
    (("up", "--name", "../x*"), 2, "name"),
    (("backup", "verify", NASTY), 1, ""),
]


@pytest.mark.parametrize("command, code, wanted", COMMANDS, ids=range(len(COMMANDS)))
def test_commands(run: Any, command: tuple[str, ...], code: int, wanted: str) -> None:
    if command[:2] == ("backup", "verify"):
        code = 2  # there is no such file
    said = run(*command, code=code)
    assert wanted in said
    if command[0] in ("run", "up"):
        return
    json.loads(run(*command, "--json", code=code).replace("}\n{", "},{").join("[]"))


def test_one_dead_letter_as_a_whole(run: Any) -> None:
    (letter,) = [
        one
        for one in json.loads(run("dead-letters", "list", "--json"))
        if one["agent_id"] == "Adder/plain"
    ]
    assert letter["arguments"] == [NASTY] and NASTY in letter["error"]
    shown = run("dead-letters", "show", letter["id"])
    assert SEEN in shown and "\\x1b[2J" in shown and "Traceback" in shown


def test_a_backup_of_it(run: Any, directory: Path) -> None:
    assert "agents" in run("backup", "create", str(directory / "b[x].backup"))
    assert "b[x].backup" in run("backup", "verify", str(directory / "b[x].backup"))


def made(kind: Any, **given: Any) -> Any:
    """A struct of which each text is nasty."""
    values: dict[str, Any] = {}
    for name, annotation in kind.__annotations__.items():
        text = str(annotation)
        if "list[str]" in text:
            values[name] = [NASTY]
        elif text == "str":
            values[name] = NASTY
        elif text.startswith(("int", "float")):
            values[name] = 1
        elif text == "bool":
            values[name] = False
    return kind(**{**values, **given})


def test_hosts_and_nodes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def connected(at: str) -> AsyncIterator[Any]:
        yield None

    async def listed(_engine: object) -> tuple[list[HostView], Presence]:
        return [made(HostView), made(HostView, state="gone", member=True)], Presence()

    monkeypatch.setattr(hosts, "connected", connected)
    monkeypatch.setattr(hosts, "list_hosts", listed)
    assert SEEN in run("hosts")
    monkeypatch.setattr(Node, "members", lambda self: [made(MemberInfo)])
    assert SEEN in run("status")
    assert SEEN in json.dumps(json.loads(run("status", "--json")))


def test_findings_events_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    code = next(iter(KINDS))
    doctor._show(Diagnosis([Finding(code, "critical", NASTY, NASTY, NASTY)], 1, 1, 1))
    hosts.say(NASTY)
    scrub._say("comparing", {"stream": NASTY})
    backup._reporter(False)("again", {"why": NASTY})
    said = capsys.readouterr()
    clean(said.out + said.err)
    assert said.out.count(SEEN) >= 5 and said.err.count(SEEN) == 1


def written(say: up._Speaker) -> None:
    """Close it once all is written: by itself it waits no longer than a second."""
    say._out.writer.close(240.0)
    say.close()


def test_what_up_shows(capfd: pytest.CaptureFixture[str]) -> None:
    say = up._Speaker(as_json=False)
    names = {
        name for text in up._TEXTS.values() for _, name, _, _ in Formatter().parse(text) if name
    }
    for event in up._TEXTS:
        say(event, dict.fromkeys({*names, "host"}, NASTY))
        say(event, {**dict.fromkeys(names, NASTY), "kinds": [NASTY], "urls": [NASTY]})
    written(say)
    said = capfd.readouterr().out
    clean(said)
    assert said.count(SEEN) > len(up._TEXTS)
    say = up._Speaker(as_json=True)
    say("node-said", {"text": NASTY, "number": float("nan")})
    written(say)
    line = capfd.readouterr().out
    assert line.count("\n") == 1 and json.loads(line)["text"] == NASTY
    clean(line)


def test_what_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("app[/x]")  # not of the tree that the tests' own handlers listen to
    kept = logging.lastResort
    try:
        said.show_warnings()
        assert logging.lastResort is not None
        logger.addHandler(logging.lastResort)
        logger.info("%s", "too little to be shown")
        try:
            raise ValueError(NASTY)
        except ValueError as error:
            logger.warning("failed: %s", error, exc_info=True)
    finally:
        logging.lastResort = kept
    shown = capfd.readouterr().err
    clean(shown)
    assert shown.startswith("WARNING app[/x]: failed: " + SEEN) and "Traceback" in shown
    assert all(line.startswith("  ") for line in shown.splitlines()[1:])
