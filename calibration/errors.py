"""The errors of the calibration package, one tree.

CalibrationError
├── CertificateError   what was asked cannot be certified as asked (levels, lengths, values)
├── PolicyError        a cost matrix, price, budget or threshold that is no policy
├── MonitorError       a monitor's setting, state or stream that cannot be used
└── DriftError         a reference or window that cannot be compared
"""


class CalibrationError(ValueError):
    """Base of all errors raised by `demur.calibration`."""


class CertificateError(CalibrationError):
    """What was asked cannot be certified as asked: levels, lengths or values."""


class PolicyError(CalibrationError):
    """A cost matrix, price, budget or threshold that does not make a policy."""


class MonitorError(CalibrationError):
    """A monitor's setting, saved state or stream that cannot be used."""


class DriftError(CalibrationError):
    """A reference or a window that cannot be compared."""
