"""The demo model's adapter: merged as PEFT means it, and no other one."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from demur.server import demo_model
from demur.server.demo_model import ADAPTER, DemoModelMissing, export_demo_model, merge_adapter
from tests.models import build_model


def test_merging_changes_no_logit(tmp_path: Path):
    build_model("llama", tmp_path / "base")

    def base():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    torch.manual_seed(0)
    adapted = get_peft_model(base(), LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"]))
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    merged, ids = base(), torch.arange(5, 25)[None]
    with torch.no_grad():
        merge_adapter(merged, tmp_path / "adapter")
        whole, before = merged(ids).logits, base()(ids).logits
        apart = PeftModel.from_pretrained(base(), tmp_path / "adapter")(ids).logits
    torch.testing.assert_close(whole, apart, rtol=1e-4, atol=1e-4)
    assert (whole - before).abs().max() > 1e-2


def test_another_adapter_is_refused_and_nothing_is_overwritten_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (mine / name).touch()
    with pytest.raises(FileExistsError):
        export_demo_model(mine)
    for name in ADAPTER.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    with (tmp_path / "adapter_model.safetensors").open("ab") as file:
        file.write(b"more")
    monkeypatch.setattr(demo_model, "ADAPTER", tmp_path)
    with pytest.raises(DemoModelMissing, match="is not the adapter"):
        export_demo_model(tmp_path / "new")
    assert not (tmp_path / "new").exists()
