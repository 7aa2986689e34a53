"""Simulated readouts whose true calibration is known."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

Readouts = Callable[..., tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]


@pytest.fixture(scope="session")
def readouts() -> Readouts:
    """Log-probabilities [n, k] that are `temperature` times too sharp, and labels drawn from the true ones."""

    def make(n: int, k: int = 5, *, temperature: float = 1.0, seed: int = 0, bias: float = 0.0):
        rng = np.random.default_rng(seed)
        true = 2.0 * rng.normal(size=(n, k))
        p = np.exp(true - true.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        labels = (rng.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
        shown = temperature * true + bias * np.arange(k)
        shown -= np.log(np.exp(shown).sum(axis=1, keepdims=True))
        return shown, labels

    return make


@pytest.fixture(scope="session")
def sharp(readouts: Readouts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """2,000 overconfident readouts over five options."""
    return readouts(2000, temperature=2.0, bias=0.3)
