"""A calibrator refitted on audits, and bundles made of it without a new reading."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demur.calibration import Calibrator, CorrectnessModel, Selection, select_calibrator
from demur.decision.bundle import write_bundle
from demur.decision.labelled import LabelledRow
from demur.decision.readout import Readout
from demur.decision.task import ReadoutKind, Task
from demur.server.bundling import bundle_files
from demur.server.calibrate import Calibration, Counts, Plan, scored
from demur.server.calibrated import Calibrated
from demur.server.crossfit import CrossFit, cross_fit
from demur.server.loop.evidence import Evidence
from demur.server.readings import Readings
from demur.server.store.rows import kept_text

#: Half the width of a 95% interval, in standard errors.
_Z = 1.96
_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A refit. `fitting` are the audits that it has seen."""

    selection: Selection
    crossed: CrossFit
    fitting: Readings

    @property
    def calibrator(self) -> Calibrator:
        """What maps readings to probabilities."""
        return self.selection.calibrator

    def improvement(self, before: Calibrated, newer: Evidence) -> tuple[float, float]:
        """How much less the log loss is than before on newer audits, in nats, and half its 95% interval.

        Both are 0 where fewer than two of them have a label.
        """
        pairs = [(r, label) for r, label in zip(newer.readings(), newer.labels(), strict=True) if label is not None]
        if len(pairs) < 2:
            return 0.0, 0.0
        gain = _loss(before.calibrator, pairs) - _loss(self.calibrator, pairs)
        return float(gain.mean()), float(_Z * gain.std(ddof=1) / np.sqrt(len(gain)))

    def same_trusted_set(self, before: Calibrated) -> bool:
        """Whether exactly the same decisions are trusted: they are ranked by what no calibrator touches."""
        moves = self.calibrator.moves_decision or before.calibrator.moves_decision
        return before.score_name != "p_correct" and not moves


@dataclass(frozen=True, slots=True, eq=False)
class Remade:
    """A bundle that another certificate may be put into."""

    calibrated: Calibrated

    def certified(self, certificate: Mapping[str, Any], said: Mapping[str, Any]) -> Calibrated:
        """The bundle with this certificate.json; `said` goes into its provenance."""
        bundle = self.calibrated.bundle
        origin = {**(bundle.document("provenance.json") or {}), "renewed": {**said, "from": bundle.id}}
        files = {**bundle.files, "certificate.json": _json(certificate), "provenance.json": _json(origin)}
        return _written(self.calibrated, files)


def refit(before: Calibrated, task: Task, older: Evidence) -> Candidate:
    """Selects and fits a calibrator on audits, as for a new bundle."""
    readings = _readings(task, older)
    keep = not (before.calibrator.moves_decision or before.score_name == "p_correct")
    selection = select_calibrator(readings.scores, readings.labels, keep_decision=keep, groups=readings.units)
    crossed = cross_fit(selection.calibrator, readings.scores, readings.labels, readings.label_mass, readings.units)
    return Candidate(selection, crossed, readings)


def remake(before: Calibrated, task: Task, candidate: Candidate, readout: ReadoutKind) -> Remade:
    """The bundle with the candidate's calibrator, and the certificate that it had."""
    correctness: CorrectnessModel | None = candidate.crossed.correctness
    name = before.score_name
    fitting = candidate.fitting
    calibration = Calibration(
        plan=Plan(route="split" if name == "p_correct" else "label_free"),
        selection=candidate.selection,
        correctness=correctness,
        certificates=None,
        counts=Counts(fitted=len(fitting.rows), certifying=0, low_label_mass=0, same_group=0, searched=0),
        fitting=fitting,
        probabilities=candidate.crossed.probabilities,
        p_correct=candidate.crossed.p_correct,
        reference=scored(fitting, candidate.selection, correctness, name)[0],
    )
    old = before.bundle
    origin = {
        **(old.document("provenance.json") or {}),
        "recalibrated": {"from": old.id, "audits": len(fitting.rows), "at": datetime.now(UTC).isoformat()},
    }
    origin.setdefault("model", "")
    files = bundle_files(calibration, task, old.files["task.yaml"], origin, readout)
    return Remade(_written(before, {**files, "certificate.json": old.files["certificate.json"]}))


def _readings(task: Task, rows: Evidence) -> Readings:
    """Audits with a label, as labelled rows are read."""
    names = tuple(map(kept_text, task.spec.question.names))
    kept = [
        (audit, names.index(audit.label))
        for audit in rows.audits
        if audit.label is not None and audit.decision.options == names
    ]
    return Readings(
        tuple(
            LabelledRow(line=number, text=audit.decision.input or "", label=label, hash=_unit(audit.decision.id))
            for number, (audit, label) in enumerate(kept, 1)
        ),
        np.stack([audit.decision.scores for audit, _ in kept]) if kept else np.zeros((0, len(names))),
        np.array([audit.decision.label_mass for audit, _ in kept]),
    )


def _unit(decision: str) -> str:
    """Every draw is a piece of evidence of its own; folds go by this hash."""
    return sha256(decision.encode()).hexdigest()


def _loss(calibrator: Calibrator, pairs: list[tuple[Readout, int]]) -> NDArray[np.float64]:
    p = calibrator.transform(np.stack([reading.scores for reading, _ in pairs]))
    chosen = p[np.arange(len(pairs)), [label for _, label in pairs]]
    return np.asarray(-np.log(np.maximum(chosen, _LEAST_PROBABILITY)))


def _written(before: Calibrated, files: Mapping[str, bytes]) -> Calibrated:
    """A bundle of these files, pinned as the one before; it is kept in memory, and its store is the server's."""
    with tempfile.TemporaryDirectory(prefix="demur-bundle-") as directory:
        target = Path(directory) / before.bundle.task
        bundle = write_bundle(target, task=before.bundle.task, pins=before.bundle.pins, files=files)
    return Calibrated.of(bundle)


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
