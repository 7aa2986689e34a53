"""`demur bundle show`, `verify` and `diff`."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from demur.calibration import PlattScaling
from demur.decision.task import Truncation
from demur.server.cli import main
from tests.models import build_model

from .bundled import TASK, TASK_YAML, StubEngine, bundle_files, certificates, fitted, make_bundle, pipeline_on


def demur(*arguments):
    result = CliRunner().invoke(main, ["bundle", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_show(tmp_path):
    made = make_bundle(tmp_path / "b")
    code, out, _ = demur("show", tmp_path / "b")
    shown = json.loads(out)
    assert code == 0
    assert (shown["id"], shown["task"], shown["method"], shown["n"]) == (made.id, "route", "temperature", 400)
    assert shown["trusted"]["alpha"] == 0.05
    assert shown["trusted"]["thresholds"] == list(certificates().trusted.thresholds)
    make_bundle(tmp_path / "plain", bundle_files())
    assert json.loads(demur("show", tmp_path / "plain")[1])["trusted"] is None


def test_verify(tmp_path):
    for name in ("one", "two"):
        make_bundle(tmp_path / name)
    code, out, _ = demur("verify", tmp_path / "one", tmp_path / "two")
    assert (code, out.count("as they were written")) == (0, 2)
    code, _, err = demur("verify", tmp_path / "one", "--tasks", tmp_path)
    assert (code, "--model" in err) == (2, True), "task files alone are held against nothing"
    (tmp_path / "two" / "certificate.json").write_bytes(b"null")
    code, out, err = demur("verify", tmp_path / "one", tmp_path / "two")
    assert (code, out.count("as they were written")) == (1, 1)
    assert "certificate.json was changed" in err
    assert demur("show", tmp_path / "two")[0] == demur("diff", tmp_path / "one", tmp_path / "two")[0] == 1


def test_verify_against_a_folder_that_is_no_model(tmp_path):
    make_bundle(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    code, _, err = demur("verify", tmp_path / "b", "--model", tmp_path / "empty")
    assert (code, "config.json is missing" in err) == (1, True)


def test_verify_against_a_model(tmp_path):
    from transformers import AutoTokenizer

    from demur.server.engines.identity import identify, served_as

    model = tmp_path / "model"
    build_model("qwen3", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    identity = identify(model, name=None, engine="x", max_model_len=1, chat_template=str(tokenizer.chat_template or ""))
    engine = StubEngine(identity=identity, tokenizer=tokenizer)
    pipeline = pipeline_on(engine, own_prompts=True)
    make_bundle(tmp_path / "b", pipeline=pipeline)
    assert demur("verify", tmp_path / "b", "--model", model)[0] == 0
    # Nothing runs here that would have a number format, so that of the bundle is taken.
    engine = StubEngine(
        identity=replace(identity, weights=served_as(identity.weights, "bfloat16")), tokenizer=tokenizer
    )
    make_bundle(tmp_path / "half", pipeline=pipeline_on(engine, own_prompts=True))
    assert demur("verify", tmp_path / "half", "--model", model)[0] == 0
    task = tmp_path / "route.yaml"
    # A task that cuts inputs where the context ends.
    small = StubEngine(identity=replace(identity, max_model_len=256), tokenizer=tokenizer)
    cut = replace(TASK, spec=replace(TASK.spec, truncation=Truncation.HEAD))
    make_bundle(tmp_path / "cut", task=cut, pipeline=pipeline_on(small, own_prompts=True))
    task.write_bytes(TASK_YAML + b"truncation: head\n")
    asked = ("verify", tmp_path / "cut", "--model", model, "--tasks", task)
    assert demur(*asked, "--max-model-len", "256")[0] == 0
    assert "made for another prompt" in demur(*asked)[2]
    task.write_text("name: route\nquestion: Which team now?\noptions: [billing, technical, sales]\n")
    code, _, err = demur("verify", tmp_path / "b", "--model", model, "--tasks", task)
    assert code == 1
    assert "made for another question, prompt" in err
    task.write_text("name: route\nquestion: Which team?\noptions: [billing, technical, sales]\nslice_by: channel\n")
    assert "made for another slices" in demur("verify", tmp_path / "b", "--model", model, "--tasks", task)[2]
    task.write_text(task.read_text().replace("route", "other"))
    assert "has no task route" in demur("verify", tmp_path / "b", "--model", model, "--tasks", task)[2]
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    assert "made for another chat_template" in demur("verify", tmp_path / "b", "--model", model)[2]
    rules = model / "tokenizer.json"
    known = json.loads(rules.read_text())
    known["model"]["merges"][-2:] = known["model"]["merges"][:-3:-1]  # the last two change places
    rules.write_text(json.dumps(known))
    assert "made for another tokenizer, chat_template" in demur("verify", tmp_path / "b", "--model", model)[2]
    weights = next(model.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "made for another weights, tokenizer" in demur("verify", tmp_path / "b", "--model", model)[2]


def test_diff(tmp_path):
    make_bundle(tmp_path / "a", bundle_files())
    make_bundle(tmp_path / "b", bundle_files(calibrator=fitted(PlattScaling()), issued=certificates()))
    assert demur("diff", tmp_path / "a", tmp_path / "a") == (0, "", "")
    code, out, _ = demur("diff", tmp_path / "a", tmp_path / "b")
    assert code == 1
    assert "method: temperature -> platt" in out
    assert "file calibrator.json: changed" in out
    assert f"trust from: None -> {certificates().trusted.threshold}" in out


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_directory_that_is_no_bundle(tmp_path, command):
    code, _, err = demur(command, tmp_path)
    assert code == 1
    assert "is no bundle" in err
