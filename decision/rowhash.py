"""A labelled row's identity: what it asks, never how it was answered.

Trainers keep these hashes, so that rows that a checkpoint was trained on are never taken as evidence about it.
"""

import hashlib
from pathlib import Path

from demur.decision.canonical import Json, canonical_bytes
from demur.decision.question import Question

#: A file of a model directory: hashes of the rows that it was trained on, one a line.
TRAINING_ROWS = "training_rows.sha256"


def row_hash(text: str, question: Question | None = None) -> str:
    """SHA-256 (hex) of an input as the model reads it, and of the question where rows have their own."""
    value: dict[str, Json] = {"input": text}
    if question is not None:
        value |= {"question": question.text, "options": list(question.names)}
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def training_rows(model: Path) -> frozenset[str]:
    """The hashes of the rows that a model directory names as its training rows; none where it names none."""
    path = model / TRAINING_ROWS
    return frozenset(path.read_text(encoding="ascii").split()) if path.is_file() else frozenset()
