"""`POST /tasks/{name}/readings` and `POST /tasks/{name}/calibrate`: raw readings, and bundles made while serving.

Both need an admin key. Readings are what a bundle is made from: they leave the bundle in force aside.
"""

import json
from typing import Any

import numpy as np
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.calibration import CalibrationError, Certificate, VerdictCertificates
from demur.decision.canonical import canonical_text
from demur.decision.errors import BundleError, DataFileError
from demur.decision.labelled import LabelledData, LabelledRow, parse_labelled, require_fixed_question
from demur.decision.readout import Readout
from demur.decision.rowhash import row_hash
from demur.decision.task import Task
from demur.server.auth import Caller, admin_only
from demur.server.calibrate import Plan
from demur.server.errors import DemurError, Fault, Invalid, TooLarge, Unavailable
from demur.server.problems import problem_members
from demur.server.readings import TrainedOn
from demur.server.services import Desk, Made, RowReader, Services
from demur.server.summary import summary
from demur.server.wires.calibration_models import CalibrateIn, ReadingsIn
from demur.server.wires.decide import find_task
from demur.server.wires.faults import crowded, faults_of, require_none
from demur.server.wires.reply import json_reply


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    @admin_only
    async def readings(request: Request) -> Response:
        services.admission.check()
        async with services.interruption(request) as work:
            task = find_task(request.path_params["name"], services)
            body = _parse(ReadingsIn, await services.read(request))
            limit = services.settings.max_batch
            if len(body.inputs) > limit:
                raise TooLarge(
                    f"{len(body.inputs)} inputs in one request, the limit is {limit}",
                    limit=limit,
                    size=len(body.inputs),
                )
            nulls = (index for index, value in enumerate(body.inputs) if value is None)
            require_none(Fault(("inputs", index), "must not be null", "null") for index in nulls)
            reader = _desk(services).reader(task)
            work.watch(request.receive)
            with services.admission.places(len(body.inputs)):
                items = [await _item(reader, value) for value in body.inputs]
        return json_reply(
            {
                "task_hash": task.content_hash,
                "model": reader.model,
                "pins": dict(reader.pins),
                "readout": reader.readout,
                "items": items,
            }
        )

    @admin_only
    async def calibrate(request: Request) -> Response:
        services.admission.check_ready()  # it takes no place
        task = find_task(request.path_params["name"], services)
        body = _parse(CalibrateIn, await services.read(request))
        data, plan = _rows("rows", body.rows, task), _plan(body)
        others = None if body.unlabelled is None else _rows("unlabelled", body.unlabelled, task, labelled=False)
        caller: Caller = request.state.caller
        try:
            with services.admission.work():
                made = await _desk(services).calibrate(task, data, plan, unlabelled=others, by=caller.key_id)
        except (DataFileError, BundleError, CalibrationError) as error:
            raise Invalid(str(error)) from None
        return json_reply(_made(made, task))

    return [
        Route("/tasks/{name}/readings", readings, methods=["POST"]),
        Route("/tasks/{name}/calibrate", calibrate, methods=["POST"]),
    ]


def _parse(model: type[Any], raw: Any) -> Any:
    if not isinstance(raw, dict):
        raise Invalid("body: must be an object", faults=(Fault((), "must be an object", "dict_type"),))
    require_none(crowded((), raw))
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        require_none(faults_of(error, model))
        raise


def _rows(member: str, rows: list[dict[str, Any]], task: Task, *, labelled: bool = True) -> LabelledData:
    """The rows of a member by the same rules as a file's; a line is the number of a row, from 1."""
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    try:
        data = parse_labelled(lines, member, task.spec.question, labelled=labelled, slice_by=task.slice_by)
        require_fixed_question(data)
    except DataFileError as error:
        faults = tuple(Fault((member,), line, "row") for line in str(error).splitlines())
        raise Invalid(str(error), faults=faults) from None
    return data


def _plan(body: CalibrateIn) -> Plan:
    try:
        return Plan(**body.model_dump(exclude={"rows", "unlabelled"}))
    except CalibrationError as error:
        name = str(error).split(" ", 1)[0]
        raise Invalid(str(error), faults=(Fault((name,), str(error), "out_of_range"),)) from None


def _desk(services: Services) -> Desk:
    if services.desk is None:
        raise Unavailable("this server reads no rows for calibration")
    return services.desk


async def _item(reader: RowReader, value: Any) -> dict[str, Any]:
    text = canonical_text(value)
    try:
        readout: Readout = await reader.read(LabelledRow(line=1, text=text, label=None, hash=row_hash(text)))
    except TrainedOn:
        return {"trained_on": True}
    except DemurError as error:
        return {"problem": problem_members(error)}
    scores = [score if np.isfinite(score) else None for score in readout.scores.tolist()]
    return {"scores": scores, "label_mass": readout.label_mass}


def _made(made: Made, task: Task) -> dict[str, Any]:
    calibration = made.calibration
    return {
        "task": task.name,
        "bundle": made.bundle.id,
        "summary": summary(calibration, task.name),
        "refusal": calibration.refusal,
        "calibrator": "identity" if calibration.refusal else calibration.selection.calibrator.kind,
        "n": calibration.counts.fitted,
        "certifying": calibration.counts.certifying,
        **_chains(calibration.certificates),
        "slices": {value: _chains(certificates) for value, certificates in calibration.slices.items()},
    }


def _chains(certificates: VerdictCertificates | None) -> dict[str, Any]:
    if certificates is None:
        return {"trusted": None, "not_deferred": None}
    return {"trusted": _certified(certificates.trusted), "not_deferred": _certified(certificates.not_deferred)}


def _certified(certificate: Certificate) -> dict[str, Any]:
    return {
        "alpha": certificate.alpha,
        "delta": certificate.delta,
        "threshold": certificate.threshold,
        "coverage": certificate.certified_coverage,
        "n": certificate.n,
        "errors": certificate.errors,
    }
