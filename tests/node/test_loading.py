"""An application that cannot be imported: which line of it is wrong is shown, and no line of
ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast import ConfigError
from holdfast.cli.main import app
from holdfast.node.loading import load_agents

BROKEN = {
    "raises": ("x = 1\nraise KeyError('inner')\n", "line 2", "KeyError"),
    "syntax": ("def f(:\n", "line 1", "SyntaxError"),
    "exits": ("import sys\n\nsys.exit(3)\n", "line 3", "__main__"),
    "imports_nothing": ("\nimport nothing_of_this_name\n", "line 2", "nothing_of_this_name"),
    "bad_class": ("from holdfast import Agent\nclass A(Agent): pass\n", "line 2", "state"),
    "bad_pool": ("from holdfast import Pool\n\n\nPool(name='')\n", "line 4", "pool"),
    "chained": (
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise OSError() from error\n",
        "line 2",
        "OSError",
    ),
    "deep": ("def f(n):\n    f(n + 1)\nf(0)\n", "line 2", "RecursionError"),
    "string_raises": (
        "class E(Exception):\n    def __str__(self): return '[/x]\\x1b[2J'\nraise E()\n",
        "line 3",
        "[/x]",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_applications_own_traceback_is_shown(tmp_path: Path, name: str) -> None:
    text, line, word = BROKEN[name]
    path = tmp_path / f"broken_{name}.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_agents(str(path))
    (note,) = raised.value.__notes__
    assert line in note and path.name in note and word in str(raised.value) + note
    assert "importlib" not in note and "loading.py" not in note and len(note.splitlines()) < 100
    for command in (["run", str(path)], ["up", str(path)]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2 and line in done.output and "\x1b" not in done.output, (
            done.output
        )
        told = (
            json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
            if command[0] == "up"
            else {}
        )
        assert not told or (told["error"] == "ConfigError" and line in told["details"])


@pytest.mark.parametrize("name", ["missing.py", "no_module_of_this_name", "no.module.of.this.name"])
def test_an_application_that_is_not_there_has_no_traceback(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_agents(name)
    assert not getattr(raised.value, "__notes__", [])
