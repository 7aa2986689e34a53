"""Other architectures: random-weight Qwen3, Llama (sentencepiece) and GPT-2 (no template); models that cannot work."""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from demur.decision.question import Option, Question
from demur.decision.task import DecisionSpec, Mode, ReadoutKind, ReadoutSpec, ThoughtSpec
from demur.server.decide import DecidePipeline
from demur.server.engines.identity import ModelUnusable, check_servable, identify
from demur.server.engines.transformers_engine import TransformersEngine
from demur.server.engines.vllm_engine import VllmEngine
from demur.server.engines.vllm_setup import VllmSettings
from demur.server.types import DecideRequest, Decision
from tests.live import Live
from tests.models import KINDS, build_model

QUESTION = Question("What is it?", (Option("animal"), Option("plant"), Option("plant pot"), Option("Stein")))
SPECS = {
    "letter": DecisionSpec(QUESTION),
    "text": DecisionSpec(QUESTION, ReadoutSpec(ReadoutKind.TEXT)),
}


async def decide(engine: object, spec: DecisionSpec, text: str = "a fir in the wood") -> Decision:
    pipeline = DecidePipeline(engine, max_input_tokens=1000)  # type: ignore[arg-type]
    return await pipeline.decide(DecideRequest(spec, text))


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
def test_architectures_agree_with_the_reference(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / kind
    build_model(kind, directory)
    reference = asyncio.run(TransformersEngine.start(str(directory)))
    live = Live()
    try:
        live.start(VllmSettings(model=str(directory), kv_cache_gib=1))
        for spec in SPECS.values():
            expected = asyncio.run(decide(reference, spec))
            found = live.run(decide(live.engine, spec))
            assert found.readout == expected.readout
            np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-3)
            assert found.label_mass == pytest.approx(expected.label_mass, abs=1e-3)
        thought = ThoughtSpec(max_tokens=4)
        reasoned = live.run(decide(live.engine, DecisionSpec(QUESTION, mode=Mode.REASONED, thought=thought)))
        assert reasoned.usage.thought_tokens <= 4
        assert reasoned.probabilities.sum() == pytest.approx(1)
    finally:
        live.close()


def edited(source: Path, target: Path, **changes: object) -> Path:
    """A copy of a model's small files with an edited config."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, target)
    (target / "model.safetensors").write_bytes(b"")
    config = json.loads((source / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_models_that_cannot_work_are_refused_with_the_reason(demo_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="causal language model"):
        check_servable(edited(demo_model, tmp_path / "bert", architectures=["BertForMaskedLM"]), cpu=True)
    with pytest.raises(ModelUnusable, match="32 or more"):
        check_servable(edited(demo_model, tmp_path / "heads", head_dim=16), cpu=True)
    no_tokenizer = edited(demo_model, tmp_path / "tokenizer")
    (no_tokenizer / "tokenizer.json").unlink()
    with pytest.raises(ModelUnusable, match=r"tokenizer\.json"):
        check_servable(no_tokenizer, cpu=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelUnusable, match=r"config\.json is missing"):
        check_servable(empty, cpu=True)
    with pytest.raises(ModelUnusable, match="not a directory"):
        asyncio.run(VllmEngine.start(VllmSettings(model=str(tmp_path / "nowhere"))))


def test_the_identity_changes_with_every_file(demo_model: Path, tmp_path: Path) -> None:
    def hashes(directory: Path, template: str = "x") -> tuple[str, str, str]:
        found = identify(directory, name=None, engine="e", max_model_len=1, chat_template=template)
        return found.weights, found.tokenizer, found.chat_template

    copy = edited(demo_model, tmp_path / "copy")
    before = hashes(copy)
    (copy / "model.safetensors").write_bytes(b"\0")
    weights = hashes(copy)
    assert weights[0] != before[0]
    assert weights[1:] == before[1:]
    (copy / "tokenizer.json").write_text("{}")
    assert hashes(copy)[1] != before[1]
    assert hashes(copy, "y")[2] != before[2]


def test_weights_served_in_another_format_are_other_weights(demo_model: Path) -> None:
    """A bundle of what was read in 16 bits must not be applied to 32."""
    hashes = {
        identify(demo_model, name=None, engine="e", max_model_len=1, chat_template="x", dtype=dtype).weights
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert len(hashes) == 3
