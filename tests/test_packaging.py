"""What `pip install demur` puts on a machine: the client and the statistics, and nothing that serves or trains."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = [
    "pyproject.toml",
    PROJECT["project"]["readme"],
    *PROJECT["project"]["license-files"],
    *PROJECT["tool"]["setuptools"]["package-dir"].values(),
]
HEAVY = ["torch", "vllm", "transformers", "fastapi", "uvicorn", "sqlalchemy"]

# Runs in the new environment: what is importable there, and where the client came from.
LOOK = f"""
import importlib.util, json, pathlib, sys
import demur.clients
loaded = sorted(name for name in sys.modules if name.startswith("demur."))
import demur.calibration
with demur.clients.Client("http://127.0.0.1:9") as client:
    repr(client)
package = pathlib.Path(demur.clients.__file__).parent
print(json.dumps({{
    "heavy": [name for name in {HEAVY!r} if importlib.util.find_spec(name)],
    "inside": str(package).startswith(sys.prefix),
    "typed": (package / "py.typed").is_file(),
    "loaded": loaded,
}}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which only `demur` was installed, from a copy of the sources."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        origin = ROOT / name
        copy = shutil.copytree if origin.is_dir() else shutil.copy2
        copy(origin, source / name)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile", "--retries=2", source, cwd=folder)
    return python


@pytest.mark.process
def test_the_client_alone_pulls_neither_engine_nor_server(installed: Path, tmp_path: Path):
    seen = json.loads(run(installed, "-I", "-c", LOOK, cwd=tmp_path))
    assert seen["heavy"] == []
    assert seen["inside"]
    assert seen["typed"]
    assert [name for name in seen["loaded"] if not name.startswith("demur.clients")] == []


def test_after_make_clean_what_mypy_needs_is_laid_again(tmp_path: Path):
    """And nothing is installed anew: `make clean` leaves the environment and the model alone."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, tmp_path / name)
    for path in ("models/demo/config.json", ".venv/.demur-setup"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    for _ in range(2):
        run("make", "setup", cwd=tmp_path)
        links = sorted(link.readlink().name for link in (tmp_path / "build/namespace/demur").iterdir())
        assert links == sorted(PROJECT["tool"]["setuptools"]["package-dir"].values())
        run("make", "clean", cwd=tmp_path)
