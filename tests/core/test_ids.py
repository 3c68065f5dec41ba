"""A token gives back the kind and the name that it was made of, is one token of a subject, and
never changes.

Shards are computed from tokens by every process of every version: known values are written down
here, because another function would look for all agents in other shards.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import ids, limits
from holdfast.engines.base import matches
from holdfast.errors import ConfigError, InvalidName

utf8 = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
kinds = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,63}", fullmatch=True)


@given(kinds, utf8)
def test_tokens_are_reversible_and_usable_in_a_subject(kind: str, name: str) -> None:
    token = ids.agent_token(kind, name)
    assert ids.from_agent_token(token) == (kind, name)
    assert re.fullmatch(r"[A-Za-z0-9_/%-]+", token)
    assert matches("c0.*.st.*", f"c0.17.st.{token}")


@given(utf8, utf8)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assert (ids.agent_token("Kind", one) == ids.agent_token("Kind", other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("acme", "Reviewer/acme"),
        ("acme/api", "Reviewer/acme%2Fapi"),
        ("v1.2", "Reviewer/v1%2E2"),
        ("a b\n", "Reviewer/a%20b%0A"),
        ("ü*>~%", "Reviewer/%C3%BC%2A%3E%7E%25"),
        ("..", "Reviewer/%2E%2E"),
    ],
)
def test_known_tokens(name: str, token: str) -> None:
    assert ids.agent_token("Reviewer", name) == token


@pytest.mark.parametrize(
    ("token", "shards", "shard"),
    [
        ("Reviewer/acme", 64, 55),
        ("Reviewer/acme", 128, 55),
        ("Counter/0", 64, 28),
        ("Reviewer/%C3%BC%2A%3E%7E%25", 64, 1),
    ],
)
def test_shards_never_change(token: str, shards: int, shard: int) -> None:
    assert ids.shard_of(token, shards) == shard


def test_shards_are_spread() -> None:
    counts = [0] * 64
    for index in range(64_000):
        counts[ids.shard_of(ids.agent_token("Counter", str(index)), 64)] += 1
    assert 700 < min(counts) <= max(counts) < 1300


def test_digest64_never_changes() -> None:
    # Kept in agents' records with ids given by users: another function would say ReplayMismatch to
    # every retry.
    assert ids.digest64(b"") == 16476032584258269876
    assert ids.digest64(b"holdfast") == 10350056928587850845


@pytest.mark.parametrize("kind", ["", "1a", "a-b", "a b", "é", "a" * 65, "a.b", "a\n"])
def test_no_kind(kind: str) -> None:
    for refused in (lambda: ids.check_kind(kind), lambda: ids.agent_token(kind, "a")):
        with pytest.raises(InvalidName):
            refused()


@pytest.mark.parametrize("name", ["", "a" * 257, "é" * 129, "\ud800"])
def test_no_name(name: str) -> None:
    with pytest.raises(InvalidName):
        ids.check_name(name)


def test_a_name_is_a_str() -> None:
    with pytest.raises(InvalidName, match="int"):
        ids.check_name(7)  # type: ignore[arg-type]


def test_the_longest_name_still_fits_a_subject() -> None:
    token = ids.agent_token("K" * 64, "é" * (limits.NAME_BYTES_MAX // 2))
    assert len(token) == 64 + 1 + 3 * limits.NAME_BYTES_MAX
    assert ids.from_agent_token(token) == ("K" * 64, "é" * (limits.NAME_BYTES_MAX // 2))


@pytest.mark.parametrize("capability", ["review", "gpu:a100", "text/plain", "v1.2_x-y"])
def test_a_capability(capability: str) -> None:
    assert ids.check_capability(capability) == capability


@pytest.mark.parametrize("capability", ["", "a b", "é", "a" * 129, "a*", None, 7])
def test_no_capability(capability: str) -> None:
    with pytest.raises(InvalidName):
        ids.check_capability(capability)


def test_agent_ids_as_people_write_them() -> None:
    assert ids.parse_agent_id("Reviewer/acme/api") == ("Reviewer", "acme/api")
    for wrong in ("Reviewer", "/a", "Reviewer/", "a b/c"):
        with pytest.raises(InvalidName):
            ids.parse_agent_id(wrong)


def test_new_ids_differ() -> None:
    made = {ids.new_id("n") for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"n-[0-9a-f]{12}", one) for one in made)


@pytest.mark.parametrize(
    "name", ["x*", "../x", "a/b", "a b", ">", "", "x" * 300, ".x", "-x", "a\nb", "\x1b[2J", "é", 7]
)
def test_a_host_or_node_has_a_name_that_harms_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        ids.check_machine(name, "host")


@pytest.mark.parametrize(
    "name", ["a", "web-1", "10.0.0.7", "n-5f3a9c21b0e4", "host_1.example.org", "0"]
)
def test_usual_names_of_hosts_are_taken(name: str) -> None:
    assert ids.check_machine(name, "host") == name
