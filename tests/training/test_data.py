import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from demur.decision.errors import DataFileError
from demur.decision.prompt import PromptBuilder
from demur.decision.rowhash import TRAINING_ROWS, row_hash
from demur.decision.task import Mode
from demur.decision.taskfile import load_task
from demur.training.data import VALIDATION, RunData, load_data
from demur.training.recipe import Recipe
from tests.models import build_tokenizer

TASK = "name: sky\nquestion: Which colour?\noptions: [red, green, blue]\nreadout: letter\n"
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    return PromptBuilder(build_tokenizer("llama"))


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"input": f"thing number {i}", "label": COLOURS[i % 3]} for i in range(start, start + count)]


def write(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def load(
    folder: Path, builder: PromptBuilder, task: str = TASK, certify: Any = None, thought: int = 100, **data: Any
) -> RunData:
    (folder / "task.yaml").write_text(task)
    recipe = Recipe.model_validate(
        {
            "name": "sky",
            "task": "task.yaml",
            "method": "grpo",
            "mode": "reasoned",
            "model": {"path": "model"},
            "max_length": 400,
            "rollout": {"max_tokens": thought},
            "data": {"train": {"path": "train.jsonl"}} | data,
            "certify": certify,
        }
    )
    return load_data(recipe, folder, load_task(folder / "task.yaml"), builder)


def test_examples_are_what_the_server_reads(tmp_path: Path, builder: PromptBuilder):
    write(tmp_path / "train.jsonl", rows(4))
    data = load(tmp_path, builder)
    spec = load_task(tmp_path / "task.yaml").spec
    compiled = builder.compile(type(spec)(question=spec.question, readout=spec.readout, mode=Mode.REASONED))
    for number, example in enumerate(data.train):
        assert example.prompt == compiled.render(f"thing number {number}", 400).ids
        assert example.gold == number % 3
        assert example.label_ids == tuple(compiled.plan.reads[0].ids)


def test_csv_and_saved_datasets_give_the_same_rows_as_json_lines(tmp_path: Path, builder: PromptBuilder):
    values = rows(6)
    values[2]["input"] = "two\nlines"
    write(tmp_path / "train.jsonl", values)
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["said", "label"])
        writer.writeheader()
        writer.writerows({"said": value["input"], "label": value["label"]} for value in values)
    letters = [{"said": value["input"], "answer": {"key": "ABC"[i % 3]}} for i, value in enumerate(values)]
    Dataset.from_list([row | {"keys": list("ABC"), "names": list(COLOURS)} for row in letters]).save_to_disk(
        str(tmp_path / "saved")
    )
    reference = load(tmp_path, builder).train
    said = {"input": "said"}
    assert load(tmp_path, builder, train={"path": "train.csv", "columns": said}).train == reference
    columns = said | {"label": "answer.key", "label_keys": "keys", "options": "names"}
    saved = load(tmp_path, builder, train={"path": "saved", "columns": columns}).train
    assert [(example.prompt, example.gold) for example in saved] == [(e.prompt, e.gold) for e in reference]


def test_a_csv_fault_names_the_line_on_which_its_row_begins(tmp_path: Path, builder: PromptBuilder):
    (tmp_path / "train.csv").write_text('input,label\n"a\nb",red\nc,purple\n')
    with pytest.raises(DataFileError, match=r"train\.csv:4: label \"purple\" is not an option"):
        load(tmp_path, builder, train={"path": "train.csv"})


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"input": "x", "label": "purple"}, 'label "purple" is not an option'),
        ({"input": " ", "label": "red"}, "the input is empty"),
        ({"input": "word " * 900, "label": "red"}, "tokens"),
        ({"input": "x", "label": "red", "meta": {"soft": [0.5, 0.3, 0.1]}}, r"`meta\.soft` sum to 0\.9, not 1"),
        ({"input": "x", "label": "red", "meta": {"soft": [0.5, 0.5]}}, "2 shares for 3 options"),
        ({"input": "x", "label": "red", "meta": {"soft": [1.5, -0.5, 0]}}, "none below 0"),
        ({"input": "x", "label": "red", "meta": {"soft": "red"}}, "a list of shares"),
        ({"input": "Thing  NUMBER 101", "label": "red"}, r"also stands in an evaluation set, dev\.jsonl:2"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line_or_dropped_and_counted(
    tmp_path: Path, builder: PromptBuilder, bad: dict[str, Any], why: str
):
    write(tmp_path / "train.jsonl", [*rows(2), bad])
    write(tmp_path / "dev.jsonl", rows(3, start=100))
    evaluate = {"dev": {"path": "dev.jsonl"}}
    with pytest.raises(DataFileError, match=r"train\.jsonl:3: .*" + why):
        load(tmp_path, builder, evaluate=evaluate)
    dropped = load(tmp_path, builder, evaluate=evaluate, bad_rows="drop")
    assert len(dropped.train) == 2
    assert len(dropped.dropped) == 1
    assert len(dropped.evaluate["dev"]) == 3


def test_shares_are_in_the_order_of_the_options_that_the_row_is_read_with(tmp_path: Path, builder: PromptBuilder):
    write(
        tmp_path / "train.jsonl",
        [
            {"input": "a", "label": "green", "meta": {"soft": [0.0, 0.6667, 0.3333]}},
            {"input": "b", "label": "green", "options": ["green", "blue", "red"], "meta": {"soft": [0.75, 0.25, 0]}},
            {"input": "c", "label": "green", "meta": {"source": "unknown"}},
        ],
    )
    first, own, none = load(tmp_path, builder).train
    assert first.shares == pytest.approx((0, 0.6667, 0.3333))
    assert (own.gold, own.shares) == (0, (0.75, 0.25, 0))
    assert none.shares is None


def test_other_shares_are_other_data(tmp_path: Path, builder: PromptBuilder):
    found = set()
    for soft in ([0, 1, 0], [0, 0.6667, 0.3333]):
        write(tmp_path / "train.jsonl", [{"input": "a", "label": "green", "meta": {"soft": soft}}])
        found.add(load(tmp_path, builder).fingerprint)
    assert len(found) == 2


def test_labels_that_begin_alike_are_refused(tmp_path: Path, builder: PromptBuilder):
    task = TASK.replace("letter", "text").replace("green", "red green")
    write(tmp_path / "train.jsonl", [{"input": "x", "label": "red"}])
    with pytest.raises(DataFileError, match=r"'red' and 'red green' begin with the same token"):
        load(tmp_path, builder, task)


def test_splits_and_limits_follow_content_and_not_order(tmp_path: Path, builder: PromptBuilder):
    write(tmp_path / "train.jsonl", rows(200))
    first = load(tmp_path, builder, validation=0.25)
    write(tmp_path / "train.jsonl", rows(200)[::-1])
    turned = load(tmp_path, builder, validation=0.25)
    chosen = {example.hash for example in first.evaluate[VALIDATION]}
    assert chosen == {example.hash for example in turned.evaluate[VALIDATION]}
    assert 30 < len(chosen) < 70
    assert chosen.isdisjoint(example.hash for example in first.train)
    some = load(tmp_path, builder, train={"path": "train.jsonl", "limit": 20}).train
    assert len(some) == 20
    other = {e.hash for e in load(tmp_path, builder, validation=0.25, split_seed=1).evaluate[VALIDATION]}
    assert other != chosen


@pytest.mark.parametrize("uneven", ["train", "dev"])
def test_rows_of_different_widths_are_refused(tmp_path: Path, builder: PromptBuilder, uneven: str):
    write(tmp_path / "train.jsonl", rows(2))
    write(tmp_path / "dev.jsonl", rows(2, start=100))
    with (tmp_path / f"{uneven}.jsonl").open("a") as file:
        file.write(json.dumps({"question": "And?", "options": ["a", "b"], "label": "a"}) + "\n")
    with pytest.raises(DataFileError, match=rf"the rows of `{uneven}` have \[2, 3\] options; .* the same number"):
        load(tmp_path, builder, evaluate={"dev": {"path": "dev.jsonl"}})


@pytest.mark.parametrize("place", ["", "elsewhere"], ids=["beside the recipe", "in the working directory"])
def test_what_an_earlier_stage_learned_is_no_evidence_about_a_later_one(
    tmp_path: Path, builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch, place: str
):
    write(tmp_path / "train.jsonl", rows(3))
    for name in ("dev", "certifying"):
        write(tmp_path / f"{name}.jsonl", rows(3, start=100))
    model = tmp_path / place / "model"
    model.mkdir(parents=True)
    monkeypatch.chdir(model.parent)
    (model / TRAINING_ROWS).write_text("\n".join((row_hash("thing number 1"), row_hash("thing number 102"))))
    evaluate = {"dev": {"path": "dev.jsonl"}}
    with pytest.raises(DataFileError, match=r"^dev\.jsonl:3: the model that training starts from has learned it$"):
        load(tmp_path, builder, evaluate=evaluate)
    dropped = load(tmp_path, builder, evaluate=evaluate, bad_rows="drop")
    assert (len(dropped.train), len(dropped.evaluate["dev"])) == (3, 2)
    with pytest.raises(DataFileError, match=r"^certifying\.jsonl:3: the model that training starts from"):
        load(tmp_path, builder, certify={"data": "certifying.jsonl"})


@pytest.mark.parametrize(
    ("name", "data"),
    [("train", {}), ("certifying", {}), ("validation", {"validation": 0.5}), ("out_of_fold", {"folds": 2})],
)
def test_an_evaluation_set_cannot_take_the_name_of_another_set(
    tmp_path: Path, builder: PromptBuilder, name: str, data: dict[str, Any]
):
    write(tmp_path / "train.jsonl", rows(40))
    write(tmp_path / "dev.jsonl", rows(3, start=100))
    evaluate = {name: {"path": "dev.jsonl"}}
    with pytest.raises(ValueError, match=f"an evaluation set cannot be called `{name}`"):
        load(tmp_path, builder, evaluate=evaluate, **data)
    if data:
        assert len(load(tmp_path, builder, evaluate=evaluate).evaluate[name]) == 3


def test_a_row_needs_room_for_the_thoughts_that_are_drawn_in_training(tmp_path: Path, builder: PromptBuilder):
    write(tmp_path / "train.jsonl", rows(1))
    task = TASK + "thought: {max_tokens: 4}\n"
    assert len(load(tmp_path, builder, task, thought=200).train) == 1
    with pytest.raises(DataFileError, match=r"train\.jsonl:1: the input has \d+ tokens; 0 fit"):
        load(tmp_path, builder, task, thought=399)
