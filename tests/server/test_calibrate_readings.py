"""Reading rows: once each, resumed after an interruption, and never what a distribution cannot be."""

import asyncio
import json

import httpx
import numpy as np
import pytest

from demur.clients import DemurClientError
from demur.decision.errors import DataFileError
from demur.decision.labelled import parse_labelled
from demur.decision.question import Option, Question
from demur.decision.readout import Readout
from demur.decision.task import DecisionSpec, Task
from demur.server.errors import EngineUnavailable, InputTooLong
from demur.server.readings import TrainedOn, read_rows
from demur.server.url_reader import UrlReader

QUESTION = Question("Which?", (Option("a"), Option("b")))
ROWS = parse_labelled(
    b"\n".join(json.dumps({"input": f"row {n}", "label": "ab"[n % 2]}).encode() for n in range(12)), "rows", QUESTION
).rows


class StubReader:
    """Reads by the row's line; ends after so many reads if told to."""

    def __init__(self, pins=None, *, dies_after=None, says=None):
        self.pins = pins or {"weights": "1"}
        self.model = "stub"
        self.asked = []
        self.dies_after = dies_after
        self.says = says or {}

    async def read(self, row):
        await asyncio.sleep(0)
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise EngineUnavailable("the engine died")
        self.asked.append(row.line)
        if row.line in self.says:
            said = self.says[row.line]
            if isinstance(said, Exception):
                raise said
            return said
        scores = np.log([row.line / 20, 1 - row.line / 20])
        return Readout(scores, scores, 0.5)


async def test_a_run_that_was_stopped_resumes_from_the_reads_already_made(tmp_path):
    cache = tmp_path / "reads.jsonl"
    dying = StubReader(dies_after=5)
    with pytest.raises(EngineUnavailable):
        await read_rows(dying, ROWS, cache=cache, concurrency=2)
    kept = len(cache.read_text().splitlines()) - 1
    assert kept == 5
    with cache.open("a") as file:
        file.write('{"row": "cut in the mid')
    shown = []
    second = StubReader()
    read = await read_rows(second, ROWS, cache=cache, concurrency=2, progress=lambda done, n: shown.append((done, n)))
    assert len(second.asked) == 12 - 5
    assert set(second.asked).isdisjoint(dying.asked)
    assert (shown[0], shown[-1]) == ((5, 12), (12, 12))
    third = StubReader()
    again = await read_rows(third, ROWS, cache=cache)
    assert third.asked == []
    assert (again.scores == read.scores).all()
    fresh = await read_rows(StubReader(), ROWS)
    assert (fresh.scores == read.scores).all()


async def test_reads_of_another_model_are_not_used(tmp_path):
    cache = tmp_path / "reads.jsonl"
    await read_rows(StubReader(), ROWS, cache=cache)
    other = StubReader({"weights": "2"})
    await read_rows(other, ROWS, cache=cache)
    assert len(other.asked) == 12
    assert "row 1" not in cache.read_text()


@pytest.mark.parametrize("content", [b'{"input": "x", "label": "a"}\n', b"\xff\xfe", b"notes\n"])
async def test_a_file_that_is_none_of_reads_is_not_written_over(tmp_path, content):
    mine = tmp_path / "rows.jsonl"
    mine.write_bytes(content)
    with pytest.raises(DataFileError, match=r"rows\.jsonl is no file of reads"):
        await read_rows(StubReader(), ROWS, cache=mine)
    assert mine.read_bytes() == content


async def test_rows_that_do_not_fit_or_were_trained_on_are_counted_and_left_out():
    too_long = InputTooLong("too long", tokens=9, allowed=1)
    read = await read_rows(StubReader(says={3: too_long, 5: TrainedOn(), 6: TrainedOn()}), ROWS)
    assert {row.line for row in read.rows}.isdisjoint({3, 5, 6})
    assert (len(read.rows), read.left_out) == (9, {"trained_on": 2, "too_long": 1})
    with pytest.raises(DataFileError, match=r"no row is left: 0 do not fit .* trained on 12"):
        await read_rows(StubReader(says=dict.fromkeys(range(1, 13), TrainedOn())), ROWS)


@pytest.mark.parametrize(
    ("scores", "mass", "said"),
    [
        ([np.nan, 0.0], 0.5, "is not a distribution"),
        ([np.inf, 0.0], 0.5, "is not a distribution"),
        ([-np.inf, -np.inf], 0.5, "is not a distribution"),
        ([0.0, 0.0], 1.5, "is not a distribution"),
        ([0.0, 0.0, 0.0], 0.5, "3 options, but the rows before have 2"),
    ],
)
async def test_what_is_no_distribution_is_refused_with_its_line(scores, mass, said):
    readout = Readout(np.array(scores), np.array(scores), mass)
    with pytest.raises(DataFileError, match=f"line 4: .*{said}"):
        await read_rows(StubReader(says={4: readout}), ROWS)


@pytest.mark.parametrize(
    ("inputs", "status", "type_"),
    [(["a", None], 422, "invalid_request"), (["a"] * 257, 413, "too_large")],
)
async def test_readings_are_asked_for_as_decisions_are(plain, inputs, status, type_):
    client, _ = plain
    problem = (await client.post("/tasks/silent/readings", json={"inputs": inputs})).json()
    assert (problem["status"], problem["type"]) == (status, f"urn:demur:problem:{type_}")
    assert problem.get("faults", [{}])[0].get("path") == (["inputs", 1] if status == 422 else None)
    assert (problem.get("limit"), problem.get("size")) == ((256, 257) if status == 413 else (None, None))


def url_reader(*replies):
    """A reader of a server that gives these replies, one after the other."""
    script = iter(replies)
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: next(script)), base_url="http://demur.test")
    pinned = {"pins": {"weights": "1"}, "model": "stub", "readout": "letter"}
    return UrlReader(http, Task("t", DecisionSpec(QUESTION)), pinned)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_is_busy_is_asked_again(status):
    busy = httpx.Response(status, headers={"Retry-After": "0"}, json={"detail": "later"})
    read = httpx.Response(200, json={"items": [{"scores": [-0.5, None], "label_mass": 0.9}]})
    readout = await url_reader(busy, busy, read).read(ROWS[0])
    assert readout.scores.tolist() == [-0.5, -np.inf]
    with pytest.raises(DemurClientError, match=f"answers {status}: later"):
        await url_reader(*[busy] * 20).read(ROWS[0])


async def test_a_server_that_is_another_one_is_said():
    with pytest.raises(DemurClientError, match="not as a Demur server does"):
        await url_reader(httpx.Response(200, text="<html>")).read(ROWS[0])
