"""What own_correct learns in reasoned mode, on made-up rollouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demur.training import own_rollouts
from demur.training.data import Example
from demur.training.errors import TrainingError
from demur.training.forward import NOTHING, collate
from demur.training.own_rollouts import ROLLOUTS, own_correct_rows
from demur.training.rollouts import Rollout
from tests.training import tiny

SOURCE = {"recipe_sha256": "a", "task": "b", "data": "c"}
#: Thoughts of at most 3 tokens, and the decision behind each.
DRAWN = {"0": [((7,), 0), ((8, 9), 1)], "1": [((7,), 0), ((8,), 2)], "2": [((7, 8, 9), 2), ((9, 9), 2)]}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[tuple[int, ...], int]]]:
    """What the model of the test draws, by row; each row once."""
    found = dict(DRAWN)

    def roll_out(_: Any, examples: list[Example], **__: Any) -> list[list[Rollout]]:
        return [[Rollout(thought, option, np.ones(3) / 3) for thought, option in found.pop(e.hash)] for e in examples]

    monkeypatch.setattr(own_rollouts, "roll_out", roll_out)
    monkeypatch.setattr(own_rollouts, "load_weights", lambda *_: tiny.model())
    return found


def rows(out: Path, **source: str) -> tuple[Example, ...]:
    """Of three rows whose gold options are 0, 1 and 2."""
    recipe = tiny.recipe(
        method="own_correct", rollout={"kind": "forced", "group": 2, "max_tokens": 3}, optimiser={"micro_batch": 4}
    )
    return own_correct_rows(recipe, Path(), tiny.examples(3), tiny.tokenizer(), out, SOURCE | source)


def test_every_right_rollout_is_learned_and_rows_without_one_are_counted(
    drawn: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    learned = rows(tmp_path)
    assert [(e.hash, e.gold, e.thought) for e in learned] == [("0", 0, (7,)), ("2", 2, (7, 8, 9)), ("2", 2, (9, 9))]
    assert "own rollouts: 3 of 6 decided right; 1 of 3 rows have none" in capsys.readouterr().err
    # Only where the model itself ended a thought is its end learned.
    targets = collate(learned, pad_id=0, learns_prefix=False)["targets"].tolist()
    assert targets == [
        [NOTHING, NOTHING, 7, 2, NOTHING],
        [7, 8, 9, NOTHING, NOTHING],
        [NOTHING, 9, 9, 2, NOTHING],
    ]


def test_rollouts_are_drawn_once_unless_recipe_task_or_data_changed(drawn: dict[str, Any], tmp_path: Path):
    first = rows(tmp_path)
    assert not drawn
    assert rows(tmp_path) == first
    drawn |= {row: [((5,), int(row))] for row in DRAWN}
    assert [e.thought for e in rows(tmp_path, data="others")] == [(5,)] * 3
    assert [path.name for path in tmp_path.iterdir()] == [ROLLOUTS]


def test_without_a_right_rollout_there_is_nothing_to_learn(drawn: dict[str, Any], tmp_path: Path):
    drawn |= {row: [((5,), (int(row) + 1) % 3)] * 2 for row in DRAWN}
    with pytest.raises(TrainingError, match="none of 6 rollouts decided right"):
        rows(tmp_path)
