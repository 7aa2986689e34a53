"""Text of users as token ids, none of which is a control token.

A prompt is spliced from pieces that are tokenized apart: the chat template's, in which `<|im_end|>` is the control
token, and the users', in which the same ten characters are ten characters. Both kinds are encoded by private copies
of the model's tokenizer, so the shared one is neither changed nor affected by what others set on it.
"""

import json
import string
from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE

from demur.decision.errors import UnusableModelError

#: What stands for a character that the tokenizer can only write as an added token (mostly `<unk>`); first that works.
STAND_INS = ("\ufffd", "?", "_", " ")

# Sentencepiece writes a space as the second of these.
_WHITE = string.whitespace + "\u2581"

#: A megabyte takes seconds: text of more characters is encoded as a batch of one, which lets other threads run.
_LONG_TEXT = 4_096


class PlainTokenizer:
    """Tokenizes template pieces with control tokens (`control`) and users' text without (`encode`).

    Attributes
    ----------
    added_ids : frozenset of int, every id of the added vocabulary, special or not; `encode` yields none of them. Mere
        white space is left out: some vocabularies (Gemma's) add their newlines, which control nothing.
    bos_ids : tuple of int, what the tokenizer itself puts in front of a text.

    Raises
    ------
    UnusableModelError : the tokenizer is not a fast one (nothing there to copy).
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnusableModelError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, so control tokens cannot be kept out of users' "
                "text; convert it to tokenizer.json (AutoTokenizer.from_pretrained(..., use_fast=True) and save)"
            )
        self._control = Tokenizer.from_str(backend.to_str())
        self._control.no_truncation()
        self._control.no_padding()
        self._plain = _without_added(self._control)
        added = self._control.get_added_tokens_decoder()
        white = {token for token, how in added.items() if not how.special and not how.content.strip(_WHITE)}
        self.added_ids: frozenset[int] = frozenset(added.keys() - white) | frozenset(tokenizer.all_special_ids)
        usable = (c for c in STAND_INS if self._raw(c) and self.added_ids.isdisjoint(self._raw(c)))
        self._stand_in = next(usable, "")
        self.bos_ids = self._leading_ids()

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text: no control token, no BOS, no space that was not written."""
        ids = self._raw(text)
        return ids if self.added_ids.isdisjoint(ids) else self._encode_around(text)

    def control(self, text: str, *, first: bool = False) -> list[int]:
        """Token ids of a template's text, control tokens included. `first`: it begins the prompt.

        A piece further on gets no leading space where the tokenizer adds one to whatever text it is given.
        """
        encoding = self._control.encode(text, add_special_tokens=False)
        if first or not text:
            return list(encoding.ids)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        start = next((span[0] for token, span in spans if token in self.added_ids), len(text))
        rest = self._control.encode(text[start:], add_special_tokens=False).ids if start < len(text) else []
        return self._raw(text[:start]) + list(rest)

    def id_of(self, token: str) -> int | None:
        """The id of an added token, None where the tokenizer has no such added token."""
        token_id: int | None = self._control.token_to_id(token)
        return token_id if token_id in self.added_ids else None

    def _raw(self, text: str) -> list[int]:
        ids: list[int] = self._encoding(text).ids
        return ids

    def _encoding(self, text: str) -> Encoding:
        if len(text) <= _LONG_TEXT:
            return self._plain.encode(text, add_special_tokens=False)
        return self._plain.encode_batch([text], add_special_tokens=False)[0]

    def _encode_around(self, text: str) -> list[int]:
        """Cuts the text inside every token that is forbidden, until none is left.

        A token may be forbidden although no added token was matched: base vocabularies contain strings such as
        `<s>`, and unknown characters become `<unk>`. Each round halves the offending spans, so the cost is linear
        with a factor of log2 of the longest token.
        """
        parts = [text]
        result: list[int] = []
        while parts:
            part = parts.pop()
            encoding = self._encoding(part)
            if self.added_ids.isdisjoint(encoding.ids):
                result.extend(encoding.ids)
            else:
                parts.extend(reversed(self._cut(part, encoding.ids, encoding.offsets)))
        return result

    def _cut(self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[str]:
        pieces: list[str] = []
        position = 0
        for token, (start, end) in zip(ids, offsets, strict=True):
            if token not in self.added_ids or start < position:
                continue
            if end - start > 1:
                middle = (start + end) // 2
                pieces.append(text[position:middle])
                position = middle
            else:
                pieces += [text[position:start], self._stand_in]
                position = max(end, start + 1)
        pieces.append(text[position:])
        return [piece for piece in pieces if piece]

    def _leading_ids(self) -> tuple[int, ...]:
        ids = self._control.encode("a", add_special_tokens=True).ids
        bare = self._control.encode("a", add_special_tokens=False).ids
        for start in range(len(ids) - len(bare) + 1):
            if ids[start : start + len(bare)] == bare:
                return tuple(ids[:start])
        return ()


def _without_added(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with the same vocabulary in memory, no added tokens, and nothing done to the edges of a text."""
    parts = Tokenizer(BPE())
    if tokenizer.normalizer is not None:
        parts.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        parts.pre_tokenizer = tokenizer.pre_tokenizer
    state = json.loads(parts.to_str())
    for part in ("normalizer", "pre_tokenizer"):
        state[part] = _without_edges(state[part])
    plain = Tokenizer.from_str(json.dumps(state))
    plain.model = tokenizer.model
    return plain


def _without_edges(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that adds no dummy prefix and strips nothing, or None if that was all it did."""
    if part is None or part["type"] in {"Prepend", "Strip"}:
        return None
    for children in ("normalizers", "pretokenizers"):
        if children in part:
            kept = [_without_edges(child) for child in part[children]]
            return part | {children: [child for child in kept if child is not None]}
    if part["type"] == "Metaspace":
        return {key: value for key, value in part.items() if key != "add_prefix_space"} | {"prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return part | {"add_prefix_space": False}
    return part
