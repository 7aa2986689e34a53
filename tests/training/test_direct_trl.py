"""TRL's GRPO on one-token completions takes the same gradient as direct training on the same completions."""

import warnings

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from demur.training.direct import PromptBatch, decision_logits
from demur.training.direct_loss import direct_loss
from demur.training.objectives import Objective

with warnings.catch_warnings():
    # TRL looks for vLLM, which is newer here than it knows and imports deprecated parts of torch.
    warnings.simplefilter("ignore")
    from trl import GRPOConfig, GRPOTrainer

WORDS = ["<pad>", "<eos>", "yes", "no", "maybe", *(f"w{i}" for i in range(7))]
LABELS = torch.tensor([2, 3, 4])
GROUP = 8


def tokenizer():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def reward(completions, gold, **_):
    return [float(text == WORDS[LABELS[option]]) for text, option in zip(completions, gold, strict=True)]


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.taken = [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_sampled_is_what_trl_does(tmp_path, scale):
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.3,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    rows = [{"prompt": f"w1 w{i} w3"[: 5 + 3 * (i % 2)], "gold": i % 3} for i in range(4)]
    gradients = Gradients()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=4 * GROUP,
            num_generations=GROUP,
            max_completion_length=1,
            max_steps=1,
            max_grad_norm=0.0,
            learning_rate=0.0,
            beta=0.0,
            loss_type="dapo",
            scale_rewards=scale,
            temperature=1.0,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            seed=5,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[gradients],
    )
    seen = {}
    compute_loss = trainer._compute_loss

    def watched(model, inputs):
        seen.update(inputs)
        return compute_loss(model, inputs)

    trainer._compute_loss = watched
    trainer.train()

    # TRL shuffles what it generated: put the groups together again.
    texts = trainer.processing_class.batch_decode(seen["prompt_ids"], skip_special_tokens=True)
    order = [i for row in rows for i, text in enumerate(texts) if text == row["prompt"]]
    first = order[::GROUP]
    gold = torch.tensor([row["gold"] for row in rows])
    prompts = PromptBatch(seen["prompt_ids"][first], seen["prompt_mask"][first], LABELS, gold)
    tokens = seen["completion_ids"][order].view(4, GROUP)
    loss = direct_loss(
        Objective(group=GROUP, scale_rewards=scale == "group"),
        decision_logits(model, prompts),
        LABELS,
        gold,
        tokens=tokens,
    )
    assert 0 < loss.reward < 1
    assert loss.unreadable > 0
    ours = torch.autograd.grad(loss.total, list(model.parameters()))
    assert max(g.abs().max() for g in ours) > 1e-3
    for mine, theirs in zip(ours, gradients.taken, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
