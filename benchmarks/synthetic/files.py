"""What recipes/synthetic/ trains: an untaught decoder, and rows whose posterior is known.

    .venv/bin/python -m benchmarks.synthetic.files [--out out/synthetic]

The evidence of the benchmark in words: an urn, drawn evenly, shows twelve balls, most often of its own colour, and
which urn it was is to be decided. A row's `thought` counts the balls of each colour so far; its `meta.soft` is the
posterior, so that what a grid calls KL to shares is KL to the truth. No two rows have the same balls: a run that takes
no more rows than there are meets each once, and none of those that it is measured on. Takes seconds.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.synthetic.tally import Tally
from benchmarks.synthetic.task import TASKS, Evidence, decoder
from demur.decision.task import ReadoutKind, Task
from demur.decision.taskfile import load_task
from demur.decision.wording import ANSWER_PREFIX, UNMARKED_THOUGHT, words

TASK = Path(__file__).parents[2] / "recipes/synthetic/tasks/urn.yaml"
COLOURS = ("red", "green", "blue", "white")
#: Longer than the benchmark's: of 4^12 prompts the same one is seldom drawn twice.
EVIDENCE = replace(TASKS["K = 4"], length=12)
#: In the order of `Tally.thoughts`.
TALLIES = [f"{colour}-{count}" for colour in COLOURS for count in range(1, EVIDENCE.length + 1)]
PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"


@dataclass(frozen=True)
class Rows:
    """How many rows a file has, and the share of their labels that is drawn evenly instead of by the evidence."""

    count: int
    noise: float = 0.0


#: `start` teaches a decoder to count; its labels leave it underconfident, as the start of the benchmark's arms is.
FILES = {"train": Rows(51_200), "start": Rows(51_200, noise=0.5), "held_out": Rows(4_000)}


def write_files(out: Path, files: dict[str, Rows], seed: int = 0) -> None:
    """Writes `out`/model, a Hugging Face directory, and a JSONL file for each of `files`."""
    task = load_task(TASK)
    tokenizer = tokenizer_of(task)
    model = decoder(
        len(tokenizer),
        seed,
        layers=2,
        heads=4,
        context=128,
        pad=tokenizer.pad_token_id,
        end=tokenizer.eos_token_id,
    )
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    rng = np.random.default_rng(seed)
    symbols, gold = draw_different(EVIDENCE, sum(rows.count for rows in files.values()), rng)
    start = 0
    for name, rows in files.items():
        part = slice(start, start := start + rows.count)
        lines = _lines(symbols[part], gold[part], rows.noise, task.spec.question.names, rng)
        (out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw_different(evidence: Evidence, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Symbols [n, length], no two rows the same, and labels [n]: of rows that are, the first stays with its label."""
    symbols, gold = evidence.draw(2 * n, rng)
    first = np.sort(np.unique(symbols, axis=0, return_index=True)[1])[:n]
    if len(first) < n:
        raise ValueError(f"of {2 * n} prompts fewer than {n} are different; make them longer")
    return symbols[first], gold[first]


def tokenizer_of(task: Task) -> PreTrainedTokenizerFast:
    """One token for every word that a prompt or a thought can have."""
    spec = task.spec
    around = words(spec.question, spec.layout, ReadoutKind.TEXT, (), unmarked_thought=True)
    written = f"{around.before} {around.after} {UNMARKED_THOUGHT} {ANSWER_PREFIX}".split()
    known = dict.fromkeys([PAD, END, UNKNOWN, *written, *COLOURS, *TALLIES])
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, padding_side="left"
    )


def _lines(
    symbols: np.ndarray, gold: np.ndarray, noise: float, options: Sequence[str], rng: np.random.Generator
) -> list[dict[str, object]]:
    k = EVIDENCE.k
    labels = np.where(rng.random(len(gold)) < noise, rng.integers(0, k, len(gold)), gold)
    soft = (1 - noise) * EVIDENCE.posterior(symbols) + noise / k
    tallies = Tally(EVIDENCE).thoughts(symbols) - EVIDENCE.vocabulary
    return [
        {
            "input": " ".join(COLOURS[symbol] for symbol in balls),
            "label": options[label],
            "thought": " ".join(TALLIES[tally] for tally in counted),
            "meta": {"soft": shares},
        }
        for balls, label, counted, shares in zip(symbols, labels, tallies, soft.tolist(), strict=True)
    ]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/synthetic"))
    out = parser.parse_args().out
    write_files(out, FILES)
    print(f"{out}: model, {', '.join(f'{name}.jsonl ({rows.count} rows)' for name, rows in FILES.items())}")


if __name__ == "__main__":
    main()
