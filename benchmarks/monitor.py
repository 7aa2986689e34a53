"""Validity and delay of the monitor, beside MAPIE's `RiskMonitoring`.

    OMP_NUM_THREADS=1 python -m benchmarks.monitor [--streams 2000] [--delay-streams 400] [--only validity]

Validity: how often a certificate whose promise holds is withdrawn, and how often the upper bound fails. Delay: audits
until a broken promise is found. Drift: how often unshifted windows alarm. Timing: restoring a monitor. All of it takes
five to fifteen minutes on one core. Prints Markdown, and exits with 1 when anything is not as claimed.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from mapie.exchangeability_testing import RiskMonitoring
from numpy.typing import NDArray

from demur.calibration import Outcome, RiskMonitor
from demur.calibration.audits import delays
from demur.calibration.drift import DriftMonitor
from demur.calibration.risk_bound import log_tilt_mixture

ALPHA = DELTA = 0.05
AUDITS = 10_000
LOOK_EVERY = 500


def drawn_and_arrived(rng: np.random.Generator, wait: int) -> tuple[bool, bool]:
    """One stream at risk alpha whose errors are labelled at once and whose correct decisions after up to `wait` audits.

    Returns whether it was withdrawn in the order drawn, looked at with the labels there were, and in the order arrived.
    """
    wrong = rng.random(AUDITS) < ALPHA
    arrival = np.arange(AUDITS) + np.where(wrong, 0, rng.integers(0, wait, AUDITS))
    withdrawn = False
    for now in range(LOOK_EVERY, AUDITS + 1, LOOK_EVERY):
        table = np.where(arrival[:now] <= now, wrong[:now].astype(int), int(Outcome.PENDING))
        withdrawn |= RiskMonitor.restored(table, ALPHA, DELTA).withdrawn
    by_arrival = wrong[np.argsort(arrival, kind="stable")].astype(int)
    return withdrawn, RiskMonitor.restored(by_arrival, ALPHA, DELTA).withdrawn


def bound_failures(streams: int) -> dict[str, float]:
    """Share of streams in which the upper bound is ever below the average risk so far, under three kinds of drift."""
    t = np.arange(AUDITS)
    shapes = {
        "constant": np.full(AUDITS, ALPHA),
        "rising to 4 alpha": ALPHA * (0.5 + 3.5 * t / AUDITS),
        "waves": ALPHA * (1 + 0.9 * np.sin(t / 300)),
    }
    failed = {}
    for name, risk in shapes.items():
        average = np.cumsum(risk) / (t + 1)
        rng = np.random.default_rng(7)
        broken = [
            bool((log_tilt_mixture(average, np.cumsum(rng.random(AUDITS) < risk), t + 1) >= -np.log(DELTA)).any())
            for _ in range(streams)
        ]
        failed[name] = float(np.mean(broken))
    return failed


def validity(streams: int) -> bool:
    """Print false withdrawals and failures of the upper bound; whether each is as it must be."""
    limit = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / streams)
    print(f"\n## Validity: {streams} streams of {AUDITS} audits at risk {ALPHA} = alpha, delta {DELTA}\n")
    print("| setting | share of streams |\n|---|---|")
    found = delays(np.full(AUDITS, ALPHA), ALPHA, DELTA, streams=streams, seed=1)
    fine = check("false withdrawals, looked at after every label", float(np.mean(found <= AUDITS)), limit)
    rng = np.random.default_rng(2)
    both = np.array([drawn_and_arrived(rng, 1000) for _ in range(streams)])
    fine &= check("errors labelled at once, correct ones late; order drawn", float(both[:, 0].mean()), limit)
    fine &= check("WRONG: the same in the order of arrival", float(both[:, 1].mean()), limit, valid=False)
    for name, share in bound_failures(streams).items():
        fine &= check(f"upper bound ever below the average risk, {name}", share, limit)
    print(f"\nLimit (delta plus three standard errors): {limit:.4f}. All as claimed: {fine}.")
    return fine


def check(name: str, share: float, limit: float, *, valid: bool = True) -> bool:
    """Print a row; whether the share is below the limit (above it, for a way that must be seen to break)."""
    as_claimed = (share <= limit) == valid
    print(f"| {name} | {share:.4f}{'' if as_claimed else ' (!)'} |", flush=True)
    return as_claimed


def mapie_delay(risk: float, most: int, streams: int) -> float:
    """Median audits until MAPIE's `RiskMonitoring` finds the risk, label by label; infinite if beyond `most`.

    One `update` with the stream gives its bound after every label; each depends on the labels before it only.
    """
    rng = np.random.default_rng(5)
    found = []
    for _ in range(streams):
        wrong = rng.random(most) < risk
        monitor = RiskMonitoring(risk="accuracy", test_level=2 * DELTA, threshold=ALPHA, warn=False)
        monitor.update(np.ones(most, dtype=int), (~wrong).astype(int))
        above = monitor.online_risk_lower_bound_sequence_history > ALPHA
        found.append(float(np.argmax(above) + 1) if above.any() else np.inf)
    return float(np.median(found))


def our_delay(risks: NDArray[np.float64], streams: int, after: int = 0) -> float:
    """Median audits until withdrawal, counted from audit `after` on, of the streams not withdrawn before."""
    found = delays(risks, ALPHA, DELTA, streams=streams, seed=5)
    return float(np.median(found[found > after] - after))


def delay(streams: int) -> bool:
    """Print the delay table; whether each figure is within its limit."""
    print(f"\n## Delay: median audits to withdrawal, alpha = delta = {ALPHA}, {streams} streams, label by label\n")
    print("| risk | Demur | MAPIE RiskMonitoring | ratio | limit |\n|---|---|---|---|---|")
    fine = True
    for factor, most, limit in ((1.5, 2600, 0.45), (2.0, 1000, 0.35), (4.0, 260, 0.20)):
        ours = our_delay(np.full(20_000, factor * ALPHA), streams)
        theirs = mapie_delay(factor * ALPHA, most, streams)
        fine &= ours <= limit * theirs
        print(f"| {factor:g} alpha | {ours:.0f} | {theirs:.0f} | {ours / theirs:.3f} | {limit} |", flush=True)
    print("\n| after 2,000 audits at alpha/2, rise to | Demur | limit |\n|---|---|---|")
    for factor, most_audits in ((2.0, 650), (4.0, 110)):
        risks = np.concatenate([np.full(2000, ALPHA / 2), np.full(20_000, factor * ALPHA)])
        ours = our_delay(risks, streams, after=2000)
        fine &= ours <= most_audits
        print(f"| {factor:g} alpha | {ours:.0f} | {most_audits} |", flush=True)
    print(f"\nAll within their limits: {fine}.")
    return fine


def drift(tasks: int = 10, windows: int = 1000, reference: int = 5000) -> bool:
    """Print the share of unshifted windows with an alarm, and of shifted ones, for three kinds of task."""
    print(f"\n## Drift alarms: {tasks} tasks of each kind, {windows} windows of 500, reference of {reference}\n")
    print("| kind of task | unshifted, mean | unshifted, worst task | confidence shifted | option mix shifted |")
    print("|---|---|---|---|---|")
    fine = True
    for kind in ("continuous", "rounded, 30 options", "few values, 2 options"):
        rng = np.random.default_rng(11)
        shares = np.array([_alarm_shares(rng, kind, windows, reference) for _ in range(tasks)])
        fine &= bool((shares[:, 0] <= 0.01).all())
        cells = [shares[:, 0].mean(), shares[:, 0].max(), shares[:, 1].mean(), shares[:, 2].mean()]
        print(f"| {kind} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |", flush=True)
    print(f"\nAt most 1% in every task: {fine}.")
    return fine


Columns = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


def _draw(rng: np.random.Generator, kind: str, n: int, *, less_sure: float = 0.0, mix: float = 0.0) -> Columns:
    if kind == "continuous":
        options, chance, mass = 5, np.array([0.4, 0.3, 0.2, 0.07, 0.03]), 1 - rng.beta(0.5, 20, n)
        sure = rng.beta(6, 0.6 + less_sure, n)
    elif kind.startswith("rounded"):
        options, chance, mass = 30, np.append(0.5, np.full(29, 0.5 / 29)), np.round(rng.beta(20, 0.2, n), 3)
        sure = np.round(rng.beta(3, 0.4 + less_sure, n), 2)
    else:
        options, chance, mass = 2, np.array([0.98, 0.02]), np.ones(n)
        sure = rng.choice([0.6, 0.9, 0.99], n, p=[0.2 + less_sure / 2, 0.3, 0.5 - less_sure / 2])
    return sure, rng.choice(options, n, p=(1 - mix) * chance + mix / options), mass


def _alarm_shares(rng: np.random.Generator, kind: str, windows: int, reference: int) -> list[float]:
    options = {"c": 5, "r": 30, "f": 2}[kind[0]]
    monitor = DriftMonitor.fit(*_draw(rng, kind, reference), options=options)
    shifts: tuple[dict[str, float], ...] = ({}, {"less_sure": 0.2}, {"mix": 0.2})
    counts = (windows, windows // 10, windows // 10)
    return [
        float(np.mean([bool(monitor.read(*_draw(rng, kind, 500, **shift)).alarms) for _ in range(count)]))
        for shift, count in zip(shifts, counts, strict=True)
    ]


def restore_seconds(decisions: int = 1_000_000, rate: float = 0.05) -> float:
    """Seconds to restore a monitor from the audits of so many decisions; 5 s or less is wanted."""
    table = (np.random.default_rng(0).random(int(decisions * rate)) < ALPHA / 2).astype(int)
    start = time.perf_counter()
    RiskMonitor.restored(table, ALPHA, DELTA)
    return time.perf_counter() - start


def main() -> None:
    """Make the tables that are asked for; exit status 1 if a figure is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--delay-streams", type=int, default=400)
    parser.add_argument("--only", choices=("validity", "delay", "drift", "timing"))
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    fine = True
    if wanted.only in (None, "timing"):
        print(f"Restoring a monitor from 1,000,000 decisions, 5% audited: {restore_seconds():.3f} s")
    if wanted.only in (None, "drift"):
        fine &= drift()
    if wanted.only in (None, "validity"):
        fine &= validity(wanted.streams)
    if wanted.only in (None, "delay"):
        fine &= delay(wanted.delay_streams)
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
