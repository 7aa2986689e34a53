"""What the decisions that a trainer meets look like, and where a batch goes that stopped it."""

from pathlib import Path

import numpy as np

from demur.calibration import expected_calibration_error
from demur.training import processes


def failed_batch(out: Path) -> Path:
    """Where a process puts the micro-batch whose loss was no number, beside the checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    return out / (f"failed_batch_{number}.pt" if (number := processes.number()) else "failed_batch.pt")


def summary(logprobs: np.ndarray, gold: np.ndarray, decided: np.ndarray | None = None) -> dict[str, float]:
    """Figures of log-probabilities [N, K] of the labels, gold [N] and, where one was drawn, the decision [N]."""
    p = np.exp(logprobs)
    gold, top = gold.astype(int), p.argmax(-1)
    confidence = p.max(-1)
    one_hot = np.eye(p.shape[1])[gold]
    drawn = {} if decided is None else {"accuracy": float((decided == gold).mean())}
    return drawn | {
        "accuracy_argmax": float((top == gold).mean()),
        "confidence": float(confidence.mean()),
        "ece": float(expected_calibration_error(p / p.sum(-1, keepdims=True), gold)),
        "brier": float(((p - one_hot) ** 2).sum(-1).mean()),
        "nll": float(-logprobs[np.arange(len(gold)), gold].mean()),
        "entropy": float(-(p * logprobs).sum(-1).mean()),
        "label_mass": float(p.sum(-1).mean()),
    }
