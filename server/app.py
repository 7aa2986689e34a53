"""The application: every wire on one router, behind the middleware that all requests pass."""

from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from demur.server.admission import Admission
from demur.server.auth import Authentication, Keyring
from demur.server.lifecycle import Lifecycle
from demur.server.live_policies import LivePolicies
from demur.server.logs import RequestLog
from demur.server.loop.loop import Loop
from demur.server.loop.metrics import StoreMetrics
from demur.server.loop.watch import Watch
from demur.server.metrics import MeasuredDecider, Metrics
from demur.server.problems import ErrorForms
from demur.server.registry import TaskRegistry
from demur.server.services import Desk, ServedModel, Services
from demur.server.settings import Settings
from demur.server.shadow_policies import ShadowPolicies
from demur.server.types import Decider
from demur.server.wires import (
    bundles,
    calibration,
    decide,
    decisions,
    docs,
    feedback,
    ops,
    policies,
    review,
    shadow,
    systemone,
    tasks,
)

_WIRES = (decide, systemone, feedback, review, decisions, policies, shadow, calibration, bundles, tasks, ops, docs)


class Application:
    """An ASGI application, and what its owner steers it by: `services.lifecycle` and `services.admission`."""

    def __init__(self, asgi: ASGIApp, services: Services) -> None:
        self._asgi = asgi
        self.services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection event."""
        scope["app"] = self  # the router then raises 404 and 405 instead of answering them its own way
        await self._asgi(scope, receive, send)


def create_app(
    decider: Decider,
    registry: TaskRegistry,
    settings: Settings,
    lifecycle: Lifecycle,
    model: ServedModel,
    *,
    metrics: Metrics | None = None,
    desk: Desk | None = None,
    loop: Loop | None = None,
    watch: Watch | None = None,
    extra_routes: Sequence[BaseRoute] = (),
    lifespan: Lifespan[Any] | None = None,
) -> Application:
    """Builds the application. Raises `SettingsError` when a key file or the state cannot be read.

    `extra_routes` are added to the wires' own; `demur.server.auth.admin_only` guards those that need an admin key.
    """
    metrics = metrics or Metrics()
    admission = Admission(lifecycle, settings.queue_size, settings.retry_after_s, metrics.count_shed)
    metrics.watch_in_flight(lambda: admission.in_flight, settings.queue_size)
    metrics.watch_bundles(model.name, lambda: registry.bundles)
    if loop is not None:
        StoreMetrics(loop, metrics.registry)
    services = Services(
        decider=MeasuredDecider(decider if loop is None else loop.decider(decider), metrics),
        tasks=registry,
        settings=settings,
        lifecycle=lifecycle,
        admission=admission,
        metrics=metrics,
        model=model,
        policies=LivePolicies(settings.state_dir),
        shadows=ShadowPolicies(settings.state_dir),
        desk=desk,
        loop=loop,
        watch=watch,
    )
    if watch is not None:
        watch.policy_of = services.policies.of
    router = Router(
        [route for wire in _WIRES for route in wire.routes(services)] + list(extra_routes),
        redirect_slashes=False,
        lifespan=lifespan,
    )
    public = ops.PUBLIC | docs.PATHS if settings.public_docs else ops.PUBLIC
    guarded = Authentication(router, Keyring.from_settings(settings), public)
    forms = dict.fromkeys((systemone.SYSTEMONE, systemone.MODELS), systemone.error_form)
    return Application(RequestLog(ErrorForms(guarded, forms)), services)
