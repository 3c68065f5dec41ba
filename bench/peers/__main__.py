"""`python -m bench.peers [--only NAME,...]`: one after the other, each in its own processes on this
machine, one table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import number

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-peers"
PACKAGES = ("ray==2.60.*", "xoscar==0.12.*", "distributed==2026.8.*")
PEERS = ("holdfast", "ray", "xoscar", "dask")
TITLES = {
    "holdfast": "Holdfast: 3 servers, 3 copies, fsync",
    "ray": "Ray: 8 actors, a process each",
    "xoscar": "xoscar: 1,000 actors in 2 processes",
    "dask": "Dask: 100 actors in 2 processes",
}
RATIOS = (("create", "create"), ("durable", "calls"), ("calls", "calls"))
TIMEOUT_SECONDS = 300


def prepare() -> Path:
    """An environment of their own, so that nothing of them is in ours; return its Python."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def run(name: str, python: Path) -> dict[str, float | str]:
    """One peer's figures. Raises `RuntimeError` with what it said instead."""
    if name == "holdfast":
        command, where = [sys.executable, "-m", "bench.peers.holdfast_peer"], ROOT
    else:
        command, where = [str(python), f"{name}_peer.py"], HERE
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, float | str] = json.loads(line.removeprefix("RESULT "))
            return found
    raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")


def shown(value: float | str) -> str:
    """A figure with as many digits as mean something."""
    return value if isinstance(value, str) else number(value)


def main() -> int:
    """Measure all, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PEERS))
    wanted = parser.parse_args().only.split(",")
    out = Console(highlight=False)
    python = prepare() if {*wanted} - {"holdfast"} else Path()
    found = {}
    for name in wanted:
        found[name] = run(name, python)
        out.print(f"{TITLES[name]}: {found[name]}", style="dim")
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "",
        "create /s",
        "durable calls /s",
        "other calls /s",
        "one call, ms",
        "after kill -9",
    ):
        made.add_column(column, justify="left" if column in ("", "after kill -9") else "right")
    for name, figures in found.items():
        cells = [
            shown(figures.get(key, "none"))
            for key in ("create", "durable", "calls", "one_ms", "killed")
        ]
        made.add_row(TITLES[name], *cells)
    out.print()
    out.print(made)
    ours = found.get("holdfast")
    for name in found:
        if ours is None or name == "holdfast":
            continue
        ratios = [float(ours[one]) / float(found[name][other]) for one, other in RATIOS]
        text = (
            "create {:,.1f} x, durable calls {:.1f} x its calls, readers {:.1f} x its calls".format(
                *ratios
            )
        )
        slower = float(ours["one_ms"]) / float(found[name]["one_ms"])
        out.print(
            f"Holdfast beside {name}: {text}; one durable call takes {slower:.1f} x as long as one "
            "of its calls"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
