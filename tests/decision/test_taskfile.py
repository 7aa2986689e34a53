"""Task files: what is accepted, and that every fault names its line and its remedy."""

import dataclasses
import textwrap
from pathlib import Path

import pytest
import yaml

from demur.decision.errors import TaskFileError
from demur.decision.question import Option
from demur.decision.task import (
    AuditSpec,
    DecisionSpec,
    LengthHandling,
    Mode,
    PolicyKind,
    PolicySpec,
    PromptLayout,
    ReadoutKind,
    ReadoutSpec,
    Scale,
    Task,
    ThoughtSpec,
    Truncation,
)
from demur.decision.taskfile import check_task, content_hash, load_task, load_tasks, parse_task
from demur.decision.yamlnodes import MAX_FILE_BYTES

MINIMAL = """\
name: colours
question: Which colour?
options:
  - red
  - green
"""

FULL = """\
# Everything a task can say.
name: colours.v2
description: A test.
question: |
  Which colour?
  Look closely.
options:
  - red
  - name: green
    description: like grass
  - yes
readout: {kind: text, length: prior}
mode: reasoned
thought: {max_tokens: 64, max_ms: 500, temperature: 0, top_p: 1, top_k: 0, seed: 7, markers: true}
layout:
  system: You decide.
  input_title: Thing
  instruction: ""
  answer_prefix: "Colour:"
truncation: tail
max_input_tokens: 512
policy: {allow_uncalibrated: true, trust_at: 0.9, defer_below: 0.2, min_label_mass: 1e-3}
examples:
  - a rose
  - 1
explain: false
log_inputs: true
audit: {trust: 0.75, defer: 0.375}
show_audit: true
double_label: 0.125
slice_by: channel
"""


def parse(text):
    return parse_task(textwrap.dedent(text).encode(), "task.yaml")


def faults_of(text):
    data = text if isinstance(text, bytes) else textwrap.dedent(text).encode()
    with pytest.raises(TaskFileError) as caught:
        parse_task(data, "task.yaml")
    assert all(fault.file == "task.yaml" for fault in caught.value.faults)
    assert str(caught.value).splitlines() == [str(fault) for fault in caught.value.faults]
    return [(fault.line, fault.message) for fault in caught.value.faults]


def test_a_minimal_task_has_the_defaults():
    task = parse(MINIMAL)
    assert task.spec.question.options == (Option("red"), Option("green"))
    assert dataclasses.replace(task.spec, question=task.spec.question) == DecisionSpec(task.spec.question)
    assert (task.policy, task.description, task.examples, task.explain, task.log_inputs) == (
        PolicySpec(), None, (), True, False
    )  # fmt: skip


def test_a_full_task_says_everything():
    task = parse(FULL)
    assert task == Task(
        name="colours.v2",
        spec=DecisionSpec(
            question=dataclasses.replace(
                task.spec.question,
                text="Which colour?\nLook closely.\n",
                options=(Option("red"), Option("green", "like grass"), Option("yes")),
            ),
            readout=ReadoutSpec(ReadoutKind.TEXT, LengthHandling.PRIOR),
            mode=Mode.REASONED,
            thought=ThoughtSpec(64, 500, 0.0, 1.0, 0, 7, markers=True),
            layout=PromptLayout("You decide.", "Thing", "", "Colour:"),
            truncation=Truncation.TAIL,
            max_input_tokens=512,
        ),
        policy=PolicySpec(allow_uncalibrated=True, trust_at=0.9, defer_below=0.2, min_label_mass=1e-3),
        description="A test.",
        examples=("a rose", "1"),
        explain=False,
        log_inputs=True,
        audit=AuditSpec(trust=0.75, review=0.01, defer=0.375),
        show_audit=True,
        double_label=0.125,
        slice_by="channel",
        content_hash=task.content_hash,
    )


def test_full_uses_every_field_of_the_schema():
    """A field that is added to Task and not to the file reader shows here."""
    said = yaml.safe_load(FULL)
    fields = {field.name for kind in (Task, DecisionSpec) for field in dataclasses.fields(kind)}
    assert set(said) == fields - {"spec", "content_hash"} | {"options"}
    for key, kind in (("thought", ThoughtSpec), ("layout", PromptLayout)):
        assert set(said[key]) == {field.name for field in dataclasses.fields(kind)}
    policies = [said["policy"], *(yaml.safe_load(text) for text, _ in POLICIES)]
    assert {key for policy in policies for key in policy} == {field.name for field in dataclasses.fields(PolicySpec)}


POLICIES = [
    ("{kind: certified, min_label_mass: 0.2}", PolicySpec(kind=PolicyKind.CERTIFIED, min_label_mass=0.2)),
    (
        "{kind: fixed_thresholds, trust_at: 0.5, scale: score}",
        PolicySpec(kind=PolicyKind.FIXED, trust_at=0.5, scale=Scale.SCORE),
    ),
    (
        "{kind: expected_cost, cost: [[0, 2], [1.5, 0]], review_price: 1, defer_price: 0}",
        PolicySpec(kind=PolicyKind.COST, cost=((0, 2), (1.5, 0)), review_price=1, defer_price=0),
    ),
    ("{kind: budget, to_people: 0.2}", PolicySpec(kind=PolicyKind.BUDGET, to_people=0.2)),
]


@pytest.mark.parametrize(("text", "policy"), POLICIES)
def test_every_kind_of_policy(text, policy):
    assert parse(f"{MINIMAL}policy: {text}\n").policy == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kind: fixed}", "must be fixed_thresholds or certified or expected_cost or budget"),
        ("{kind: budget}", "`kind: budget` needs `to_people`"),
        ("{kind: certified, trust_at: 0.9}", "`trust_at` is for `kind: fixed_thresholds`"),
        ("{trust_at: 0.9, to_people: 0.2}", "`to_people` is for `kind: budget`"),
        ("{kind: budget, to_people: 1.2}", "must be a number from 0 to 1"),
        ("{kind: expected_cost, cost: [[0, 1]], review_price: 1, defer_price: 1}", "2 options need 2 rows of 2"),
        ("{kind: expected_cost, cost: [[0, -1], [1, 0]], review_price: 1, defer_price: 1}", "from 0 to 1e+09"),
        ("{kind: expected_cost, cost: 3, review_price: 1, defer_price: 1}", "`cost` must be a list"),
        ("{kind: expected_cost, cost: [1, 2], review_price: 1, defer_price: 1}", "a row of `cost` must be a list"),
        ("{kind: expected_cost, cost: [[0, 1], [1, 0]], defer_price: 1}", "needs `review_price`"),
        ("{kind: expected_cost, cost: [[0, 1], [1, 0]], review_price: .inf, defer_price: 1}", "must be a number"),
        ("{trust_at: 0.9, allow_uncalibrated: true, scale: score}", "trust without one"),
    ],
)
def test_faults_of_policies(text, message):
    faults = faults_of(f"{MINIMAL}policy: {text}\n")
    assert any(message in fault for _, fault in faults)
    assert {line for line, _ in faults} == {6}


def test_a_byte_order_mark_is_fine():
    assert parse_task(b"\xef\xbb\xbf" + MINIMAL.encode(), "task.yaml") == parse(MINIMAL)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("- a\n- b\n", 1, "a task is a mapping"),
        ("", 1, "a task is a mapping"),
        ("name: [\n", 2, "not readable as YAML"),
        ("a: 1\nb: 2: 3\n", 2, "not readable as YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not readable as YAML"),
        ("name: \x00\n", 1, "U+0000 is not allowed"),
        (MINIMAL + "description: !!python/object:os.system x\n", 6, "`description` must be text"),
        (b"name: a\nquestion: \xff\n", 2, "not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), 1, "at most"),
        ("a: &a [x, x]\nb: [*a, *a]\n", 2, "aliases (*name) are not supported"),
        ("a: " + "[" * 100_000, 1, "nested more than"),
        (MINIMAL + "optoins: []\n", 6, "unknown key `optoins` in the task; did you mean `options`?"),
        (MINIMAL + "zzz: 1\n", 6, "unknown key `zzz` in the task; known are `name`, "),
        (MINIMAL + "name: other\n", 6, "`name` is given twice in the task, first on line 1"),
        (MINIMAL.replace("name: colours\n", ""), 1, "the task has no `name`; add it"),
        (MINIMAL.replace("Which colour?", ""), 2, "`question` is empty"),
        (MINIMAL.replace("Which colour?", "' '"), 2, "`question` is blank"),
        (MINIMAL.replace("Which colour?", "5"), 2, '`question` must be text; write it in quotes: "5"'),
        (MINIMAL.replace("Which colour?", "[a]"), 2, "`question` must be text, not a list"),
        (MINIMAL.replace("Which colour?", '"\\ud800"'), 2, "half a surrogate pair"),
        (MINIMAL.replace("colours", "My colours"), 1, "`name` is used in URLs"),
        (MINIMAL.replace("colours", "a" * 65), 1, "`name` is used in URLs"),
        (MINIMAL.replace("colours", "../x"), 1, "`name` is used in URLs"),
        (MINIMAL.replace("colours", "adhoc"), 1, "`adhoc` is reserved"),
        (MINIMAL.replace("  - green\n", ""), 4, "there are 1 options; a question has 2 to 255"),
        (MINIMAL + "".join(f"  - o{i}\n" for i in range(254)), 4, "there are 256 options"),
        (MINIMAL + "  - red\n", 6, "option 'red' is the same as the one on line 4"),
        (MINIMAL + "  - ' red '\n", 6, "is the same as the one on line 4"),
        (MINIMAL + '  - "caf\\u00e9"\n  - "cafe\\u0301"\n', 7, "is the same as the one on line 6"),
        (MINIMAL + "  - {name: ' '}\n", 6, "`name` is blank"),
        (MINIMAL + '  - "\\u200b"\n', 6, "an option is blank"),
        (MINIMAL.replace("Which colour?", '"\\x01"'), 2, "`question` is blank"),
        (MINIMAL + "  -\n", 6, "an option must be text"),
        (MINIMAL + "  - [a]\n", 6, "an option must be text"),
        (MINIMAL + "  - {description: x}\n", 6, "an option has no `name`"),
        (MINIMAL + "  - {name: x, descripton: y}\n", 6, "did you mean `description`?"),
        (MINIMAL.replace("  - red\n  - green\n", "  red: 1\n"), 4, "`options` must be a list"),
        (MINIMAL + "readout: txt\n", 6, "`readout` must be letter or text; did you mean `text`?"),
        (MINIMAL + "readout: [text]\n", 6, "`readout` must be a mapping"),
        (MINIMAL + "readout:\n  kind: letter\n  length: mean\n", 8, "`length: mean` is for `kind: text`"),
        (MINIMAL + "mode: fast\n", 6, "`mode` must be direct or reasoned"),
        (MINIMAL + "thought: {max_tokens: 0}\n", 6, "`max_tokens` must be an integer from 1"),
        (MINIMAL + "thought: {max_tokens: 1.5}\n", 6, "`max_tokens` must be an integer"),
        (MINIMAL + "thought: {seed: '1'}\n", 6, "`seed` must be an integer"),
        (MINIMAL + "thought: {top_p: 1.5}\n", 6, "`top_p` must be a number"),
        (MINIMAL + "thought: 5\n", 6, "`thought` must be a mapping of `max_tokens`"),
        (MINIMAL + "thought: {markers: maybe}\n", 6, "`markers` must be true or false"),
        (MINIMAL + "layout: {sytem: x}\n", 6, "did you mean `system`?"),
        (MINIMAL + "truncation: middle\n", 6, "`truncation` must be refuse or head or tail"),
        (MINIMAL + "max_input_tokens: 0\n", 6, "`max_input_tokens` must be an integer from 1"),
        (MINIMAL + "policy: {trust_at: 1.1}\n", 6, "`trust_at` must be a number from 0 to 1"),
        (MINIMAL + "policy: {trust_at: .nan}\n", 6, "`trust_at` must be a number"),
        (MINIMAL + "policy: {trust_at: nan}\n", 6, "`trust_at` must be a number"),
        (MINIMAL + "policy: {trust_at: '0.9'}\n", 6, "`trust_at` must be a number"),
        (
            MINIMAL + "policy:\n  trust_at: 0.5\n  defer_below: 0.6\n",
            8,
            "`defer_below` (0.6) is above `trust_at` (0.5)",
        ),
        (MINIMAL + "policy: {allow_uncalibrated: true}\n", 6, "needs `trust_at`"),
        (MINIMAL + "explain: yes\n", 6, "`explain` must be true or false"),
        (MINIMAL + "examples: hello\n", 6, "`examples` must be a list"),
        (MINIMAL + "examples: ['']\n", 6, "an example is blank"),
    ],
)
def test_a_fault_names_its_line_and_remedy(text, line, message):
    faults = faults_of(text)
    assert len(faults) == 1, faults
    assert faults[0][0] == line
    assert message in faults[0][1]


def test_all_faults_are_reported_at_once():
    text = """\
    name: Bad Name
    options:
      - a
      - a
    reedout: text
    policy:
      trust_at: 2
      min_label_mass:
    """
    assert [line for line, _ in faults_of(text)] == [1, 1, 4, 5, 7, 8]


def test_an_alias_bomb_costs_nothing():
    bomb = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*{'a' if not i else f'b{i - 1}'}, *a]\n" for i in range(40))
    assert len(faults_of(bomb)) == 1


def test_yes_and_numbers_are_options_as_they_are_written():
    names = parse(MINIMAL + "  - yes\n  - No\n  - 1.0\n  - 2024-01-01\n").spec.question.names
    assert names[2:] == ("yes", "No", "1.0", "2024-01-01")


def test_the_hash_ignores_comments_formatting_key_order_and_spelled_out_defaults():
    blocks = MINIMAL.split("options:\n")
    same = (
        "# a comment\n" + MINIMAL.replace("  - ", "    -   "),
        "options: [red, 'green'] # colours\n" + blocks[0],
        MINIMAL + "mode: direct\nreadout: {length: sum}\nexplain: true\npolicy: {}\n",
    )
    assert {parse(text).content_hash for text in same} == {parse(MINIMAL).content_hash}


def test_the_hash_covers_everything_else():
    base = FULL
    changes = {
        "colours.v2": "colours.v3",
        "A test.": "A toast.",
        "Look closely.": "Look.",
        "- red": "- rad",
        "like grass": "like a frog",
        "kind: text": "kind: letter",
        "length: prior": "length: sum",
        "mode: reasoned": "mode: direct",
        "max_tokens: 64": "max_tokens: 65",
        "seed: 7": "seed: 8",
        "markers: true": "markers: false",
        "You decide.": "Decide.",
        "Thing": "Text",
        'instruction: ""': "instruction: Say it.",
        '"Colour:"': '""',
        "truncation: tail": "truncation: head",
        "512": "513",
        "allow_uncalibrated: true": "allow_uncalibrated: false",
        "0.9": "0.8",
        "0.2": "0.1",
        "1e-3": "2e-3",
        "a rose": "a tulip",
        "explain: false": "explain: true",
        "log_inputs: true": "log_inputs: false",
        "trust: 0.75": "trust: 0.76",
        "show_audit: true": "show_audit: false",
        "0.125": "0.126",
        "slice_by: channel": "slice_by: country",
    }
    hashes = {parse(base).content_hash}
    for old, new in changes.items():
        assert base.count(old) == 1, old
        hashes.add(parse(base.replace(old, new)).content_hash)
    assert len(hashes) == len(changes) + 1


def test_the_order_of_options_is_part_of_the_hash():
    swapped = MINIMAL.replace("  - red\n  - green\n", "  - green\n  - red\n")
    assert parse(swapped).content_hash != parse(MINIMAL).content_hash


def test_the_hash_is_stable():
    """A change here means that every bundle pinned to a task of an earlier version no longer applies."""
    assert parse(MINIMAL).content_hash == content_hash(parse(MINIMAL))
    assert parse(MINIMAL).content_hash == "5e586e84d2b623515e1488d2eb9e85e2c1590e4d8a7a6dfe40cc474e9af18655"


def test_a_directory_is_read_whole_or_not_at_all(tmp_path: Path):
    (tmp_path / "b.yaml").write_text(MINIMAL)
    (tmp_path / "a.yml").write_text(MINIMAL.replace("colours", "zebra"))
    (tmp_path / "notes.txt").write_text("not a task")
    assert list(load_tasks(tmp_path)) == ["colours", "zebra"]
    assert load_task(tmp_path / "b.yaml") == load_tasks(tmp_path)["colours"]

    (tmp_path / "c.yaml").write_text(MINIMAL)
    (tmp_path / "d.yaml").write_text("name: d\nquestion: ''\noptions: [x]\n")
    with pytest.raises(TaskFileError) as caught:
        load_tasks(tmp_path)
    found = [(Path(fault.file).name, fault.line) for fault in caught.value.faults]
    assert found == [("c.yaml", 1), ("d.yaml", 2), ("d.yaml", 3)]
    assert "`colours` is the name of b.yaml too" in caught.value.faults[0].message


def test_what_is_not_there_is_a_fault(tmp_path: Path):
    with pytest.raises(TaskFileError, match="not a directory"):
        load_tasks(tmp_path / "none")
    with pytest.raises(TaskFileError, match="cannot be read: No such file"):
        load_task(tmp_path / "none.yaml")
    (tmp_path / "dir.yaml").mkdir()
    with pytest.raises(TaskFileError, match="cannot be read"):
        load_tasks(tmp_path)
    assert load_tasks(tmp_path / "dir.yaml") == {}


def test_check_task_finds_what_a_tokenizer_cannot_tell_apart(builders, tmp_path: Path):
    file = tmp_path / "task.yaml"

    def check(text: str, tokenizer: str) -> list[str]:
        file.write_text(text)
        return [str(fault) for fault in check_task(file, builders[tokenizer])]

    assert check(MINIMAL, "smollm2") == []
    many = MINIMAL + "".join(f"  - option {index}\n" for index in range(60))
    assert check(many, "smollm2") == []
    assert "letter codes" in check(many, "gpt2")[0]
    unknown = MINIMAL.replace("red", "日").replace("green", "本") + "readout: text\n"
    assert check(unknown, "smollm2") == []
    (collision,) = check(unknown, "unigram")
    line = unknown.splitlines().index("  - 本") + 1
    assert collision.startswith(f"{file}:{line}: options 1 and 2, '日' and '本', are the same tokens")
    assert "use the letter readout" in collision
    assert "layout.system" in check(MINIMAL + "layout: {system: Decide.}\n", "llama")[0]
