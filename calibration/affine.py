"""Calibrators that are affine in the log-probabilities and know which option is which: they may move the decision.

All three are softmax regressions that start at the identity, with a Gaussian prior centred there: without
one, an option that never occurs as a label would send its bias to minus infinity.
"""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from scipy import optimize

from demur.calibration.arrays import FloatArray, IntArray
from demur.calibration.calibrator import Calibrator
from demur.calibration.stored import no_numbers
from demur.calibration.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, softmax


@dataclass(frozen=True, eq=False, kw_only=True)
class _AffineCalibrator(Calibrator):
    """Shared fit: minimise mean NLL + prior_strength / 2n * (squared distance to the identity) by L-BFGS.

    Attributes:
        prior_strength: precision of the prior in labels' worth of information; zero is plain maximum likelihood.
        bias: [K], added to the log-probabilities.
    """

    moves_decision = True
    needs_fixed_options = True

    prior_strength: float = 1.0
    bias: FloatArray = field(default_factory=no_numbers)

    def estimate(self, logp: FloatArray, labels: IntArray, /) -> tuple[Self, tuple[str, ...]]:
        """Fit scale and bias."""
        # Sorted rows make the sums, and so the search's every step, independent of the order given.
        order = np.lexsort((*logp.T, labels))
        logp, labels = logp[order], labels[order]
        n, k = logp.shape
        identity = self._identity(k)
        start = np.concatenate((identity, np.zeros(k)))
        penalty = self.prior_strength / n * np.concatenate((self._prior_weights(k), np.ones(k)))
        rows = np.arange(n)
        basis = self._basis(logp)

        def parameters(delta: FloatArray) -> FloatArray:
            if basis is None:
                return start + delta
            block = delta.reshape(k, k + 1) @ basis
            return start + np.concatenate((block[:, :k].ravel(), block[:, k]))

        def objective(delta: FloatArray) -> tuple[float, FloatArray]:
            theta = parameters(delta)
            p = softmax(self._scaled(logp, theta[:-k]) + theta[-k:])
            away = theta - start
            nll = -np.log(np.maximum(p[rows, labels], 1e-300)).mean() + 0.5 * penalty @ (away * away)
            p[rows, labels] -= 1.0
            p /= n
            gradient = np.concatenate((self._scale_gradient(p, logp), p.sum(axis=0))) + penalty * away
            if basis is not None:
                gradient = (np.column_stack((gradient[:-k].reshape(k, k), gradient[-k:])) @ basis.T).ravel()
            return float(nll), gradient

        low, high = self._scale_bounds()
        result = optimize.minimize(
            objective,
            np.zeros_like(start),
            jac=True,
            method="L-BFGS-B",
            bounds=[*[(low, high)] * len(identity), *[(None, None)] * k],
            options={"maxiter": 2000, "maxfun": 4000, "maxcor": 30, "ftol": 1e-16, "gtol": 1e-9},
        )
        notes = () if result.success or np.abs(result.jac).max() < 1e-5 else ("the search stopped before converging",)
        theta = parameters(result.x)
        return self._with(theta[:-k], theta[-k:]), notes

    @abstractmethod
    def _identity(self, k: int, /) -> FloatArray:
        """Scale parameters that change nothing."""

    @abstractmethod
    def _scaled(self, logp: FloatArray, scale: FloatArray) -> FloatArray:
        """Scaled log-probabilities, [n, K], a new array."""

    @abstractmethod
    def _scale_gradient(self, residual: FloatArray, logp: FloatArray) -> FloatArray:
        """Gradient in the scale parameters, given [n, K] gradients in the scaled log-probabilities."""

    @abstractmethod
    def _with(self, scale: FloatArray, bias: FloatArray) -> Self:
        """A copy with these parameters."""

    def _prior_weights(self, k: int) -> FloatArray:
        return np.ones_like(self._identity(k))

    def _scale_bounds(self) -> tuple[float | None, float | None]:
        """How far each scale parameter may move from the identity's."""
        return None, None

    def _basis(self, _: FloatArray, /) -> FloatArray | None:
        """[K + 1, K + 1] change of variables for the search over [matrix, bias], None for none."""
        return None


@dataclass(frozen=True, eq=False, kw_only=True)
class BiasCorrectedTemperature(_AffineCalibrator):
    """softmax(logprobs / temperature + bias): BCTS (Alexandari, Kundaje and Shrikumar 2020).

    With two options this is Platt's sigmoid on the log-odds of one of them.

    Attributes:
        temperature: above one where the model is overconfident.
        bias: [K], what the model's prior over the options lacks, in nats.
        prior_strength: of the Gaussian prior around the identity.
    """

    kind = "bias_corrected_temperature"

    temperature: float = 1.0

    def apply(self, logp: FloatArray) -> FloatArray:
        """Scale, shift, normalise."""
        return softmax(logp * (1.0 / self.temperature) + self.bias)

    def n_parameters(self, n_options: int, /) -> int:
        """One temperature and K - 1 free biases."""
        return n_options

    def _identity(self, _: int, /) -> FloatArray:
        return np.ones(1)

    def _scaled(self, logp: FloatArray, scale: FloatArray) -> FloatArray:
        scaled: FloatArray = logp * scale[0]
        return scaled

    def _scale_gradient(self, residual: FloatArray, logp: FloatArray) -> FloatArray:
        return np.array([np.vdot(residual, logp)])

    def _scale_bounds(self) -> tuple[float | None, float | None]:
        return 1.0 / MAX_TEMPERATURE - 1.0, 1.0 / MIN_TEMPERATURE - 1.0

    def _with(self, scale: FloatArray, bias: FloatArray) -> Self:
        return replace(self, temperature=1.0 / float(scale[0]), bias=bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class VectorScaling(_AffineCalibrator):
    """softmax(weights * logprobs + bias), one weight and one bias per option (Guo et al. 2017).

    Attributes:
        weights: [K].
        bias: [K], in nats.
        prior_strength: of the Gaussian prior around the identity.
    """

    kind = "vector"

    weights: FloatArray = field(default_factory=no_numbers)

    def apply(self, logp: FloatArray) -> FloatArray:
        """Scale, shift, normalise."""
        return softmax(logp * self.weights + self.bias)

    def n_parameters(self, n_options: int, /) -> int:
        """K weights and K - 1 free biases."""
        return 2 * n_options - 1

    def _identity(self, k: int, /) -> FloatArray:
        return np.ones(k)

    def _scaled(self, logp: FloatArray, scale: FloatArray) -> FloatArray:
        return logp * scale

    def _scale_gradient(self, residual: FloatArray, logp: FloatArray) -> FloatArray:
        gradient: FloatArray = np.einsum("ij,ij->j", residual, logp)
        return gradient

    def _with(self, scale: FloatArray, bias: FloatArray) -> Self:
        return replace(self, weights=scale, bias=bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class DirichletCalibration(_AffineCalibrator):
    """softmax(matrix @ logprobs + bias), regularised off the diagonal (Kull et al. 2019, ODIR).

    Off-diagonal weights get a hundredfold prior: a log-probability spans tens of nats, so small weights go far.

    Attributes:
        matrix: [K, K].
        bias: [K], in nats.
        prior_strength: of the Gaussian prior around the identity.
    """

    kind = "dirichlet"

    matrix: FloatArray = field(default_factory=no_numbers)

    def apply(self, logp: FloatArray) -> FloatArray:
        """Mix, shift, normalise."""
        return softmax(logp @ self.matrix.T + self.bias)

    def n_parameters(self, n_options: int, /) -> int:
        """K * (K - 1) free weights beyond a common column shift, and K - 1 free biases."""
        return (n_options + 1) * (n_options - 1)

    def _identity(self, k: int, /) -> FloatArray:
        return np.eye(k).ravel()

    def _prior_weights(self, k: int) -> FloatArray:
        return np.where(np.eye(k, dtype=bool), 1.0, 100.0).ravel()

    def _basis(self, logp: FloatArray, /) -> FloatArray:
        # Log-probabilities share their normaliser, so their columns move together; whitened, the search takes a
        # fifth of the steps.
        features = np.column_stack((logp, np.ones(len(logp))))
        moments = features.T @ features / len(features)
        moments[np.diag_indices_from(moments)] += 1e-6 * moments.trace() / len(moments)
        return np.linalg.inv(np.linalg.cholesky(moments)).astype(np.float64)

    def _scaled(self, logp: FloatArray, scale: FloatArray) -> FloatArray:
        k = logp.shape[1]
        scaled: FloatArray = logp @ scale.reshape(k, k).T
        return scaled

    def _scale_gradient(self, residual: FloatArray, logp: FloatArray) -> FloatArray:
        gradient: FloatArray = (residual.T @ logp).ravel()
        return gradient

    def _with(self, scale: FloatArray, bias: FloatArray) -> Self:
        return replace(self, matrix=scale.reshape(len(bias), len(bias)), bias=bias)
