import pytest
from starlette.routing import Route

from demur.server.auth import Keyring, Role, admin_only
from demur.server.wires.reply import json_reply

from .conftest import INLINE


async def _admin(request):
    return json_reply({"role": request.state.caller.role})


ADMIN = [Route("/secret", admin_only(_admin), methods=["GET", "POST"])]
KEYS = {"api_keys": "alpha,beta", "admin_keys": "root"}


@pytest.mark.parametrize("header", [None, "alpha", "Bearer", "Bearer ", "Bearer gamma", "Basic alpha", "Bearer \xe9"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/decide"),
        ("GET", "/tasks"),
        ("GET", "/nowhere"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("PUT", "/decide"),
        ("GET", "/secret"),
    ],
)
async def test_without_a_good_key_nothing_else_is_looked_at(rig, header, method, path):
    headers = {"Content-Type": "text/plain"} | ({"Authorization": header.encode("latin-1")} if header else {})
    async with rig(**KEYS, extra_routes=ADMIN).client() as client:
        reply = await client.request(method, path, content=b"{" * 100, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["type"] == "urn:demur:problem:unauthorized"


@pytest.mark.parametrize("header", ["Bearer alpha", "bearer beta", "Bearer  beta", "Bearer root"])
async def test_every_key_opens(rig, header):
    async with rig(**KEYS).client(headers={"Authorization": header}) as client:
        assert (await client.post("/decide", json=INLINE)).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/version"])
async def test_probes_need_no_key(rig, path):
    async with rig(**KEYS).client() as client:
        assert (await client.get(path)).status_code == 200


async def test_docs_may_be_made_public(rig):
    async with rig(**KEYS, public_docs=True).client() as client:
        assert [(await client.get(path)).status_code for path in ("/docs", "/openapi.json", "/tasks")] == [
            200,
            200,
            401,
        ]


async def test_an_ordinary_key_on_an_admin_route(rig):
    async with rig(**KEYS, extra_routes=ADMIN).client() as client:
        ordinary = await client.post("/secret", content=b"{", headers={"Authorization": "Bearer alpha"})
        admin = await client.get("/secret", headers={"Authorization": "Bearer root"})
    assert (ordinary.status_code, ordinary.json()["type"]) == (403, "urn:demur:problem:forbidden")
    assert admin.json() == {"role": "admin"}


async def test_an_authorization_header_is_ignored_where_no_key_is_set(rig):
    async with rig(extra_routes=ADMIN).client(headers={"Authorization": "Bearer whatever"}) as client:
        assert (await client.get("/secret")).json() == {"role": "admin"}


def test_all_keys_are_compared_whatever_matches(monkeypatch):
    compared = []
    import hmac

    real = hmac.compare_digest
    monkeypatch.setattr("demur.server.auth.hmac.compare_digest", lambda a, b: compared.append(b) or real(a, b))
    keyring = Keyring(["a", "b"], ["c"], required=True)
    assert keyring.identify(b"Bearer a").role is Role.CALLER
    assert len(compared) == 3
    compared.clear()
    assert keyring.identify(b"Bearer c").role is Role.ADMIN
    assert len(compared) == 3


async def test_caches_of_keys_are_kept_apart_if_asked(rig):
    built = rig(**KEYS, cache_salt_per_key=True)
    async with built.client() as client:
        for key in ("alpha", "beta", "alpha"):
            await client.post("/decide", json=INLINE, headers={"Authorization": f"Bearer {key}"})
    first, second, third = (request.cache_salt for request in built.stub.asked)
    assert first == third != second
    assert first is not None
    assert "alpha" not in first
