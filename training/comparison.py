"""Arms measured and compared: proper scores decide, calibration errors stand beside their noise floor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from demur.calibration import (
    Calibrator,
    Identity,
    IsotonicCalibration,
    PlattScaling,
    Refused,
    TemperatureScaling,
    calibration_report,
    reliability_bins,
)
from demur.training.errors import TrainingError
from demur.training.readings import Readings

FloatArray = NDArray[np.float64]

#: What stands on top of an arm; the first is the arm itself.
POST_HOC: dict[str, Calibrator] = {
    "as it is": Identity(),
    "temperature": TemperatureScaling(),
    "Platt": PlattScaling(),
    "isotonic": IsotonicCalibration(),
}
_FOLDS = 5
_RESAMPLES = 2000


@dataclass(frozen=True)
class Figures:
    """What is measured of one arm on one set: means over seeds.

    Attributes:
        accuracy, nll, brier, aurc, auroc: of the labels' probabilities, normalised over the labels.
        confidence: mean.
        ece, ece_count: expected calibration error in 15 bins of equal width, and of equal count.
        noise: mean `ece` that a perfectly calibrated model with these confidences would score.
        raw_ece, raw_ece_count: of the top label's probability out of the whole vocabulary.
        label_mass: mean probability of all labels together.
        kl, tv: Kullback-Leibler divergence (nats) from the annotators' shares to the probabilities, and total variation
            between them; None unless every row has shares.
    """

    accuracy: float
    nll: float
    brier: float
    aurc: float
    auroc: float
    confidence: float
    ece: float
    ece_count: float
    noise: float
    raw_ece: float
    raw_ece_count: float
    label_mass: float
    kl: float | None = None
    tv: float | None = None


@dataclass(frozen=True)
class Difference:
    """An arm less another one, with the ends of a 95% interval over items and seeds."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Row:
    """One arm with one calibrator on one set. `against`: differences of what `row_scores` gives."""

    arm: str
    post_hoc: str
    evaluated_on: str
    seeds: int
    n: int
    figures: Figures
    against: Mapping[str, Difference]


def compare(
    arms: Mapping[str, Sequence[Mapping[str, Readings]]], *, reference: str, fit_on: str | None, seed: int = 0
) -> list[Row]:
    """Every arm with every calibrator on every set, against the reference arm as it is.

    Args:
        arms: for every arm, what each seed's model says on the sets.
        reference: an arm's name.
        fit_on: the set that calibrators are fitted on, the same seed's; it is not measured then. None fits them on
            four fifths of each set and measures on the last, in turn.
        seed: of the resampling.

    Where labels cannot support a calibrator there is no row for it.

    Raises:
        TrainingError: arms whose rows of a set are not the same.
    """
    sets = list(dict.fromkeys(name for seeds in arms.values() for readings in seeds for name in readings))
    rows = []
    for name in [name for name in sets if name != fit_on]:
        against = [_calibrated(readings, name, "as it is", fit_on) for readings in arms[reference]]
        for arm, seeds in arms.items():
            if any(name not in readings for readings in seeds):
                raise TrainingError(f"{arm} was not evaluated on {name}")
            for post_hoc in POST_HOC:
                try:
                    found = [_calibrated(readings, name, post_hoc, fit_on) for readings in seeds]
                except Refused:
                    continue
                if any(not np.array_equal(one.hashes, against[0].hashes) for one in (*found, *against)):
                    raise TrainingError(f"{arm} and {reference} were evaluated on different rows of {name}")
                rows.append(
                    Row(
                        arm=arm,
                        post_hoc=post_hoc,
                        evaluated_on=name,
                        seeds=len(found),
                        n=len(found[0].gold),
                        figures=_figures(found),
                        against=_differences(found, against, seed),
                    )
                )
    return rows


def row_scores(readings: Readings) -> dict[str, FloatArray]:
    """Each row's `nll`, `brier` and `accuracy`, and where there are annotators' shares `kl` and `tv`; [n] each."""
    p, rows = readings.probabilities, np.arange(len(readings.gold))
    gold, floored = p[rows, readings.gold], np.maximum(p, np.finfo(np.float64).eps)
    scores = {
        "nll": -np.log(floored[rows, readings.gold]),
        "brier": (p**2).sum(axis=1) - 2 * gold + 1,
        "accuracy": (p.argmax(axis=1) == readings.gold).astype(np.float64),
    }
    if (shares := readings.shares) is not None:
        # An option that nobody chose adds nothing.
        ratio = np.where(shares > 0, shares, 1) / np.where(shares > 0, floored, 1)
        scores["kl"] = (shares * np.log(ratio)).sum(axis=1)
        scores["tv"] = np.abs(shares - p).sum(axis=1) / 2
    return scores


def paired_difference(ours: FloatArray, theirs: FloatArray, *, seed: int = 0) -> Difference:
    """Mean of ours - theirs, [seeds, n] each (or one seed beside all of the other's), with a 95% bootstrap interval.

    Items and seeds are drawn anew, both with replacement; an item's scores stay together, and so do a seed's.
    """
    gaps = ours - theirs
    n_seeds, n = gaps.shape
    rng = np.random.default_rng(seed)
    of_seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), _RESAMPLES) / n_seeds
    draws = []
    for weights in np.array_split(of_seeds, 20):
        means = weights @ gaps
        draws.append(np.take_along_axis(means, rng.integers(n, size=means.shape), axis=1).mean(axis=1))
    lower, upper = np.quantile(np.concatenate(draws), [0.025, 0.975])
    return Difference(float(gaps.mean()), float(lower), float(upper))


def _differences(ours: Sequence[Readings], theirs: Sequence[Readings], seed: int) -> dict[str, Difference]:
    if len(ours) != len(theirs) and min(len(ours), len(theirs)) > 1:
        both = min(len(ours), len(theirs))
        ours, theirs = ours[:both], theirs[:both]
    mine, other = [row_scores(one) for one in ours], [row_scores(one) for one in theirs]
    return {
        name: paired_difference(
            np.array([scores[name] for scores in mine]), np.array([scores[name] for scores in other]), seed=seed
        )
        for name in mine[0]
    }


def _calibrated(readings: Mapping[str, Readings], name: str, post_hoc: str, fit_on: str | None) -> Readings:
    """One seed's readings of a set behind a calibrator. Raises Refused where the labels cannot support it."""
    found, calibrator = readings[name], POST_HOC[post_hoc]
    if post_hoc == "as it is":
        return found
    p, gold = found.probabilities, found.gold
    if fit_on is not None:
        known = readings[fit_on]
        mapped = calibrator.fit(_log(known.probabilities), known.gold, options_vary=True).transform(_log(p))
        return replace(found, raw=mapped)
    # Rows are ordered by their hash, so every fifth one is a random fifth.
    fold, mapped = np.arange(len(p)) % _FOLDS, p.copy()
    for held_out in range(_FOLDS):
        inside = fold == held_out
        fitted = calibrator.fit(_log(p[~inside]), gold[~inside], options_vary=True)
        mapped[inside] = fitted.transform(_log(p[inside]))
    return replace(found, raw=mapped)


def _figures(seeds: Sequence[Readings]) -> Figures:
    found = []
    for readings in seeds:
        report = calibration_report(readings.probabilities, readings.gold)
        top = readings.raw.argmax(axis=1)
        confidence = np.minimum(readings.raw[np.arange(len(top)), top], 1.0)
        raw = [reliability_bins(confidence, top == readings.gold, strategy=s) for s in ("uniform", "quantile")]
        found.append(
            Figures(
                accuracy=report.accuracy,
                nll=report.nll,
                brier=report.brier,
                aurc=report.aurc,
                auroc=report.auroc,
                confidence=report.mean_confidence,
                ece=report.ece_uniform_15,
                ece_count=report.ece_quantile_15,
                noise=report.ece_noise.mean,
                raw_ece=raw[0].expected_error,
                raw_ece_count=raw[1].expected_error,
                label_mass=float(readings.raw.sum(axis=1).mean()),
                **{name: float(scores.mean()) for name, scores in row_scores(readings).items() if name in ("kl", "tv")},
            )
        )
    known = [name for name, value in vars(found[0]).items() if value is not None]
    return Figures(**{name: float(np.mean([getattr(one, name) for one in found])) for name in known})


def _log(p: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        logs: FloatArray = np.log(p)
    return logs
