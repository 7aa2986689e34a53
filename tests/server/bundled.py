"""A pipeline on a stub engine, and bundles for its tasks."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from demur.calibration import (
    Calibrator,
    CorrectnessModel,
    TemperatureScaling,
    VerdictCertificates,
    certify_verdicts,
)
from demur.decision.bundle import Bundle, write_bundle
from demur.decision.prompt import PromptBuilder, TokenPrompt
from demur.decision.question import Option, Question
from demur.decision.task import DecisionSpec, PolicySpec, ReadoutKind, Task, ThoughtSpec
from demur.server.calibrated import pins, policy_hash
from demur.server.decide import DecidePipeline
from demur.server.engines.base import Generation, ModelIdentity, TokenRead
from tests.models import smollm2_tokenizer

TASK_YAML = b"name: route\nquestion: Which team?\noptions: [billing, technical, sales]\n"
TASK = Task(
    "route", DecisionSpec(Question("Which team?", (Option("billing"), Option("technical"), Option("sales")))),
    content_hash="c3" * 32,
)  # fmt: skip
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


IDENTITY = ModelIdentity("stub", sha("weights"), sha("tokenizer"), sha("template"), "stub", 4096)


@dataclass
class StubEngine:
    """Answers every read with `logprobs`, of the labels in their order."""

    logprobs: Sequence[float] = (-0.2, -2.0, -4.0)
    identity: ModelIdentity = IDENTITY
    tokenizer: Any = field(default_factory=smollm2_tokenizer)

    async def read(self, prompts: Sequence[TokenPrompt], labels: Sequence[Sequence[int]]) -> list[TokenRead]:
        return [TokenRead(np.resize(np.array(self.logprobs, float), len(ids)), 10, 8) for ids in labels]

    async def generate(self, prompt: TokenPrompt, thought: ThoughtSpec, stop_ids: Sequence[int]) -> Generation:
        return Generation((1, 2), "stop", 10, 8)

    async def health(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


@functools.cache
def _prompts() -> PromptBuilder:
    return PromptBuilder(smollm2_tokenizer())


def pipeline_on(engine: StubEngine, *, own_prompts: bool = False) -> DecidePipeline:
    pipeline = DecidePipeline(engine, max_input_tokens=1000)
    if not own_prompts:
        pipeline.prompts = _prompts()  # it finds its letters once, which takes a second
    return pipeline


def fitted(kind: Calibrator, seed: int = 0) -> Calibrator:
    """A calibrator fitted on 400 rows of three options."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 400)
    logits = rng.normal(size=(400, 3)) + 2.0 * np.eye(3)[labels]
    return kind.fit(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), labels)


def certificates(
    *, score_name: str = "top_probability", right: bool = True, issued_at: datetime | None = None, **options: Any
) -> VerdictCertificates:
    """Two chains of 600 rows with scores from .4 to 1, all right (or all wrong, so that nothing passes)."""
    scores = np.round(np.linspace(0.4, 0.999, 600), 4)
    issued_at = datetime.now(UTC) if issued_at is None else issued_at
    return certify_verdicts(scores, np.full(600, right), score_name=score_name, issued_at=issued_at, **options)


def certificate_json(issued: VerdictCertificates | None, policy: str) -> Any:
    if issued is None:
        return None
    one, other = issued.trusted, issued.not_deferred
    return {
        "trusted": json.loads(one.to_json()),
        "not_deferred": json.loads(other.to_json()),
        "score": one.score,
        "issued_at": one.issued_at.isoformat(),
        "expires_at": one.expires_at.isoformat() if one.expires_at else None,
        "policy_hash": policy,
        "assumptions": list(one.assumptions),
        "evidence": {},
        "attempts": 1,
    }


def bundle_files(
    *,
    calibrator: Calibrator | None = None,
    correctness: CorrectnessModel | None = None,
    issued: VerdictCertificates | None = None,
    policy: str | None = None,
    **files: bytes,
) -> dict[str, bytes]:
    calibrator = calibrator or fitted(TemperatureScaling())
    policy = policy or policy_hash(PolicySpec(), ReadoutKind.LETTER)
    documents = {
        "calibrator.json": {
            "calibrator": json.loads(calibrator.to_json()),
            "correctness": None if correctness is None else json.loads(correctness.to_json()),
        },
        "certificate.json": certificate_json(issued, policy),
        "provenance.json": {"rows": 600},
        "report.json": {"n": 600},
        "reference.json": {"scores": np.linspace(0.4, 0.999, 101).round(6).tolist()},
    }
    written = {name: json.dumps(document).encode() for name, document in documents.items()}
    return {"task.yaml": TASK_YAML, "reliability.svg": b"<svg/>", **written, **files}


def make_bundle(
    path: Path, files: dict[str, bytes] | None = None, *, task: Task = TASK, pipeline: DecidePipeline | None = None
) -> Bundle:
    """A bundle that fits the stub engine, or the engine of `pipeline`."""
    pipeline = pipeline or pipeline_on(StubEngine())
    prompt = pipeline.prompts.compile(task.spec)
    pinned = pins(task.spec, prompt, pipeline.engine.identity, pipeline.room(prompt))
    return write_bundle(path, task=task.name, pins=pinned, files=files or bundle_files(issued=certificates()))


def with_policy(task: Task = TASK, **policy: Any) -> Task:
    return replace(task, policy=PolicySpec(**policy))


EXPIRED = {"issued_at": NOW - timedelta(days=400), "valid_for": timedelta(days=30)}
