"""Calibration: metrics, calibrators, certificates, monitors. Works on arrays; may import `demur.decision`.

`demur.calibration.plots` is imported on its own: it needs matplotlib (the `plots` extra).
"""

from demur.calibration.affine import BiasCorrectedTemperature, DirichletCalibration, VectorScaling
from demur.calibration.audits import AuditPlan, audit_plan, median_delay
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
from demur.calibration.certificate import Certificate, TestedThreshold
from demur.calibration.certify import certify
from demur.calibration.certify_growing import GrowingCertification
from demur.calibration.certify_parts import (
    SliceCertificates,
    VerdictCertificates,
    certify_slice_verdicts,
    certify_slices,
    certify_verdicts,
    most_slices,
)
from demur.calibration.correctness import CorrectnessModel, CorrectnessSummary
from demur.calibration.drift import DriftMonitor, DriftReading
from demur.calibration.errors import (
    CalibrationError,
    CertificateError,
    DriftError,
    InvalidCalibrator,
    InvalidData,
    InvalidParameter,
    MonitorError,
    NotFitted,
    NoValidInterval,
    OneClassOnly,
    OneSided,
    OptionsVary,
    PolicyError,
    Refused,
    TooFewLabels,
)
from demur.calibration.grid import is_trusted, on_grid, reaches, threshold_above, threshold_below
from demur.calibration.intervals import Interval, binomial_interval, bootstrap_interval
from demur.calibration.labels_needed import LabelsNeeded, labels_needed
from demur.calibration.monitor import Outcome, RecentRisk, RiskMonitor
from demur.calibration.noise_band import NoiseBand, confidence_noise_band, ece_noise_band
from demur.calibration.policy import (
    Ruling,
    budget,
    budget_threshold,
    certified,
    cheapest,
    cheapest_one,
    expected_cost,
    fixed_thresholds,
)
from demur.calibration.proper_scores import (
    BrierDecomposition,
    accuracy,
    brier_decomposition,
    brier_score,
    negative_log_likelihood,
)
from demur.calibration.report import CalibrationReport, calibration_report
from demur.calibration.risk_bound import average_risk_upper_bound
from demur.calibration.selection import CALIBRATORS, Candidate, Selection, calibrator_from_json, select_calibrator
from demur.calibration.selective import RiskCoverage, aurc, auroc, excess_aurc, risk_coverage
from demur.calibration.smooth_error import smooth_calibration_error, smooth_confidence_error
from demur.calibration.temperature import Identity, TemperatureScaling
from demur.calibration.top_label import BetaCalibration, PlattScaling

__all__ = [
    "CALIBRATORS",
    "AuditPlan",
    "BetaCalibration",
    "BiasCorrectedTemperature",
    "BrierDecomposition",
    "CalibrationError",
    "CalibrationReport",
    "Calibrator",
    "Candidate",
    "Certificate",
    "CertificateError",
    "CorrectnessModel",
    "CorrectnessSummary",
    "DirichletCalibration",
    "DriftError",
    "DriftMonitor",
    "DriftReading",
    "FitSummary",
    "GrowingCertification",
    "Identity",
    "Interval",
    "InvalidCalibrator",
    "InvalidData",
    "InvalidParameter",
    "IsotonicCalibration",
    "LabelsNeeded",
    "MonitorError",
    "NoValidInterval",
    "NoiseBand",
    "NotFitted",
    "OneClassOnly",
    "OneSided",
    "OptionsVary",
    "Outcome",
    "PlattScaling",
    "PolicyError",
    "RecentRisk",
    "Refused",
    "ReliabilityBins",
    "RiskCoverage",
    "RiskMonitor",
    "Ruling",
    "ScalingBinning",
    "Selection",
    "SliceCertificates",
    "TemperatureScaling",
    "TestedThreshold",
    "TooFewLabels",
    "VectorScaling",
    "VerdictCertificates",
    "accuracy",
    "audit_plan",
    "aurc",
    "auroc",
    "average_risk_upper_bound",
    "binomial_interval",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_score",
    "budget",
    "budget_threshold",
    "calibration_report",
    "calibrator_from_json",
    "certified",
    "certify",
    "certify_slice_verdicts",
    "certify_slices",
    "certify_verdicts",
    "cheapest",
    "cheapest_one",
    "classwise_calibration_error",
    "confidence_noise_band",
    "debiased_calibration_error",
    "ece_noise_band",
    "excess_aurc",
    "expected_calibration_error",
    "expected_cost",
    "fixed_thresholds",
    "is_trusted",
    "labels_needed",
    "maximum_calibration_error",
    "median_delay",
    "most_slices",
    "negative_log_likelihood",
    "on_grid",
    "reaches",
    "reliability_bins",
    "risk_coverage",
    "select_calibrator",
    "smooth_calibration_error",
    "smooth_confidence_error",
    "threshold_above",
    "threshold_below",
]
