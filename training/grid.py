"""Grids: every cell of a recipe file trained and evaluated with several seeds, then compared.

    python -m demur.training.grid RECIPE --seeds 3 --out out/grid

What is there already is kept, so a stopped grid goes on where it was: a run from its newest checkpoint, the rest from
its readings. The model that training starts from is an arm of its own, `base`. Cells that differ in nothing but
`data.fold` are one arm whose folds are put together.
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import click
from tqdm import tqdm

from demur.decision.errors import DecisionError, TaskFileError
from demur.training import run
from demur.training.checkpoints import complete
from demur.training.comparison import compare
from demur.training.errors import TrainingError
from demur.training.grid_report import figure, table, to_json
from demur.training.readings import Readings, load_model, load_readings, read_sets, save_readings
from demur.training.recipe import Recipe
from demur.training.recipefile import RecipeFile, load_recipes

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
        starts: dict[str, Recipe] = {}
        for recipe in chosen.values():
            starts.setdefault(_start_key(recipe, fold=True), recipe)
        kinds = list(dict.fromkeys(_start_key(recipe, fold=False) for recipe in starts.values()))
        for number, recipe in enumerate(starts.values()):
            kind = kinds.index(_start_key(recipe, fold=False))
            arm = BASE if len(kinds) == 1 else f"{BASE} {kind + 1}"
            named = recipe.model_copy(update={"name": f"{BASE}-{number + 1}"})
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
        run.train(prepared, place, resume=True)
    place.mkdir(parents=True, exist_ok=True)
    save_readings(
        place / READINGS,
        read_sets(prepared, load_model(prepared, place / run.MODEL if cell.trains else None)),
        made_from=made_from,
    )
    for checkpoint in complete(place):
        shutil.rmtree(checkpoint)
    if cell.trains and not keep_models:
        shutil.rmtree(place / run.MODEL)
    return load_readings(place / READINGS)[0]


def collect(cells: Sequence[Cell], read: Callable[[Cell], dict[str, Readings] | None]) -> Found:
    """What the runs say, by arm and seed, folds put together. `read` gives None for a run that is not there."""
    parts: dict[str, dict[int, list[dict[str, Readings]]]] = {}
    for cell in cells:
        sets = read(cell)
        if sets is not None:
            parts.setdefault(cell.arm, {}).setdefault(cell.seed, []).append(sets)
    whole = {arm: max(len(folds) for folds in seeds.values()) for arm, seeds in parts.items()}
    return {
        arm: [_joined(folds) for folds in seeds.values() if len(folds) == whole[arm]] for arm, seeds in parts.items()
    }


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


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--cells", "patterns", multiple=True, metavar="PATTERN", help="Cells to run, such as '*.grpo' [all].")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds an arm.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value in every cell.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out/grid"), show_default=True)
@click.option("--against", help="The arm that the others are compared with [base].")
@click.option("--fit-on", metavar="SET", help="The set to fit calibrators on [each set itself, cross-fitted].")
@click.option("--base/--no-base", default=True, show_default=True, help="Evaluate what training starts from, too.")
@click.option("--keep-models", is_flag=True, help="Keep the trained models, not their readings only.")
@click.option("--report", is_flag=True, help="Train nothing: compare the runs that are there.")
def main(
    recipe: Path,
    patterns: tuple[str, ...],
    seeds: int,
    changes: tuple[str, ...],
    out: Path,
    against: str | None,
    fit_on: str | None,
    base: bool,
    keep_models: bool,
    report: bool,
) -> None:
    """Train and evaluate every cell of RECIPE with several seeds; write one table and one figure into --out."""
    try:
        file = load_recipes(recipe, changes)
        cells = cells_of(file, patterns, seeds, base=base)
        if not report:
            for cell in tqdm(cells, disable=not sys.stderr.isatty()):
                click.echo(f"{cell.recipe.name}, seed {cell.seed}", err=True)
                run_cell(cell, file.folder, out, keep_models=keep_models)
        found = collect(cells, lambda cell: _kept(cell, out))
        if not found:
            raise TrainingError(f"{out} holds no finished run of these cells")
        reference = against or next(iter(found))
        if reference not in found:
            raise TrainingError(f"no finished run of {reference}; there are {', '.join(found)}")
        rows = compare(found, reference=reference, fit_on=fit_on)
    except (DecisionError, TrainingError, OSError) as error:
        click.echo(f"demur: {error}", err=True)
        sys.exit(2 if isinstance(error, TaskFileError) else 1)
    (out / TABLE).write_text(table(rows, reference), encoding="utf-8")
    (out / FIGURE).write_text(figure(rows).svg(), encoding="utf-8")
    (out / ROWS).write_text(to_json(rows), encoding="utf-8")
    click.echo((out / TABLE).read_text(encoding="utf-8"))


def _kept(cell: Cell, out: Path) -> dict[str, Readings] | None:
    path = cell.folder(out) / READINGS
    return load_readings(path)[0] if path.is_file() else None


if __name__ == "__main__":
    main()
