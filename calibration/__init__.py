"""Calibration: metrics, calibrators, certificates, monitors. Works on arrays; may import `demur.decision`."""
