"""What certifies, and how often attempts on a growing sample certify what is false."""

from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from demur.calibration import Identity
from demur.server.calibrated import Applied
from demur.server.guarantee import Guarantee
from demur.server.loop.certifying import Terms, certify
from demur.server.loop.evidence import Evidence, evidence
from demur.server.store.records import AuditRecord, Draw

from .conftest import NOW, decision

ALPHA = DELTA = 0.05
STREAMS = 100
LIMIT = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / STREAMS)


def audit(seq, *, label="a", u=0.001, rate=0.05, least=None, due=NOW - timedelta(days=1), **changed):
    record = decision(seq, draw=Draw(u, rate, drawn=True), **changed)
    least = rate if least is None else least
    return AuditRecord(seq, record, due, label, None, double=False, open=label is None, least_rate=least)


def chosen(*audits):
    found = evidence(audits, bundle="b" * 64, now=NOW)
    return [one.seq for one in found.audits], found.rate


def test_audits_are_thinned_to_the_smallest_rate_by_the_same_hash():
    rows = audit(1, u=0.04, least=0.01), audit(2, u=0.009, least=0.01), audit(3, u=0.005, rate=0.01)
    assert chosen(*rows) == ([2, 3], 0.01)
    # Also where no decision of that rate's verdict happens to have been drawn.
    assert chosen(*rows[:2]) == ([2], 0.01)
    assert chosen(audit(1, u=0.04), audit(2, u=0.009)) == ([1, 2], 0.05)


def test_of_times_with_different_rates_those_count_that_leave_most_rows():
    # Another process drew one more review at its own rate, before it knew that all are drawn alike by now.
    rows = [audit(seq, u=seq / 100) for seq in (1, 2, 3, 4)]
    assert chosen(audit(0, u=0.005, rate=0.01), *rows) == ([1, 2, 3, 4], 0.05)
    before = [audit(seq, u=0.005, rate=0.01) for seq in range(-4, 1)]
    assert chosen(*before, *rows) == ([-4, -3, -2, -1, 0], 0.01)


def test_audits_that_stand_for_some_verdicts_only_are_no_evidence():
    some = audit(1, least=0.0), audit(2, least=0.0)
    assert chosen(*some) == ([], 0.0)
    assert chosen(*some, audit(3, least=0.01)) == ([3], 0.01)


def test_what_waits_for_its_label_ends_the_evidence_and_what_never_got_one_is_in_it():
    later = NOW + timedelta(days=1)
    assert chosen(audit(1), audit(2, label=None), audit(3), audit(4, label=None, due=later), audit(5)) == (
        [1, 2, 3], 0.05
    )  # fmt: skip
    found = evidence([audit(1, label="b"), audit(2, label=None)], bundle="b" * 64, now=NOW)
    assert found.labels() == [1, None]


def test_audits_of_other_bundles_are_none_of_this_one():
    assert chosen(audit(1), audit(2, bundle="c" * 64), audit(3, bundle=None)) == ([1], 0.05)


PARTED = Guarantee("top_probability", None, None, "", NOW, None, slice_by="channel", slices=dict.fromkeys("ab"))


@dataclass
class Ranked:
    """A bundle whose scores are known: those of the rows, by their number."""

    scores: np.ndarray
    guarantee: Guarantee | None = None
    score_name: str = "top_probability"
    calibrator = Identity()

    def apply(self, reading):
        return Applied(0, np.ones(1), None, float(self.scores[reading]))


class Numbered(Evidence):
    def readings(self):
        return range(len(self.audits))

    def labels(self):
        return [one.label for one in self.audits]


def attempts(rng, *, spend, guarantee=None):
    """Whether one of 15 attempts on a growing sample certifies a score that says nothing, at risk alpha throughout."""
    n, parts = 600, 1 if guarantee is None else len(guarantee.slices)
    ranked, wrong = Ranked(rng.random(n), guarantee), (rng.random(n) < ALPHA).astype(int)
    rows = tuple(
        SimpleNamespace(label=label, decision=SimpleNamespace(slice="ab"[i % 3 == 0])) for i, label in enumerate(wrong)
    )
    for number in range(1, 16):
        terms = Terms(ALPHA, 0.3, DELTA if spend else DELTA * 2 * parts, None)
        attempt = SimpleNamespace(number=number if spend else 1)
        some = Numbered(rows[: number * 40], 0.05)
        issued = certify(ranked, some, list(range(number * 40)), terms, attempt, NOW)
        if any(one.trusted.threshold is not None for one in issued.values()):
            return True
    return False


@pytest.mark.parametrize("guarantee", [None, PARTED], ids=["whole", "slices"])
def test_fifteen_attempts_at_risk_alpha_certify_falsely_at_most_as_often_as_promised(guarantee):
    rng = np.random.default_rng(3)
    assert np.mean([attempts(rng, spend=True, guarantee=guarantee) for _ in range(STREAMS)]) <= LIMIT
    # Each attempt on each slice with all of delta, as if it were the only one.
    assert np.mean([attempts(rng, spend=False, guarantee=guarantee) for _ in range(STREAMS)]) > LIMIT
