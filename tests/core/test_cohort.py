"""The steps of a change of the cohort, from any cohort to any other, with servers that die on the
way.

Quorum: each step is taken while a majority of the voters is alive, and a majority of the voters is
alive after it. Copies: a server that is alive leaves only when it keeps nothing, and nobody is to
keep more copies than there are voters. Ends: with enough alive, the steps end with exactly those
voting who are to vote.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.cohort import (
    Copies,
    Done,
    Evacuate,
    Remove,
    Situation,
    StandDown,
    Vote,
    Wait,
    next_step,
)

HOSTS = [f"h{n}" for n in range(1, 8)]


class Cluster:
    """What the engine does with the steps."""

    def __init__(
        self, voting: list[str], target: list[str], dead: set[str], lost: set[str]
    ) -> None:
        self.servers = {host: f"{host}-new" if host in lost else f"{host}-a" for host in HOSTS}
        self.target = target
        self.voters = {f"{host}-a": host not in dead | lost for host in voting}
        self.copies = {"g1c0": len(voting), "g1reg": len(voting)}
        self.kept = {stream: [f"{host}-a" for host in voting] for stream in self.copies}
        self.idle: set[str] = set()

    def situation(self) -> Situation:
        keeps = {
            server: sum(server in kept for kept in self.kept.values()) for server in self.voters
        }
        return Situation(
            self.target, self.servers, self.voters, keeps, self.copies, True, sorted(self.idle)
        )

    def has_majority(self) -> bool:
        return sum(self.voters.values()) * 2 > len(self.voters)

    def fill(self, but: str = "") -> None:
        for stream, kept in self.kept.items():
            kept[:] = kept[: self.copies[stream]]
            for server, alive in self.voters.items():
                if (
                    alive
                    and server not in kept
                    and server != but
                    and len(kept) < self.copies[stream]
                ):
                    kept.append(server)

    def take(self, step: object) -> None:
        if isinstance(step, Remove):
            if self.voters[step.server]:
                assert not any(step.server in kept for kept in self.kept.values())
            del self.voters[step.server]
            for kept in self.kept.values():
                if step.server in kept:
                    kept.remove(step.server)
            self.idle |= {host for host in HOSTS if self.servers[host] == step.server}
        elif isinstance(step, Evacuate):
            for kept in self.kept.values():
                if step.server in kept:
                    kept.remove(step.server)
            self.fill(step.server)
            assert all(len(self.kept[stream]) == copies for stream, copies in self.copies.items())
            return
        elif isinstance(step, Vote):
            self.voters[self.servers[step.host]] = True
        elif isinstance(step, Copies):
            assert step.copies <= len(self.voters)
            self.copies[step.stream] = step.copies
        elif isinstance(step, StandDown):
            self.idle.remove(step.host)
        self.fill()


@given(data=st.data())
def test_from_any_cohort_to_any_other(data: st.DataObject) -> None:
    voting = data.draw(st.permutations(HOSTS))[: data.draw(st.sampled_from([3, 5]))]
    away = data.draw(st.sets(st.sampled_from(voting), max_size=len(voting) // 2))
    lost = data.draw(st.sets(st.sampled_from(sorted(away)))) if away else set()
    dead = away - lost
    there = [host for host in HOSTS if host not in dead]
    size = data.draw(st.sampled_from([size for size in (3, 5) if size <= len(there)]))
    target = sorted(data.draw(st.permutations(there))[:size])
    cluster = Cluster(voting, target, dead, lost)
    for _ in range(60):
        step = next_step(cluster.situation())
        assert not isinstance(step, Wait), step
        if isinstance(step, Done):
            break
        assert cluster.has_majority()
        cluster.take(step)
        assert cluster.has_majority()
    assert set(cluster.voters) == {cluster.servers[host] for host in target}
    assert set(cluster.copies.values()) == {len(target)}
    assert all(sorted(kept) == sorted(cluster.voters) for kept in cluster.kept.values())
    assert not cluster.idle - set(target)


def test_without_a_majority_nothing_is_done() -> None:
    cluster = Cluster(["h1", "h2", "h3"], ["h1", "h4", "h5"], {"h2", "h3"}, set())
    assert isinstance(next_step(cluster.situation()), Wait)


def test_nothing_more_is_done_while_replicas_are_copied() -> None:
    situation = Cluster(["h1", "h2", "h3"], ["h1", "h2", "h4"], set(), set()).situation()
    assert isinstance(next_step(situation._replace(settled=False)), Wait)
    assert next_step(situation) == Vote("h4")
