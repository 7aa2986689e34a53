import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, ks_2samp

from demur.calibration import DriftError, DriftMonitor
from demur.calibration.drift import SIGNALS, jensen_shannon, kolmogorov_smirnov, population_stability_index

OPTIONS = np.array([0.4, 0.3, 0.2, 0.1])


def draw(rng, n, *, less_sure=0.0, mix=0.0, mass=20.0):
    share = (1 - mix) * OPTIONS + mix / 4
    return rng.beta(6, 0.6 + less_sure, n), rng.choice(4, n, p=share), rng.beta(mass, 0.5, n)


@pytest.fixture(scope="module")
def monitor():
    return DriftMonitor.fit(*draw(np.random.default_rng(0), 5000), options=4)


def test_divergences_agree_with_scipy():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(7), 2)
    assert population_stability_index(p, q) == pytest.approx(entropy(p, q) + entropy(q, p))
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q) ** 2)
    assert jensen_shannon([1.0, 0.0], [0.0, 1.0]) == pytest.approx(np.log(2))
    a, b = rng.integers(0, 7, 200), rng.integers(0, 5, 300)
    shares = np.bincount(a, minlength=7) / 200, np.bincount(b, minlength=7) / 300
    assert kolmogorov_smirnov(*shares) == pytest.approx(ks_2samp(a, b).statistic)
    assert np.isinf(population_stability_index([1.0, 0.0], [0.5, 0.5]))


def test_unshifted_windows_alarm_on_at_most_one_percent_of_all_signals_together(monitor):
    rng = np.random.default_rng(1)
    assert np.mean([bool(monitor.read(*draw(rng, 500)).alarms) for _ in range(1000)]) <= 0.01


@pytest.mark.parametrize(
    ("shift", "signal"),
    [
        ({"less_sure": 0.3}, "confidence_psi"),
        ({"less_sure": 0.3}, "confidence_ks"),
        ({"mix": 0.8}, "option_js"),
        ({"mass": 5.0}, "label_mass_ks"),
    ],
)
def test_a_shift_raises_its_signal(monitor, shift, signal):
    rng = np.random.default_rng(2)
    readings = [monitor.read(*draw(rng, 500, **shift)) for _ in range(40)]
    assert np.mean([signal in reading.alarms for reading in readings]) > 0.9


def test_expected_accuracy_is_the_mean_confidence(monitor):
    window = draw(np.random.default_rng(3), 500)
    reading = monitor.read(*window)
    assert reading.expected_accuracy == pytest.approx(window[0].mean())
    assert set(reading.values) == set(SIGNALS)


def test_constant_columns_do_not_alarm():
    n = 3000
    constant = DriftMonitor.fit(np.ones(n), np.zeros(n, dtype=int), np.ones(n), options=2)
    assert constant.read(np.ones(500), np.zeros(500, dtype=int), np.ones(500)).alarms == ()
    assert constant.read(np.full(500, 0.5), np.zeros(500, dtype=int), np.ones(500)).alarms != ()


def test_json_gives_the_same_readings(monitor):
    window = draw(np.random.default_rng(4), 500)
    assert DriftMonitor.from_json(monitor.to_json()).read(*window) == monitor.read(*window)
    for text in ("[]", "{}", "nonsense", monitor.to_json().replace("option_js", "other")):
        with pytest.raises(DriftError):
            DriftMonitor.from_json(text)


@pytest.mark.parametrize(
    "columns",
    [
        ([0.5] * 499, [0] * 499, [1.0] * 499),
        ([1.5] * 500, [0] * 500, [1.0] * 500),
        ([float("nan")] * 500, [0] * 500, [1.0] * 500),
        ([0.5] * 500, [9] * 500, [1.0] * 500),
        ([0.5] * 500, [0.0] * 500, [1.0] * 500),
        ([0.5] * 500, [0] * 500, [1.0] * 499),
        ([], [], []),
    ],
)
def test_columns_that_do_not_fit_are_refused(monitor, columns):
    with pytest.raises(DriftError):
        monitor.read(*columns)


def test_a_reference_that_is_too_small_is_refused():
    with pytest.raises(DriftError, match="fewer"):
        DriftMonitor.fit(*draw(np.random.default_rng(0), 400), options=4)
    with pytest.raises(DriftError, match="at least 50"):
        DriftMonitor.fit(*draw(np.random.default_rng(0), 400), options=4, window=10)
