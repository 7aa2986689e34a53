"""JSON as RFC 8259 has it, and no more: what is malformed, ambiguous or absurd is refused, with its place."""

import re
from typing import Any

import jiter

from demur.server.errors import MalformedBody

#: Characters of one number. Doubles need 25 at most; identifiers of 128 bits have 39 digits.
MAX_NUMBER_LENGTH = 64

_PLACE = re.compile(r" at line (\d+) column (\d+)$")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|[-+.0-9eE]+', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[-+.0-9eE]{%d}" % (MAX_NUMBER_LENGTH + 1))
_LARGE_EXPONENT = re.compile(rb"[eE]\+?[0-9]{3}")


def parse_json(data: bytes, max_nesting: int) -> Any:
    """The value of a JSON text.

    Raises `MalformedBody` for syntax errors, duplicate keys, NaN and infinities, a byte order mark, invalid UTF-8,
    lone surrogates (escaped ones too), nesting beyond `max_nesting` and absurdly long or large numbers.
    """
    if data.count(b"[") + data.count(b"{") > max_nesting or _LONG_NUMBER.search(data) or _LARGE_EXPONENT.search(data):
        _check_tokens(data, max_nesting)
    try:
        value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise _explain(str(error), data) from None
    return value


def _explain(message: str, data: bytes) -> MalformedBody:
    """The parser's complaint with its place, which it counts in lines and columns from 1."""
    if data.startswith(b"\xef\xbb\xbf"):
        return malformed("a byte order mark stands before the JSON text", data, 0)
    place = _PLACE.search(message)
    if place is None:
        return malformed(message, data, 0)
    start = 0
    for _ in range(int(place[1]) - 1):
        start = data.index(b"\n", start) + 1
    return malformed(message[: place.start()], data, min(start + max(int(place[2]) - 1, 0), len(data)))


def malformed(what: str, data: bytes, offset: int) -> MalformedBody:
    """The error that says what is wrong at a byte offset, with line and column (both from 1, in bytes)."""
    line = data.count(b"\n", 0, offset) + 1
    column = offset - (data.rfind(b"\n", 0, offset) + 1) + 1
    return MalformedBody(
        f"the body is not valid JSON: {what} at line {line} column {column}", line=line, column=column, offset=offset
    )


def _check_tokens(data: bytes, max_nesting: int) -> None:
    depth = 0
    for match in _TOKEN.finditer(data):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > max_nesting:
                raise malformed(f"nested deeper than {max_nesting} levels", data, match.start())
        elif token in (b"]", b"}"):
            depth -= 1
        elif not token.startswith(b'"'):
            if len(token) > MAX_NUMBER_LENGTH:
                raise malformed(f"a number longer than {MAX_NUMBER_LENGTH} characters", data, match.start())
            if _is_infinite(token):
                raise malformed("a number beyond the range of a double", data, match.start())


def _is_infinite(token: bytes) -> bool:
    try:
        return float(token) in (float("inf"), float("-inf"))
    except ValueError:  # not a number at all: the parser will say so
        return False
