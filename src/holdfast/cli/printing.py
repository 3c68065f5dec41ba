"""Everything that the commands print: users' text is data, whatever it holds.

Names, states, errors and events are text of users, and of whoever can write to the cluster. Printed
as they are, `[/x]` is a tag of some markup, ESC moves the cursor or sets the clipboard, a
right-to-left override shows another name than the one that is there, and a line feed makes a line
that looks like ours. So there is no markup here at all: a style is an object (`Styled`), and every
other text is printed with each character that cannot be seen written as Python writes it
(``\\x1b``, ``\\u202e``). Nothing else in `cli` prints; a test holds that.

Lines are never folded: an id stays in one piece, to be copied, and a program that reads a pipe gets
whole lines. Only the cells of free text in a table are cut. What ``--json`` prints is valid JSON
for every value that an agent can store.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from math import isfinite
from typing import Any, Final, NamedTuple, TextIO

import msgspec

from holdfast.said import visible

FREE_TEXT_MAX: Final = 200
"""Characters of a cell of free text in a table; on a terminal fewer, as many as there is room
for."""

VALUE_MAX: Final = 4000
"""Characters of a value that is shown to people on a terminal."""

_DEPTH_MAX: Final = 200
_CELL_MIN: Final = 12
_REFRESH_SECONDS: Final = 0.25
_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_SGR: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Styled(NamedTuple):
    """A text with a style: words of ``bold dim red green yellow cyan``."""

    text: str
    style: str


Part = str | Styled


def bold(text: str) -> Styled:
    """The text in bold."""
    return Styled(text, "bold")


def width_of(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF")
        for one in text
    )


def cut(text: str, columns: int) -> str:
    """The text in at most so many columns; where there is more, the last one says so."""
    if width_of(text) <= columns:
        return text
    room, kept = columns - 1, 0
    for one in text:
        room -= width_of(one)
        if room < 0:
            break
        kept += 1
    return text[:kept] + "…"


def moment(seconds: float) -> str:
    """A time in seconds since 1970 as people read it here; what is not a time as it is."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"at {seconds}"


class Table:
    """Rows under headings. In front of a column's name, ``#`` means numbers, ``~`` free text, which
    may be cut."""

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self.rows: list[tuple[Part, ...]] = []
        self.show_header = True

    def add_row(self, *cells: Part) -> None:
        """Add a row; a cell that is left out is empty."""
        self.rows.append((*cells, *[""] * (len(self.columns) - len(cells))))

    def lines(self, room: int | None) -> Iterable[list[Part]]:
        """The lines, as parts. ``room``: the columns of the terminal, None where there is none."""
        head = [tuple(bold(name.lstrip("#~")) for name in self.columns)] if self.show_header else []
        rows = [
            [self._cell(cell, number) for number, cell in enumerate(row)]
            for row in [*head, *self.rows]
        ]
        widths = [
            max((width_of(row[number].text) for row in rows), default=0)
            for number in range(len(self.columns))
        ]
        self._fit(widths, room)
        last = len(self.columns) - 1
        for row in rows:
            line: list[Part] = []
            for number, (name, width, (text, style)) in enumerate(
                zip(self.columns, widths, row, strict=True)
            ):
                text = cut(text, width) if name.startswith("~") else text
                blank = " " * (width - width_of(text))
                if name.startswith("#"):
                    line += [blank, Styled(text, style)]
                else:
                    line += [Styled(text, style), blank if number < last else ""]
                line.append("  " if number < last else "")
            yield line

    def _cell(self, cell: Part, number: int) -> Styled:
        text, style = cell if isinstance(cell, Styled) else (cell, "")
        text = visible(text)
        return Styled(
            cut(text, FREE_TEXT_MAX) if self.columns[number].startswith("~") else text, style
        )

    def _fit(self, widths: list[int], room: int | None) -> None:
        """Take from the widest cells of free text what does not fit into the room."""
        free = [number for number, name in enumerate(self.columns) if name.startswith("~")]
        while room is not None and free and sum(widths) + 2 * (len(widths) - 1) > room:
            widest = max(free, key=lambda number: widths[number])
            if widths[widest] <= _CELL_MIN:
                return
            widths[widest] -= 1


class Printer:
    """The standard output, or the standard error."""

    def __init__(self, stderr: bool = False) -> None:
        self._stderr = stderr

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self._stderr else sys.stdout

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return self._stream.isatty()

    @property
    def room(self) -> int | None:
        """The columns of the terminal, None where there is none."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    def print(self, *parts: Part | Table, style: str = "", end: str = "\n") -> None:
        """One line of the parts, with nothing between them; or a table."""
        if len(parts) == 1 and isinstance(parts[0], Table):
            lines = (
                "".join(self._painted(part, style) for part in line)
                for line in parts[0].lines(self.room)
            )
            self._write("".join(line.rstrip(" ") + "\n" for line in lines))
            return
        texts = (self._painted(part, style) for part in parts if not isinstance(part, Table))
        self._write("".join(texts) + end)

    def block(self, text: str, *lead: Part, style: str = "", indent: str = "  ") -> None:
        """A text of several lines behind ``lead``. The lines after the first are indented: none
        looks like one of ours."""
        first, *others = text.expandtabs(4).replace("\r\n", "\n").split("\n")
        self.print(*lead, Styled(first, style))
        for line in others:
            self.print(Styled(indent + line, style))

    def json(self, value: Any, indent: int | None = 2) -> None:
        """One JSON document; without ``indent`` in one line."""
        self._write(json_text(value, indent) + "\n")

    def cut_value(self, text: str) -> str:
        """A value for a person at a terminal: not without end, and it is said when there is
        more."""
        if not self.is_terminal or len(text) <= VALUE_MAX:
            return text
        return f"{text[:VALUE_MAX]}… ({len(text):,} characters; --json shows all)"

    def _painted(self, part: Part, style: str) -> str:
        text, own = part if isinstance(part, Styled) else (part, "")
        codes = ";".join(_SGR[word] for word in f"{style} {own}".split())
        text = visible(text)
        return f"\x1b[{codes}m{text}\x1b[0m" if codes and text and self._colours() else text

    def _colours(self) -> bool:
        if os.environ.get("NO_COLOR"):
            return False
        return self.is_terminal and os.environ.get("TERM") != "dumb"

    def _write(self, text: str) -> None:
        stream = self._stream
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()

    def live(self, line: Callable[[], str]) -> Live:
        """A line that is written again and again while the block runs, where a person looks at
        it."""
        return Live(self, line)


class Live:
    """One line at the end of a terminal that is kept up to date, and is gone afterwards."""

    def __init__(self, printer: Printer, line: Callable[[], str]) -> None:
        self._printer = printer
        self._line = line
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holdfast-live", daemon=True)

    def __enter__(self) -> None:
        if self._printer.is_terminal:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
            self._show("")

    def _run(self) -> None:
        while not self._ended.wait(_REFRESH_SECONDS):
            self._show(cut(visible(self._line()), (self._printer.room or 80) - 1))

    def _show(self, text: str) -> None:
        self._printer._write("\r\x1b[K" + text)


def json_text(value: Any, indent: int | None = 2) -> str:
    """The value as JSON: see `plain`. A character that cannot be seen is escaped, as JSON
    escapes."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text
    )


def shown(value: Any) -> str:
    """A value for people: a text as it is, anything else as JSON in one line."""
    return value if isinstance(value, str) else json_text(value, None)


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON can have it.

    NaN and infinities become texts, as do dates, decimals and UUIDs; bytes become base64; arrays,
    tuples and sets become lists. A map's keys become texts; a map in which two of them become the
    same is a list of pairs.
    """
    if depth > _DEPTH_MAX:
        return "… (nested too deeply to be shown)"
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.encode(value, "utf-8", "backslashreplace").decode()
    if isinstance(value, Enum):
        return plain(value.value, depth + 1)
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 4096 else hex(value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else _NOT_FINITE[str(float(value))]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b64encode(bytes(value)).decode()
    if isinstance(value, Mapping):
        return _plain_map(value, depth + 1)
    if isinstance(value, AbstractSet):
        return sorted((plain(one, depth + 1) for one in value), key=repr)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [plain(one, depth + 1) for one in value]
    if isinstance(value, tuple):
        return {name: plain(one, depth + 1) for name, one in zip(value._fields, value, strict=True)}  # type: ignore[attr-defined]
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        found = {name: plain(getattr(value, field), depth + 1) for name, field in names}
        return list(found.values()) if value.__struct_config__.array_like else found
    return _plain_other(value, depth + 1)


def _plain_other(value: Any, depth: int) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name), depth) for one in fields(value)}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        found = value.tolist()
        return str(found) if found is value else plain(found, depth)
    try:
        found = msgspec.to_builtins(value)
    except (TypeError, ValueError, RecursionError):
        found = str(value)
    return plain(found if type(found) is not type(value) else str(value), depth)


def _plain_map(value: Mapping[Any, Any], depth: int) -> Any:
    pairs = [(_key(key), plain(one, depth)) for key, one in value.items()]
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    return [[plain(key, depth), one] for key, (_, one) in zip(value, pairs, strict=True)]


def _key(key: Any) -> str:
    found = plain(key)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


out: Final = Printer()
problems: Final = Printer(stderr=True)
