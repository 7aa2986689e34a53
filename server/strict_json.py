"""JSON as RFC 8259 has it, and no more: what is malformed, ambiguous or absurd is refused, with its place."""

import re
from typing import Any

import jiter
import numpy as np

from demur.server.errors import MalformedBody

#: Characters of one number. Doubles need 25 at most; identifiers of 128 bits have 39 digits.
MAX_NUMBER_LENGTH = 64

_PLACE = re.compile(r" at line (\d+) column (\d+)$")
_LONG_NUMBER = re.compile(rb"[-+.0-9eE]{%d}" % (MAX_NUMBER_LENGTH + 1))
_LARGE_EXPONENT = re.compile(rb"[eE]\+?[0-9]{3}")
_LARGE_NUMBER = re.compile(rb"-?[0-9][.0-9]*[eE]\+?[0-9]{3,}")


def parse_json(data: bytes, max_nesting: int) -> Any:
    """The value of a JSON text.

    Raises `MalformedBody` for syntax errors, duplicate keys, NaN and infinities, a byte order mark, invalid UTF-8,
    lone surrogates (escaped ones too), nesting beyond `max_nesting` and absurdly long or large numbers.
    """
    if data.count(b"[") + data.count(b"{") > max_nesting or _LONG_NUMBER.search(data) or _LARGE_EXPONENT.search(data):
        _refuse_absurdities(data, max_nesting)
    try:
        value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise _explain(str(error), data) from None
    return value


def malformed(what: str, data: bytes, offset: int) -> MalformedBody:
    """The error that says what is wrong at a byte offset, with line and column (both from 1, in bytes)."""
    line = data.count(b"\n", 0, offset) + 1
    column = offset - (data.rfind(b"\n", 0, offset) + 1) + 1
    return MalformedBody(
        f"the body is not valid JSON: {what} at line {line} column {column}", line=line, column=column, offset=offset
    )


def _explain(message: str, data: bytes) -> MalformedBody:
    """The parser's complaint with its place, which it counts in lines and columns from 1."""
    if data.startswith(b"\xef\xbb\xbf"):
        return malformed("a byte order mark stands before the JSON text", data, 0)
    place = _PLACE.search(message)
    if place is None:
        return malformed(_clip(message), data, 0)
    start = 0
    for _ in range(int(place[1]) - 1):
        start = data.index(b"\n", start) + 1
    return malformed(_clip(message[: place.start()]), data, min(start + max(int(place[2]) - 1, 0), len(data)))


def _clip(message: str) -> str:
    # The complaint about a duplicate key quotes it, and keys can be long.
    return message if len(message) <= 200 else f"{message[:200]}…"


def _refuse_absurdities(data: bytes, max_nesting: int) -> None:
    """Looks between the strings for deep nesting and absurd numbers, on arrays: megabytes must not stall the server.

    Where the text is no JSON the strings may be misjudged; the parser refuses it then.
    """
    text = np.frombuffer(data.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
    quotes = text == ord('"')
    inside = np.logical_xor.accumulate(quotes) | quotes
    text = np.where(inside, ord(" "), text)
    opened = ((text == ord("[")) | (text == ord("{"))).astype(np.int8)
    closed = ((text == ord("]")) | (text == ord("}"))).astype(np.int8)
    too_deep = np.cumsum(opened - closed, dtype=np.int32) > max_nesting
    if too_deep.any():
        raise malformed(f"nested deeper than {max_nesting} levels", data, int(too_deep.argmax()))
    bare = text.tobytes()
    if long := _LONG_NUMBER.search(bare):
        raise malformed(f"a number longer than {MAX_NUMBER_LENGTH} characters", data, long.start())
    for number in _LARGE_NUMBER.finditer(bare):
        if _is_infinite(number[0]):
            raise malformed("a number beyond the range of a double", data, number.start())


def _is_infinite(number: bytes) -> bool:
    try:
        return abs(float(number)) == float("inf")
    except ValueError:  # not a number at all: the parser will say so
        return False
