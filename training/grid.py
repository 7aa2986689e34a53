"""Grids (`demur grid`): every cell of a recipe file trained and evaluated with several seeds, then compared.

What is there already is kept, so a stopped grid goes on where it was: a run from its newest checkpoint, the rest from
its readings. The model that training starts from is an arm of its own, `base`. Cells that differ in nothing but
`data.fold` are one arm whose folds are put together.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import click
from tqdm import tqdm

from demur.decision.taskfile import load_task
from demur.training import processes, run
from demur.training.checkpoints import complete
from demur.training.comparison import compare
from demur.training.errors import InUse, TrainingError
from demur.training.grid_report import figure, table, to_json
from demur.training.lock import held
from demur.training.readings import Readings, load_model, load_readings, read_sets, save_readings
from demur.training.recipe import Recipe, resolve
from demur.training.recipefile import RecipeFile

BASE = "base"
READINGS = "readings.npz"
TABLE, FIGURE, ROWS = "table.md", "accuracy_ece.svg", "rows.json"

Found = dict[str, list[dict[str, Readings]]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a grid: an arm, a seed, perhaps a fold. `trains` is false for the model that training starts from."""

    arm: str
    seed: int
    recipe: Recipe
    trains: bool = True

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return out / self.recipe.name / f"seed-{self.seed}"


def cells_of(file: RecipeFile, patterns: Sequence[str], seeds: int, *, base: bool = True) -> list[Cell]:
    """The runs of a grid: what training starts from, then seed by seed, so that a part is a smaller grid.

    Raises TrainingError where no cell matches.
    """
    chosen = {
        name: recipe for name, recipe in file.cells.items() if any(fnmatch(name, p) for p in patterns) or not patterns
    }
    if not chosen:
        raise TrainingError(f"no cell matches {', '.join(patterns)}; there are {', '.join(list(file.cells)[:3])}...")
    arms = _named({name: _arm_key(recipe) for name, recipe in chosen.items()})
    cells = []
    if base:
        # Numbered over the whole file, so that every part of a grid means the same by a number.
        starts: dict[str, Recipe] = {}
        for recipe in file.cells.values():
            starts.setdefault(_start_key(recipe, fold=True), recipe)
        kinds = list(dict.fromkeys(_start_key(recipe, fold=False) for recipe in starts.values()))
        wanted = {_start_key(recipe, fold=True) for recipe in chosen.values()}
        several = len({_start_key(recipe, fold=False) for recipe in chosen.values()}) > 1
        for number, (key, recipe) in enumerate(starts.items(), 1):
            if key in wanted:
                arm = f"{BASE} {kinds.index(_start_key(recipe, fold=False)) + 1}" if several else BASE
                named = recipe.model_copy(update={"name": f"{BASE}-{number}"})
                cells.append(Cell(arm, recipe.seed, named, trains=False))
    for seed in range(seeds):
        for name, recipe in chosen.items():
            seeded = recipe.model_copy(update={"seed": recipe.seed + seed})
            cells.append(Cell(arms[name], seeded.seed, seeded))
    return cells


def run_cell(cell: Cell, folder: Path, out: Path, *, keep_models: bool) -> dict[str, Readings]:
    """Trains and reads what is missing of one run.

    Raises TrainingError where its folder holds a run of another recipe or of other data.
    """
    prepared = run.prepare(cell.recipe, folder)
    place = cell.folder(out)
    noted = run.provenance(prepared)
    made_from = json.dumps({key: noted[key] for key in ("recipe_sha256", "task", "data")}, sort_keys=True)
    if (place / READINGS).is_file():
        sets, before = load_readings(place / READINGS)
        if before != made_from:
            raise TrainingError(f"the recipe, task or data of {place} changed since it was run; give another --out")
        return sets
    if cell.trains:
        # A run that ended before it was read begins at its last checkpoint, and ends at once.
        # It is read once, at its end, unless that chooses the checkpoint.
        run.train(prepared, place, resume=True, evaluate=cell.recipe.saves.best_by is not None)
    # Every process needs the model that the first one wrote, and it stays until all have read it.
    processes.wait()
    sets = read_sets(prepared, load_model(prepared, place / run.MODEL if cell.trains else None))
    processes.wait()
    if processes.is_first():
        place.mkdir(parents=True, exist_ok=True)
        save_readings(place / READINGS, sets, made_from=made_from)
        for checkpoint in complete(place):
            shutil.rmtree(checkpoint)
        if cell.trains and not keep_models:
            shutil.rmtree(place / run.MODEL)
    return sets


def collect(cells: Sequence[Cell], read: Callable[[Cell], dict[str, Readings] | None]) -> Found:
    """What the runs say, by arm and seed, folds put together. `read` gives None for a run that is not there.

    A seed counts where all its folds are there, an arm where it has such a seed.
    """
    parts: dict[str, dict[int, list[dict[str, Readings]]]] = {}
    for cell in cells:
        sets = read(cell)
        if sets is not None:
            parts.setdefault(cell.arm, {}).setdefault(cell.seed, []).append(sets)
    whole = Counter((cell.arm, cell.seed) for cell in cells)
    found = {
        arm: [_joined(folds) for seed, folds in seeds.items() if len(folds) == whole[arm, seed]]
        for arm, seeds in parts.items()
    }
    return {arm: seeds for arm, seeds in found.items() if seeds}


def _joined(folds: Sequence[Mapping[str, Readings]]) -> dict[str, Readings]:
    first, *others = folds
    return {name: found.joined([fold[name] for fold in others]) if others else found for name, found in first.items()}


def _arm_key(recipe: Recipe) -> str:
    fields = recipe.model_dump(mode="json", by_alias=True)
    del fields["name"]
    fields["data"].pop("fold", None)
    return json.dumps(fields, sort_keys=True)


def _start_key(recipe: Recipe, *, fold: bool) -> str:
    """What an untrained model's readings depend on."""
    fields = recipe.model_dump(mode="json", by_alias=True)
    if not fold:
        fields["data"].pop("fold", None)
    kept = ("task", "mode", "max_length", "data", "rollout" if recipe.mode == "reasoned" else "mode")
    place = {key: fields["model"][key] for key in ("path", "revision", "dtype", "attention")}
    return json.dumps([{key: fields[key] for key in kept}, place], sort_keys=True)


def _named(keys: Mapping[str, str]) -> dict[str, str]:
    """Names of arms by cell: the variants that a folded arm's cells have in common."""
    arms = {}
    for name, key in keys.items():
        together = [other.split(".") for other, its in keys.items() if its == key]
        arms[name] = ".".join(part for part in name.split(".") if all(part in parts for parts in together))
    return arms


def run_cells(cells: Sequence[Cell], folder: Path, out: Path, *, keep_models: bool) -> None:
    """`run_cell` for one after another, saying which. What a grid beside this one has begun comes last, if it must.

    Raises InUse where several processes share each run: they would have to agree on what is left to them. Raises
    TrainingError where the processes are not as many as a recipe wants.
    """
    for cell in cells:
        if cell.trains:
            processes.check(cell.recipe)
    elsewhere: list[Cell] = []
    for cell in tqdm(cells, disable=not (processes.is_first() and sys.stderr.isatty())):
        try:
            with held(cell.folder(out)):
                _say(f"{cell.recipe.name}, seed {cell.seed}")
                run_cell(cell, folder, out, keep_models=keep_models)
        except InUse:
            if processes.count() > 1:
                raise
            elsewhere.append(cell)
    for cell in elsewhere:
        _say(f"{cell.recipe.name}, seed {cell.seed}: another process has begun it")
        with held(cell.folder(out), wait=True):
            run_cell(cell, folder, out, keep_models=keep_models)


def _say(line: str) -> None:
    if processes.is_first():
        click.echo(line, err=True)


def check_report(cells: Sequence[Cell], *, against: str | None = None, fit_on: str | None = None) -> None:
    """Raises TrainingError for what would stop `write_report` only when everything has run."""
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    if against is not None and against not in arms:
        raise TrainingError(f"no arm {against} to compare with; there are {', '.join(arms)}")
    sets = {cell.recipe.name: cell.recipe.evaluated for cell in cells}
    first, *_ = sets
    for name, evaluated in sets.items():
        if set(evaluated) != set(sets[first]):
            told = ", and ".join(f"{one} on {', '.join(sets[one]) or 'none'}" for one in (first, name))
            raise TrainingError(f"arms are compared on the same sets, and {told}; choose --cells that fit together")
    if fit_on is not None and fit_on not in sets[first]:
        raise TrainingError(f"no evaluation set {fit_on} to fit on; there is {', '.join(sets[first]) or 'none'}")
    if not set(sets[first]) - {fit_on}:
        raise TrainingError("no evaluation set is left to be measured: give the recipe another one under `data`")


def write_report(
    cells: Sequence[Cell], folder: Path, out: Path, *, against: str | None = None, fit_on: str | None = None
) -> str:
    """Compares the runs of `out` that have finished, writes table, figure and rows there, and returns the table.

    Args:
        cells: the runs that count.
        folder: what their recipes' paths start from.
        out: folder of the grid.
        against: the arm that the others are compared with, the first where none is named.
        fit_on: see `compare`.

    Raises TrainingError where there is no such run or arm, or a run is of another recipe or task.
    """
    found = collect(cells, lambda cell: _kept(cell, folder, out))
    if not found:
        raise TrainingError(f"{out} holds no finished run of these cells")
    reference = against or next(iter(found))
    if reference not in found:
        raise TrainingError(f"no finished run of {reference}; there are {', '.join(found)}")
    rows = compare(found, reference=reference, fit_on=fit_on)
    written = table(rows, reference)
    (out / TABLE).write_text(written, encoding="utf-8")
    (out / FIGURE).write_text(figure(rows).svg(), encoding="utf-8")
    (out / ROWS).write_text(to_json(rows), encoding="utf-8")
    return written


def _kept(cell: Cell, folder: Path, out: Path) -> dict[str, Readings] | None:
    place = cell.folder(out)
    if not (place / READINGS).is_file():
        return None
    sets, noted = load_readings(place / READINGS)
    before = json.loads(noted)
    # Not the data, which a report need not have.
    task = load_task(resolve(cell.recipe.task, folder)).content_hash
    if (before["recipe_sha256"], before["task"]) != (run.recipe_sha256(cell.recipe), task):
        raise TrainingError(f"{place} was run by another recipe or task; report with the same file and --set")
    return sets
