"""The OpenAPI document, from the wires' models."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from demur.server.services import DEADLINE_HEADER
from demur.server.wires.bundles_models import BundleVersionOut, BundleVersionsOut, RenewedOut, RollbackIn
from demur.server.wires.calibration_models import (
    CalibrateIn,
    MadeOut,
    ReadingsIn,
    ReadingsOut,
    ShadowPolicyOut,
    TaskCalibrationOut,
    TaskPolicyIn,
    TaskPolicyOut,
)
from demur.server.wires.decide_models import AnswerOut, BatchOut, DecideIn, ProblemOut
from demur.server.wires.feedback_models import (
    ClaimIn,
    ClaimsOut,
    DecisionOut,
    LabelIn,
    LabelOut,
    LabelsIn,
    LabelsOut,
    ReleaseIn,
    ReleasesOut,
    ReviewItemOut,
    ReviewOut,
)
from demur.server.wires.ops_models import StatusOut, TaskOut, TasksOut, VersionOut
from demur.server.wires.systemone_models import ErrorOut, ModelsOut, SystemOneIn, SystemOneOut, ValidationOut

JsonSchema = dict[str, Any]
Operation = dict[str, Any]

_MODELS: tuple[type[BaseModel], ...] = (
    *(DecideIn, AnswerOut, BatchOut, ProblemOut),
    *(LabelIn, LabelsIn, LabelOut, LabelsOut, DecisionOut),
    *(ReviewOut, ClaimIn, ClaimsOut, ReleaseIn, ReleasesOut),
    *(StatusOut, TaskOut, TasksOut, VersionOut),
    *(TaskPolicyIn, TaskPolicyOut, ShadowPolicyOut, TaskCalibrationOut),
    *(ReadingsIn, ReadingsOut, CalibrateIn, MadeOut),
    *(RollbackIn, BundleVersionOut, BundleVersionsOut, RenewedOut),
    *(ErrorOut, ModelsOut, SystemOneIn, SystemOneOut, ValidationOut),
)

_MEANINGS = {
    400: "Not readable; says where",
    401: "No key, or a wrong one",
    403: "A key that may not do this",
    404: "Not found",
    409: "Not the version that is in force, no place for a bundle, no store, or an Idempotency-Key with other content",
    413: "Over a limit; says the limit and the size",
    415: "Not JSON, or an unknown Content-Encoding",
    422: "Readable but wrong; lists every fault",
    429: "The queue is full; see Retry-After",
    503: "Starting, draining, or the engine is not available",
    504: "No answer by the deadline",
}
_INLINE = {"question": "What does the writer want?", "options": ["a refund", "help", "something else"]}
_DECIDE_EXAMPLES = {
    "one": {**_INLINE, "input": "I was charged twice this month."},
    "described": {
        "question": "Which team should answer?",
        "options": [{"name": "billing", "description": "payments and invoices"}, "support"],
        "input": {"subject": "Invoice", "text": "I was charged twice this month."},
        "readout": "text",
        "policy": {"trust_at": 0.95},
    },
    "reasoned": {**_INLINE, "input": "It broke.", "mode": "reasoned", "thought": {"max_tokens": 64}, "explain": True},
    "batch": {**_INLINE, "inputs": ["I was charged twice this month.", "It does not start."]},
    "registered": {"task": "name-of-a-task", "input": "It does not start."},
}
_SYSTEMONE_EXAMPLES = {
    "all": {
        "model": "jev-latest",
        "state": "I was charged twice this month.",
        "questions": {
            "refund": {"type": "noul", "instructions": "Is money asked back?"},
            "team": {"type": "choice", "criteria": {"billing": "payments", "support": None}},
            "anger": {"type": "score", "criteria": ["calm", "annoyed", "furious"]},
        },
    }
}
_POLICY_EXAMPLES = {
    "certified": {"kind": "certified"},
    "fixed": {"kind": "fixed_thresholds", "trust_at": 0.95, "defer_below": 0.5, "version": 0},
    "budget": {"kind": "budget", "to_people": 0.2},
}
_FEEDBACK_EXAMPLES = {
    "one": {"id": "dec_0", "label": "billing"},
    "many": {"items": [{"id": "dec_0", "label": "billing", "source": "reviewer", "at": "2026-01-31T12:00:00Z"}]},
}
_TASK_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_DEADLINE = {
    "name": DEADLINE_HEADER,
    "in": "header",
    "description": "Milliseconds that the caller will wait; it can only shorten the server's deadline.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999_999},
}
_BODY_STATUSES = (400, 401, 404, 413, 415, 422, 429, 503, 504)


def openapi_document(version: str, *, requires_key: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Demur",
            "version": version,
            "description": "Typed questions in, decisions with a verdict out: trust, review or defer.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if requires_key else [],
    }


def _paths() -> dict[str, dict[str, Operation]]:
    answer = {"anyOf": [_ref(AnswerOut), _ref(BatchOut)]}
    return {
        "/decide": {
            "post": _operation(
                "decide",
                "Decide about one input (an answer) or several (a batch of answers and problems)",
                _json(answer) | _problems(_BODY_STATUSES),
                body=_ref(DecideIn),
                examples=_DECIDE_EXAMPLES,
            )
        },
        **_loop_paths(),
        "/v1/systemone": {
            "post": _operation(
                "systemone",
                "Answer questions about one state, by TypeSafe's contract",
                _json(_ref(SystemOneOut)) | _details(_BODY_STATUSES),
                body=_ref(SystemOneIn),
                examples=_SYSTEMONE_EXAMPLES,
            )
        },
        "/v1/models": {
            "get": _operation("list_models", "Names of the model served", _json(_ref(ModelsOut)) | _details((401,)))
        },
        "/tasks": {"get": _operation("list_tasks", "Registered tasks", _json(_ref(TasksOut)) | _problems((401,)))},
        "/tasks/{name}": {
            "get": _operation("get_task", "One registered task", _json(_ref(TaskOut)) | _problems((401, 404)))
            | {"parameters": [_TASK_NAME]}
        },
        "/tasks/{name}/calibration": {"get": _calibration()},
        "/tasks/{name}/readings": {
            "post": _operation(
                "read_raw",
                "Raw readings of a task, without its bundle; needs an admin key",
                _json(_ref(ReadingsOut)) | _problems((400, 401, 403, 404, 413, 415, 422, 429, 503, 504)),
                body=_ref(ReadingsIn),
                examples={"one": {"inputs": ["wake me up at six"]}},
            )
            | {"parameters": [_TASK_NAME, _DEADLINE]}
        },
        "/tasks/{name}/calibrate": {
            "post": _operation(
                "calibrate",
                "Make a bundle of labelled rows and serve it; needs an admin key",
                _json(_ref(MadeOut)) | _problems((400, 401, 403, 404, 409, 413, 415, 422, 503)),
                body=_ref(CalibrateIn),
                examples={"rows": {"rows": [{"input": "wake me up at six", "label": "alarm"}], "alpha": 0.05}},
            )
            | {"parameters": [_TASK_NAME]}
        },
        "/tasks/{name}/policy": {
            "get": _operation(
                "get_policy", "The policy in force for a task", _json(_ref(TaskPolicyOut)) | _problems((401, 404))
            )
            | {"parameters": [_TASK_NAME]},
            "put": _put_policy(),
        },
        "/tasks/{name}/policy/shadow": _shadow_policy(),
        **_versions(),
        "/healthz": {"get": _public("healthz", "Whether the process is alive", _json(_ref(StatusOut)))},
        "/readyz": {
            "get": _public("readyz", "Whether decisions can be taken", _json(_ref(StatusOut)) | _problems((503,)))
        },
        "/version": {"get": _public("version", "What runs here", _json(_ref(VersionOut)))},
        "/metrics": {
            "get": _operation(
                "metrics",
                "Metrics in Prometheus' text format",
                {"200": {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}}
                | _problems((401,)),
            )
        },
    }


def _loop_paths() -> dict[str, dict[str, Operation]]:
    """Labels, and what people are asked to label."""
    labels = _operation(
        "feedback",
        "Give one label or several; needs a key with the feedback right",
        _json({"anyOf": [_ref(LabelOut), _ref(LabelsOut)]}) | _problems((400, 401, 403, 404, 409, 413, 415, 422, 503)),
        body={"anyOf": [_ref(LabelIn), _ref(LabelsIn)]},
        examples=_FEEDBACK_EXAMPLES,
    )
    labels["parameters"] = [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The same request under the same key gets the first answer again.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        }
    ]
    queue = _operation(
        "review",
        "What is to be labelled: audits first and blind; needs a key with the feedback right",
        _json(_ref(ReviewOut)) | _problems((400, 401, 403, 409, 503)),
    )
    queue["parameters"] = [
        {"name": "task", "in": "query", "schema": {"type": "string"}},
        {"name": "kind", "in": "query", "schema": {"type": "string", "enum": ["audit", "review", "defer"]}},
        {
            "name": "after",
            "in": "query",
            "schema": {"type": "string", "pattern": r"^(audit|review|defer)\.[0-9]{1,18}$"},
        },
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 200}},
    ]
    statuses = (400, 401, 403, 409, 413, 415, 422, 503)
    decision = _operation(
        "get_decision",
        "A stored decision and its labels; an audit that waits for a label of this key is shown blind, as in /review",
        _json({"anyOf": [_ref(DecisionOut), _ref(ReviewItemOut)]}) | _problems((401, 404, 409, 503)),
    )
    identifier = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "/feedback": {"post": labels},
        "/decisions/{id}": {"get": decision | {"parameters": [identifier]}},
        "/review": {"get": queue},
        "/review/claim": {
            "post": _operation(
                "claim",
                "Keep items from others for a while",
                _json(_ref(ClaimsOut)) | _problems(statuses),
                body=_ref(ClaimIn),
                examples={"one": {"ids": ["dec_0"], "seconds": 600}},
            )
        },
        "/review/release": {
            "post": _operation(
                "release",
                "Give items back",
                _json(_ref(ReleasesOut)) | _problems(statuses),
                body=_ref(ReleaseIn),
                examples={"one": {"ids": ["dec_0"]}},
            )
        },
    }


def _calibration() -> Operation:
    """Numbers, or the diagram: by `format`, or by the Accept header."""
    responses = _json(_ref(TaskCalibrationOut))
    responses["200"]["content"]["image/svg+xml"] = {"schema": {"type": "string"}}
    operation = _operation("get_calibration", "What a task's verdicts rest on", responses | _problems((400, 401, 404)))
    form = {"name": "format", "in": "query", "schema": {"type": "string", "enum": ["json", "svg"]}}
    return operation | {"parameters": [_TASK_NAME, form]}


def _versions() -> dict[str, dict[str, Operation]]:
    """A task's bundle as versions, and their renewal."""
    statuses = (401, 403, 404, 409, 503)
    named = {"parameters": [_TASK_NAME]}

    def renewal(name: str, summary: str) -> dict[str, Operation]:
        return {"post": _operation(name, summary, _json(_ref(RenewedOut)) | _problems(statuses)) | named}

    return {
        "/tasks/{name}/bundles": {
            "get": _operation(
                "list_bundles",
                "The versions of a task's bundle, with their certificates' states",
                _json(_ref(BundleVersionsOut)) | _problems((401, 404, 409, 503)),
            )
            | named
        },
        "/tasks/{name}/rollback": {
            "post": _operation(
                "rollback",
                "Serve an earlier version, with the state of its certificate; needs an admin key",
                _json(_ref(BundleVersionOut)) | _problems((400, *statuses, 413, 415, 422)),
                body=_ref(RollbackIn),
                examples={"first": {"version": 1}},
            )
            | named
        },
        "/tasks/{name}/recertify": renewal("recertify", "Certify anew from audits; needs an admin key"),
        "/tasks/{name}/recalibrate": renewal("recalibrate", "Fit anew on audits, under guard; needs an admin key"),
    }


def _put_policy() -> Operation:
    operation = _operation(
        "put_policy",
        "Set the policy of a task; needs an admin key",
        _json(_ref(TaskPolicyOut)) | _problems((400, 401, 403, 404, 409, 413, 415, 422)),
        body=_ref(TaskPolicyIn),
        examples=_POLICY_EXAMPLES,
    )
    version = {"name": "If-Match", "in": "header", "description": "The version to replace, as in ETag."}
    return operation | {
        "parameters": [_TASK_NAME, version | {"schema": {"type": "string", "pattern": '^"[0-9]{1,9}"$'}}]
    }


def _shadow_policy() -> dict[str, Operation]:
    """A candidate policy, tried without effect."""
    named = {"parameters": [_TASK_NAME]}
    gone = {"204": {"description": "There is none any more"}}
    shown = _json(_ref(ShadowPolicyOut))
    put = _operation(
        "put_shadow_policy",
        "Let a policy judge beside the one in force; needs an admin key",
        shown | _problems((400, 401, 403, 404, 413, 415, 422)),
        body=_ref(TaskPolicyIn),
        examples=_POLICY_EXAMPLES,
    )
    return {
        "get": _operation("get_shadow_policy", "The shadow policy of a task", shown | _problems((401, 404))) | named,
        "put": put | named,
        "delete": _operation(
            "delete_shadow_policy", "End a shadow policy; needs an admin key", gone | _problems((401, 403, 404))
        )
        | named,
    }


def _operation(
    name: str,
    summary: str,
    responses: dict[str, Any],
    *,
    body: JsonSchema | None = None,
    examples: dict[str, Any] | None = None,
) -> Operation:
    operation: Operation = {"operationId": name, "summary": summary, "responses": responses}
    if body is not None:
        content = {"schema": body, "examples": {key: {"value": value} for key, value in (examples or {}).items()}}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    if "504" in responses:
        operation["parameters"] = [_DEADLINE]
    return operation


def _public(name: str, summary: str, responses: dict[str, Any]) -> Operation:
    return _operation(name, summary, responses) | {"security": []}


def _ref(model: type[BaseModel]) -> JsonSchema:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _json(schema: JsonSchema) -> dict[str, Any]:
    return {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}}


def _problems(statuses: tuple[int, ...]) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _ref(ProblemOut)}}
    return {str(status): {"description": _MEANINGS[status], "content": content} for status in statuses}


def _details(statuses: tuple[int, ...]) -> dict[str, Any]:
    """As `_problems`, in the form of TypeSafe's contract."""
    return {
        str(status): {
            "description": _MEANINGS[status],
            "content": {"application/json": {"schema": _ref(ValidationOut if status == 422 else ErrorOut)}},
        }
        for status in statuses
    }
