"""From a calibration to the files of a bundle."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from demur.calibration import Identity, VerdictCertificates
from demur.decision.labelled import LabelledData
from demur.decision.task import ReadoutKind, Task
from demur.server.calibrate import Calibration
from demur.server.calibrated import min_label_mass, policy_hash
from demur.server.certificate_file import certificate_document
from demur.server.evaluation import evaluation
from demur.server.making import CROSS_FITTED
from demur.server.report_html import Ranking, reliability_svg, report_html
from demur.server.summary import summary


def provenance(
    calibration: Calibration,
    data: LabelledData,
    *,
    model: str,
    unlabelled: LabelledData | None = None,
    searched: LabelledData | None = None,
    left_out: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What a bundle was made from. `left_out` counts labelled rows that were not taken, by why."""
    plan = calibration.plan
    return {
        "model": model,
        "made_with": {name: version(name) for name in ("demur", "numpy", "scipy")},
        "data": {"labelled": _data(data), "unlabelled": _data(unlabelled), "searched": _data(searched)},
        "counts": {**asdict(calibration.counts), **(left_out or {})},
        "configurations_tried": plan.family,
        "searched_elsewhere": plan.searched_elsewhere,
        "route": plan.route,
        "alpha": plan.alpha,
        "beta": plan.beta,
        "delta": plan.delta,
        "delta_of_this_configuration": plan.spent,
        "attempt": plan.attempt,
        "refusal": calibration.refusal,
        "candidates": [asdict(candidate) for candidate in calibration.selection.candidates],
        "summary": summary(calibration, "this task").removeprefix("this task: "),
    }


def bundle_files(
    calibration: Calibration,
    task: Task,
    task_yaml: bytes,
    origin: Mapping[str, Any],
    readout: ReadoutKind,
    left_out: Mapping[str, int] | None = None,
) -> dict[str, bytes]:
    """The files for `demur.decision.bundle.write_bundle`. `origin` is the provenance, `left_out` as there."""
    fitting, names = calibration.fitting, task.spec.question.names
    report = evaluation(
        fitting,
        names,
        calibration.probabilities,
        calibration.p_correct,
        method=calibration.selection.calibrator.kind,
        held_out=CROSS_FITTED,
        left_out=left_out or {},
        show_inputs=task.log_inputs,
    )
    page = report_html(
        f"Calibration of {task.name}",
        report,
        fitting,
        calibration.probabilities,
        calibration.p_correct,
        model=str(origin["model"]),
        summary=summary(calibration, task.name),
        ranking=_ranking(calibration, min_label_mass(task.policy, readout)),
    )
    decided = calibration.probabilities.argmax(axis=1)
    reference = {
        "score": calibration.plan.score,
        "scores": [round(float(score), 6) for score in calibration.reference],
        "options": {name: int((decided == index).sum()) for index, name in enumerate(names)},
        "label_mass": [float(f"{mass:.6g}") for mass in fitting.label_mass],
    }
    documents = {
        "calibrator.json": _calibrator(calibration),
        "certificate.json": _certificate(calibration, task, readout),
        "provenance.json": origin,
        "report.json": report,
        "reference.json": reference,
    }
    diagram = reliability_svg(fitting, calibration.probabilities, calibration.p_correct)
    pages = {"task.yaml": task_yaml, "report.html": page.encode(), "reliability.svg": diagram.encode()}
    return pages | {name: _json(document) for name, document in documents.items()}


def _ranking(calibration: Calibration, mass_limit: float) -> Ranking:
    """Of the fitting rows; on the split route these are not the certifying ones, and their p_correct is held out."""
    plan, certificates = calibration.plan, calibration.certificates
    name, score = "top_probability", calibration.reference
    if plan.score == "p_correct" and calibration.p_correct is not None:
        name, score = "p_correct", calibration.p_correct
    score = np.where(calibration.fitting.label_mass >= mass_limit, score, 0.0)
    return Ranking(name, score, plan.alpha, None if certificates is None else certificates.trusted.threshold)


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _calibrator(calibration: Calibration) -> dict[str, Any]:
    chosen = Identity() if calibration.refusal else calibration.selection.calibrator
    model = calibration.correctness
    return {
        "calibrator": json.loads(chosen.to_json()),
        "correctness": None if model is None else json.loads(model.to_json()),
    }


def _certificate(calibration: Calibration, task: Task, readout: ReadoutKind) -> dict[str, Any] | None:
    whole = calibration.certificates
    issued: dict[str | None, VerdictCertificates] = {} if whole is None else {None: whole}
    issued.update(calibration.slices)
    if not issued:
        return None
    return certificate_document(
        issued,
        slice_by=task.slice_by,
        policy_hash=policy_hash(task.policy, readout),
        attempts=calibration.plan.attempt or 1,
    )


def _data(data: LabelledData | None) -> dict[str, Any] | None:
    if data is None:
        return None
    return {"sha256": data.sha256, "rows": data.read, "duplicates": data.duplicates, "kept": len(data.rows)}
