"""`demur calibrate`: from labelled rows to a bundle."""

import sys
from pathlib import Path
from typing import Any

import click

from demur.server.cli_reading import FILE, NEW, Explained, fail, make_source, source_options


@click.command()
@source_options
@click.option("--out", required=True, type=NEW, help="Directory of the bundle to write.")
@click.option("--unlabelled", type=FILE, help="Further rows of the same traffic; they choose where to test.")
@click.option("--searched", type=FILE, help="Rows on which the configuration was chosen; they certify nothing.")
@click.option("--alpha", default=0.05, show_default=True, help="Largest error among trusted decisions.")
@click.option("--beta", default=0.3, show_default=True, help="Largest error among decisions that are not deferred.")
@click.option("--delta", default=0.05, show_default=True, help="Chance that the procedure certifies what is false.")
@click.option(
    "--family",
    default=1,
    show_default=True,
    help="Configurations tried before this one; without --searched they share delta.",
)
@click.option("--attempt", type=int, help="Number of this attempt, if more rows may be labelled and certified later.")
@click.option(
    "--route",
    default="label-free",
    show_default=True,
    type=click.Choice(["label-free", "split"]),
    help="Rank by the raw probability, so that all labels certify; or fit on one half and certify on the other.",
)
@click.option("--valid-days", default=90, show_default=True, help="Days until the certificate expires.")
@click.option("--replace", is_flag=True, help="Replace a bundle that is there.")
def calibrate(
    task_file: Path,
    data: Path,
    model: str | None,
    adapter: Path | None,
    dtype: str | None,
    model_name: str | None,
    url: str | None,
    concurrency: int,
    reads: Path | None,
    out: Path,
    unlabelled: Path | None,
    searched: Path | None,
    alpha: float,
    beta: float,
    delta: float,
    family: int,
    attempt: int | None,
    route: str,
    valid_days: int,
    replace: bool,
) -> None:
    """Fit and certify a task on labelled rows, and write a bundle.

    Every row is read once; a run that was stopped goes on where it was. Exits with 0 if a bundle was written from
    labels that could be learned from, certified or not; with 1 if not; with 2 for options that cannot be.
    """
    from demur.calibration import CertificateError
    from demur.server.calibrate import Plan

    try:
        plan = Plan(
            alpha=alpha,
            beta=beta,
            delta=delta,
            family=family,
            attempt=attempt,
            valid_days=valid_days,
            searched_elsewhere=searched is not None,
            route="split" if route == "split" else "label_free",
        )
    except CertificateError as error:
        fail(f"--{error}", status=2)
    if out.exists() and not replace:
        fail(f"{out} exists; name another directory, or say --replace", status=2)
    source = make_source(model, adapter, dtype, model_name, url)
    with Explained(reads or out.with_name(f"{out.name}.reads.jsonl")) as kept:
        refusal = _calibrate(task_file, data, unlabelled, searched, plan, source, out, replace, kept, concurrency)
    sys.exit(1 if refusal else 0)


def _calibrate(
    task_file: Path,
    data: Path,
    unlabelled: Path | None,
    searched: Path | None,
    plan: Any,
    source: Any,
    out: Path,
    replace: bool,
    reads: Path,
    concurrency: int,
) -> str | None:
    """Does it, prints the summary and returns the refusal."""
    from demur.decision.bundle import write_bundle
    from demur.decision.labelled import beside, read_labelled, require_fixed_question
    from demur.decision.taskfile import load_task
    from demur.server.bundling import bundle_files, provenance
    from demur.server.calibrate import calibrate as fit
    from demur.server.calibrate import evidence_of
    from demur.server.gather import gather
    from demur.server.summary import summary

    task = load_task(task_file)
    question = task.spec.question
    labelled = read_labelled(data, question, slice_by=task.slice_by)
    require_fixed_question(labelled)
    chosen_on = None if searched is None else read_labelled(searched, question, labelled=False)
    given = None
    if unlabelled is not None:
        given = read_labelled(unlabelled, question, labelled=False, slice_by=task.slice_by)
    others, left_out = beside(labelled, given)
    files = [labelled, *([others] if others is not None and others.rows else [])]
    gathered = gather(task, files, source, cache=reads, concurrency=concurrency)
    reader, readings = gathered.reader, gathered.readings
    calibration = fit(
        readings[0],
        task,
        plan,
        readout=reader.readout,
        unlabelled=readings[1] if len(readings) > 1 else None,
        searched=evidence_of(chosen_on),
        repeats=labelled.duplicates,
    )
    left_out |= readings[0].left_out
    origin = provenance(
        calibration,
        labelled,
        model=reader.model,
        unlabelled=others,
        searched=chosen_on,
        left_out=left_out,
    )
    made = bundle_files(calibration, task, task_file.read_bytes(), origin, reader.readout, left_out)
    bundle = write_bundle(out, task=task.name, pins=reader.pins, files=made, replace=replace)
    click.echo(summary(calibration, task.name))
    click.echo(f"bundle {bundle.id[:12]} written to {out}")
    return calibration.refusal
