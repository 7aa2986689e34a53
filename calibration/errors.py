"""Errors raised by `demur.calibration`.

CalibrationError (ValueError)
├── InvalidData            an array that cannot be used: which row, which value
├── InvalidParameter       an argument out of its range
├── NotFitted              a calibrator used before `fit`
├── InvalidCalibrator      stored calibrator text that does not parse or does not add up
├── CertificateError       what was asked cannot be certified as asked (levels, lengths, values)
├── PolicyError            a cost matrix, price, budget or threshold that is no policy
├── MonitorError           a monitor's setting, state or stream that cannot be used
├── DriftError             a reference or window that cannot be compared
└── Refused                sound data that cannot support what was asked
    ├── TooFewLabels
    ├── OneClassOnly       every label is the same option
    ├── OneSided           every decision is right, or every one wrong
    ├── OptionsVary        the method depends on which option is which
    └── NoValidInterval    a bootstrap interval that would mislead
"""

from typing import ClassVar


class CalibrationError(ValueError):
    """Anything this package refuses; `type` is stable and meant for machines."""

    type: ClassVar[str] = "calibration_error"


class InvalidData(CalibrationError):
    """An array that cannot be used; the message names the first offending row and its value."""

    type = "invalid_data"


class InvalidParameter(CalibrationError):
    """An argument out of its range."""

    type = "invalid_parameter"


class NotFitted(CalibrationError):
    """A calibrator was used before `fit`."""

    type = "not_fitted"


class InvalidCalibrator(CalibrationError):
    """Stored calibrator text that does not parse or does not add up."""

    type = "invalid_calibrator"


class Refused(CalibrationError):
    """Sound data that cannot support what was asked; the message says what is missing."""

    type = "refused"


class TooFewLabels(Refused):
    """Fewer labels than the method needs."""

    type = "too_few_labels"


class OneClassOnly(Refused):
    """Every label is the same option, so nothing can be learned about the others."""

    type = "one_class_only"


class OneSided(Refused):
    """Every decision is right, or every one is wrong, so confidence cannot be compared with errors."""

    type = "one_sided"


class OptionsVary(Refused):
    """The method learns one parameter per option, but this task's options change between decisions."""

    type = "options_vary"


class NoValidInterval(Refused):
    """A bootstrap interval for this metric would mislead."""

    type = "no_valid_interval"


class CertificateError(CalibrationError):
    """What was asked cannot be certified as asked: levels, lengths or values."""

    type = "certificate_error"


class PolicyError(CalibrationError):
    """A cost matrix, price, budget or threshold that does not make a policy."""

    type = "policy_error"


class MonitorError(CalibrationError):
    """A monitor's setting, saved state or stream that cannot be used."""

    type = "monitor_error"


class DriftError(CalibrationError):
    """A reference or a window that cannot be compared."""

    type = "drift_error"
