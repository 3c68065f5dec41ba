"""What every engine checks before it writes: subjects, cells and batches. Nothing unusable reaches
a log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from holdfast.engines.base import Record
from holdfast.errors import InvalidName, TooLarge

_TOKEN: Final = r"[^\s\x00-\x1f\x7f.*>]+"
_SUBJECT: Final = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*").fullmatch
_FILTER: Final = re.compile(rf"(?:(?:\*|{_TOKEN})\.)*(?:\*|>|{_TOKEN})").fullmatch
_CELL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
SUBJECT_BYTES_MAX: Final = 2048
HEADER_BYTES: Final = 512
"""What a record's headers take beside its subjects and its payload, at most."""


def check_cell(cell: str) -> str:
    """The cell's name, if it is 1 to 64 of ``A-Za-z0-9_-``. Raises `InvalidName`."""
    if not _CELL(cell):
        raise InvalidName(f"{cell!r} is no name of a cell: use 1 to 64 of A-Z a-z 0-9 _ -")
    return cell


def check_subject(subject: str) -> str:
    """The subject, if it is a dotted path of tokens without wildcards. Raises `InvalidName`."""
    if not _SUBJECT(subject) or len(subject) > SUBJECT_BYTES_MAX:
        raise InvalidName(
            f"{subject[:80]!r} is no subject: a dotted path of tokens without spaces, *, >"
        )
    return subject


def check_filter(subject_filter: str) -> str:
    """The filter, if it is a subject, perhaps with ``*`` tokens and a trailing ``>``. Raises
    `InvalidName`."""
    if not _FILTER(subject_filter) or len(subject_filter) > SUBJECT_BYTES_MAX:
        raise InvalidName(
            f"{subject_filter[:80]!r} is no filter: a dotted path of tokens, with * and a trailing "
            ">"
        )
    return subject_filter


def check_batch(
    cell: str, records: Sequence[Record], record_max: int, batch_max: int, bytes_max: int
) -> int:
    """The batch's size in bytes, if an engine with these limits may write it. Raises `InvalidName`,
    `TooLarge`."""
    if not records:
        raise InvalidName("a batch has at least one record")
    if len(records) > batch_max:
        raise TooLarge(f"a batch of {len(records)} records; {batch_max} are allowed")
    prefix = cell + "."
    subjects: set[str] = set()
    total = 0
    for subject, payload, expect in records:
        if (
            not subject.startswith(prefix)
            or not _SUBJECT(subject)
            or len(subject) > SUBJECT_BYTES_MAX
        ):
            raise InvalidName(
                f"{subject[:80]!r} is no subject in cell {cell}: write {prefix}TOKEN.TOKEN"
            )
        if expect is not None:
            if expect.subject in subjects:
                raise InvalidName(
                    f"the expectation on {expect.subject} names what an earlier record writes"
                )
            if expect.subject != subject and (
                not expect.subject.startswith(prefix) or not _SUBJECT(expect.subject)
            ):
                raise InvalidName(
                    f"{expect.subject[:80]!r} is no subject in cell {cell}, to expect something of"
                )
        size = len(subject) + len(payload) + HEADER_BYTES
        if size > record_max:
            raise TooLarge(
                f"the record of {subject[:80]} takes {size} bytes; {record_max} are allowed"
            )
        total += size
        subjects.add(subject)
    if len(subjects) != len(records):
        raise InvalidName("a subject stands twice in one batch")
    if total > bytes_max:
        raise TooLarge(f"a batch of {total} bytes; {bytes_max} are allowed")
    return total
