"""`holdfast backup` and `holdfast restore`: a cluster, or an embedded log, as one file, and
back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.admin.backup.backup import create
from holdfast.admin.backup.cut import Report
from holdfast.admin.backup.restore import restore
from holdfast.admin.backup.verify import BackupFacts, verify
from holdfast.admin.presence import require_majority
from holdfast.cli.bounds import Commands, bounds
from holdfast.cli.common import At, Json, connected, execute, joined
from holdfast.cli.place import where
from holdfast.cli.printing import bold, moment, out
from holdfast.engines.base import Engine
from holdfast.node import settings
from holdfast.security import Security

app = Commands(
    no_args_is_help=True, help="Backups: create, verify. `holdfast restore` brings one back."
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="A backup.")]


@app.command("create")
def create_backup(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_DIR", help="A file that is not there yet, or where to put it."
        ),
    ],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Write a consistent backup of a running cluster, or of an embedded log that nobody has
    open."""

    async def work() -> None:
        async with joined(at) as node:
            facts = await create(node, target, _reporter(as_json))
        _show(facts, as_json)

    execute(work(), as_json)


@app.command("verify")
def verify_backup(file: File, as_json: Json = False) -> None:
    """Check all of a backup: every byte, each shard's digest, each blob."""

    async def work() -> None:
        _show(verify(file), as_json)

    execute(work(), as_json)


def restore_backup(
    file: File,
    at: At = "",
    generation: Annotated[
        int | None,
        typer.Option(
            "--into-generation", min=2, help="Of the restored cluster. Default: the next one."
        ),
    ] = None,
    copies: Annotated[
        int | None,
        typer.Option("--copies", help="1, 3 or 5. Default: as many as there are servers."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Restore a backup into servers without data and without nodes, or into an embedded log that is
    not there yet."""

    async def work() -> None:
        place = settings.parse(where(at))
        async with _opened(place) if isinstance(place, settings.Local) else connected(at) as engine:
            await require_majority(engine)
            bounds.begun = True
            facts = await restore(
                engine, file, generation=generation, replicas=copies, report=_reporter(as_json)
            )
        _show(facts, as_json)

    execute(work(), as_json)


@asynccontextmanager
async def _opened(place: settings.Local) -> AsyncIterator[Engine]:
    engine = settings.engine(place, Security())
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


def _reporter(as_json: bool) -> Report:
    texts = {
        "read": "everything was read once",
        "cut": "writes were held for {held_seconds:.3f} s",
        "again": "again: {why}",
        "begun": "restoring as generation {generation}, {copies} copies of each record",
    }

    def report(event: str, facts: dict[str, Any]) -> None:
        if not as_json and event in texts:
            out.print(texts[event].format_map(facts), style="dim")

    return report


def _show(facts: BackupFacts, as_json: bool) -> None:
    if as_json:
        out.json(facts)
        return
    when = moment(facts.created_at)
    size = f"{facts.size / 1e6:,.1f} MB"
    out.print(bold(str(facts.path)), f"  {size}, of {when}, by Holdfast {facts.version}")
    out.print(
        f"cluster {facts.cluster}, generation {facts.generation}, cells {' '.join(facts.cuts)}"
    )
    out.print(
        f"{facts.agents} agents, {facts.messages} messages that wait, {facts.dead_letters} dead "
        f"letters, {facts.registered} registered agents, {facts.blobs} large states",
    )
