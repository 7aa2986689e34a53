"""Every metric of one set of decisions, computed in one pass over shared bins and one sort."""

from dataclasses import asdict, dataclass
from math import isnan

import numpy as np
import numpy.typing as npt

from demur.calibration.arrays import EPSILON, check_decisions
from demur.calibration.calibration_error import bin_confidence
from demur.calibration.noise_band import NoiseBand, simulate_band
from demur.calibration.proper_scores import BrierDecomposition, ClassBins, row_nll
from demur.calibration.selective import rank
from demur.calibration.smooth_error import smooth_error


@dataclass(frozen=True)
class CalibrationReport:
    """Metrics of n decisions; each field is what the function of that name returns.

    `ece_uniform_10` and its siblings give the binning strategy and the number of bins. `ece_noise` is the band of a
    perfectly calibrated model at 15 equal-width bins. `clipped_zeros` counts labels that were given a probability
    below machine epsilon and entered the NLL as epsilon. `auroc` is NaN if all decisions are right or all wrong.
    """

    n: int
    n_options: int
    accuracy: float
    mean_confidence: float
    nll: float
    brier: float
    brier_decomposition: BrierDecomposition
    ece_uniform_10: float
    ece_uniform_15: float
    ece_quantile_10: float
    ece_quantile_15: float
    ece_noise: NoiseBand
    debiased_calibration_error: float
    maximum_calibration_error: float
    classwise_calibration_error: float
    smooth_calibration_error: float
    auroc: float
    aurc: float
    excess_aurc: float
    clipped_zeros: int

    def to_dict(self) -> dict[str, object]:
        """Nested plain values for JSON; an undefined figure (NaN) becomes None."""
        return {k: None if isinstance(v, float) and isnan(v) else v for k, v in asdict(self).items()}


def calibration_report(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, n_simulations: int = 200, seed: int = 0
) -> CalibrationReport:
    """Compute every metric at once.

    Args:
        probabilities: [n, K], rows sum to one.
        labels: [n], gold option indices.
        n_simulations: label sets drawn for the noise band.
        seed: of those draws.

    Raises:
        InvalidData: a row that is not a distribution, a label that is not an option, lengths that differ.
    """
    decisions = check_decisions(probabilities, labels)
    n, n_options = decisions.probabilities.shape
    confidence = np.minimum(decisions.confidence, 1.0)
    correct = decisions.correct
    uniform = {m: bin_confidence(confidence, correct, m, "uniform") for m in (10, 15)}
    quantile = {m: bin_confidence(confidence, correct, m, "quantile") for m in (10, 15)}
    classes = ClassBins.of(decisions, 15)
    curve = rank(confidence, correct)
    return CalibrationReport(
        n=n,
        n_options=n_options,
        accuracy=float(correct.mean()),
        mean_confidence=float(confidence.mean()),
        nll=float(row_nll(decisions).mean()),
        brier=classes.brier,
        brier_decomposition=classes.brier_decomposition(),
        ece_uniform_10=uniform[10].expected_error,
        ece_uniform_15=uniform[15].expected_error,
        ece_quantile_10=quantile[10].expected_error,
        ece_quantile_15=quantile[15].expected_error,
        ece_noise=simulate_band(confidence, 15, "uniform", 0.95, n_simulations, seed),
        debiased_calibration_error=quantile[15].debiased_error,
        maximum_calibration_error=uniform[15].maximum_error,
        classwise_calibration_error=classes.classwise_error(),
        smooth_calibration_error=smooth_error(confidence, correct),
        auroc=curve.auroc,
        aurc=curve.aurc,
        excess_aurc=curve.excess_aurc,
        clipped_zeros=int((decisions.probabilities[np.arange(n), decisions.labels] < EPSILON).sum()),
    )
