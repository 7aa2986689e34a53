import gzip
import json
import random
import zlib
from contextlib import suppress

import httpx
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from demur.server.errors import MalformedBody
from demur.server.strict_json import parse_json

from .conftest import INLINE, serving

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "what", "line", "column"),
    [
        (b"", "EOF", 1, 1),
        (b"{", "EOF", 1, None),
        (b'{"input": }', "expected value", 1, 11),
        (b'{"input": "x",}', "trailing comma", 1, None),
        (b'{\n "a": 1,\n "a": 2}', 'duplicate key "a"', 3, None),
        (b'{"o": {"k": 1, "k": 1}}', 'duplicate key "k"', 1, None),
        (b'{"input": NaN}', "expected value", 1, 11),
        (b'{"input": Infinity}', "expected value", 1, 11),
        (b'{"input": -Infinity}', "invalid number", 1, None),
        (b'{"input": "\xff"}', "invalid unicode", 1, None),
        (b'{"input": "\xed\xa0\x80"}', "invalid unicode", 1, None),
        (b'{"input": "\\ud800"}', "hex escape", 1, None),
        (b'{"input": "\\ude00\\ud83d"}', "surrogate", 1, None),
        (b"\xef\xbb\xbf{}", "byte order mark", 1, 1),
        (b'{"input": "a\x00"}', "control character", 1, None),
        (b'{"a": 1} {"b": 2}', "trailing characters", 1, 10),
        (b'{"input":\n ' + b"[" * 65 + b"]" * 65 + b"}", "deeper than 64", 2, 65),
        (b"[" * 100_000, "deeper than 64", 1, 65),
        (b'{"a":' * 100_000, "deeper than 64", 1, None),
        (b'{"input": ' + b"9" * 65 + b"}", "longer than 64", 1, 11),
        (b'{"input": 1.' + b"3" * 5000 + b"}", "longer than 64", 1, 11),
        (b'{"input": 1e400}', "range of a double", 1, 11),
        (b'{"input": -1E+999}', "range of a double", 1, 11),
        (b"{'input': 1}", "key must be a string", 1, None),
        (b'"\xc0\x80"', "invalid unicode", 1, None),
    ],
)
async def test_what_is_not_json_is_refused_with_its_place(plain, body, what, line, column):
    client, stub = plain
    reply = await client.post("/decide", content=body, headers=JSON)
    problem = reply.json()
    assert (reply.status_code, problem["type"]) == (400, "urn:demur:problem:malformed_body")
    assert what.lower() in problem["detail"].lower()
    assert problem["line"] == line
    assert column is None or problem["column"] == column
    assert 0 <= problem["offset"] <= len(body)
    assert not stub.asked


@pytest.mark.parametrize(
    "value",
    ["[[[[" * 30, "9" * 500, "1e400", {"deep": [[[[[1]]]]]}, 1e300, 2**127, "\U0001f600 \x00"],
)
async def test_what_only_looks_absurd_is_read(plain, value):
    client, _ = plain
    reply = await client.post("/decide", content=json.dumps({**INLINE, "input": value}), headers=JSON)
    assert reply.status_code == 200


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(_json, st.booleans())
def test_json_that_python_writes_is_read_back(value, ascii_only):
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(), 64) == value


@given(st.binary(max_size=60))
def test_bytes_are_read_or_refused_never_anything_else(data):
    with suppress(MalformedBody):
        parse_json(data, 8)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/json; charset=latin-1",
        "multipart/form-data; boundary=x",
        "",
    ],
)
async def test_wrong_content_types(plain, content_type):
    client, _ = plain
    headers = {} if content_type is None else {"Content-Type": content_type}
    reply = await client.post("/decide", content=json.dumps(INLINE), headers=headers)
    assert (reply.status_code, reply.json()["type"]) == (415, "urn:demur:problem:unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_right_content_types(plain, content_type):
    client, _ = plain
    reply = await client.post("/decide", content=json.dumps(INLINE), headers={"Content-Type": content_type})
    assert reply.status_code == 200


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


async def _chunked(data: bytes, size: int = 100):
    for start in range(0, len(data), size):
        yield data[start : start + size]


LIMIT = 2000
BIG = json.dumps({**INLINE, "input": "x" * LIMIT}).encode()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("encoding", [None, "gzip", "zstd"])
async def test_a_body_over_its_limit(rig, chunked, encoding):
    built = rig(max_body_bytes=LIMIT)
    packed = {None: lambda data: data, "gzip": gzip.compress, "zstd": _zstd}[encoding](BIG)
    headers = JSON | ({"Content-Encoding": encoding} if encoding else {})
    async with built.client() as client:
        reply = await client.post("/decide", content=_chunked(packed) if chunked else packed, headers=headers)
        problem = reply.json()
        assert (reply.status_code, problem["type"], problem["limit"]) == (413, "urn:demur:problem:too_large", LIMIT)
        assert problem["size"] > LIMIT
    assert not built.stub.asked


async def test_a_declared_length_over_the_limit_is_refused_unread(rig):
    built = rig(max_body_bytes=LIMIT)
    status = []

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        status.append(message.get("status"))

    headers = [(b"content-type", b"application/json"), (b"content-length", b"99999999")]
    scope = {"type": "http", "method": "POST", "path": "/decide", "headers": headers, "query_string": b""}
    await built.app(scope, receive, send)
    assert status[0] == 413


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_bomb_is_stopped_early(rig, encoding):
    zeros = b"0" * (64 * 2**20)
    packed = gzip.compress(zeros) if encoding == "gzip" else _zstd(zeros)
    assert len(packed) < 100_000
    async with rig(max_body_bytes=100_000).client() as client:
        reply = await client.post("/decide", content=packed, headers=JSON | {"Content-Encoding": encoding})
    assert reply.status_code == 413
    assert reply.json()["size"] < 4 * 2**20


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("zstd", _zstd), ("ZSTD", _zstd), ("identity", bytes)],
)
async def test_compressed_bodies(plain, encoding, pack):
    client, _ = plain
    body = pack(json.dumps(INLINE).encode())
    reply = await client.post("/decide", content=body, headers=JSON | {"Content-Encoding": encoding})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"{}", 400),
        ("zstd", b"{}", 400),
        ("gzip", gzip.compress(b"{}")[:-4], 400),
        ("zstd", _zstd(b'{"input": "abc"}')[:-3], 400),
        ("gzip", gzip.compress(b"{}") + b"more", 400),
        ("zstd", _zstd(b"{}") + b"more", 400),
        ("gzip", b"", 400),
        ("br", b"{}", 415),
        ("gzip, gzip", b"{}", 415),
        ("deflate", zlib.compress(b"{}"), 415),
    ],
)
async def test_broken_compression(plain, encoding, body, status):
    client, _ = plain
    reply = await client.post("/decide", content=body, headers=JSON | {"Content-Encoding": encoding})
    assert reply.status_code == status
    assert status != 415 or "zstd" in reply.headers["accept-encoding"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_what_follows_the_stream_is_refused_wherever_it_ends(plain, encoding):
    """It is fed piece by piece, and an end may fall together with that of a piece."""
    client, _ = plain
    pack = gzip.compress if encoding == "gzip" else _zstd
    noise = random.Random(0)
    tried = (pack(json.dumps(INLINE | {"input": noise.randbytes(n % 64).hex()}).encode()) for n in range(1000))
    body = next(body for body in tried if len(body) % 64 == 0)
    headers = JSON | {"Content-Encoding": encoding}
    assert (await client.post("/decide", content=body, headers=headers)).status_code == 200
    reply = await client.post("/decide", content=body + pack(b"more"), headers=headers)
    assert (reply.status_code, reply.json()["detail"]) == (400, f"something follows the {encoding} stream")


def _many(item: str, n: int = 20_000) -> str:
    return ",".join(item % i if "%" in item else item for i in range(n))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/decide", f'{{"task": "route-ticket", "input": 1, {_many(chr(34) + "k%d" + chr(34) + ": 1")}}}'),
        ("/decide", f'{{"question": "q", "input": 1, "options": [{_many(chr(34) + "a" + chr(34))}]}}'),
        ("/decide", f'{{"question": "q", "input": 1, "options": [1, {{{_many(chr(34) + "k%d" + chr(34) + ": 1")}}}]}}'),
        ("/decide", f'{{"question": "q", "input": 1, "options": [{_many("1")}]}}'),
        ("/decide", f'{{"task": "route-ticket", "inputs": [{_many("null")}]}}'),
        ("/decide", f'{{"task": "route-ticket", "input": 1, "{"x" * 100_000}": 1}}'),
        ("/decide", f'{{"{"x" * 100_000}": 1, "{"x" * 100_000}": 2}}'),
        ("/v1/systemone", f'{{"state": "s", "questions": {{{_many(chr(34) + "k%d" + chr(34) + ": 1")}}}}}'),
        (
            "/v1/systemone",
            f'{{"questions": {{"q": {{"type": "noul", "criteria": {{{_many(chr(34) + "k%d" + chr(34) + ": 1")}}}}}}}}}',
        ),
    ],
)
async def test_absurd_bodies_get_small_answers(plain, path, body):
    client, _ = plain
    reply = await client.post(path, content=body, headers=JSON)
    assert 400 <= reply.status_code < 500
    assert len(reply.content) < 20_000


async def test_a_body_over_the_limit_is_answered_on_a_real_connection(rig):
    async with serving(rig(max_body_bytes=10_000).app) as url, httpx.AsyncClient(base_url=url) as client:
        for content in (b"x" * 5_000_000, _chunked(b"x" * 1_000_000, 10_000)):
            reply = await client.post("/decide", content=content, headers=JSON)
            assert (reply.status_code, reply.json()["limit"]) == (413, 10_000)
        assert (await client.post("/decide", json=INLINE)).status_code == 200
