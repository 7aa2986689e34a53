"""LoRA adapters: served by vLLM they read as the merged model does, and what cannot be served is refused beforehand."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from demur.decision.bundle import read_bundle, write_bundle
from demur.decision.labelled import read_labelled
from demur.decision.prompt import TokenPrompt
from demur.decision.rowhash import TRAINING_ROWS
from demur.decision.task import DecisionSpec, ThoughtSpec
from demur.decision.taskfile import load_task
from demur.server.bundles import read_bundles
from demur.server.calibrated import pins
from demur.server.cli import main
from demur.server.decide import DecidePipeline
from demur.server.demo_model import ADAPTER, export_demo_model
from demur.server.engines.adapter import check_adapter
from demur.server.engines.base import ModelIdentity
from demur.server.engines.identity import ModelUnusable, identify, model_config
from demur.server.readers import PipelineReader
from demur.server.readings import TrainedOn
from demur.server.types import DecideRequest
from tests.models import build_model
from tests.server.bundled import StubEngine, make_bundle, pipeline_on

if TYPE_CHECKING:
    from demur.server.engines.vllm_engine import VllmEngine
    from tests.live import Live

TASK = Path("examples/tasks/voice_intent.yaml")
BUNDLE = Path("examples/bundles/voice_intent")
SEARCHED = Path("examples/data/voice_intent_searched.jsonl")
INPUTS = [
    "how many calories are in an apple",
    "what is the meaning of life",
    "Schöne Grüße aus München",
]
#: More of them than a request of stock vLLM may ask for.
MANY = tuple(range(300, 500))


@pytest.fixture(scope="module")
def adapted(live: "Live") -> Iterator["Live"]:
    """A second engine: the model without the demo's adapter, and the adapter beside it."""
    from demur.server.engines.vllm_setup import VllmSettings
    from tests.live import Live

    plain = export_demo_model(Path("models/plain"), plain=True, renew=True)
    adapted = Live()
    try:
        adapted.start(VllmSettings(model=str(plain), adapter=ADAPTER, name="adapted", kv_cache_gib=1))
        yield adapted
    finally:
        adapted.close()


async def logprobs(engine: "VllmEngine", prompts: list[TokenPrompt], labels: list[tuple[int, ...]]) -> Any:
    """[n, K], over the whole vocabulary."""
    return np.array([read.logprobs for read in await engine.read(prompts, labels)])


def prompts_of(live: "Live", spec: DecisionSpec) -> list[TokenPrompt]:
    prompt = live.pipeline.prompts.compile(spec)
    return [TokenPrompt(prompt.render(text, 4096).ids + prompt.plan.reads[0].suffix) for text in INPUTS]


@pytest.mark.engine
def test_an_adapter_reads_as_the_model_that_it_was_merged_into(
    live: "Live", adapted: "Live", monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_task(TASK).spec
    (read, *_) = live.pipeline.prompts.compile(spec).plan.reads
    for labels in (tuple(read.ids), MANY):
        prompts, asked = prompts_of(live, spec), [labels] * len(INPUTS)
        merged = live.run(logprobs(live.engine, prompts, asked))
        apart = adapted.run(logprobs(adapted.engine, prompts, asked))
        np.testing.assert_allclose(apart, merged, atol=1e-3)
        with monkeypatch.context() as patch:
            patch.setattr(adapted.engine, "label_limit", 128)
            split = adapted.run(logprobs(adapted.engine, prompts, asked))
            np.testing.assert_allclose(split, merged, atol=1e-3)
            patch.setattr(adapted.engine, "_lora", None)
            plain = adapted.run(logprobs(adapted.engine, prompts, asked))
        assert np.abs(plain - merged).max(axis=1).min() > 0.1


@pytest.mark.engine
def test_thoughts_are_those_of_the_merged_model(live: "Live", adapted: "Live", monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(live, load_task(TASK).spec)[:2]
    thought = ThoughtSpec(max_tokens=6, temperature=0)

    def think(engine: "Live") -> list[tuple[int, ...]]:
        return [engine.run(engine.engine.generate(prompt, thought, ())).ids for prompt in prompts]

    merged = think(live)
    assert think(adapted) == merged
    monkeypatch.setattr(adapted.engine, "_lora", None)
    assert think(adapted) != merged


@pytest.mark.engine
def test_a_bundle_fits_the_adapter_that_it_was_made_with_and_no_other_form_of_the_model(
    live: "Live", adapted: "Live", tmp_path: Path
) -> None:
    task = load_task(TASK)
    made_on_merged = read_bundle(BUNDLE)
    prompt = adapted.pipeline.prompts.compile(task.spec)
    pinned = pins(task.spec, prompt, adapted.engine.identity, adapted.pipeline.room(prompt))
    write_bundle(tmp_path / task.name, task=task.name, pins=pinned, files=made_on_merged.files)

    def decide(on: "Live", bundles: Path) -> Any:
        pipeline = DecidePipeline(on.engine, max_input_tokens=1000)
        pipeline.adopt(pipeline.prepare([task], read_bundles(bundles)))
        return on.run(pipeline.decide(DecideRequest(task.spec, INPUTS[0], task, task.policy)))

    assert decide(live, BUNDLE).verdict == decide(adapted, tmp_path).verdict == "trust"
    for engine, bundles in ((adapted, BUNDLE), (live, tmp_path)):
        decision = decide(engine, bundles)
        assert (decision.verdict, decision.reason) == ("defer", "calibration_mismatch")
        assert decision.reason_detail.split()[-1] == "weights"


@pytest.mark.engine
def test_rows_that_the_adapter_was_trained_on_are_known(adapted: "Live") -> None:
    task = load_task(TASK)
    reader = PipelineReader(adapted.pipeline, task)

    async def is_known(row: Any) -> bool:
        try:
            await reader.read(row)
        except TrainedOn:
            return True
        return False

    rows = read_labelled(SEARCHED, task.spec.question).rows
    trained = set((ADAPTER / TRAINING_ROWS).read_text().split())
    known, unknown = (next(row for row in rows if (row.hash in trained) is wanted) for wanted in (True, False))
    assert adapted.run(is_known(known))
    assert not adapted.run(is_known(unknown))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model("llama", tmp_path_factory.mktemp("model") / "llama")


def adapt(model: Path, to: Path, **settings: Any) -> Path:
    """An adapter of the model, as PEFT writes it."""
    given = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | settings
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**given))
    adapted.save_pretrained(to, save_embedding_layers=False)
    return to


def check(adapter: Path, model: Path) -> int:
    return check_adapter(adapter, model, model_config(model)).max_rank


@pytest.mark.parametrize(
    ("settings", "rank"),
    [({"r": 1}, 1), ({"r": 2}, 8), ({"r": 9}, 16), ({"r": 2, "rank_pattern": {"q_proj": 12}}, 16), ({"r": 320}, 320)],
)
def test_room_is_made_for_the_largest_rank(model: Path, tmp_path: Path, settings: dict[str, Any], rank: int) -> None:
    assert check(adapt(model, tmp_path, **settings), model) == rank


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"r": 513}, "rank 513, and vLLM serves ranks up to 512"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"lm_head\.lora_A\.weight: of an adapter only"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"embed_tokens\.lora_embedding_A: of an adapter only"),
        ({"modules_to_save": ["lm_head"]}, r"lm_head\.weight: of an adapter only"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
)
def test_what_vllm_could_not_serve_is_refused(model: Path, tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelUnusable, match=f"(?s){why}.*merge it into the model instead"):
        check(adapt(model, tmp_path, **settings), model)


def test_files_that_are_missing_or_wrong_are_named(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    with pytest.raises(ModelUnusable, match="adapter is not a directory: --adapter wants"):
        check(adapter, model)
    with pytest.raises(ModelUnusable, match=r"adapter_config\.json is missing: --adapter wants"):
        check(model, model)
    weights = adapt(model, adapter) / "adapter_model.safetensors"
    weights.rename(tmp_path / "aside")
    with pytest.raises(ModelUnusable, match=r"adapter_model\.safetensors is missing"):
        check(adapter, model)
    weights.write_bytes(b"not weights")
    with pytest.raises(ModelUnusable, match=r"adapter_model\.safetensors is not a safetensors file"):
        check(adapter, model)
    save_file({}, weights)
    with pytest.raises(ModelUnusable, match="adapts nothing"):
        check(adapter, model)
    settings = adapter / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(ModelUnusable, match="describes no LoRA adapter"):
        check(adapter, model)


def test_an_adapter_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    """vLLM would serve all of these, and leave out or cut what does not fit."""
    weights = adapt(model, tmp_path) / "adapter_model.safetensors"
    good = load_file(weights)

    def changed(change: Any) -> None:
        save_file(dict(change(name, value.clone()) for name, value in good.items()), weights)
        check(tmp_path, model)

    changed(lambda name, value: (name, value.bfloat16()))
    with pytest.raises(ModelUnusable, match=r"adapts model\.layers\.7\..*not among the weights of llama"):
        changed(lambda name, value: (name.replace("layers.1.", "layers.7."), value))
    with pytest.raises(ModelUnusable, match=r"another model than llama: .*q_proj of 64 x 32, and here that is 64 x 64"):
        changed(lambda name, value: (name, value[:, :32].contiguous() if "q_proj.lora_A" in name else value))
    with pytest.raises(ModelUnusable, match="no adapter of the rank"):
        changed(lambda name, value: (name, value[:1].contiguous() if "q_proj.lora_A" in name else value))
    with pytest.raises(ModelUnusable, match="no adapter of the rank"):
        changed(lambda name, value: (name.replace("lora_A", "lora_B"), value))


def test_the_identity_is_that_of_model_and_adapter(model: Path, tmp_path: Path) -> None:
    adapter = adapt(model, tmp_path / "adapter")

    def identity(of: Path | None = adapter) -> ModelIdentity:
        return identify(model, name=None, engine="e", max_model_len=1, chat_template="x", adapter=of)

    plain, first = identity(None), identity()
    assert identity() == first
    assert replace(plain, weights=first.weights) == first
    assert plain.weights != first.weights
    (adapter / TRAINING_ROWS).write_text("0a\n1b\n")
    assert identity() == replace(first, trained_on=frozenset({"0a", "1b"}))
    settings = adapter / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 1}))
    assert identity().weights not in (plain.weights, first.weights)


def test_a_bundle_is_verified_against_model_and_adapter(model: Path, tmp_path: Path) -> None:
    adapter = adapt(model, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(model)
    identity = identify(
        model, name=None, engine="e", max_model_len=1, chat_template=tokenizer.chat_template, adapter=adapter
    )
    make_bundle(
        tmp_path / "b", pipeline=pipeline_on(StubEngine(identity=identity, tokenizer=tokenizer), own_prompts=True)
    )

    def verify(*options: object) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["bundle", "verify", str(tmp_path / "b"), *map(str, options)])
        return result.exit_code, result.output

    assert verify("--model", model, "--adapter", adapter)[0] == 0
    assert verify("--model", model) == (1, f"{tmp_path / 'b'}: made for another weights\n")
    code, said = verify("--model", model, "--adapter", model)
    assert (code, "adapter_config.json is missing" in said) == (1, True)


@pytest.mark.parametrize(
    "command",
    [
        ("decide", "route", "text"),
        ("tasks", "check", TASK),
        ("bundle", "verify", BUNDLE),
        ("calibrate", "--task", TASK, "--data", SEARCHED, "--url", "http://127.0.0.1:9", "--out", "nowhere"),
    ],
)
def test_an_adapter_needs_its_model(command: tuple[object, ...]) -> None:
    result = CliRunner().invoke(main, [*map(str, command), "--adapter", str(ADAPTER)])
    assert (result.exit_code, "--adapter wants --model" in result.output) == (2, True), result.output


def test_serve_ends_with_the_reason(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from demur.server.serve import EXIT_UNUSABLE, DemurServer
    from demur.server.settings import Settings

    settings = Settings(model=str(model), adapter=tmp_path, port=0)
    assert asyncio.run(DemurServer(settings).run()) == EXIT_UNUSABLE
    assert "adapter_config.json is missing" in caplog.text
