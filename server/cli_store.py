"""`demur store`: what operators do to a store, and `demur audits`: how many audits to ask for."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from demur.server.store.records import AuditRecord
    from demur.server.store.store import Store


@click.group()
def store() -> None:
    """Look after the store that DEMUR_STORE_URL or --state-dir (DEMUR_STATE_DIR) names."""


@click.group()
def audits() -> None:
    """Plan audits."""


class _Range(click.FloatRange):
    """As click's, which lets NaN through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


def _place(*, new: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Opens the store that the command's first argument is; one that is not there only where it may be a new one."""

    def placed(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Directory that it is in.")
        @wraps(command)
        def opened(state_dir: Path | None, **rest: Any) -> None:
            with _opened(state_dir, new) as one:
                command(one, **rest)

        return opened

    return placed


@contextmanager
def _opened(state_dir: Path | None, new: bool) -> "Iterator[Store]":
    from demur.server.store.database import store_url
    from demur.server.store.errors import StoreError, StoreUnavailable
    from demur.server.store.store import Store

    given = os.environ.get("DEMUR_STORE_URL") or None
    if given is not None and state_dir is not None:
        raise click.UsageError("--state-dir and DEMUR_STORE_URL name two stores; a server uses the latter: give one")
    directory = state_dir or (Path(os.environ["DEMUR_STATE_DIR"]) if os.environ.get("DEMUR_STATE_DIR") else None)
    try:
        url = store_url(given, directory)
        if url is None:
            raise click.UsageError("name the store: --state-dir DIR, or DEMUR_STORE_URL")
        if url.get_backend_name() == "sqlite" and not (new or Path(str(url.database)).is_file()):
            raise click.ClickException(f"there is no store at {url.database}; check --state-dir and DEMUR_STORE_URL")
        one = Store.open(url, timeout_s=30)
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    try:
        yield one
    except StoreUnavailable as error:
        raise click.ClickException(str(error)) from None
    finally:
        one.close()


@store.command()
@_place(new=True)
def migrate(one: "Store") -> None:
    """Bring the store to this version's schema; a server does so by itself when it starts."""
    from demur.server.store.migrate import revision

    click.echo(f"the store has schema {one.read_now(revision)}")


@store.command()
@_place()
def stats(one: "Store") -> None:
    """Print what is in the store, as JSON."""
    from demur.server.store import upkeep

    totals = one.read_now(upkeep.totals)
    by_task = one.read_now(lambda connection: upkeep.audit_counts(connection, datetime.now(UTC)))
    said = {**asdict(totals), "audits_by_task": {task: asdict(counts) for task, counts in by_task.items()}}
    click.echo(json.dumps(said, indent=2, default=lambda at: at.isoformat()))


@store.command()
@click.option("--task", help="Of this task alone.")
@click.option("--training", is_flag=True, help="What a model may learn from, as `demur train` reads it; needs --task.")
@_place()
def export(one: "Store", task: str | None, training: bool) -> None:
    """Write all audits as JSON Lines, in the order drawn, with the labels in force.

    Only drawn decisions are evidence, so only they are exported; `recertify` reads them in the store itself.

    With --training it is the other way round: labelled decisions with a stored input that were not drawn, and none with
    the input of one that was. Audits certify, so nothing may learn from them.
    """
    from demur.server.store import upkeep

    if training and task is None:
        raise click.UsageError("--training needs a --task")

    def write(connection: Any) -> None:
        if training:
            for decision, label in upkeep.training_rows(connection, one.options, str(task)):
                row = {"id": decision.id, "input": decision.input, "label": label}
                row |= {} if decision.slice is None else {"slice": decision.slice}
                sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
            return
        for audit in upkeep.exported(connection, one.options, task):
            sys.stdout.write(json.dumps(_line(audit), ensure_ascii=False) + "\n")

    one.read_now(write)


@store.command()
@click.option("--id", "ids", multiple=True, help="A decision; may be given again.")
@click.option("--subject", help="All decisions about this subject.")
@click.option("--days", type=_Range(0, 36_500), help="All decisions older than so many days.")
@_place()
def purge(one: "Store", ids: tuple[str, ...], subject: str | None, days: float | None) -> None:
    """Delete decisions for good.

    Of those that were drawn for audit, verdict, probabilities and label stay as evidence; input, hash, key, subject and
    raw readout go. An audit whose label is not due yet waits for it no more; one past its deadline stays unlabelled.
    """
    from demur.server.store import upkeep

    if sum((bool(ids), subject is not None, days is not None)) != 1:
        raise click.UsageError("give one of --id, --subject and --days")
    hashed = None if subject is None else one.hash("subject", subject)
    now = datetime.now(UTC)
    before = now - timedelta(days=days or 0)
    gone = 0
    while True:
        if days is not None:
            some = one.write_now(lambda connection: upkeep.expire(connection, before, now))
        else:
            some = one.write_now(
                lambda connection: upkeep.erase(connection, ids=list(ids) or None, subject=hashed, now=now)
            )
        gone += some
        if some < upkeep.BATCH:
            break
    click.echo(f"{gone} decisions deleted")


@audits.command()
@click.option("--per-day", type=_Range(1, 1e9), required=True, help="Trusted decisions a day.")
@click.option("--rate", default=0.05, show_default=True, type=_Range(1e-6, 1), help="Audit rate.")
# Delays are simulated, for as many audits as 1/alpha asks for.
@click.option("--alpha", default=0.05, show_default=True, type=_Range(0.001, 0.999), help="Promised risk.")
@click.option("--delta", default=0.05, show_default=True, type=_Range(1e-9, 0.999), help="Its level.")
@click.option(
    "--within-days", default=30.0, show_default=True, type=_Range(0.01, 36_500), help="For the smallest useful rate."
)
def plan(per_day: float, rate: float, alpha: float, delta: float, within_days: float) -> None:
    """Say what an audit rate costs in labels, and how soon it finds a broken promise."""
    from demur.calibration.audits import audit_plan

    found = audit_plan(per_day, rate, alpha=alpha, delta=delta, within_days=within_days)
    rows = [
        ("labels a day", f"{found.labels_per_day:.1f}"),
        ("days to find a doubled risk", _days(found.days_to_doubled)),
        ("days to find a fourfold risk", _days(found.days_to_fourfold)),
        ("doubled, after a good spell", _days(found.days_to_doubled_after_good)),
        ("fourfold, after a good spell", _days(found.days_to_fourfold_after_good)),
    ]
    useful = found.smallest_useful_rate
    rows.append(
        (
            f"smallest rate that finds a doubled risk within {within_days:g} days",
            "none" if useful is None else f"{useful:.3g}",
        )
    )
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def _days(days: float | None) -> str:
    return "not found" if days is None else f"{days:.1f}"


def _line(audit: "AuditRecord") -> dict[str, Any]:
    one = audit.decision
    return {
        "seq": audit.seq,
        "id": one.id,
        "task": one.task,
        "task_hash": one.task_hash,
        "at": one.at.isoformat(),
        "input": one.input,
        "label": audit.label,
        "second_label": audit.second,
        "decision": one.decision,
        "verdict": one.verdict,
        "p_correct": one.p_correct,
        "probabilities": dict(zip(one.options, one.probabilities.tolist(), strict=True)),
        "scores": [value if value > float("-inf") else None for value in one.scores.tolist()],
        "label_mass": one.label_mass,
        "bundle": one.bundle,
        "guarantee": one.guarantee,
        "slice": one.slice,
        "shadow": None if one.shadow is None else asdict(one.shadow),
        "u": one.draw.u,
        "rate": one.draw.rate,
        "least_rate": audit.least_rate,
    }
