"""`/docs` and `/openapi.json`: one plain page, without scripts and without anything from elsewhere."""

from importlib.metadata import version as distribution_version
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from demur.server.openapi import openapi_document
from demur.server.services import Services
from demur.server.wires.reply import json_reply

PATHS = frozenset({"/docs", "/openapi.json"})
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""
    document = openapi_document(distribution_version("demur"), requires_key=services.settings.requires_key)
    page = _render(document)

    async def docs(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    async def openapi(_: Request) -> Response:
        return json_reply(document)

    return [Route("/docs", docs, methods=["GET"]), Route("/openapi.json", openapi, methods=["GET"])]


def _render(document: dict[str, Any]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    template = environment.from_string((files("demur.server") / "static" / "docs.html").read_text(encoding="utf-8"))
    return template.render(doc=document, schema_link=_schema_link)


def _schema_link(schema: dict[str, Any]) -> Markup:
    references = [part["$ref"] for part in schema.get("anyOf", [schema]) if "$ref" in part]
    names = [reference.rpartition("/")[2] for reference in references]
    return Markup(" or ").join(Markup('<a href="#schema-{0}">{0}</a>').format(name) for name in names)
