import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demur.calibration import (
    MonitorError,
    Outcome,
    RiskMonitor,
    audit_plan,
    average_risk_upper_bound,
    median_delay,
)
from demur.calibration.audits import delays
from demur.calibration.monitor import BET_ODDS, BET_STAKES, COPY_EVERY
from demur.calibration.risk_bound import log_tilt_mixture

ALPHA, DELTA = 0.05, 0.05
outcomes = st.lists(st.sampled_from(list(Outcome)), max_size=300)


def by_the_definition(wrong):
    """log W after the last audit, from one product for each bet and each copy."""
    risk = ALPHA * BET_ODDS / (1 - ALPHA + ALPHA * BET_ODDS)
    ratio = np.where(np.asarray(wrong)[:, None], risk / ALPHA, (1 - risk) / (1 - ALPHA))
    total, copies = 0.0, 0
    for j, start in enumerate(range(0, len(wrong), COPY_EVERY), 1):
        total += (ratio[start:].prod(axis=0) @ BET_STAKES) / (j * (j + 1))
        copies = j
    return np.log(total + 1 / (copies + 1))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_the_process_is_the_one_defined(wrong):
    monitor = RiskMonitor(ALPHA, DELTA)
    for error in wrong:
        monitor.update(error)
    assert monitor.log_evalue == pytest.approx(by_the_definition(wrong), abs=1e-9)
    assert BET_STAKES.sum() == pytest.approx(1.0)


@settings(deadline=None, max_examples=50)
@given(outcomes, st.integers(0, 300))
def test_one_by_one_in_parts_and_all_at_once_are_the_same(codes, cut):
    whole = RiskMonitor.restored(codes, ALPHA, DELTA)
    parts = RiskMonitor(ALPHA, DELTA)
    parts.extend(codes[:cut])
    parts = RiskMonitor.from_json(parts.to_json())
    parts.extend(codes[cut:])
    singly = RiskMonitor(ALPHA, DELTA)
    for code in codes:
        singly.extend([code])
    for other in (parts, singly):
        assert other.log_evalue == pytest.approx(whole.log_evalue, abs=1e-9)
        assert (other.withdrawn, other.upper_bound, other.counts) == (whole.withdrawn, whole.upper_bound, whole.counts)
        assert other.recent == whole.recent


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_a_label_that_comes_late_never_was_a_reason_to_withdraw(rows):
    known = RiskMonitor.restored([int(wrong) for wrong, _ in rows], ALPHA, DELTA)
    codes = [Outcome.PENDING if late else int(wrong) for wrong, late in rows]
    partly = RiskMonitor.restored(codes, ALPHA, DELTA)
    assert known.withdrawn or not partly.withdrawn
    assert partly.log_evalue <= known.log_evalue + 1e-9
    assert partly.upper_bound >= known.upper_bound - 1e-9


def test_a_doubled_risk_is_withdrawn_for_good():
    monitor = RiskMonitor(ALPHA, DELTA)
    monitor.extend([1] * 20)
    assert monitor.withdrawn
    assert monitor.log_evalue >= np.log(1 / DELTA)
    monitor.extend([0] * 5000)
    assert monitor.withdrawn
    assert monitor.log_evalue < 0
    assert RiskMonitor.from_json(monitor.to_json()).withdrawn
    # A corrected table recomputes W, and restores nothing.
    corrected = RiskMonitor.restored([0] * 5020, ALPHA, DELTA, withdrawn=True)
    assert corrected.withdrawn
    assert not RiskMonitor.restored([0] * 5020, ALPHA, DELTA).withdrawn


def test_states_from_the_gravest_down():
    monitor = RiskMonitor(ALPHA, DELTA)
    assert monitor.state() == "valid"
    monitor.extend([0] * 18 + [Outcome.PENDING] * 10 + [Outcome.MISSING] * 2)
    assert monitor.missing_share == pytest.approx(0.1)
    assert monitor.state() == "valid"
    assert monitor.state(overdue=True) == "starved"
    monitor.update(None)
    assert monitor.state() == "starved"
    assert monitor.state(expired=True) == "expired"
    monitor.extend([1] * 60)
    assert monitor.state(expired=True, overdue=True) == "withdrawn"


@pytest.mark.parametrize(("missing", "state"), [(2, "valid"), (3, "starved")])
def test_the_first_audits_without_a_label_are_held_against_twenty(missing, state):
    monitor = RiskMonitor(ALPHA, DELTA)
    monitor.extend([Outcome.MISSING] * missing + [Outcome.PENDING] * 50)
    assert monitor.state() == state


def test_recent_risk_says_that_it_is_not_always_valid():
    monitor = RiskMonitor(ALPHA, DELTA, window=100)
    assert monitor.recent.estimate is None
    monitor.extend([1] * 100 + [0] * 90 + [1] * 5 + [Outcome.PENDING] * 5)
    recent = monitor.recent
    assert (recent.labelled, recent.always_valid) == (95, False)
    assert recent.estimate == pytest.approx(5 / 95)
    assert recent.lower < 5 / 95 < recent.upper


def test_a_copy_is_independent():
    monitor = RiskMonitor(ALPHA, DELTA)
    monitor.extend([0] * 30)
    settled = monitor.copy()
    monitor.extend([1] * 30)
    assert (settled.audits, settled.withdrawn, monitor.withdrawn) == (30, False, True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RiskMonitor(0.0, DELTA),
        lambda: RiskMonitor(ALPHA, float("nan")),
        lambda: RiskMonitor(ALPHA, DELTA, window=0),
        lambda: RiskMonitor(ALPHA, DELTA).extend([4]),
        lambda: RiskMonitor(ALPHA, DELTA).extend([[0]]),
        lambda: RiskMonitor.from_json("{}"),
        lambda: RiskMonitor.from_json("nonsense"),
        lambda: RiskMonitor.from_json(json.dumps({**json.loads(RiskMonitor(ALPHA, DELTA).to_json()), "counts": [1]})),
        lambda: audit_plan(0, 0.05),
        lambda: audit_plan(1000, 0.0),
        lambda: audit_plan(1000, 0.05, alpha=2.0),
    ],
)
def test_bad_settings_and_states_are_refused(make):
    with pytest.raises(MonitorError):
        make()


def test_false_withdrawals_are_rare_and_the_many_stream_process_is_the_monitor():
    streams = 600
    found = delays(np.full(3000, ALPHA), ALPHA, DELTA, streams=streams, seed=1)
    rng = np.random.default_rng(1)
    wrong = rng.random((3000, streams, 1))[:, :20, 0] < ALPHA
    if (found > 3000).any():
        for stream in range(20):
            assert RiskMonitor.restored(wrong[:, stream].astype(int), ALPHA, DELTA).withdrawn == (found[stream] <= 3000)
    assert 0 < np.mean(found <= 3000) <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / streams)


def test_taking_audits_as_labels_arrive_would_break_it():
    """Errors are labelled at once, correct decisions late: harmless in the order drawn, fatal in that of arrival."""
    rng = np.random.default_rng(2)
    drawn = arrived = 0
    for _ in range(100):
        wrong = rng.random(2000) < ALPHA
        arrival = np.arange(2000) + np.where(wrong, 0, rng.integers(0, 500, 2000))
        now = np.where(arrival <= 2000, wrong.astype(int), Outcome.PENDING)
        drawn += RiskMonitor.restored(now, ALPHA, DELTA).withdrawn
        arrived += RiskMonitor.restored(wrong[np.argsort(arrival, kind="stable")].astype(int), ALPHA, DELTA).withdrawn
    assert drawn <= 100 * (DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 100))
    assert arrived > 50


def test_delays_are_within_their_limits():
    assert median_delay(2.0, ALPHA, DELTA) <= 240
    assert median_delay(4.0, ALPHA, DELTA) <= 31
    assert median_delay(2.0, ALPHA, DELTA, good_spell=2000) <= 650
    assert median_delay(4.0, ALPHA, DELTA, good_spell=2000) <= 110


def test_without_start_times_a_good_spell_would_blind_it():
    # One copy only: what 2,000 good audits lose has to be won back first.
    risk = ALPHA * BET_ODDS / (1 - ALPHA + ALPHA * BET_ODDS)
    rng = np.random.default_rng(3)
    wrong = np.concatenate([rng.random(2000) < ALPHA / 2, rng.random(1000) < 2 * ALPHA])
    steps = np.where(wrong[:, None], np.log(risk / ALPHA), np.log1p(-risk) - np.log1p(-ALPHA))
    plain = np.log(np.exp(np.cumsum(steps, axis=0)) @ BET_STAKES)
    assert plain.max() < np.log(1 / DELTA)
    assert RiskMonitor.restored(wrong.astype(int), ALPHA, DELTA).withdrawn


def test_the_upper_bound_covers_the_average_risk_under_drift():
    t = np.arange(4000)
    risk = ALPHA * (1 + 0.9 * np.sin(t / 300))
    average = np.cumsum(risk) / (t + 1)
    rng = np.random.default_rng(4)
    broken = []
    for _ in range(300):
        errors = np.cumsum(rng.random(4000) < risk)
        broken.append((log_tilt_mixture(average, errors, t + 1) >= np.log(1 / DELTA)).any())
    assert np.mean(broken) <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 300)
    final = average_risk_upper_bound(errors[-1], 4000, DELTA)
    assert errors[-1] / 4000 < final < errors[-1] / 4000 + 0.02


def test_the_upper_bound_is_where_the_mixture_crosses():
    assert average_risk_upper_bound(0, 0, DELTA) == 1.0
    bound = average_risk_upper_bound([0, 5, 50], [100, 100, 1000], DELTA)
    assert log_tilt_mixture(bound, [0, 5, 50], [100, 100, 1000]) == pytest.approx(np.log(1 / DELTA), abs=1e-6)


def test_an_audit_plan():
    plan = audit_plan(10_000, 0.05)
    assert plan.labels_per_day == 500
    assert plan.days_to_doubled == pytest.approx(median_delay(2.0, ALPHA, DELTA) / 500)
    assert plan.days_to_fourfold < plan.days_to_doubled < plan.days_to_doubled_after_good
    assert plan.smallest_useful_rate == pytest.approx(median_delay(2.0, ALPHA, DELTA) / 300_000)
    assert audit_plan(1, 1.0).smallest_useful_rate is None
