"""The tasks that ship: they load, their labels stand apart on every tokenizer, and their samples fit them."""

import json
from pathlib import Path

import pytest

from demur.decision.taskfile import check_task, load_tasks

EXAMPLES = Path(__file__).parents[2] / "examples"
TASKS = load_tasks(EXAMPLES / "tasks")


def test_three_tasks_ship_and_each_has_a_sample():
    assert set(TASKS) == {"confirmation", "moderation", "voice_intent"}
    assert {path.stem for path in (EXAMPLES / "data").glob("*.jsonl")} == {*TASKS, "voice_intent_searched"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_sample_fits_its_task(name):
    lines = (EXAMPLES / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert 100 <= len(rows) <= 700
    assert all(set(row) == {"id", "input", "label"} and row["input"].strip() for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["label"] for row in rows} == set(TASKS[name].spec.question.names)
    assert not {row["input"] for row in rows} & set(TASKS[name].examples)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_can_be_read_on_every_tokenizer(name, builder):
    assert check_task(EXAMPLES / "tasks" / f"{name}.yaml", builder) == []
    compiled = builder.compile(TASKS[name].spec)
    assert compiled.plan.needs_prior is (name != "voice_intent")
    assert compiled.render("hello there", 4096).input_tokens > 0
