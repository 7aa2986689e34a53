"""`/tasks/{name}/bundles`, `rollback`, `recertify`, `recalibrate`: versions of a bundle, and their renewal.

All but the list need an admin key.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.decision.errors import BundleError
from demur.decision.task import PolicySpec, Task
from demur.server.auth import Caller, admin_only
from demur.server.bundles import ServedBundle
from demur.server.errors import Conflict, Fault, Invalid, NotFound, StoreUnavailable
from demur.server.loop.renewal import Renewed
from demur.server.loop.watch import Watch
from demur.server.services import Services
from demur.server.store import errors as store_errors
from demur.server.store.records import BundleVersion, GuaranteeRecord
from demur.server.wires.bundles_models import RollbackIn
from demur.server.wires.decide import find_task
from demur.server.wires.faults import crowded, faults_of, require_none
from demur.server.wires.reply import Endpoint, json_reply

Renew = Callable[[Watch, Task, ServedBundle, PolicySpec, str | None], Awaitable[Renewed]]


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    def renews(renew: Renew) -> Endpoint:
        @admin_only
        async def endpoint(request: Request) -> Response:
            services.admission.check_ready()  # an attempt that is cut off is spent
            task = find_task(request.path_params["name"], services)
            served = services.tasks.bundles.get(task.name)
            if served is None:
                raise Conflict("the task has no bundle to renew; make one with POST /tasks/{name}/calibrate")
            policy = services.policies.of(task)
            with _answering(services), services.admission.work():
                renewed = await renew(_watch(services), task, served, policy, _key(request))
            return json_reply(asdict(renewed))

        return endpoint

    async def bundles(request: Request) -> Response:
        task = find_task(request.path_params["name"], services)
        with _answering(services):
            return json_reply(await _listed(_watch(services), task.name))

    @admin_only
    async def rollback(request: Request) -> Response:
        task = find_task(request.path_params["name"], services)
        body = _rollback(await services.read(request))
        watch = _watch(services)
        try:
            with _answering(services), services.admission.work():
                found = await watch.shelf.rollback(task.name, body.version)
                if found is None:
                    raise NotFound(f"task {task.name} has no version {body.version}")
                listed = await _listed(watch, task.name)
                return json_reply(next(one for one in listed["versions"] if one["version"] == found.version))
        except BundleError as error:
            raise Conflict(str(error)) from None

    return [
        Route("/tasks/{name}/bundles", bundles, methods=["GET"]),
        Route("/tasks/{name}/rollback", rollback, methods=["POST"]),
        Route(
            "/tasks/{name}/recertify",
            renews(lambda watch, task, served, policy, by: watch.renewal.recertify(task, served, policy, by=by)),
            methods=["POST"],
        ),
        Route(
            "/tasks/{name}/recalibrate",
            renews(lambda watch, task, served, policy, by: watch.renewal.recalibrate(task, served, policy, by=by)),
            methods=["POST"],
        ),
    ]


def _watch(services: Services) -> Watch:
    if services.watch is None:
        raise Conflict("this server keeps no versions; start it with --state-dir DIR, or set DEMUR_STORE_URL")
    return services.watch


@contextmanager
def _answering(services: Services) -> Iterator[None]:
    """Around what needs the store: says when it does not answer."""
    try:
        yield
    except store_errors.StoreUnavailable as error:
        raise StoreUnavailable(f"{error}; try again later", retry_after=services.settings.retry_after_s) from None


def _key(request: Request) -> str | None:
    caller: Caller = request.state.caller
    return caller.key_id


def _rollback(raw: Any) -> RollbackIn:
    if not isinstance(raw, dict):
        raise Invalid("body: must be an object", faults=(Fault((), "must be an object", "dict_type"),))
    require_none(crowded((), raw))
    try:
        return RollbackIn.model_validate(raw)
    except ValidationError as error:
        require_none(faults_of(error, RollbackIn))
        raise


async def _listed(watch: Watch, task: str) -> dict[str, Any]:
    versions, known = await watch.shelf.history(task)
    return {"task": task, "versions": [_version(version, known) for version in versions]}


def _version(version: BundleVersion, known: Mapping[str, GuaranteeRecord]) -> dict[str, Any]:
    return {
        "version": version.version,
        "bundle": version.bundle,
        "active": version.active,
        "adopted_at": version.adopted_at.isoformat(),
        "adopted_by": version.adopted_by,
        "certificates": [_certificate(known[key]) for key in version.guarantees if key in known],
    }


def _certificate(record: GuaranteeRecord) -> dict[str, Any]:
    return {
        "slice": record.slice,
        "state": record.state,
        "issued_at": record.issued_at.isoformat(),
        "expires_at": None if record.expires_at is None else record.expires_at.isoformat(),
        "withdrawn_at": None if record.withdrawn_at is None else record.withdrawn_at.isoformat(),
    }
