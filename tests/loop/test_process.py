"""A certificate's process: labels late, corrected, never; the same whatever the order they are taken in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demur.calibration import Outcome, RiskMonitor
from demur.server.loop.process import GuaranteeProcess

ALPHA = DELTA = 0.05
STREAMS = 150
LIMIT = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / STREAMS)


def numbers(process):
    monitor = process.monitor
    return monitor.withdrawn, monitor.upper_bound, monitor.counts, monitor.recent, pytest.approx(monitor.log_evalue)


def table(n, labels):
    """The rows that a store would hold: the last label of each audit."""
    last = dict(labels)
    return [(seq, float(seq), last.get(seq)) for seq in range(n)]


histories = st.integers(1, 120).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.booleans()), max_size=200))
)


@settings(deadline=None, max_examples=60)
@given(histories, st.randoms(use_true_random=False), st.floats(0, 130))
def test_live_and_restarted_processes_agree_however_events_interleave(history, random, now):
    n, labels = history
    live, other = GuaranteeProcess(ALPHA, DELTA), GuaranteeProcess(ALPHA, DELTA)
    draws, given_ = iter(range(n)), iter(labels)
    drawn, pending = -1, next(given_, None)
    while drawn < n - 1 or pending is not None:
        if pending is not None and pending[0] <= drawn and random.random() < 0.5:
            live.labelled(*pending)
            live.monitor  # noqa: B018 - somebody looks
            pending = next(given_, None)
        elif drawn < n - 1:
            drawn = next(draws)
            live.drawn(drawn, float(drawn))
        if random.random() < 0.1:
            live.expire(random.uniform(0, drawn + 1))
    for seq in range(n):  # all audits first, then all labels, some of them twice
        other.drawn(seq, float(seq))
    for seq, wrong in labels:
        other.labelled(seq, wrong)
        other.labelled(seq, wrong)
    restarted = GuaranteeProcess(ALPHA, DELTA, withdrawn=live.monitor.withdrawn)
    restarted.restore(table(n, labels))
    for process in (live, other, restarted):
        process.expire(max(now, n))
    assert numbers(live) == numbers(other) == numbers(restarted)
    codes = [Outcome.MISSING if wrong is None else Outcome(wrong) for _, _, wrong in table(n, labels)]
    whole = RiskMonitor.restored(codes, ALPHA, DELTA, withdrawn=live.monitor.withdrawn)
    assert live.monitor.log_evalue == pytest.approx(whole.log_evalue, abs=1e-9)
    assert live.monitor.upper_bound == whole.upper_bound


def test_a_correction_recomputes_the_process_and_restores_nothing():
    process = GuaranteeProcess(ALPHA, DELTA)
    for seq in range(20):
        process.drawn(seq, 0.0)
        process.labelled(seq, True)
    for seq in range(20):
        process.labelled(seq, False)
    assert process.monitor.withdrawn
    assert process.monitor.counts[Outcome.ERROR] == 0
    assert process.monitor.log_evalue < 0
    assert process.state(expired=True) == "withdrawn"


def test_labels_that_never_come_starve_the_certificate_and_late_ones_feed_it():
    process = GuaranteeProcess(ALPHA, DELTA)
    for seq in range(100):
        process.drawn(seq, due=float(seq))
        if seq % 5:
            process.labelled(seq, False)
    process.expire(-1.0)
    assert process.state(expired=False) == "valid"
    process.expire(100.0)
    assert (process.state(expired=False), process.count(Outcome.MISSING)) == ("starved", 20)
    for seq in range(0, 60, 5):
        process.labelled(seq, False)
    assert process.state(expired=False) == "valid"
    assert not process.monitor.withdrawn


def test_labels_that_stop_after_a_long_good_history_starve_the_certificate():
    n = 5_000
    rows = [(seq, float(seq), False) for seq in range(n)] + [(seq, float(seq), None) for seq in range(n, n + 400)]
    live, restored = GuaranteeProcess(ALPHA, DELTA), GuaranteeProcess(ALPHA, DELTA)
    for seq, due, wrong in rows:
        live.drawn(seq, due)
        if wrong is not None:
            live.labelled(seq, wrong)
    restored.restore(rows)
    # Those that are not due say nothing; of the last 200 that are, a tenth may be without a label.
    for now, state in ((n - 1, "valid"), (n + 19, "valid"), (n + 20, "starved"), (n + 400, "starved")):
        for process in (live, restored):
            process.expire(float(now))
            assert process.state(expired=False) == state
    assert live.monitor.missing_share < 0.1
    for seq in range(n + 200, n + 380):  # late labels of the last ones
        for process in (live, restored):
            assert process.state(expired=False) == "starved"
            process.labelled(seq, False)
    assert [process.state(expired=False) for process in (live, restored)] == ["valid", "valid"]


def test_after_a_clock_that_was_ahead_for_a_while_labels_that_are_not_due_are_not_missing():
    rows = [(seq, float(seq), False if seq < 50 else None) for seq in range(100)]
    process, never_ahead = GuaranteeProcess(ALPHA, DELTA), GuaranteeProcess(ALPHA, DELTA)
    process.restore(rows)
    process.let_go(60)
    process.expire(1_000.0)
    assert process.state(expired=False) == "starved"
    process.labelled(70, True)
    never_ahead.restore([(seq, None if seq == 60 else due, True if seq == 70 else wrong) for seq, due, wrong in rows])
    for now, missing in ((54.0, 5), (54.0, 5), (53.0, 4), (58.0, 9), (99.0, 48)):
        for one in (process, never_ahead):
            one.expire(now)
            assert one.count(Outcome.MISSING) == missing
        assert process.state(expired=False) == never_ahead.state(expired=False)
        assert numbers(process) == numbers(never_ahead)


def test_one_or_two_first_audits_without_a_label_starve_nothing():
    process = GuaranteeProcess(ALPHA, DELTA)
    for seq, state in enumerate(("valid", "valid", "starved")):
        process.drawn(seq, due=0.0)
        process.expire(0.0)
        assert process.state(expired=False) == state


def test_an_audit_that_was_let_go_is_missing_never_and_waits_no_more():
    rows = [(seq, float(seq), None if seq % 2 else False) for seq in range(100)]
    live, restored = GuaranteeProcess(ALPHA, DELTA), GuaranteeProcess(ALPHA, DELTA)
    live.restore(rows)
    live.expire(50.0)
    assert live.state(expired=False) == "starved"
    for seq in range(1, 100, 2):
        live.let_go(seq)
    live.let_go(0)  # it has its label
    live.let_go(1_000)  # of another certificate
    restored.restore([(seq, due if wrong is not None else None, wrong) for seq, due, wrong in rows])
    for process in (live, restored):
        process.expire(1e9)
        assert (process.state(expired=False), process.count(Outcome.MISSING), len(process)) == ("valid", 0, 100)
    assert numbers(live) == numbers(restored)


def test_erasing_what_has_no_label_yet_leaves_no_false_withdrawal_where_only_errors_are_labelled_at_once():
    rng = np.random.default_rng(7)
    withdrawn, left = 0, 0
    for _ in range(STREAMS):
        wrong = rng.random(600) < ALPHA
        process = GuaranteeProcess(ALPHA, DELTA)
        process.restore([(seq, 0.0 if error else None, True if error else None) for seq, error in enumerate(wrong)])
        withdrawn += process.monitor.withdrawn
        left += RiskMonitor.restored(np.ones(wrong.sum(), dtype=int), ALPHA, DELTA).withdrawn
        assert process.monitor.upper_bound >= wrong.mean()
    assert withdrawn / STREAMS <= LIMIT
    assert left == STREAMS  # had they been left out


def by_delays(rng, audits, *, never):
    """One stream at risk alpha, labels as they arrive: errors at once, correct ones late or never."""
    wrong = rng.random(audits) < ALPHA
    arrival = np.arange(audits) + np.where(wrong, 0, rng.integers(0, audits // 4, audits))
    arrival[~wrong & (rng.random(audits) < never)] = 10 * audits
    order = np.argsort(arrival, kind="stable")
    events = list(zip(arrival[order].tolist(), order.tolist(), wrong[order].tolist(), strict=True))
    process, states, taken = GuaranteeProcess(ALPHA, DELTA), set(), 0
    for seq in range(audits):
        process.drawn(seq, due=float(seq + audits // 4))
        while taken < audits and events[taken][0] <= seq:
            process.labelled(*events[taken][1:])
            taken += 1
        if seq % 250 == 249:
            process.expire(float(seq))
            states.add(process.state(expired=False))
    arrived = RiskMonitor.restored([wrong for _, _, wrong in events], ALPHA, DELTA)
    return states, arrived.withdrawn


@pytest.mark.parametrize("never", [0.0, 0.3])
def test_labels_that_come_by_their_outcome_cause_no_false_withdrawal_in_the_order_drawn(never):
    rng = np.random.default_rng(5)
    streams = [by_delays(rng, 1500, never=never) for _ in range(STREAMS)]
    assert np.mean(["withdrawn" in states for states, _ in streams]) <= LIMIT
    # In the order of arrival the same labels withdraw nearly every certificate.
    assert np.mean([arrived for _, arrived in streams]) > 0.5
    starved = np.mean(["starved" in states for states, _ in streams])
    assert starved > 0.9 if never else starved == 0.0


def test_a_risk_that_doubles_is_withdrawn_through_late_labels():
    rng = np.random.default_rng(6)
    process = GuaranteeProcess(ALPHA, DELTA)
    for seq in range(4000):
        process.drawn(seq, due=float(seq + 500))
        if seq >= 300:
            process.labelled(seq - 300, bool(rng.random() < (ALPHA / 2 if seq < 2300 else 2 * ALPHA)))
        if seq == 2300:
            assert not process.monitor.withdrawn
    assert process.monitor.withdrawn
