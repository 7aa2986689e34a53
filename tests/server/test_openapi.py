"""The document describes the application exactly, and the page shows it without anything from elsewhere."""

import asyncio
import re
import sys

import jsonschema
import pytest
from starlette.routing import Route

from .conftest import serving

CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", 503, 504]
"""


async def _schemathesis(url, cwd, *options):
    (cwd / "schemathesis.toml").write_text(CONFIG)
    # Not positive_data_acceptance: no schema can say that names must differ once normalised.
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{url}/openapi.json",
            "--seed",
            "1",
            "--max-examples",
            "30",
        ),
        *("--phases", "examples,coverage,fuzzing", "--exclude-checks", "positive_data_acceptance"),
        *("--continue-on-failure", "--generation-database", "none", "--no-color", *options),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_schemathesis_finds_no_undocumented_answer(rig, tmp_path):
    built = rig(admin_keys="sesame")
    async with serving(built.app) as url:
        code, output = await _schemathesis(url, tmp_path, "--header", "Authorization: Bearer sesame")
    assert code == 0, output
    assert "26 selected / 26 total" in output
    assert len(built.stub.asked) >= 20


async def test_schemathesis_accepts_a_server_that_is_not_ready(rig, tmp_path):
    async with serving(rig(ready=False).app) as url:
        code, output = await _schemathesis(url, tmp_path, "--include-path", "/readyz", "--include-path", "/decide")
    assert code == 0, output


async def test_every_route_is_in_the_document(rig):
    built = rig()
    async with built.client() as client:
        document = (await client.get("/openapi.json")).json()
    router = built.app._asgi._app._app._app
    routes = {
        (re.sub(r":\w+\}", "}", route.path), method.lower())
        for route in router.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    documented = {(path, method) for path, item in document["paths"].items() for method in item}
    assert routes - documented == {("/docs", "get"), ("/openapi.json", "get")}
    assert documented <= routes


@pytest.mark.parametrize("name", ["one", "described", "reasoned", "batch", "registered"])
async def test_examples_fit_their_schema_and_work(plain, name):
    client, _ = plain
    document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/decide"]["post"]["requestBody"]["content"]["application/json"]
    example = content["examples"][name]["value"]
    jsonschema.Draft202012Validator({**content["schema"], "components": document["components"]}).validate(example)
    assert (await client.post("/decide", json=example)).status_code == (404 if name == "registered" else 200)


async def test_the_page_needs_nothing_from_elsewhere(plain):
    client, _ = plain
    reply = await client.get("/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search(r"<script|https?://|src=|@import|<link", reply.text)
    document = (await client.get("/openapi.json")).json()
    assert all(f"<code>{path}</code>" in reply.text for path in document["paths"])
    targets = set(re.findall(r'href="#([^"]+)"', reply.text))
    assert targets
    assert targets <= set(re.findall(r'id="([^"]+)"', reply.text))


async def test_keys_are_declared_where_they_are_needed(rig):
    async with rig(api_keys="sesame", public_docs=True).client() as client:
        document = (await client.get("/openapi.json")).json()
    assert document["security"] == [{"key": []}]
    public = {path for path, item in document["paths"].items() for op in item.values() if op.get("security") == []}
    assert public == {"/healthz", "/readyz", "/version"}
