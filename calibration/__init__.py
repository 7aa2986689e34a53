"""Calibration: metrics, calibrators, certificates, monitors. Works on arrays; may import `demur.decision`."""

from demur.calibration.audits import AuditPlan, audit_plan, median_delay
from demur.calibration.certificate import Certificate, TestedThreshold
from demur.calibration.certify import certify
from demur.calibration.certify_growing import GrowingCertification
from demur.calibration.certify_parts import (
    SliceCertificates,
    VerdictCertificates,
    certify_slices,
    certify_verdicts,
    most_slices,
)
from demur.calibration.drift import DriftMonitor, DriftReading
from demur.calibration.errors import CalibrationError, CertificateError, DriftError, MonitorError, PolicyError
from demur.calibration.grid import is_trusted, on_grid, threshold_above, threshold_below
from demur.calibration.labels_needed import LabelsNeeded, labels_needed
from demur.calibration.monitor import Outcome, RecentRisk, RiskMonitor
from demur.calibration.policy import Ruling, budget, budget_threshold, certified, expected_cost, fixed_thresholds
from demur.calibration.risk_bound import average_risk_upper_bound

__all__ = [
    "AuditPlan",
    "CalibrationError",
    "Certificate",
    "CertificateError",
    "DriftError",
    "DriftMonitor",
    "DriftReading",
    "GrowingCertification",
    "LabelsNeeded",
    "MonitorError",
    "Outcome",
    "PolicyError",
    "RecentRisk",
    "RiskMonitor",
    "Ruling",
    "SliceCertificates",
    "TestedThreshold",
    "VerdictCertificates",
    "audit_plan",
    "average_risk_upper_bound",
    "budget",
    "budget_threshold",
    "certified",
    "certify",
    "certify_slices",
    "certify_verdicts",
    "expected_cost",
    "fixed_thresholds",
    "is_trusted",
    "labels_needed",
    "median_delay",
    "most_slices",
    "on_grid",
    "threshold_above",
    "threshold_below",
]
