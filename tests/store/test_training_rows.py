"""What a model may learn from feedback."""

import dataclasses
import json

from click.testing import CliRunner

from demur.decision.question import Option, Question
from demur.server.cli import main
from demur.training.recipe import Source
from demur.training.sources import read_source

from .making import draw, give, opened, put, record


def test_what_was_learned_from_feedback_never_certifies(database, tmp_path, monkeypatch):
    """Labels of decisions that were not drawn become training data; audits and their inputs stay out."""
    one = opened(database)
    rows = [
        record(name, input=text, input_hash=text, drawn=False)
        for name, text in (("a", "sky"), ("b", "grass"), ("c", "blood"), ("d", "sea"), ("other", "sun"))
    ]
    rows[-1] = dataclasses.replace(rows[-1], task="animals")
    put(one, *rows, record("silent", input_hash="x"))
    # Somebody else asked what "sea" is, and that was drawn.
    draw(one, record("drawn", drawn=True, input="sea", input_hash="sea"), record("e", drawn=True, input="rose"))
    given = [
        ("a", "blue"),
        ("b", "red"),
        ("d", "blue"),
        ("e", "red"),
        ("drawn", "blue"),
        ("other", "red"),
        ("silent", "red"),
    ]
    give(one, *given)
    give(one, ("b", "green"))
    one.close()
    monkeypatch.setenv("DEMUR_STORE_URL", database)
    found = CliRunner().invoke(main, ["store", "export", "--training", "--task", "colours"])
    assert found.exit_code == 0, found.output
    assert [json.loads(line) for line in found.stdout.splitlines()] == [
        {"id": "a", "input": "sky", "label": "blue"},
        {"id": "b", "input": "grass", "label": "green"},
    ]
    (tmp_path / "train.jsonl").write_text(found.stdout)
    question = Question("Which?", tuple(Option(name) for name in ("red", "green", "blue")))
    read = read_source(Source(path="train.jsonl"), tmp_path, question, drop=False)
    assert [(row.text, row.label) for row in read.rows] == [("sky", 2), ("grass", 1)]
    audits = [json.loads(line)["id"] for line in CliRunner().invoke(main, ["store", "export"]).stdout.splitlines()]
    assert audits == ["drawn", "e"]
    assert "needs a --task" in CliRunner().invoke(main, ["store", "export", "--training"]).output
