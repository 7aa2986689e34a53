"""Calibration: metrics, calibrators, certificates, monitors. Works on arrays; may import `demur.decision`.

`demur.calibration.plots` is imported on its own: it needs matplotlib (the `plots` extra).
"""

# Metrics and calibrators.
from demur.calibration.affine import BiasCorrectedTemperature, DirichletCalibration, VectorScaling
from demur.calibration.binning import IsotonicCalibration, ScalingBinning
from demur.calibration.calibration_error import (
    ReliabilityBins,
    classwise_calibration_error,
    debiased_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)
from demur.calibration.calibrator import Calibrator, FitSummary
from demur.calibration.correctness import CorrectnessModel, CorrectnessSummary
from demur.calibration.errors import (
    CalibrationError,
    InvalidCalibrator,
    InvalidData,
    InvalidParameter,
    NotFitted,
    NoValidInterval,
    OneClassOnly,
    OneSided,
    OptionsVary,
    Refused,
    TooFewLabels,
)
from demur.calibration.intervals import Interval, binomial_interval, bootstrap_interval
from demur.calibration.noise_band import NoiseBand, confidence_noise_band, ece_noise_band
from demur.calibration.proper_scores import (
    BrierDecomposition,
    accuracy,
    brier_decomposition,
    brier_score,
    negative_log_likelihood,
)
from demur.calibration.report import CalibrationReport, calibration_report
from demur.calibration.selection import CALIBRATORS, Candidate, Selection, calibrator_from_json, select_calibrator
from demur.calibration.selective import RiskCoverage, aurc, auroc, excess_aurc, risk_coverage
from demur.calibration.smooth_error import smooth_calibration_error, smooth_confidence_error
from demur.calibration.temperature import Identity, TemperatureScaling
from demur.calibration.top_label import BetaCalibration, PlattScaling

__all__ = [
    "CALIBRATORS",
    "BetaCalibration",
    "BiasCorrectedTemperature",
    "BrierDecomposition",
    "CalibrationError",
    "CalibrationReport",
    "Calibrator",
    "Candidate",
    "CorrectnessModel",
    "CorrectnessSummary",
    "DirichletCalibration",
    "FitSummary",
    "Identity",
    "Interval",
    "InvalidCalibrator",
    "InvalidData",
    "InvalidParameter",
    "IsotonicCalibration",
    "NoValidInterval",
    "NoiseBand",
    "NotFitted",
    "OneClassOnly",
    "OneSided",
    "OptionsVary",
    "PlattScaling",
    "Refused",
    "ReliabilityBins",
    "RiskCoverage",
    "ScalingBinning",
    "Selection",
    "TemperatureScaling",
    "TooFewLabels",
    "VectorScaling",
    "accuracy",
    "aurc",
    "auroc",
    "binomial_interval",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_score",
    "calibration_report",
    "calibrator_from_json",
    "classwise_calibration_error",
    "confidence_noise_band",
    "debiased_calibration_error",
    "ece_noise_band",
    "excess_aurc",
    "expected_calibration_error",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "reliability_bins",
    "risk_coverage",
    "select_calibrator",
    "smooth_calibration_error",
    "smooth_confidence_error",
]
