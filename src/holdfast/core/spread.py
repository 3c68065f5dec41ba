"""Where the leaders of the cells should be: spread over the servers, so that a loss stalls one
share only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def one_move(leaders: Mapping[str, str], servers: Sequence[str]) -> tuple[str, str] | None:
    """A cell and the server that should lead it, or None where no server leads two more than
    another.

    ``leaders``: which server leads each cell, ``servers``: those that keep all of them. Applied
    again and again it ends.
    """
    counts = dict.fromkeys(sorted(servers), 0)
    for server in leaders.values():
        counts[server] = counts.get(server, 0) + 1
    if not counts:
        return None
    most = max(counts, key=lambda server: counts[server])
    least = min(counts, key=lambda server: counts[server])
    if counts[most] - counts[least] < 2 or least not in servers:
        return None
    return min(cell for cell, server in leaders.items() if server == most), least
