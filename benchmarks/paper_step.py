"""A real step of every kind of the paper's grid, on the GPU that is there: Qwen3 in its own shape, weights at random.

    .venv/bin/python -m benchmarks.paper_step [--size 1.7b] [--tokens 128] [--data ROWS.jsonl]

Each cell for one 80 GB GPU takes two steps as its recipe says, but for what is named here: shorter thoughts, `forced`
ones in the calibration-aware cell (random weights never write a readable decision, and the term would be zero), and the
first rows of a JSON Lines file in place of the Hub's data set. Prints the second step's time and the peak of the GPU's
memory; a few minutes on an H200, whose steps took 5 to 18 s.
"""

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback

from demur.training import run
from demur.training.recipefile import load_recipes
from tests.models import build_tokenizer

GRID = Path("recipes/paper/grid.yaml")
DATA = Path("../shared/data/csqa_train.jsonl")
#: Qwen3's shapes, from their published configurations.
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
#: Of the grid's arms, those that differ in what a step does.
KINDS: dict[str, tuple[str, ...]] = {"sft": (), "grpo": (), "calibration": ("rollout.kind=forced",)}


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step began and ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        self._began = perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(perf_counter() - self._began)


def build(size: str, folder: Path) -> None:
    """Writes a Qwen3 of this size with random bfloat16 weights."""
    tokenizer = build_tokenizer("qwen3")
    config = Qwen3Config(
        **SHAPES[size],
        vocab_size=len(tokenizer) if size == "tiny" else 151936,
        num_key_value_heads=8 if size != "tiny" else 2,
        head_dim=128 if size != "tiny" else 16,
        tie_word_embeddings=size != "8b",
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Take the steps and print a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="1.7b")
    parser.add_argument("--tokens", type=int, default=128, help="of a thought [128; the paper has 512]")
    parser.add_argument("--data", type=Path, default=DATA)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(wanted.size, folder / "qwen3")
        print("| step | seconds | peak memory |\n|---|---|---|")
        for kind, changes in KINDS.items():
            common = (
                f"model.path={folder / 'qwen3'}",
                f"rollout.max_tokens={wanted.tokens}",
                f"data.train={{path: {wanted.data.absolute()}, limit: 64}}",
                "data.evaluate={}",
                "optimiser.steps=2",
                "log.to=[]",
            )
            file = load_recipes(GRID, (*common, *changes))
            recipe = file.cells[f"qwen3-1.7b.commonsense.{kind}.gpu-80gb"]
            trainer = run.trainer_of(
                run.prepare(recipe, file.folder),
                folder / kind,
                save_strategy="no",
                use_cpu=not torch.cuda.is_available(),
            )
            clock = Clock()
            trainer.add_callback(clock)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
            peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
            print(f"| {kind}, Qwen3 {wanted.size} | {clock.seconds[-1]:.2f} | {peak:.1f} GiB |", flush=True)
            del trainer
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
