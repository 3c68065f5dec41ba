"""A message has one effect and one answer: the tables against a plain model, in random histories.

The model keeps everything for ever. The tables may forget what the caller closed (below its lowest
open number) or what is past its time, and then they must say `DROPPED` or `NEW` exactly where the
header of `core/delivery.py` says so.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from holdfast import limits
from holdfast.core.delivery import Caller, Remembered, Seen, Verdict


def empty() -> Seen:
    return Seen({}, {})


def kept(seen: Seen) -> int:
    answers = [answer for caller in seen.callers.values() for answer in caller.answers.values()]
    return sum(map(len, answers)) + sum(len(entry.answer) for entry in seen.ids.values())


class History(RuleBasedStateMachine):
    """Callers that number their asks, retry, and close them in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = empty()
        self.now = 1000.0
        self.answers: dict[tuple[str, int], bytes] = {}
        self.open: dict[str, set[int]] = {}
        self.next: dict[str, int] = {}
        self.lowest: dict[str, int] = {}
        self.deadline: dict[str, float] = {}

    def low(self, name: str) -> int:
        return min(self.open[name], default=self.next[name])

    @rule(name=st.sampled_from("abc"), size=st.integers(0, 9), patience=st.floats(0, 30))
    def ask(self, name: str, size: int, patience: float) -> None:
        number = self.next.get(name, 1)
        self.next[name] = number + 1
        self.open.setdefault(name, set()).add(number)
        low = self.low(name)
        assert self.seen.check_caller(name, number, low) is Verdict.NEW
        answer = bytes([size]) * size
        self.seen.note_caller(name, number, low, self.now + patience, answer)
        self.answers[name, number] = answer
        self.lowest[name] = low
        self.deadline[name] = max(self.deadline.get(name, 0.0), self.now + patience)

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name = data.draw(
            st.sampled_from(sorted(name for name, numbers in self.open.items() if numbers))
        )
        self.open[name].discard(data.draw(st.sampled_from(sorted(self.open[name]))))

    @precondition(lambda self: bool(self.answers))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        name, number = data.draw(st.sampled_from(sorted(self.answers)))
        if name not in self.seen.callers:
            return
        low = self.low(name)
        found = self.seen.check_caller(name, number, low)
        self.lowest[name] = low
        assert found == (Verdict.DROPPED if number < low else self.answers[name, number])

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.seen.expire(self.now)
        for name, deadline in self.deadline.items():
            over = deadline < self.now - limits.CLOCK_SKEW_SECONDS
            assert (name in self.seen.callers) != over or name not in self.lowest
            if over:
                # All its messages are past their deadline on every clock: none will be started, so
                # it starts anew.
                self.answers = {key: value for key, value in self.answers.items() if key[0] != name}
                self.open[name] = set()
                self.lowest.pop(name, None)
        self.deadline = {name: at for name, at in self.deadline.items() if name in self.lowest}

    @invariant()
    def bytes_are_counted(self) -> None:
        assert self.seen.bytes_kept == kept(self.seen)

    @invariant()
    def nothing_is_kept_below_the_lowest_open_number(self) -> None:
        for name, caller in self.seen.callers.items():
            assert all(number >= self.lowest[name] for number in caller.answers)


TestHistory = History.TestCase


def test_an_old_low_does_not_open_what_was_closed() -> None:
    seen = empty()
    seen.note_caller("a", 5, 5, 10.0, b"five")
    assert seen.check_caller("a", 6, 6) is Verdict.NEW
    assert seen.check_caller("a", 5, 1) is Verdict.DROPPED
    assert seen.check_caller("a", 6, 1) is Verdict.NEW


def test_a_caller_goes_only_when_all_its_deadlines_are_over_on_any_clock() -> None:
    seen = empty()
    seen.note_caller("a", 1, 1, 100.0, b"x")
    seen.note_caller("a", 2, 1, 50.0, b"y")
    seen.expire(100.0 + limits.CLOCK_SKEW_SECONDS)
    assert seen.check_caller("a", 1, 1) == b"x"
    seen.expire(100.1 + limits.CLOCK_SKEW_SECONDS)
    assert seen.callers == {}
    assert seen.bytes_kept == 0


@given(st.binary(max_size=20), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_an_id_answers_the_same_message_and_refuses_another(
    answer: bytes, digest: int, other: int
) -> None:
    seen = empty()
    assert seen.check_id("pr-42", digest, lambda: digest) is Verdict.NEW
    seen.note_id("pr-42", 10.0, digest, answer)
    assert seen.check_id("pr-42", digest, lambda: digest) == answer
    assert seen.check_id("pr-42", other, lambda: other) == (
        answer if other == digest else Verdict.MISMATCH
    )
    seen.expire(10.0)
    assert seen.check_id("pr-42", digest, lambda: digest) == answer
    seen.expire(10.1)
    assert seen.check_id("pr-42", other, lambda: other) is Verdict.NEW
    assert seen.bytes_kept == 0


def test_an_id_answers_whatever_means_the_same() -> None:
    for noted, canonical in ((7, 9), (9, 0)):  # 0: its bytes are their own meaning
        seen = empty()
        seen.note_id("pr-42", 10.0, noted, b"a", canonical)
        assert seen.check_id("pr-42", noted, lambda: 5) == b"a"
        assert seen.check_id("pr-42", 8, lambda: 9) == b"a"
        assert seen.check_id("pr-42", 8, lambda: 8) is Verdict.MISMATCH
        assert seen.check_id("pr-42", 0, lambda: 0) is Verdict.MISMATCH


def test_full_tables_say_so_and_still_answer_what_they_know() -> None:
    seen = empty()
    for index in range(limits.MESSAGE_IDS_MAX):
        seen.note_id(f"id-{index}", 10.0, index, b"")
    for index in range(limits.CALLERS_MAX):
        seen.note_caller(f"caller-{index}", 1, 1, 10.0, b"")
    assert seen.check_id("another", 0, lambda: 0) is Verdict.FULL
    assert seen.check_id("id-7", 7, lambda: 7) == b""
    assert seen.check_caller("another", 1, 1) is Verdict.FULL
    assert seen.check_caller("caller-7", 1, 1) == b""
    assert seen.check_caller("caller-7", 2, 1) is Verdict.NEW
    seen.expire(11.0 + limits.CLOCK_SKEW_SECONDS)
    assert seen.check_id("another", 0, lambda: 0) is Verdict.NEW
    assert seen.check_caller("another", 1, 1) is Verdict.NEW


@pytest.mark.parametrize("over", [0, 1])
def test_answers_are_bounded_in_bytes(over: int) -> None:
    seen = empty()
    seen.note_caller("a", 1, 1, 10.0, bytes(limits.ANSWERS_BYTES_MAX + over))
    assert seen.full() is bool(over)
    seen.check_caller("a", 2, 2)
    assert not seen.full()


def test_the_bytes_of_loaded_tables_are_counted() -> None:
    seen = Seen({"a": Caller(1, 0.0, {1: b"xx", 2: b"y"})}, {"id": Remembered(1.0, 7, b"zzz")})
    assert seen.bytes_kept == 6
