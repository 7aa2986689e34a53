"""The rows of a run: read, split by content, checked for leaks, and made into the prompts that a server sends."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from demur.decision.errors import DataFileError, InputTooLongError, LabelError
from demur.decision.labelled import LabelledData, LabelledRow, data_faults
from demur.decision.prompt import CompiledPrompt, PromptBuilder
from demur.decision.question import Question
from demur.decision.rowhash import training_rows
from demur.decision.task import DecisionSpec, Mode, Task
from demur.training.recipe import CERTIFYING, OUT_OF_FOLD, TRAIN, VALIDATION, Recipe, Source
from demur.training.sources import read_source
from demur.training.weights import model_place

#: How far the sum of annotators' shares may be from 1, as rounded numbers are.
_ROUNDING = 0.01


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the model reads it.

    `prompt`: token ids behind which a thought (reasoned) or the label (direct) follows. `label_ids`: the first token
    of each option's label. `after_thought`: ids that close a thought and lead to the label. `stop_ids` end a thought.
    `sequences`: the labels' tokens, all of them. `thought`: the row's written thought, where it is learned. `shares`:
    of its annotators, by option, where the row has `meta.soft`; they sum to 1 and are only measured against.
    """

    hash: str
    gold: int
    prompt: tuple[int, ...]
    label_ids: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...] = field(repr=False)
    after_thought: tuple[int, ...] = field(repr=False)
    stop_ids: tuple[int, ...] = field(repr=False)
    thought: tuple[int, ...] = field(default=(), repr=False)
    shares: tuple[float, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RunData:
    """The examples of a run. `dropped`: what was left out and why, a line each. `fingerprint`: of all rows used."""

    train: tuple[Example, ...]
    evaluate: Mapping[str, tuple[Example, ...]]
    dropped: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the rows of every set, in order, with their labels and prompts."""
        digest = hashlib.sha256()
        for name, examples in ((TRAIN, self.train), *self.evaluate.items()):
            digest.update(f"{name} {len(examples)}\n".encode())
            for example in examples:
                shares = "" if example.shares is None else f" {example.shares}"
                digest.update(f"{example.hash} {example.gold} {example.prompt} {example.thought}{shares}\n".encode())
        return digest.hexdigest()


def load_data(recipe: Recipe, folder: Path, task: Task, builder: PromptBuilder) -> RunData:
    """Reads, splits and checks all sets of a recipe.

    Raises DataFileError with file and line of every bad row (unless they are dropped) and LabelError where labels
    cannot be told apart by their first token.
    """
    drop = recipe.data.bad_rows == "drop"
    spec = replace(task.spec, mode=Mode(recipe.mode))
    if recipe.rolls_out or recipe.learns_rollouts:
        # A row needs room for the thoughts that are drawn here, not for those that are served.
        spec = replace(spec, thought=replace(spec.thought, max_tokens=recipe.rollout.max_tokens))
    sources = {TRAIN: recipe.data.train, **recipe.data.evaluate}
    if recipe.certify is not None:
        sources[CERTIFYING] = Source(path=recipe.certify.data)
    read = {name: read_source(source, folder, spec.question, drop=drop) for name, source in sources.items()}
    faults = [fault for data in read.values() for fault in data.dropped]
    sets: dict[str, list[tuple[LabelledData, LabelledRow]]] = {}
    for name, data in read.items():
        rows = sorted(data.rows, key=lambda row: row.hash)[: sources[name].limit]
        sets[name] = [(data, row) for row in sorted(rows, key=lambda row: row.line)]
    seed = recipe.data.split_seed
    if recipe.data.folds is not None:
        fold, of = recipe.data.fold, recipe.data.folds
        _keep_out(sets, OUT_OF_FOLD, lambda row: int(of * _draw(row.hash, f"folds {seed}")) == fold)
    if recipe.data.validation > 0:
        _keep_out(sets, VALIDATION, lambda row: _draw(row.hash, str(seed)) < recipe.data.validation)
    leaks = _leaks(sets, spec.question)
    chosen_on = _certified(sets, recipe.saves.best_by, spec.question)
    # What the model that training starts from has learned is no evidence about the one that comes of it.
    learned = training_rows(Path(model_place(recipe, folder)))
    known = "the model that training starts from has learned it"
    found = [f"{data.name}:{row.line}: {known}" for data, row in sets.pop(CERTIFYING, []) if row.hash in learned]
    compiled = _Compiled(spec, builder)
    learns_thoughts = recipe.method == "sft" and recipe.mode == "reasoned"
    examples: dict[str, list[Example]] = {}
    for name, pairs in sets.items():
        examples[name] = []
        for data, row in pairs:
            place = f"{data.name}:{row.line}"
            if name == TRAIN and row.hash in leaks:
                found.append(f"{place}: also stands in an evaluation set, {leaks[row.hash]}")
            elif name != TRAIN and row.hash in learned:
                found.append(f"{place}: {known}")
            elif name == recipe.saves.best_by and row.hash in chosen_on:
                found.append(f"{place}: also certifies, {chosen_on[row.hash]}, and checkpoints are chosen on it")
            elif not row.text.strip() and row.own is None:
                found.append(f"{place}: the input is empty")
            elif learns_thoughts and name == TRAIN and row.thought is None:
                found.append(f"{place}: no `thought` to learn; SFT in reasoned mode needs written ones")
            else:
                thought = tuple(builder.encode(row.thought)) if learns_thoughts and row.thought else ()
                try:
                    examples[name].append(_example(row, compiled.of(row.own), recipe.max_length, thought))
                except InputTooLongError as error:
                    found.append(f"{place}: {error}")
                except (DataFileError, LabelError) as error:
                    found.append(f"{place}: {error}")
    if found and not drop:
        raise data_faults(found)
    for name, kept in examples.items():
        if not kept:
            raise data_faults([*found, f"no rows are left for `{name}`"])
        widths = {len(example.label_ids) for example in kept}
        if len(widths) > 1:
            raise data_faults([f"the rows of `{name}` have {sorted(widths)} options; all must have the same number"])
    train = tuple(examples.pop(TRAIN))
    return RunData(train, {name: tuple(kept) for name, kept in examples.items()}, (*faults, *found))


class _Compiled:
    """Prompts by question, compiled once and checked for labels that a single read can tell apart."""

    def __init__(self, spec: DecisionSpec, builder: PromptBuilder) -> None:
        self._spec, self._builder = spec, builder
        self.of = lru_cache(maxsize=1024)(self._of)

    def _of(self, own: Question | None) -> CompiledPrompt:
        compiled = self._builder.compile(self._spec if own is None else replace(self._spec, question=own))
        first: dict[int, int] = {}
        for option, sequence in enumerate(compiled.plan.sequences):
            other = first.setdefault(sequence[0], option)
            if other != option:
                names = compiled.spec.question.names
                raise LabelError(
                    f"the labels of {names[other]!r} and {names[option]!r} begin with the same token, and training "
                    "reads one token; use `readout: letter` or other names",
                    (other, option),
                )
        return compiled


def _example(row: LabelledRow, compiled: CompiledPrompt, max_length: int, thought: tuple[int, ...]) -> Example:
    assert row.label is not None  # noqa: S101  (read_source reads labelled rows only)
    if len(thought) > compiled.spec.thought.max_tokens:
        raise InputTooLongError(len(thought), compiled.spec.thought.max_tokens)
    return Example(
        hash=row.hash,
        gold=row.label,
        prompt=compiled.render(row.text, max_length).ids,
        label_ids=tuple(sequence[0] for sequence in compiled.plan.sequences),
        sequences=compiled.plan.sequences,
        after_thought=compiled.after_thought,
        stop_ids=compiled.stop_ids,
        thought=thought,
        shares=_shares(row, len(compiled.spec.question.options)),
    )


def _shares(row: LabelledRow, options: int) -> tuple[float, ...] | None:
    """The `meta.soft` of a row, made to sum to 1. Raises DataFileError where it holds no shares of its options."""
    given = row.meta.get("soft") if isinstance(row.meta, dict) else None
    if given is None:
        return None
    if not isinstance(given, list) or any(type(share) not in (int, float) or share < 0 for share in given):
        raise DataFileError("`meta.soft` must be a list of shares, none below 0")
    if len(given) != options:
        raise DataFileError(f"`meta.soft` has {len(given)} shares for {options} options")
    total = sum(given)
    if abs(total - 1) > _ROUNDING:
        raise DataFileError(f"the shares of `meta.soft` sum to {total:.4g}, not 1")
    return tuple(share / total for share in given)


def _leaks(sets: Mapping[str, list[tuple[LabelledData, LabelledRow]]], question: Question) -> dict[str, str]:
    """Hashes of training rows that an evaluation set asks too, whatever their spacing and case; and where it does."""
    asked: dict[str, str] = {}
    for name, pairs in sets.items():
        if name != TRAIN:
            for data, row in pairs:
                asked.setdefault(_asked(row, question), f"{data.name}:{row.line}")
    return {row.hash: asked[key] for _, row in sets[TRAIN] if (key := _asked(row, question)) in asked}


def _certified(
    sets: Mapping[str, list[tuple[LabelledData, LabelledRow]]], chosen_by: str | None, question: Question
) -> dict[str, str]:
    """Hashes of rows that choose a checkpoint and would certify it too; and where they do."""
    if chosen_by is None or CERTIFYING not in sets:
        return {}
    asked = {_asked(row, question): f"{data.name}:{row.line}" for data, row in sets[CERTIFYING]}
    return {row.hash: asked[key] for _, row in sets[chosen_by] if (key := _asked(row, question)) in asked}


def _asked(row: LabelledRow, question: Question) -> str:
    return " ".join(f"{(row.own or question).text}\n{row.text}".casefold().split())


def _keep_out(
    sets: dict[str, list[tuple[LabelledData, LabelledRow]]], name: str, wanted: Callable[[LabelledRow], bool]
) -> None:
    """Moves training rows into a set of their own."""
    sets[name] = [pair for pair in sets[TRAIN] if wanted(pair[1])]
    sets[TRAIN] = [pair for pair in sets[TRAIN] if not wanted(pair[1])]


def _draw(row_hash: str, seed: str) -> float:
    """A number in [0, 1) that belongs to a row's content."""
    return int(hashlib.sha256(f"{seed} {row_hash}".encode()).hexdigest()[:13], 16) / 16**13
