"""The parts of the speed benchmark that need no engine."""

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from benchmarks.serving.load import drive
from benchmarks.serving.report import Row, paired, table
from benchmarks.serving.rounds import in_turn


class _Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if self.path == "/echo" else 422)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_callers_send_every_body_at_most_once(echo: int) -> None:
    burst = drive(echo, "/echo", [{"number": number} for number in range(20_000)], callers=3, seconds=0.3)
    numbers = [answer["number"] for answer in burst.answers]
    assert len(numbers) == len(set(numbers)) == len(burst.latencies)
    assert burst.rate == len(numbers) / burst.seconds


def test_a_burst_without_a_time_answers_every_body(echo: int) -> None:
    burst = drive(echo, "/echo", [{"number": number} for number in range(50)], callers=8)
    assert sorted(answer["number"] for answer in burst.answers) == list(range(50))


@pytest.mark.parametrize(("path", "bodies", "message"), [("/other", 9, "422"), ("/echo", 3, "ran out of requests")])
def test_a_burst_that_measures_nothing_is_an_error(echo: int, path: str, bodies: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        drive(echo, path, [{}] * bodies, callers=1, seconds=30)


def test_arms_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, int]] = []

    def arm(name: str, figure: float) -> float:
        calls.append((name, round(figure)))
        return figure

    assert in_turn([lambda number: arm("a", number), lambda number: arm("b", 10 * number)], 2) == [[1, 2], [10, 20]]
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 10), ("a", 2), ("b", 20)]


def test_the_ratio_is_that_of_rounds() -> None:
    row = paired("x", "ms", [1, 10, 2], [2, 5, 2], at_least=1)
    assert (row.ours, row.theirs, row.ratio, row.met) == (2, 2, 1, True)
    assert "| yes |" in table([row])


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row(what="", unit="ms", ours=3, at_most=2), False),
        (Row(what="", unit="ms", ours=3, ratio=1, at_most=2), True),
        (Row(what="", unit="ms", ours=3), None),
    ],
)
def test_requirements_are_on_the_ratio_where_there_is_one(row: Row, met: bool | None) -> None:
    assert row.met is met
    assert json.dumps(row.required)
