"""Every benchmark says what it measures and how long that takes, and measures nothing while it says so."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Started by others, which speak with them over standard input.
PARTS = {"benchmarks.serving.load", "benchmarks.serving.offline"}
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for file in (ROOT / "benchmarks").rglob("*.py")
    if '__name__ == "__main__"' in file.read_text()
)


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", [module for module in MODULES if module not in PARTS])
def test_help_says_what_it_is_and_how_long_it_takes(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    said = capsys.readouterr().out.partition("options:")[0]
    assert ended.value.code == 0
    assert f"-m {module}" in said, "how it is started"
    assert re.search(r"\b(seconds|minutes?|hours?)\b", said), "how long it takes"
