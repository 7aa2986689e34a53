"""Calibration of readings: what is certified, what is refused, groups, splits, attempts and the words for it."""

import json

import numpy as np
import pytest

from demur.calibration import CertificateError
from demur.decision.bundle import PINS, read_bundle, write_bundle
from demur.decision.labelled import LabelledData, parse_labelled
from demur.decision.question import Option, Question
from demur.decision.readout import Readout
from demur.decision.task import DecisionSpec, PolicySpec, ReadoutKind, Task
from demur.server.bundling import bundle_files, provenance
from demur.server.calibrate import Plan, calibrate, evidence_of
from demur.server.calibrated import Calibrated
from demur.server.readings import Readings
from demur.server.summary import summary

QUESTION = Question("Which?", (Option("a"), Option("b"), Option("c")))
TASK = Task("letters", DecisionSpec(QUESTION), policy=PolicySpec(min_label_mass=0.1))
LETTER = ReadoutKind.LETTER


def draw(n, *, sharp=4.0, seed=0, groups=None):
    """Rows whose overconfident scores are right with the chance that half of their log-odds say."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 3)) * sharp
    p = np.exp(scores / 2 - (scores / 2).max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    labels = [int(rng.choice(3, p=row)) for row in p]
    return data_of(labels, groups), scores


def data_of(labels, groups=None) -> LabelledData:
    rows = [
        {"input": f"row {i}", "label": "abc"[label]} | ({} if groups is None else {"group": groups[i]})
        for i, label in enumerate(labels)
    ]
    return parse_labelled("\n".join(map(json.dumps, rows)).encode(), "rows", QUESTION)


def readings(data, scores, mass=None):
    return Readings(data.rows, np.asarray(scores, float), np.full(len(scores), 0.9) if mass is None else mass)


def test_good_rows_are_certified_and_the_bundle_serves_what_was_certified(tmp_path):
    data, scores = draw(2000, sharp=8.0)
    read = readings(data, scores)
    made = calibrate(read, TASK, Plan(), readout=LETTER)
    assert made.selection.calibrator.kind == "temperature"
    assert made.selection.calibrator.temperature == pytest.approx(2.0, rel=0.15)
    trusted = made.certificates.trusted
    assert 0.3 < trusted.certified_coverage < 0.95
    assert trusted.delta_spent == pytest.approx(0.025)
    said = summary(made, "letters")
    assert said.startswith(
        f"letters: trusts {100 * trusted.certified_coverage:.0f}% of decisions with at most 5% error"
    )
    assert "n = 2000" in said
    origin = provenance(made, data, model="stub")
    files = bundle_files(made, TASK, b"name: letters\n", origin, LETTER)
    write_bundle(tmp_path / "b", task="letters", pins=dict.fromkeys(PINS, "0" * 64), files=files)
    served = Calibrated.of(read_bundle(tmp_path / "b"))
    applied = [served.apply(Readout(row, row, 0.9)) for row in scores]
    wrong = np.array([one.index for one in applied]) != read.labels
    reached = np.array([round(one.score, 6) >= trusted.threshold for one in applied])
    tested = next(t for t in trusted.evidence if t.threshold == trusted.threshold)
    assert (int(reached.sum()), int((wrong & reached).sum())) == (tested.trusted, tested.errors)
    assert origin["data"]["labelled"]["sha256"] == data.sha256
    report = served.bundle.document("report.json")
    assert report["before"]["ece_quantile_15"] > report["after"]["ece_quantile_15"]
    assert "worst" not in report


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        ([0, 1] * 9, np.eye(3)[[0, 0] * 9], "18 labels; at least 20 are needed, 2 more"),
        ([1] * 40, np.eye(3)[[0, 1] * 20], "all 40 labels are option 1"),
        ([0, 1] * 20, np.eye(3)[[0, 1] * 20], "all 40 decisions are right"),
        ([0, 1] * 20, np.eye(3)[[1, 0] * 20], "all 40 decisions are wrong"),
    ],
)
def test_labels_that_teach_nothing_keep_identity_and_certify_nothing(labels, scores, said, tmp_path):
    data = data_of(labels)
    made = calibrate(readings(data, 3 * scores), TASK, Plan(), readout=LETTER)
    assert said in made.refusal
    assert made.certificates is None
    text = summary(made, "letters")
    assert "nothing is certified" in text
    assert said in text
    files = bundle_files(made, TASK, b"name: letters\n", provenance(made, data, model="stub"), LETTER)
    write_bundle(tmp_path / "b", task="letters", pins=dict.fromkeys(PINS, "0" * 64), files=files)
    served = Calibrated.of(read_bundle(tmp_path / "b"))
    assert (served.calibrator.kind, served.guarantee) == ("identity", None)
    assert said in served.bundle.document("provenance.json")["refusal"]
    assert served.apply(Readout(scores[0], scores[0], 0.9)).p_correct is None


def test_what_cannot_be_certified_says_how_many_labels_more():
    data, scores = draw(150, sharp=8.0)
    made = calibrate(readings(data, scores), TASK, Plan(), readout=LETTER)
    assert made.certificates.trusted.threshold is None
    assert "trusts nothing" in summary(made, "letters")
    assert "labels more" in summary(made, "letters")
    hopeless = data_of(np.random.default_rng(1).integers(3, size=600).tolist())
    made = calibrate(readings(hopeless, draw(600)[1]), TASK, Plan(), readout=LETTER)
    assert "no number will do" in summary(made, "letters")


def test_a_second_look_is_not_advised_where_delta_is_spent():
    """Looking again whenever rows were added certifies what is not so, far more often than delta."""
    data, scores = draw(150, sharp=8.0)
    spent = "try again on new rows only"
    assert spent in summary(calibrate(readings(data, scores), TASK, Plan(), readout=LETTER), "letters")
    assert spent not in summary(calibrate(readings(data, scores), TASK, Plan(attempt=1), readout=LETTER), "letters")
    data, scores = draw(2000, sharp=8.0)
    assert spent not in summary(calibrate(readings(data, scores), TASK, Plan(), readout=LETTER), "letters")


def test_levels_are_said_as_they_were_asked_for():
    """12.5% is not 12%, and no confidence is 100%."""
    data, scores = draw(2000, sharp=8.0)
    plan = Plan(alpha=0.125, beta=0.345, delta=0.001)
    said = summary(calibrate(readings(data, scores), TASK, plan, readout=LETTER), "letters")
    assert "at most 12.5% error (99.9% confidence in the procedure" in said
    assert "at most 34.5% error" in said
    data, scores = draw(100)
    said = summary(calibrate(readings(data, scores), TASK, Plan(alpha=0.0004, delta=0.005), readout=LETTER), "letters")
    assert "at or below 0.04% (99.5% confidence" in said


def test_what_counts_once_is_said_to():
    """A certificate over different inputs promises nothing for traffic of which one of them is most."""
    data, scores = draw(600, sharp=8.0)
    once = "shares are of different"
    assert once not in summary(calibrate(readings(data, scores), TASK, Plan(), readout=LETTER), "letters")
    said = summary(calibrate(readings(data, scores), TASK, Plan(), readout=LETTER, repeats=400), "letters")
    assert "400 rows repeat another's content" in said
    assert f"{once} inputs" in said
    grouped, scores = draw(600, sharp=8.0, groups=[i // 2 for i in range(600)])
    assert f"{once} groups" in summary(calibrate(readings(grouped, scores), TASK, Plan(), readout=LETTER), "letters")


def test_few_groups_are_refused_in_words():
    """Two of them may fall into one fold by hash."""
    for name in range(12):
        data, scores = draw(60, groups=[f"{name} {i % 2}" for i in range(60)])
        assert calibrate(readings(data, scores), TASK, Plan(), readout=LETTER).counts.certifying == 2


def test_one_row_of_a_group_certifies_and_a_split_keeps_groups_whole():
    groups = [f"customer {i // 4}" for i in range(800)]
    data, scores = draw(800, groups=groups)
    read = readings(data, scores)
    made = calibrate(read, TASK, Plan(), readout=LETTER)
    assert (made.counts.certifying, made.counts.same_group, made.counts.fitted) == (200, 600, 800)
    split = calibrate(read, TASK, Plan(route="split"), readout=LETTER)
    fitted = {row.group for row in split.fitting.rows}
    assert split.counts.fitted == 4 * len(fitted)
    assert split.counts.certifying == 200 - len(fitted)
    assert split.certificates.trusted.route == "split"
    assert split.certificates.trusted.score == "p_correct"


def test_a_report_of_groups_says_that_its_intervals_take_rows_as_independent():
    said = "30 of them stand beside another of their group"
    for groups in ([i // 4 for i in range(40)], None):
        data, scores = draw(40, groups=groups)
        made = calibrate(readings(data, scores), TASK, Plan(), readout=LETTER)
        files = bundle_files(made, TASK, b"name: letters\n", provenance(made, data, model="stub"), LETTER)
        assert json.loads(files["report.json"])["same_group"] == (30 if groups else 0)
        assert (said in files["report.html"].decode()) == (groups is not None)


def test_rows_with_little_label_mass_and_searched_rows_certify_nothing():
    data, scores = draw(500)
    mass = np.where(np.arange(500) < 100, 0.05, 0.5)
    searched = frozenset(row.hash for row in data.rows[50:150])
    made = calibrate(readings(data, scores, mass), TASK, Plan(), readout=LETTER, searched=searched)
    assert (made.counts.certifying, made.counts.low_label_mass, made.counts.searched) == (350, 50, 100)
    assert "not certifying: 50 with too little label mass" in summary(made, "letters")
    # A group of which one row was searched is no evidence either.
    data, scores = draw(400, groups=[i // 2 for i in range(400)])
    searched = frozenset(row.hash for row in data.rows[:100:2])
    made = calibrate(readings(data, scores), TASK, Plan(), readout=LETTER, searched=searched)
    assert (made.counts.certifying, made.counts.searched) == (150, 100)
    # Nor is one of which other rows were searched, that are not among these.
    others = "\n".join(json.dumps({"input": f"searched {i}", "group": i}) for i in range(50))
    searched = evidence_of(parse_labelled(others.encode(), "searched", QUESTION, labelled=False))
    made = calibrate(readings(data, scores), TASK, Plan(), readout=LETTER, searched=searched)
    assert (made.counts.certifying, made.counts.searched) == (150, 100)


def test_configurations_share_delta_unless_they_were_tried_elsewhere():
    assert Plan(family=10).spent == pytest.approx(0.005)
    assert Plan(family=10, searched_elsewhere=True).spent == 0.05
    data, scores = draw(500)
    made = calibrate(readings(data, scores), TASK, Plan(family=10, attempt=2), readout=LETTER)
    assert made.certificates.trusted.delta_spent == pytest.approx(0.05 / 10 / 2 / 6)
    # Picking one of the ten is part of the procedure, so what it promises is the whole.
    assert made.certificates.trusted.delta == made.certificates.not_deferred.delta == 0.025
    assert "10 configurations were tried, so delta is 0.005" in summary(made, "letters")


def test_the_order_of_rows_does_not_matter():
    data, scores = draw(400)
    turned = np.random.default_rng(3).permutation(400)
    read = readings(data, scores)
    one = calibrate(read, TASK, Plan(route="split"), readout=LETTER)
    other = calibrate(read.take(turned), TASK, Plan(route="split"), readout=LETTER)
    assert one.certificates.trusted.thresholds == pytest.approx(other.certificates.trusted.thresholds, abs=1e-9)
    assert one.counts == other.counts


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"beta": 1.0}, "beta is 1.0"),
        ({"delta": -0.1}, "delta is -0.1"),
        ({"alpha": 0.3, "beta": 0.2}, "above alpha"),
        ({"family": 0}, "family is 0"),
        ({"attempt": 0}, "attempt is 0"),
        ({"route": "both"}, "route is 'both'"),
    ],
)
def test_a_plan_out_of_range_is_refused(levels, said):
    with pytest.raises(CertificateError, match=said):
        Plan(**levels)


def test_unlabelled_rows_of_too_little_mass_are_left_out():
    data, scores = draw(300)
    more = readings(*draw(50, seed=9), mass=np.full(50, 0.01))
    made = calibrate(readings(data, scores), TASK, Plan(), readout=LETTER, unlabelled=more)
    assert made.certificates.trusted.unlabelled == 0
