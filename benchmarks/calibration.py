"""Times of the calibration library beside scikit-learn's, MAPIE's and netcal's equivalents, in one run.

    python -m benchmarks.calibration [--repeats 5] [--processor-time]

Each time is the median of the repeats on one thread; where other work runs on the machine, `--processor-time` leaves
out what the process waited. Libraries take turns within a repeat, so that a busy machine slows all of them alike.
All of it takes a minute of processor time. Nothing stops at a breach of a limit; the last line, one JSON object, says
whether all held.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import special
from threadpoolctl import threadpool_limits
from transformers import AutoTokenizer

from benchmarks.serving.models import DEMO
from demur import calibration as dc
from demur.decision.bundle import Bundle
from demur.decision.prompt import PromptBuilder
from demur.decision.readout import Readout
from demur.decision.task import PolicyKind, PolicySpec, ReadoutKind
from demur.decision.taskfile import load_task
from demur.server.calibrated import Calibrated, policy_hash
from demur.server.guarantee import Guarantee
from demur.server.policy import Evidence, judge

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
METRICS: dict[str, Callable[[Floats, Ints], object]] = {
    "accuracy": dc.accuracy,
    "NLL": dc.negative_log_likelihood,
    "Brier": dc.brier_score,
    "Brier decomposition": dc.brier_decomposition,
    "ECE 10 equal-width": lambda p, y: dc.expected_calibration_error(p, y, n_bins=10),
    "ECE 15 equal-width": dc.expected_calibration_error,
    "ECE 10 equal-count": lambda p, y: dc.expected_calibration_error(p, y, n_bins=10, strategy="quantile"),
    "ECE 15 equal-count": lambda p, y: dc.expected_calibration_error(p, y, strategy="quantile"),
    "debiased": dc.debiased_calibration_error,
    "MCE": dc.maximum_calibration_error,
    "classwise ECE": dc.classwise_calibration_error,
    "smooth ECE": dc.smooth_calibration_error,
    "AUROC": lambda p, y: dc.auroc(p.max(axis=1), p.argmax(axis=1) == y),
    "AURC and excess": lambda p, y: dc.risk_coverage(p.max(axis=1), p.argmax(axis=1) == y).excess_aurc,
    "noise band, 200 draws": lambda p, _: dc.ece_noise_band(p, n_simulations=200),
}


@dataclass
class Row:
    """One thing timed: ours, others' by library, and the limit for ours in seconds."""

    name: str
    ours: Callable[[], object]
    others: dict[str, Callable[[], object]] = field(default_factory=dict)
    limit: float | None = None
    per: int = 1  # calls inside one timing


def simulated(n: int, k: int, *, seed: int = 0) -> tuple[Floats, Ints]:
    """Log-probabilities that are twice too sharp, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    true = 2.0 * rng.normal(size=(n, k))
    p = np.exp(true - true.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    return special.log_softmax(2.0 * true, axis=1), labels


def fitting_rows() -> list[Row]:
    """Calibrators on 100,000 decisions of 10 options."""
    from netcal import binning, scaling
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    logp, y = simulated(100_000, 10)
    p = np.exp(logp)
    top, correct = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.int64)
    # scikit-learn's temperature scaling wants a classifier: one whose decision function is the readout itself.
    readout = LogisticRegression(max_iter=1).fit(logp[:200], np.arange(200) % 10)
    readout.coef_, readout.intercept_ = np.eye(10), np.zeros(10)
    frozen = FrozenEstimator(readout)
    return [
        Row(
            "temperature fit, 100,000 x 10",
            lambda: dc.TemperatureScaling().fit(logp, y),
            {
                "scikit-learn": lambda: CalibratedClassifierCV(frozen, method="temperature").fit(logp, y),
                "netcal": lambda: scaling.TemperatureScaling().fit(p, y),
            },
            limit=0.5,
        ),
        Row(
            "beta fit, 100,000 x 10 (others: top column only)",
            lambda: dc.BetaCalibration().fit(logp, y),
            {"netcal": lambda: scaling.BetaCalibration().fit(top, correct)},
        ),
        Row(
            "isotonic fit, 100,000 x 10 (others: top column only)",
            lambda: dc.IsotonicCalibration().fit(logp, y),
            {
                "scikit-learn": lambda: IsotonicRegression(out_of_bounds="clip").fit(top, correct),
                "netcal": lambda: binning.IsotonicRegression().fit(top, correct),
            },
        ),
    ]


def metric_rows(n: int) -> list[Row]:
    """Every metric on n decisions of 10 options: in one report, and called one by one."""
    from mapie.metrics.calibration import expected_calibration_error
    from netcal.metrics.confidence import ECE, MCE
    from sklearn import metrics as sk

    logp, y = simulated(n, 10, seed=1)
    p = np.exp(logp)
    top, correct = p.max(axis=1), (p.argmax(axis=1) == y).astype(np.int64)
    others: dict[str, dict[str, Callable[[], object]]] = {
        "NLL": {"scikit-learn": lambda: sk.log_loss(y, p)},
        "Brier": {"scikit-learn": lambda: sk.brier_score_loss(y, p)},
        "accuracy": {"scikit-learn": lambda: sk.accuracy_score(y, p.argmax(axis=1))},
        "AUROC": {"scikit-learn": lambda: sk.roc_auc_score(correct, top)},
        "ECE 15 equal-width": {
            "netcal": lambda: ECE(15).measure(p, y),
            # MAPIE's number of bins counts edges.
            "MAPIE": lambda: expected_calibration_error(correct, top, num_bins=16, split_strategy="uniform"),
        },
        "ECE 15 equal-count": {"netcal": lambda: ECE(15, equal_intervals=False).measure(p, y)},
        "MCE": {"netcal": lambda: MCE(15).measure(p, y)},
    }
    rows = [Row(f"every metric in one report, {n:,} x 10", lambda: dc.calibration_report(p, y), limit=2.0)]
    rows += [Row(f"  {name}", partial(metric, p, y), others.get(name, {})) for name, metric in METRICS.items()]
    return rows


def certificate_rows(n: int) -> list[Row]:
    """One certificate on n decisions with 2,000 unlabelled ones; MAPIE's fixed sequence over its default grid."""
    from mapie.risk_control import BinaryClassificationController

    rng = np.random.default_rng(4)
    score, unlabelled = rng.beta(6, 0.6, n), rng.beta(6, 0.6, 2000)
    correct = rng.random(n) < score
    labels = correct.astype(np.int64)

    def mapie() -> None:
        controller = BinaryClassificationController(
            lambda x: np.column_stack([1 - x, x]),
            risk="precision",
            target_level=0.95,
            confidence_level=0.95,
            list_predict_params=np.linspace(0.99, 0, 100),
            fwer_method="fixed_sequence",
        )
        controller.calibrate(score, labels)

    return [
        Row(
            f"one certificate on {n:,}",
            lambda: dc.certify(score, correct, unlabelled=unlabelled),
            {"MAPIE": mapie},
            limit=1.0,
        )
    ]


def serving_rows() -> list[Row]:
    """One served decision of 10 options: probabilities by each calibrator and `p_correct`."""
    logp, y = simulated(4000, 10, seed=2)
    row = logp[0]
    model = dc.CorrectnessModel().fit(np.exp(logp), y, label_mass=np.random.default_rng(0).random(4000))
    rows = []
    for kind in dc.CALIBRATORS:
        fitted = kind().fit(logp, y)

        def serve(fitted: dc.Calibrator = fitted) -> None:
            for _ in range(1000):
                model.transform_one(fitted.transform_one(row), 0.9)

        rows.append(Row(f"one decision, {kind.kind} and p_correct", serve, limit=1e-4, per=1000))
    return rows


def prompt_rows() -> list[Row]:
    """The prompt of one served decision, by the demo model's tokenizer; its head and tail are kept."""
    task = load_task(Path("examples/tasks/voice_intent.yaml"))
    compiled = PromptBuilder(AutoTokenizer.from_pretrained(DEMO)).compile(task.spec)
    text = " ".join(f"word{index}" for index in range(25))

    def render() -> None:
        for _ in range(1000):
            compiled.render(text, 2048)

    return [Row("one prompt, 25 words", render, limit=2e-4, per=1000)]


def judging_rows() -> list[Row]:
    """The whole of what a bundle and a policy add to one served decision of 10 options, by kind of policy."""
    logp, y = simulated(4000, 10, seed=3)
    temperature = dc.TemperatureScaling().fit(logp, y)
    p = temperature.transform(logp)
    model = dc.CorrectnessModel().fit(p, y, label_mass=np.random.default_rng(0).random(4000))
    top = np.exp(logp).max(axis=1)
    issued = dc.certify_verdicts(top, np.random.default_rng(1).random(4000) < top**0.05, score_name="top_probability")
    now = datetime.now(UTC)
    digest = policy_hash(PolicySpec(), ReadoutKind.LETTER)
    guarantee = Guarantee("top_probability", issued.trusted, issued.not_deferred, digest, now, None)
    bundle = Bundle("0" * 64, "task", now, {}, {}, Path())
    calibrated = Calibrated(bundle, temperature, model, guarantee, np.sort(top))
    readout = Readout(logp[0], logp[0], 0.9)
    policies = (
        PolicySpec(),
        PolicySpec(trust_at=0.9, defer_below=0.3),
        PolicySpec(kind=PolicyKind.COST, cost=tuple(map(tuple, 1 - np.eye(10))), review_price=0.2, defer_price=0.4),
        PolicySpec(kind=PolicyKind.BUDGET, to_people=0.2),
    )

    def serve(policy: PolicySpec) -> None:
        for _ in range(1000):
            applied = calibrated.apply(readout)
            judge(policy, None, Evidence(ReadoutKind.LETTER, 0.5, 0.9, calibrated, applied))

    return [Row(f"one decision judged, {one.rule}", partial(serve, one), limit=1e-4, per=1000) for one in policies]


@dataclass
class Result:
    """Median seconds of each library, and the limit for ours."""

    name: str
    seconds: dict[str, float]
    limit: float | None


def measure(rows: list[Row], repeats: int, clock: Callable[[], float]) -> list[Result]:
    """Median seconds of each row, libraries taking turns; prints the table as it goes."""
    print(f"{'':56}{'demur':>12}{'limit':>10}   others")
    results = []
    for row in rows:
        calls = {"demur": row.ours, **row.others}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()  # caches and lazy imports
        for _ in range(repeats):
            for name, call in calls.items():
                start = clock()
                call()
                seconds[name].append((clock() - start) / row.per)
        result = Result(row.name.strip(), {name: float(np.median(times)) for name, times in seconds.items()}, row.limit)
        rest = ", ".join(f"{name} {shown(result.seconds[name])}" for name in row.others)
        limit = shown(row.limit) if row.limit else ""
        print(f"{row.name:56}{shown(result.seconds['demur']):>12}{limit:>10}   {rest}", flush=True)
        results.append(result)
    return results


def shown(seconds: float) -> str:
    """Seconds in the unit that fits."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} us"


def main() -> None:
    """Run everything and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decisions", type=int, default=1_000_000, help="rows for metrics and certificate")
    parser.add_argument("--processor-time", action="store_true", help="time of the process, not of the clock")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    # The other libraries warn about their own dependencies; none of it bears on their times.
    warnings.simplefilter("ignore")
    results: list[Result] = []
    with threadpool_limits(1):
        many = arguments.decisions
        for group in (
            fitting_rows,
            lambda: metric_rows(many),
            lambda: certificate_rows(many),
            serving_rows,
            judging_rows,
            prompt_rows,
        ):
            results += measure(group(), arguments.repeats, clock)
    alone = sum(result.seconds["demur"] for result in results if result.name in METRICS)
    print(f"{'  the metrics called one by one, each with its checks':56}{shown(alone):>12}")
    summary = {
        "benchmark": "calibration",
        "repeats": arguments.repeats,
        "processor_time": arguments.processor_time,
        "decisions": arguments.decisions,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "limits_held": all(r.limit is None or r.seconds["demur"] <= r.limit for r in results),
        "rows": [asdict(result) for result in results],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
