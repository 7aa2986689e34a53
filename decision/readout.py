"""A readout: what one forward pass says of every option."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Readout:
    """Full-vocabulary log-probabilities of the K labels at the decision position.

    Attributes
    ----------
    logprobs : float64 array [K], natural logarithm, as read (for a text readout the sum over the label's tokens).
    scores : float64 array [K], `logprobs` after the task's length handling; the same array for `sum`.
    label_mass : float in [0, 1], the probability of all labels together.
    """

    logprobs: NDArray[np.float64]
    scores: NDArray[np.float64]
    label_mass: float

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Scores normalised over the labels (softmax), float64 array [K]."""
        weights = np.exp(self.scores - self.scores.max())
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    @property
    def decision(self) -> int:
        """Index of the most probable label; ties go to the first option."""
        return int(np.argmax(self.scores))
