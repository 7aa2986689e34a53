"""The extraction diagnosis: what it counts on made-up rollouts, and that it runs on a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from demur.server.cli import main
from demur.training.data import Example
from demur.training.extraction import CONTROL, OTHER_DECISION, OTHER_ITEM, OTHER_ITEM_CONTROL, diagnose
from demur.training.jsontext import json_text
from demur.training.rollouts import Rollout, read_decisions, roll_out
from tests.models import build_model
from tests.training import tiny

TASK = "name: sky\nquestion: Which colour?\noptions: [red, green, blue]\nreadout: letter\n"
RECIPE = """\
name: sky
task: task.yaml
method: grpo
mode: reasoned
model: {path: model}
data:
  train: {path: train.jsonl}
  evaluate: {dev: {path: dev.jsonl}}
rollout: {kind: forced, group: 2, max_tokens: 3}
"""


def surely(option: int, p: float = 0.995) -> np.ndarray:
    found = np.full(3, (1 - p) / 2)
    found[option] = p
    return found


def items(decided: list[list[int]]) -> tuple[list[Example], list[list[Rollout]]]:
    """Rollouts whose thought is the decision's number."""
    drawn = [[Rollout((option,), option, surely(option)) for option in options] for options in decided]
    return tiny.examples(len(decided)), drawn


def test_a_decision_that_only_repeats_its_thought_follows_every_other_one():
    examples, drawn = items([[0, 0, 1], [2, 2, 2]])
    found = diagnose(examples, drawn, lambda _, thoughts: np.array([surely(thought[0]) for thought in thoughts]))
    assert found.extreme == 1.0
    assert found.disagree == 0.5
    for name in (OTHER_DECISION, OTHER_ITEM):
        swap = found.swaps[name]
        assert (swap.followed, swap.kept, swap.extreme) == (1.0, 0.0, 1.0)
        assert abs(swap.confidence - 0.995) < 1e-9
    # Three rollouts of the first item have another decision beside them; all six elsewhere.
    assert found.swaps[OTHER_DECISION].n == 3
    assert found.swaps[OTHER_ITEM].n == 6
    assert found.swaps[CONTROL].n == 5
    assert found.swaps[CONTROL].kept == 1.0
    assert found.swaps[OTHER_ITEM_CONTROL].n == 0
    # JSON has no NaN.
    told = json.loads(json_text(found), parse_constant=pytest.fail)
    assert told["swaps"][OTHER_ITEM_CONTROL]["followed"] is None


def test_a_decision_that_only_reads_its_prompt_stays():
    examples, drawn = items([[0, 0], [1, 1], [2, 2]])
    own = {example.hash: number for number, example in enumerate(examples)}
    found = diagnose(examples, drawn, lambda hosts, _: np.array([surely(own[host.hash], 0.6) for host in hosts]))
    swap = found.swaps[OTHER_ITEM]
    assert (swap.n, swap.followed, swap.kept, swap.extreme) == (6, 0.0, 1.0, 0.0)
    assert found.swaps[OTHER_DECISION].n == 0


def test_rollouts_are_read_where_they_decided():
    model, examples = tiny.model(), tiny.examples(5)
    drawn = roll_out(model, examples, budget=4, group=3, pad_id=0, end_id=2, batch=4)
    assert [len(group) for group in drawn] == [3] * 5
    thoughts = [rollout.thought for group in drawn for rollout in group]
    assert {len(thought) for thought in thoughts} <= {0, 1, 2, 3, 4}
    assert not {2} & {token for thought in thoughts for token in thought}
    hosts = [example for example in examples for _ in range(3)]
    alone = np.concatenate([read_decisions(model, [e], [t], pad_id=0) for e, t in zip(hosts, thoughts, strict=True)])
    together = np.array([rollout.probabilities for group in drawn for rollout in group])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_command_reads_a_checkpoint(tmp_path: Path):
    build_model("llama", tmp_path / "model")
    (tmp_path / "task.yaml").write_text(TASK)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name, start in (("train", 0), ("dev", 50)):
        rows = [{"input": f"thing {i}", "label": ("red", "green", "blue")[i % 3]} for i in range(start, start + 6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["diagnose", str(tmp_path / "recipe.yaml"), "--model", str(tmp_path / "model"), "--rollouts", "3"]
    found = CliRunner().invoke(main, [*asked, "--on", "dev", "--items", "5", "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert (told["items"], told["rollouts"]) == (5, 3)
    assert set(told["swaps"]) == {OTHER_DECISION, OTHER_ITEM, CONTROL, OTHER_ITEM_CONTROL}
    assert "| other item, other decision |" in CliRunner().invoke(main, [*asked, "--on", "dev", "--items", "5"]).output
    none = CliRunner().invoke(main, [*asked, "--on", "test"])
    assert none.exit_code == 1
    assert "no evaluation set 'test'; there is dev" in none.output
