"""`holdfast dead-letters`: messages that kept failing, with their errors."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from holdfast.cli.bounds import Commands
from holdfast.cli.common import At, Json, ago, execute, joined
from holdfast.cli.printing import Table, out, shown
from holdfast.errors import NotFound

app = Commands(no_args_is_help=True, help="Messages that kept failing: list, show, replay, drop.")
Id = Annotated[str, typer.Argument(metavar="ID", help="As `dead-letters list` shows it.")]


@app.command("list")
def list_letters(
    at: At = "",
    agent: Annotated[
        str, typer.Option("--agent", metavar="KIND/NAME", help="Only of this agent.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the dead letters that wait."""

    async def work() -> None:
        async with joined(at, reads=True) as node:
            letters = await node.dead_letters.all(agent)
        if as_json:
            out.json(letters)
            return
        made = Table("ID", "AGENT", "HANDLER", "~ERROR", "#AGE")
        for letter in letters:
            text = f"{letter.kind_of_error}: {letter.error}"
            made.add_row(
                letter.id, letter.agent_id, letter.handler, text, ago(time.time() - letter.at)
            )
        out.print(made)
        out.print(f"{len(letters)} dead letters", style="dim")

    execute(work(), as_json)


@app.command("show")
def show_letter(letter_id: Id, at: At = "", as_json: Json = False) -> None:
    """Show one with its arguments and the whole error."""

    async def work() -> None:
        async with joined(at, reads=True) as node:
            found = next(
                (letter for letter in await node.dead_letters.all() if letter.id == letter_id), None
            )
        if found is None:
            raise NotFound(
                f"there is no dead letter {letter_id}: it may have been replayed or dropped"
            )
        if as_json:
            out.json(found)
            return
        out.print(f"{found.agent_id} {found.handler} ", out.cut_value(shown(found.arguments)))
        out.print(f"{found.attempts} attempts, {ago(time.time() - found.at)} ago", style="dim")
        out.block(f"{found.kind_of_error}: {found.error}")
        if found.details:
            out.block(found.details.rstrip(), style="dim")

    execute(work(), as_json)


@app.command("replay")
def replay_letter(letter_id: Id, at: At = "", as_json: Json = False) -> None:
    """Put the message into its agent's inbox again."""

    async def work() -> None:
        async with joined(at) as node:
            await node.dead_letters.replay(letter_id)
        if as_json:
            out.json({"replayed": letter_id})
        else:
            out.print(f"replayed {letter_id}")

    execute(work(), as_json)


@app.command("drop")
def drop_letter(letter_id: Id, at: At = "", as_json: Json = False) -> None:
    """Forget the message."""

    async def work() -> None:
        async with joined(at) as node:
            await node.dead_letters.drop(letter_id)
        if as_json:
            out.json({"dropped": letter_id})
        else:
            out.print(f"dropped {letter_id}")

    execute(work(), as_json)
