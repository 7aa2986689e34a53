"""`demur train`, `demur grid` and `demur diagnose`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from demur.decision.errors import DecisionError, TaskFileError
from demur.training.errors import TrainingError

# Everything that is slow or part of the extra is imported where it is needed, so that `demur --help` answers at once.

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@contextmanager
def _faults_told() -> Iterator[None]:
    """Ends with a message where a person can mend what is wrong, with status 2 where it is the recipe."""
    try:
        yield
    except TaskFileError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("demur"):
            raise
        _fail(f"{error.name} is missing: training needs pip install 'demur[train]'", 1)
    except (DecisionError, TrainingError, OSError) as error:
        _fail(str(error), 1)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"demur: {message}", err=True)
    sys.exit(status)


def _print_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from demur.training.recipe import Recipe

        click.echo(json.dumps(Recipe.model_json_schema(), indent=1))
        context.exit()


@click.command()
@click.argument("recipe", type=_FILE)
@click.option("--cell", help="Which cell of a grid, such as qwen3-4b.commonsense.grpo.gpus-4.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value, such as model.path=DIR.")
@click.option("--out", type=_FOLDER, help="Folder of the run [out/NAME].")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the folder.")
@click.option("--merge", is_flag=True, help="Also write the whole model with the trained adapter merged, NAME/merged.")
@click.option(
    "--bundle",
    type=_FOLDER,
    help="Then calibrate the trained model on the recipe's `certify` rows and write this bundle.",
)
@click.option("--dry-run", is_flag=True, help="Check data, labels, memory and a first batch, and train nothing.")
@click.option("--list", "list_cells", is_flag=True, help="List the cells of a grid.")
@click.option(
    "--schema", is_flag=True, is_eager=True, expose_value=False, callback=_print_schema, help="Print the JSON schema."
)
def train(
    recipe: Path,
    cell: str | None,
    changes: tuple[str, ...],
    out: Path | None,
    resume: bool,
    merge: bool,
    bundle: Path | None,
    dry_run: bool,
    list_cells: bool,
) -> None:
    """Train a model by a RECIPE, so that its decision tokens can be trusted.

    A stopped run goes on exactly where its newest checkpoint was. The trained model lies in NAME/model, with the
    hashes of its training rows, so that none of them ever certifies it.
    """
    from demur.training.recipefile import load_recipes

    with _faults_told():
        found = load_recipes(recipe, changes)
        if list_cells:
            click.echo("\n".join(found.cells))
            return
        chosen = found.cells.get(cell or "")
        if chosen is None:
            known = ", ".join(list(found.cells)[:3])
            _fail(f"{recipe} has no cell {cell!r}; it has {known}... (see --list)" if cell else "name a --cell", 2)
        from demur.training import processes, run
        from demur.training.lock import held

        if bundle is not None and chosen.certify is None:
            _fail("--bundle needs the rows that certify: give the recipe a `certify` section", 2)
        if bundle is not None and bundle.exists():
            _fail(f"{bundle} exists; name another directory", 2)
        prepared = run.prepare(chosen, found.folder)
        folder = out or Path("out") / chosen.name
        if processes.is_first():
            for line in prepared.data.dropped:
                click.echo(f"dropped: {line}", err=True)
        if dry_run:
            click.echo("\n".join(run.dry_run(prepared, folder)))
            return
        # Before the lock makes the folder.
        processes.check(chosen)
        with held(folder):
            trained = run.train(prepared, folder, resume=resume)
            if not processes.is_first():
                return
            click.echo(f"trained: {trained}")
            if merge or bundle is not None:
                click.echo(f"whole model: {run.merged(prepared, folder)}")
        if bundle is not None:
            sys.exit(run.calibrate(prepared, folder, bundle))


@click.command()
@click.argument("recipe", type=_FILE)
@click.option("--cells", "patterns", multiple=True, metavar="PATTERN", help="Cells to run, such as '*.grpo' [all].")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds an arm.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value in every cell.")
@click.option("--out", type=_FOLDER, default=Path("out/grid"), show_default=True, help="Folder of the grid.")
@click.option("--against", help="The arm that the others are compared with [base].")
@click.option("--fit-on", metavar="SET", help="The set to fit calibrators on [each set itself, cross-fitted].")
@click.option("--base/--no-base", default=True, show_default=True, help="Evaluate what training starts from, too.")
@click.option("--keep-models", is_flag=True, help="Keep the trained models, not their readings only.")
@click.option("--report", is_flag=True, help="Train nothing: compare the runs that are there.")
def grid(
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
    from demur.training.recipefile import load_recipes

    with _faults_told():
        file = load_recipes(recipe, changes)
        from demur.training import processes
        from demur.training.grid import cells_of, check_report, run_cells, write_report

        cells = cells_of(file, patterns, seeds, base=base)
        check_report(cells, against=against, fit_on=fit_on)
        if not report:
            run_cells(cells, file.folder, out, keep_models=keep_models)
        if processes.is_first():
            click.echo(write_report(cells, file.folder, out, against=against, fit_on=fit_on))


@click.command()
@click.argument("recipe", type=_FILE)
@click.option("--cell", default="", help="Which cell of a grid.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value of the recipe.")
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Trained model or adapter."
)
@click.option("--on", "name", required=True, metavar="SET", help="An evaluation set of the recipe.")
@click.option("--items", type=click.IntRange(min=1), default=200, show_default=True, help="Rows, the first by hash.")
@click.option("--rollouts", type=click.IntRange(min=2), default=8, show_default=True, help="Rollouts a row.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diagnose(
    recipe: Path,
    cell: str,
    changes: tuple[str, ...],
    model: Path | None,
    name: str,
    items: int,
    rollouts: int,
    as_json: bool,
) -> None:
    """Say whether a checkpoint's decisions only repeat their reasoning.

    Replaces the reasoning of its rollouts by others' and reads the decisions again. RECIPE says task, data, and how
    rollouts are drawn; without --model it is the model that training starts from.
    """
    from demur.training.recipefile import load_recipes

    with _faults_told():
        file = load_recipes(recipe, changes)
        if cell not in file.cells:
            raise TrainingError(f"{recipe} has no cell {cell!r}")
        from demur.training import run
        from demur.training.extraction import diagnose_model, report
        from demur.training.jsontext import json_text

        found = diagnose_model(run.prepare(file.cells[cell], file.folder), model, name, items=items, rollouts=rollouts)
    click.echo(json_text(found) if as_json else report(found))
