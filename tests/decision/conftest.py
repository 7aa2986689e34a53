from typing import Any

import pytest

from demur.decision.prompt import PromptBuilder
from tests.models import build_tokenizer, smollm2_tokenizer

TOKENIZERS = ("smollm2", "qwen3", "llama", "llama-legacy", "unigram", "gpt2")


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    return {"smollm2": smollm2_tokenizer()} | {kind: build_tokenizer(kind) for kind in TOKENIZERS[1:]}


@pytest.fixture(scope="session")
def builders(tokenizers: dict[str, Any]) -> dict[str, PromptBuilder]:
    return {kind: PromptBuilder(tokenizer) for kind, tokenizer in tokenizers.items()}


@pytest.fixture(params=TOKENIZERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(kind: str, tokenizers: dict[str, Any]) -> Any:
    return tokenizers[kind]


@pytest.fixture
def builder(kind: str, builders: dict[str, PromptBuilder]) -> PromptBuilder:
    return builders[kind]
