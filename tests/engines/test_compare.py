"""Readouts of one task, compared on real rows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demur.decision.taskfile import load_task
from demur.server.cli_tasks import read_rows
from demur.server.compare import compare_readouts

if TYPE_CHECKING:
    from tests.live import Live


@pytest.mark.engine
def test_the_demo_model_reads_best_what_it_was_trained_to_read(live: "Live") -> None:
    task = load_task(Path("examples/tasks/voice_intent.yaml"))
    rows = read_rows(Path("examples/data/voice_intent.jsonl"), task)[:40]
    trials = {trial.name: trial for trial in live.run(compare_readouts(live.pipeline, task, rows))}
    assert set(trials) == {"letter", "text, sum", "text, mean", "text, prior"}
    read = trials["text, sum"]  # what the task file says
    assert read.accuracy == max(trial.accuracy or 0 for trial in trials.values())
    assert read.accuracy > (trials["letter"].accuracy or 0)
    assert all(0 < trial.label_mass <= 1 and trial.n == 40 for trial in trials.values())


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"input": "x"}', '{"input": "x", "label": "none of these"}', "[" * 99_999, "\udcff"]
)
def test_rows_that_are_wrong_are_named(line: str, tmp_path: Path) -> None:
    task = load_task(Path("examples/tasks/voice_intent.yaml"))
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"input": "two\u2028lines", "label": task.spec.question.names[0]}, ensure_ascii=False)
    path.write_text(f"{good}\n{line}\n", errors="surrogateescape")
    with pytest.raises(Exception, match=r"rows\.jsonl:2"):
        read_rows(path, task)
