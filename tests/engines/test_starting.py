"""What an engine that does not start is taken for. Nothing here starts vLLM."""

import asyncio
from importlib.metadata import entry_points

import pytest

from demur.server.engines import vllm_engine, vllm_plugin, watch
from demur.server.engines.identity import ModelUnusable
from demur.server.engines.vllm_engine import EngineNotStarted, VllmEngine
from demur.server.engines.vllm_setup import VllmSettings
from demur.server.errors import EngineUnavailable


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts an engine on a model that looks servable, with `configure` and `come_up` in place of vLLM."""

    async def begin(configure, come_up=lambda _: None):
        monkeypatch.setattr(vllm_engine, "check_servable", lambda *_, **__: {})
        monkeypatch.setattr(vllm_engine, "prepare_environment", lambda _: None)
        monkeypatch.setattr(vllm_engine, "configure", configure)
        monkeypatch.setattr(vllm_engine, "_start_vllm", come_up)
        return await VllmEngine.start(VllmSettings(model=str(tmp_path)))

    return begin


async def test_a_model_that_vllm_refuses_is_told_from_an_engine_that_does_not_come_up(start):
    def refuses(*_):
        raise ValueError("Model architectures ['Strange'] are not supported")

    def dies(_):
        raise RuntimeError("Engine core initialization failed.\nSee root cause above.")

    with pytest.raises(ModelUnusable, match=r"cannot serve .*'Strange'") as refused:
        await start(refuses)
    assert not isinstance(refused.value, EngineNotStarted)
    with pytest.raises(EngineNotStarted, match=r"did not start with .*: Engine core initialization failed\.$"):
        await start(lambda *_: (None, None), dies)


@pytest.mark.parametrize(
    ("listed", "wide"), [(None, True), ("", False), ("other", False), ("other,demur_wide_readouts", True)]
)
async def test_reads_are_wide_only_where_vllm_loads_the_plugin(start, monkeypatch, listed, wide):
    assert vllm_plugin.NAME in entry_points(group="vllm.general_plugins").names
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if listed is not None:
        monkeypatch.setenv("VLLM_PLUGINS", listed)
    given = []

    def configure(settings, *_):
        given.append(settings)
        raise ValueError("enough seen")

    with pytest.raises(ModelUnusable, match="enough seen"):
        await start(configure)
    assert [settings.wide_reads for settings in given] == [wide]


async def test_an_engine_that_fails_ends_what_waits_for_it():
    ended = []

    async def never():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(EngineUnavailable, match="it hung"):
        await watch.unless(asyncio.sleep(0, "it hung"), never())
    assert ended == [True]
    with pytest.raises(ModelUnusable, match="no"):
        await watch.unless(never_fails(), raises(ModelUnusable("no")))
    await watch.unless(never_fails(), asyncio.sleep(0))


async def never_fails():
    await asyncio.Event().wait()
    return ""


async def raises(error):
    raise error
