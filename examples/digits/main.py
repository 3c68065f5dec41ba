"""Ten agents learn to read digits; midway what hosts them is killed with ``kill -9``; nothing is
lost, nothing is twice.

`python main.py --engine local` kills the process that hosts all ten, on an embedded log.
`python main.py --engine cluster` kills one of three hosts, with its server and its node.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from learner import Learner
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from train import judge, total, train

from holdfast import LocalCluster, Node, run

HERE = Path(__file__).parent
out = Console(highlight=False)


def bar() -> Progress:
    """A progress bar as all parts of the story have it."""
    return Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
    )


async def start_worker(path: Path) -> asyncio.subprocess.Process:
    """A process that hosts and teaches the learners."""
    return await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "worker.py"), str(path), stdout=asyncio.subprocess.PIPE
    )


async def follow(
    worker: asyncio.subprocess.Process, progress: Progress, task: TaskID, until: int = 0
) -> int:
    """Show what a worker acknowledges, to its end or to a number; return the last one heard."""
    assert worker.stdout is not None
    heard, before = 0, progress.tasks[task].completed
    while line := await worker.stdout.readline():
        heard = int(line)
        progress.update(task, completed=before + heard)
        if until and heard >= until:
            return heard
    if await worker.wait():
        raise SystemExit(f"the worker ended with code {worker.returncode}")
    return heard


async def uninterrupted(directory: Path, progress: Progress) -> list[NDArray[np.float64]]:
    """The models of a run in which nothing happens."""
    task = progress.add_task("a run in which nothing happens", total=total())
    async with Node.join(f"local:{directory / 'calm.db'}", serve=[Learner]) as node:
        await train(node, lambda _digit: progress.advance(task))
        _, weights, _ = await judge(node)
    return weights


async def embedded(directory: Path) -> bool:
    """The story in one process on an embedded log."""
    path = directory / "digits.db"
    out.print("[bold]Ten agents, one per digit, learn from 1,438 images, in order, twice.[/]")
    out.print("They live in one process on an embedded log. Midway that process is killed.\n")
    with bar() as progress:
        calm = await uninterrupted(directory, progress)
        task = progress.add_task("the same, until kill -9", total=total())
        worker = await start_worker(path)
        before = await follow(worker, progress, task, until=total() // 2)
        worker.kill()
        killed_at = time.monotonic()
        await worker.wait()
        progress.update(task, description=f"kill -9 of process {worker.pid}")
        progress.stop_task(task)
        again = progress.add_task("started again, from the log", total=total())
        second = await start_worker(path)
        assert second.stdout is not None
        first = int(await second.stdout.readline())
        away = time.monotonic() - killed_at
        async with asyncio.timeout(60):
            after = max(first, await follow(second, progress, again))
        progress.update(again, completed=total())
    async with Node.join(f"local:{path}", serve=[Learner]) as node:
        accuracy, weights, seen = await judge(node)
    out.print(f"\nkilled           process {worker.pid}, which hosted all ten agents, with kill -9")
    out.print(
        f"away             {away:.2f} s, from the kill to the next acknowledged step (a new Python "
        "included)"
    )
    out.print(f"acknowledged     at least {before:,} steps before the kill, {after:,} after it")
    return verdict(calm, weights, accuracy, seen, total() - after >= before)


async def cluster(directory: Path) -> bool:
    """The story on three hosts, of which one is killed."""
    out.print("[bold]Ten agents, one per digit, learn from 1,438 images, in order, twice.[/]")
    out.print(
        "They live on three hosts, each with its own server and node. Midway one host is killed.\n"
    )
    acknowledged = 0
    last = dict.fromkeys(range(10), 0.0)
    away: dict[int, float] = {}
    half = asyncio.Event()
    killed_at = 0.0
    with bar() as progress:
        calm = await uninterrupted(directory, progress)
        starting = progress.add_task("three hosts start", total=3)
        hosts = LocalCluster(
            directory,
            [str(HERE / "learner.py") + ":Learner"],
            report=lambda event, _facts: progress.advance(starting, event == "node-ready"),
        )
        async with hosts, Node.join(hosts.urls) as node:
            await node.ready()
            for digit in range(10):
                await node.register(Learner, f"digit-{digit}", metadata={"digit": digit})
            task = progress.add_task("the same, on the cluster", total=total())

            def count(digit: int) -> None:
                nonlocal acknowledged
                acknowledged += 1
                progress.advance(task)
                now = time.monotonic()
                if killed_at:  # the longest wait between two steps of the same agent
                    away[digit] = max(away.get(digit, 0.0), now - max(last[digit], killed_at))
                last[digit] = now
                if acknowledged == total() // 2:
                    half.set()

            training = asyncio.create_task(train(node, count))
            await half.wait()
            owners = [node.describe(f"Learner/digit-{digit}").host for digit in range(10)]
            victim = max(hosts.hosts, key=owners.count)
            before = acknowledged
            away.clear()
            killed_at = time.monotonic()
            await hosts.kill_host(victim)
            progress.update(task, description=f"kill -9 of host {victim}, going on")
            await training
            accuracy, weights, seen = await judge(node)
    there = [digit for digit, owner in enumerate(owners) if owner == victim]
    moved = sorted(away[digit] for digit in there)
    others = sorted(away[digit] for digit in away if digit not in there)
    out.print(
        f"\nkilled           host {victim}: its supervisor, its server and its node, which had "
        f"agents {there}"
    )
    out.print(
        f"away             its agents {moved[len(moved) // 2]:.2f} s (median), {moved[-1]:.2f} s "
        "(longest)"
    )
    out.print(
        f"                 the others' longest wait was {others[-1]:.2f} s: a third of the log "
        "elects a new leader"
    )
    out.print(
        f"acknowledged     {before:,} steps before the kill, {acknowledged - before:,} after it"
    )
    return verdict(calm, weights, accuracy, seen, acknowledged == total())


def verdict(
    calm: list[NDArray[np.float64]],
    weights: list[NDArray[np.float64]],
    accuracy: float,
    seen: int,
    kept: bool,
) -> bool:
    """Compare with the calm run, and say so."""
    same = all(one.tobytes() == other.tobytes() for one, other in zip(calm, weights, strict=True))
    right = same and seen == total() and kept
    lost = (
        "no acknowledged step lost, none applied twice"
        if seen == total() and kept
        else "[red]WRONG[/]"
    )
    out.print(f"applied          {seen:,} of {total():,} steps: {lost}")
    out.print(f"accuracy         {accuracy:.1%} of {360 - 1} held-out images")
    verdict = "[bold green]bit-identical[/] to the run in which nothing happened"
    out.print(f"final weights    {verdict if same else '[red]DIFFERENT[/]'}")
    return right


def main() -> int:
    """Tell the story."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("local", "cluster"), default="local")
    engine = parser.parse_args().engine
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="holdfast-digits-") as directory:
        right = run((embedded if engine == "local" else cluster)(Path(directory)))
    out.print(f"[dim]{time.monotonic() - started:.0f} s in all, process {os.getpid()}[/]")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
