"""`demur train`."""

import json
import sys
from pathlib import Path
from typing import NoReturn

import click

from demur.decision.errors import DecisionError, TaskFileError
from demur.training.errors import TrainingError

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def _print_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from demur.training.recipe import Recipe

        click.echo(json.dumps(Recipe.model_json_schema(), indent=1))
        context.exit()


@click.command()
@click.argument("recipe", type=_FILE)
@click.option("--cell", help="Which cell of a grid, such as qwen3-4b.commonsense.grpo.gpus-4.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value, such as model.path=DIR.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run [out/NAME].")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the folder.")
@click.option("--merge", is_flag=True, help="Also write the whole model with the trained adapter merged, NAME/merged.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, file_okay=False),
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

    try:
        found = load_recipes(recipe, changes)
        if list_cells:
            click.echo("\n".join(found.cells))
            return
        chosen = found.cells.get(cell or "")
        if chosen is None:
            known = ", ".join(list(found.cells)[:3])
            _fail(f"{recipe} has no cell {cell!r}; it has {known}... (see --list)" if cell else "name a --cell", 2)
        # Imported here: everything above answers at once.
        try:
            from demur.training import run
        except ModuleNotFoundError as error:
            _fail(f"{error.name} is missing: training needs pip install 'demur[train]'", 1)

        if bundle is not None and chosen.certify is None:
            _fail("--bundle needs the rows that certify: give the recipe a `certify` section", 2)
        if bundle is not None and bundle.exists():
            _fail(f"{bundle} exists; name another directory", 2)
        prepared = run.prepare(chosen, found.folder)
        for line in prepared.data.dropped:
            click.echo(f"dropped: {line}", err=True)
        folder = out or Path("out") / chosen.name
        if dry_run:
            click.echo("\n".join(run.dry_run(prepared, folder)))
            return
        click.echo(f"trained: {run.train(prepared, folder, resume=resume)}")
        if merge or bundle is not None:
            click.echo(f"whole model: {run.merged(prepared, folder)}")
        if bundle is not None:
            sys.exit(run.calibrate(prepared, folder, bundle))
    except TaskFileError as error:
        _fail(str(error), 2)
    except (DecisionError, TrainingError, OSError) as error:
        _fail(str(error), 1)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"demur: {message}", err=True)
    sys.exit(status)
