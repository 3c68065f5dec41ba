"""`holdfast doctor`: what is wrong, what it means, and what to do."""

from __future__ import annotations

import typer

from holdfast.admin.doctor.doctor import Diagnosis, diagnose, unreachable
from holdfast.admin.doctor.findings import KINDS, needs_action
from holdfast.admin.doctor.local_doctor import examine_file
from holdfast.admin.doctor.survey import survey
from holdfast.cli.common import EXIT_NEVER, At, Json, connected, execute
from holdfast.cli.place import where
from holdfast.cli.printing import Styled, bold, out
from holdfast.errors import ConfigError, NotDone
from holdfast.node.settings import Local, parse

_COLOURS = {"critical": "bold red", "warning": "yellow", "notice": "cyan"}


def doctor(at: At = "", as_json: Json = False) -> None:
    """Look at all hosts, nodes and streams, or at an embedded log's file, and say what is wrong.

    It needs no majority. It ends with 1 where something needs to be done.
    """

    async def work() -> Diagnosis:
        found = parse(where(at))
        if isinstance(found, Local):
            return await examine_file(found.path)
        try:
            async with connected(at) as engine:
                return diagnose(await survey(engine))
        except (NotDone, ConfigError) as error:
            return unreachable(error)

    diagnosis = execute(work(), as_json)
    if as_json:
        out.json({"healthy": not needs_action(diagnosis.findings), **_plain(diagnosis)})
    else:
        _show(diagnosis)
    if needs_action(diagnosis.findings):
        raise typer.Exit(EXIT_NEVER)


def _plain(diagnosis: Diagnosis) -> dict[str, object]:
    findings = [
        {
            "code": one.code,
            "severity": one.severity,
            "where": one.where,
            "seen": one.seen,
            "meaning": KINDS[one.code].meaning,
            "do": one.do,
            "then": [
                {"code": other.code, "where": other.where, "seen": other.seen} for other in one.then
            ],
        }
        for one in diagnosis.findings
    ]
    return {
        "findings": findings,
        "hosts": diagnosis.hosts,
        "nodes": diagnosis.nodes,
        "streams": diagnosis.streams,
    }


def _show(diagnosis: Diagnosis) -> None:
    for one in diagnosis.findings:
        lead = (Styled(one.severity, _COLOURS[one.severity]), " ", bold(one.code), " ")
        out.block(f"{one.where}: {one.seen}", *lead)
        out.print(f"  {KINDS[one.code].meaning}", style="dim")
        for code in dict.fromkeys(other.code for other in one.then):
            places = ", ".join(other.where for other in one.then if other.code == code)
            out.print(f"  with it: {code} {places}", style="dim")
        out.print(f"  do: {one.do}")
    seen = (
        f"{diagnosis.hosts} hosts, {diagnosis.nodes} nodes, {diagnosis.streams} streams looked at"
    )
    if not needs_action(diagnosis.findings):
        out.print(
            Styled("nothing needs to be done", "bold green"), f"; {seen}" if diagnosis.hosts else ""
        )
    elif diagnosis.hosts:
        out.print(seen, style="dim")
