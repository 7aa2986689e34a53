"""Errors raised by `demur.training`.

TrainingError (ValueError)
├── InUse          another process is running in this folder
├── NotFinite      a loss that is no number: training has stopped, the batch is saved
└── OutOfMemory    a micro-batch that does not fit: the next smaller one is named
"""


class TrainingError(ValueError):
    """Anything this package refuses or stops at."""


class InUse(TrainingError):
    """Another process is running in the folder."""


class NotFinite(TrainingError):
    """A loss became NaN or infinite; the message names the file that holds the batch."""


class OutOfMemory(TrainingError):
    """A micro-batch did not fit into memory; the message names the next smaller one."""
