"""What `demur decide` reads, before it asks anybody."""

import pytest
from click.testing import CliRunner

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
        ("null", "null"),
        ('{"input": null}', "null"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named(line, fault):
    result = CliRunner().invoke(decide, ["task"], input=f'"fine"\n{line}\n')
    assert result.exit_code == 1
    assert result.output.startswith("Error: line 2 of the input")
    assert fault in result.output


def test_an_input_that_cannot_be_sent_is_refused():
    result = CliRunner().invoke(decide, ["task", "\udcff"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: the input holds")
