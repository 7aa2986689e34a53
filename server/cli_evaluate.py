"""`demur evaluate`: how right and how calibrated a task is on labelled rows."""

import json
from pathlib import Path
from typing import Any

import click

from demur.server.cli_reading import NEW, Explained, make_source, source_options


@click.command()
@source_options
@click.option("--out", required=True, type=NEW, help="Directory for report.json and report.html.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Calibrate with this.")
def evaluate(
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
    bundle: Path | None,
) -> None:
    """Measure accuracy and calibration of a task on labelled rows, before and after calibration.

    Writes report.json and report.html. Without --bundle, "after" is cross-fitted on the same rows.
    """
    source = make_source(model, adapter, dtype, model_name, url)
    with Explained(reads or out / "reads.jsonl") as kept:
        _evaluate(task_file, data, source, out, bundle, kept, concurrency)


def _evaluate(
    task_file: Path, data: Path, source: Any, out: Path, bundle: Path | None, reads: Path, concurrency: int
) -> None:
    from demur.decision.labelled import read_labelled
    from demur.decision.taskfile import load_task
    from demur.server.evaluation import evaluation
    from demur.server.gather import gather
    from demur.server.making import after_bundle, after_cross_fit
    from demur.server.report_html import report_html

    task = load_task(task_file)
    labelled = read_labelled(data, task.spec.question, slice_by=task.slice_by)
    gathered = gather(task, [labelled], source, cache=reads, concurrency=concurrency)
    readings = gathered.readings[0]
    if bundle is None:
        after = after_cross_fit(readings, options_vary=labelled.options_vary)
    else:
        after = after_bundle(readings, bundle, task, gathered.reader.pins, gathered.reader.readout)
    report = evaluation(
        readings,
        None if labelled.options_vary else task.spec.question.names,
        after.probabilities,
        after.p_correct,
        method=after.method,
        held_out=after.held_out,
        left_out={"duplicates": labelled.duplicates, **readings.left_out},
        show_inputs=task.log_inputs,
    )
    page = report_html(
        f"Evaluation of {task.name}",
        report,
        readings,
        after.probabilities,
        after.p_correct,
        model=gathered.reader.model,
        ranking=after.ranking,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page, encoding="utf-8")
    before, now = report["before"], report["after"]
    click.echo(
        f"{task.name}: accuracy {before['accuracy']:.3f} on {report['n']} rows; ECE {before['ece_quantile_15']:.3f} "
        f"before, {now['ece_quantile_15']:.3f} after ({after.method}); {out / 'report.html'}"
    )
