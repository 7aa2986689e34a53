"""What `demur decide` reads, before it asks anybody."""

import json

import pytest
from click.testing import CliRunner

from demur.server import cli_decide
from demur.server.cli_calibrate import calibrate
from demur.server.cli_decide import decide


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("NaN", "NaN"),
        ('{"input": 1e999}', "infinity"),
        (r'"\ud800"', "surrogate"),
        (r'{"input": "x", "ref": "\ud800"}', "surrogate"),
        ('{"input": "a", "input": "b"}', "given twice"),
        ("null", "null"),
        ('{"input": null}', "null"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named(line, fault):
    result = CliRunner().invoke(decide, ["task"], input=f'"fine"\n{line}\n')
    assert result.exit_code == 1
    assert result.output.startswith("Error: line 2 of the input")
    assert fault in result.output


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [("notaurl", "k", "http://"), ("http://[::", "k", "URL"), ("http://127.0.0.1:1", "k\u00fcy", "API key")],
)
def test_a_server_that_cannot_be_asked_is_said_in_a_line(monkeypatch, url, key, said):
    monkeypatch.setenv("DEMUR_API_KEY", key)
    result = CliRunner().invoke(decide, ["task", "input", "--url", url])
    assert result.exit_code == 2
    assert said in result.output
    assert "DEMUR_URL" in result.output


@pytest.mark.parametrize(("url", "key"), [("http://[::", "k"), ("http://127.0.0.1:1", "k\u00fcy")])
def test_calibrate_says_in_a_line_that_a_server_cannot_be_asked(monkeypatch, tmp_path, url, key):
    monkeypatch.setenv("DEMUR_API_KEY", key)
    files = ["--task", "examples/tasks/confirmation.yaml", "--data", "examples/data/confirmation.jsonl"]
    result = CliRunner().invoke(calibrate, [*files, "--url", url, "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert result.output == "demur: the server's URL or DEMUR_API_KEY cannot be used; check both\n"


def test_what_is_not_utf_8_is_refused():
    result = CliRunner().invoke(decide, ["task"], input=b'"fine"\n"\xff"\n')
    assert (result.exit_code, result.output) == (1, "Error: the input is not UTF-8\n")


def test_an_input_that_cannot_be_sent_is_refused():
    result = CliRunner().invoke(decide, ["task", "\udcff"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: the input holds")


def test_what_stands_beside_an_input_comes_back_even_where_the_answer_has_its_name(monkeypatch):
    monkeypatch.setattr(cli_decide, "_ask", lambda *_: iter([{"id": "dec_1", "decision": "a"}] * 2))
    lines = '{"input": "x", "id": "17", "row": 3, "ref": 5}\n{"input": "x", "ref": 6, "row": 4}\n'
    result = CliRunner().invoke(decide, ["task"], input=lines)
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first == {"ref": 5, "row": {"id": "17", "row": 3}, "id": "dec_1", "decision": "a"}
    assert second == {"ref": 6, "row": 4, "id": "dec_1", "decision": "a"}
