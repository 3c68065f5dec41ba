"""Leaders are spread: moves end, and end where no server leads two cells more than another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.spread import one_move

SERVERS = ["a", "b", "c", "d", "e"]


@given(
    count=st.integers(2, 5),
    leaders=st.dictionaries(
        st.sampled_from([f"g1c{n}" for n in range(7)]), st.sampled_from([*SERVERS, "gone"])
    ),
)
def test_moves_end_in_an_even_spread(count: int, leaders: dict[str, str]) -> None:
    servers = SERVERS[:count]
    leaders = {cell: server for cell, server in leaders.items() if server in servers}
    for _ in range(len(leaders) + 1):
        move = one_move(leaders, servers)
        if move is None:
            break
        cell, server = move
        assert leaders[cell] != server
        leaders[cell] = server
    counts = [list(leaders.values()).count(server) for server in servers]
    assert max(counts) - min(counts) < 2


def test_nothing_moves_to_a_server_that_does_not_vote() -> None:
    assert one_move({"g1c0": "a", "g1c1": "a"}, ["a"]) is None
    assert one_move({}, []) is None
