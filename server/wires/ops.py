"""What operators ask: is it alive, is it ready, what is it, how is it doing."""

from importlib.metadata import version as distribution_version

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.server.services import Services
from demur.server.wires.reply import json_reply

#: Paths that need no key.
PUBLIC = frozenset({"/healthz", "/readyz", "/version"})


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""
    version = {"version": distribution_version("demur"), "model": services.model.name}

    async def healthz(_: Request) -> Response:
        return json_reply({"status": "ok"})

    async def readyz(_: Request) -> Response:
        services.lifecycle.check()
        return json_reply({"status": "ready"})

    async def show_version(_: Request) -> Response:
        return json_reply(version)

    async def metrics(_: Request) -> Response:
        return Response(services.metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/version", show_version, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
