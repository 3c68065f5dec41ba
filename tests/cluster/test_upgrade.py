"""Rolling upgrades of real hosts under load, from an older code tree to this one, back, and forward
for good."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.app import Account
from tests.cluster.test_placement import Load, until

import holdfast
from holdfast import ConfigError, LocalCluster, Node, NoResponders
from holdfast.admin.fleet import upgrade
from holdfast.engines.base import Bus
from holdfast.errors import NotDone
from holdfast.host.rpc import service
from holdfast.records import packs
from holdfast.version import VERSION

APP = str(Path(__file__).parent / "app.py")
NEW = Path(holdfast.__file__).parent
OLD_VERSION = "0.0.9"


def older_tree(directory: Path) -> Path:
    """This code as it was before records had a third version, without packs."""
    tree = directory / "older"
    shutil.copytree(NEW, tree / "holdfast", ignore=shutil.ignore_patterns("__pycache__"))
    for name, now, then in (
        (
            "records/agent_record.py",
            "RECORD_VERSION: Final = 3\n",
            "RECORD_VERSION: Final = 2\n",
        ),
        ("version.py", 'VERSION = version("holdfast")', f'VERSION = "{OLD_VERSION}"'),
    ):
        path = tree / "holdfast" / name
        text = path.read_text()
        assert now in text, f"{name} has changed: make this test's older tree anew"
        path.write_text(text.replace(now, then))
    return tree


async def packs_of(node: Node) -> set[str]:
    shown = [
        await node.engine.log.subjects(cell, [packs.filter_of(cell)])
        for cell in node.manifest.cells
    ]
    return set().union(*(one.subjects for one in shown if one is not None))


def versions_of(node: Node) -> dict[str, str]:
    return {member.host: member.version for member in node.members() if member.kinds}


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.capability("F1", "D6")
async def test_a_rolling_upgrade_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def patient(bus: Bus, operation: str, kind: Any, **_: Any) -> Any:
        return await service.ask_hosts(
            bus, operation, kind, expected=("h1", "h2", "h3"), wait_seconds=240.0
        )

    async def restart(names: Sequence[str] = ()) -> list[str]:
        """Restart hosts; a host whose server was busy for a moment is not well, and nothing is
        done."""
        async with asyncio.timeout(600):
            while True:
                try:
                    return await upgrade.restart_hosts(node, names, timeout_seconds=600)
                except NotDone as error:
                    if "is not well" not in str(error):
                        raise
                await asyncio.sleep(1.0)

    monkeypatch.setattr(upgrade, "ask_hosts", patient)
    monkeypatch.setattr(service.ask_host, "__defaults__", (None, 240.0))
    monkeypatch.setattr(upgrade, "_CHECK_SECONDS", 240.0)
    monkeypatch.setattr(upgrade, "_PATIENCE_SECONDS", 240.0)
    installed = tmp_path / "installed"

    def install(tree: Path) -> None:
        installed.unlink(missing_ok=True)
        installed.symlink_to(tree)

    older = older_tree(tmp_path)
    install(older)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    async with LocalCluster(tmp_path / "data", [APP]) as cluster, Node.join(cluster.urls) as node:
        await node.ready()
        assert set(versions_of(node).values()) == {OLD_VERSION}
        assert node.manifest.record_version == 2
        with pytest.raises(NoResponders, match="h9"):
            await upgrade.restart_hosts(node, ["h9"])
        load = Load(node)

        install(NEW.parent)
        await restart(["h1"])
        await until(
            lambda: versions_of(node) == {"h1": VERSION, "h2": OLD_VERSION, "h3": OLD_VERSION}
        )
        with pytest.raises(ConfigError, match=r"h[23]-1.* cannot read records of version 3"):
            await upgrade.finalize(node)
        # Back to the older code, which reads whatever the newer one wrote; and then forward, all of
        # them.
        install(older)
        await restart(["h1"])
        await until(lambda: set(versions_of(node).values()) == {OLD_VERSION})
        install(NEW.parent)
        assert await restart() == ["h1", "h2", "h3"]
        await until(lambda: versions_of(node) == dict.fromkeys(("h1", "h2", "h3"), VERSION))

        assert not await packs_of(node)
        assert await upgrade.finalize(node) == 3
        assert await upgrade.finalize(node) == 3  # once more is harmless
        async with asyncio.timeout(240):
            while not await packs_of(node):
                await asyncio.sleep(0.05)
        await load.end()
        assert await node.agent(Account, "a0").ask(Account.value) == load.added["a0"]

        # The older code has no way in any more, and says why.
        program = (
            "import asyncio; from holdfast import Node\n"
            f"async def main():\n    async with Node.join({cluster.urls}): pass\n"
            "asyncio.run(main())"
        )
        code = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program],
            env={"PYTHONPATH": str(older)},
            capture_output=True,
            text=True,
        )
        assert code.returncode != 0
        assert "ConfigError" in code.stderr and "upgrade Holdfast on this host" in code.stderr
