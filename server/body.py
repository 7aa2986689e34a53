"""Reads a request's body within its limits: plain, chunked or compressed."""

import zlib
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol

import zstandard
from starlette.requests import ClientDisconnect, Request

from demur.server.errors import MalformedBody, TooLarge, UnsupportedMediaType
from demur.server.interruption import HungUp
from demur.server.strict_json import parse_json

ENCODINGS = "gzip, zstd"
#: Compressed input is fed in such pieces: four bytes of zstd can stand for 128 KiB, so one piece for 2 MiB at most.
_PIECE = 64
#: A zstd window may claim up to this many bytes of memory; RFC 9659 asks servers for 8 MiB.
_ZSTD_WINDOW = 8 * 2**20


async def read_json(request: Request, *, max_bytes: int, max_nesting: int) -> Any:
    """The JSON value in a body.

    Raises `UnsupportedMediaType`, `TooLarge` (as soon as the limit is passed, on the wire or unpacked),
    `MalformedBody` and `HungUp`.
    """
    _check_media_type(request.headers.get("content-type"))
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    data = await _read(request, max_bytes)
    if encoding not in ("identity", ""):
        data = _unpack(data, encoding, max_bytes)
    return parse_json(data, max_nesting)


def _check_media_type(content_type: str | None) -> None:
    media, _, parameters = (content_type or "").partition(";")
    charset = parameters.strip().lower().replace('"', "").replace(" ", "")
    if media.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        shown = f"not {content_type[:80]!r}" if content_type else "and there is no Content-Type"
        raise UnsupportedMediaType(f"the body must be `application/json` in UTF-8, {shown}")


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        _too_large(limit, int(declared))
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                _too_large(limit, size)
            chunks.append(chunk)
    except ClientDisconnect:
        raise HungUp from None
    return b"".join(chunks)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _unpack(data: bytes, encoding: str, limit: int) -> bytes:
    decompressor: _Decompressor
    if encoding in ("gzip", "x-gzip"):
        decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    elif encoding == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    else:
        raise UnsupportedMediaType(
            f"the Content-Encoding {encoding[:40]!r} is not supported; use one of {ENCODINGS}",
            headers={"Accept-Encoding": ENCODINGS},
        )
    pieces: list[bytes] = []
    size = 0
    rest = _pieces(data)
    try:
        for piece in rest:
            unpacked = decompressor.decompress(piece)
            size += len(unpacked)
            if size > limit:
                _too_large(limit, size, " once decompressed")
            pieces.append(unpacked)
            if decompressor.eof:
                break
    except (zlib.error, zstandard.ZstdError):
        raise MalformedBody(f"the body is not valid {encoding}") from None
    if not decompressor.eof:
        raise MalformedBody(f"the {encoding} body ends too early")
    if decompressor.unused_data or next(rest, None):
        raise MalformedBody(f"something follows the {encoding} stream")
    return b"".join(pieces)


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))


def _too_large(limit: int, size: int, how: str = "") -> NoReturn:
    raise TooLarge(f"the body has {size} bytes or more{how}, the limit is {limit}", limit=limit, size=size)
