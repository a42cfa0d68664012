"""JSON lines, or an array of objects, → rows."""

import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from slm.errors import UserError
from slm.source.formats.template import Row
from slm.source.formats.text import check_size, lines_of, read_chunks

_BLANK = re.compile(r"[ \t\n]*")
_OPENING, _CLOSING = re.compile(r"[ \t\n]*\["), re.compile(r"[ \t\n]*\]")
_DELIMITER, _END = re.compile(r"[ \t\n]*([,\]])"), re.compile(r"\s*\Z")
_MAX_LITERAL = 10  # characters of -Infinity, the longest one, and one more

# A large number is a problem of the column it is in, not of the file: Python refuses one of more
# than 4,300 digits.
_STRICT, _LARGE_NUMBERS = json.JSONDecoder(), json.JSONDecoder(parse_int=float)


def json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a file, each with its place, such as `line 3`.

    One object per line, or, where the file begins with `[`, an array of objects, of which only a
    few megabytes are in memory. Raises UserError naming the place where it is neither.
    """
    values = _elements(path) if _begins(path) == "[" else _lines(path)
    for place, value in values:
        if not isinstance(value, dict):
            raise UserError(
                f"{path}, {place}: a JSON {type(value).__name__}, not an object; write one object "
                "per line, for example with jq -c '.[]'"
            )
        yield place, value


def _begins(path: Path) -> str:
    """The first character that is not blank."""
    texts = (chunk.decode().lstrip() for chunk in read_chunks(path))
    return next(filter(None, texts), "")[:1]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            value = _loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error}); write one object per line, without "
                "line breaks in it, for example with jq -c"
            ) from error
        yield f"line {number}", value


def _loads(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(line, parse_int=float)


def _elements(path: Path) -> Iterator[tuple[str, Any]]:
    """The elements of an array, each with its place."""
    rest = _Rest(path)
    rest.match(_OPENING)
    if not rest.match(_CLOSING):  # else it is empty
        for number in count(1):
            place = f"element {number}"
            value, delimiter = rest.element(place)
            yield place, value
            if delimiter == "]":
                break
    if not rest.match(_END):
        raise UserError(f"{path}: something follows the end of its array; write JSON lines")


class _Rest:
    """What is left of a file that holds an array, of which one element or more is in memory.

    An element is decoded again, whole, each time that what is read of it has doubled: so a long
    one costs about twice its length.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chunks = (chunk.decode() for chunk in read_chunks(path))
        self.text = ""
        self.at = 0  # what is left begins here
        self.ended = False

    def grow(self) -> bool:
        """Read as much again as is left; whether there was more."""
        parts = [self.text[self.at :]]
        size = 0
        while size <= len(parts[0]) and not self.ended:
            chunk = next(self.chunks, None)
            self.ended = chunk is None
            parts.append(chunk or "")
            size += len(parts[-1])
        self.text, self.at = "".join(parts), 0
        check_size(self.path, len(self.text))
        return size > 0

    def match(self, pattern: re.Pattern[str]) -> bool:
        """Skip what matches, blanks before it included; whether it does."""
        while not (match := pattern.match(self.text, self.at)):
            if not _BLANK.fullmatch(self.text, self.at) or not self.grow():
                return False
        self.at = match.end()
        return True

    def element(self, place: str) -> tuple[Any, str]:
        """The next element and the `,` or `]` after it, which shows that it is complete."""
        while True:
            self.match(_BLANK)
            try:
                value, end = self._decode()
            except (json.JSONDecodeError, RecursionError) as error:
                if self._is_cut(error) and self.grow():
                    continue
                raise UserError(
                    f"{self.path}, {place}: not JSON ({error}); repair it, or write one object "
                    "per line, for example with jq -c '.[]'"
                ) from error
            if match := _DELIMITER.match(self.text, end):
                self.at = match.end()
                return value, match[1]
            if not _BLANK.fullmatch(self.text, end) or not self.grow():
                raise UserError(
                    f"{self.path}, {place}: no ',' or ']' follows it; repair the array, or write "
                    "one object per line"
                )

    def _decode(self) -> tuple[Any, int]:
        try:
            return _STRICT.raw_decode(self.text, self.at)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return _LARGE_NUMBERS.raw_decode(self.text, self.at)

    def _is_cut(self, error: Exception) -> bool:
        """Whether an error may come from what is not read yet."""
        return isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated string")
            or error.pos >= len(self.text) - _MAX_LITERAL
        )
