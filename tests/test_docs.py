"""The documents: every command in them is run, or stands on the list of exceptions; tables match the code.

A fenced block in `sh` or `python` is run as it stands, document by document, in a folder that looks like a clone after
`make setup`. The address http://127.0.0.1:8000 becomes that of the demo server. A `json` block right after one that was
run shows its output: the keys must be those of the real output. `yaml` and `text` blocks are not run.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demur.server.errors import DemurError
from demur.server.types import Reason, Verdict

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
ADDRESS = "http://127.0.0.1:8000"

#: Lines that no test runs, by how they begin, and why. A block is run unless all its lines are among these.
NOT_RUN = {
    "make ": "continuous integration runs these",
    ".venv/bin/python -m pytest": "this is that",
    ".venv/bin/demur serve --demo --tasks": "runs until it is stopped; the demo server is this command",
    ".venv/bin/demur grid": "needs the data sets, GPUs and hours",
    ".venv/bin/demur diagnose": "needs a trained model",
    ".venv/bin/torchrun": "needs GPUs; tests/training/test_many_processes.py runs the same on CPUs",
    "deploy/": "installs several gigabytes",
    "useradd ": "changes the machine",
    "install ": "changes the machine",
    "systemctl ": "changes the machine",
    "journalctl ": "needs the service",
    "docker ": "needs a container engine",
    "kubectl ": "needs a cluster",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, and the line of its fence."""

    document: str
    line: int
    language: str
    text: str

    @property
    def excused(self) -> list[str]:
        """Those of its lines that are on the list of exceptions."""
        return [line for line in self.text.splitlines() if line.startswith(tuple(NOT_RUN))]

    @property
    def runs(self) -> bool:
        return self.language in {"sh", "console", "python"} and not self.excused

    def command(self, url: str) -> list[str]:
        text = self.text.replace(ADDRESS, url)
        if self.language == "python":
            return [sys.executable, "-W", "error", "-c", text]
        if self.language == "console":
            text = "\n".join(line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ "))
        return ["bash", "-euo", "pipefail", "-c", text]


def read_blocks(document: Path) -> list[Block]:
    blocks, fence, language, body = [], 0, "", []
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if line.startswith("```"):
            if fence:
                blocks.append(Block(document.name, fence, language, "\n".join(body) + "\n"))
            fence, language, body = (0, "", []) if fence else (number, line[3:].strip(), [])
        elif fence:
            body.append(line)
    assert not fence, f"{document.name}:{fence} is never closed"
    return blocks


BLOCKS = {document.name: read_blocks(document) for document in DOCUMENTS}
RUNNING = [name for name, blocks in BLOCKS.items() if any(block.runs for block in blocks)]


def shape(value: Any) -> Any:
    """What a value is made of: the keys of objects all the way down, and the shape of an array's first element."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value[:1]] if isinstance(value, list) else None


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone after `make setup`, for commands that write beside what they read."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("examples", "deploy", "recipes", "README.md", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    # Without this an error of the server's would pass: curl itself has succeeded.
    (tmp_path / ".curlrc").write_text("fail-with-body\nshow-error\n")
    return tmp_path


@pytest.mark.process
@pytest.mark.parametrize("name", RUNNING)
def test_what_a_document_says_works(name: str, clone: Path, demo_server: Any):
    url = demo_server.url.rstrip("/")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DEMUR_")}
    environment |= {"DEMUR_URL": url, "CURL_HOME": str(clone)}
    output = None
    for block in BLOCKS[name]:
        place = f"{name}:{block.line}"
        if block.runs:
            done = subprocess.run(
                block.command(url), cwd=clone, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, f"{place}\n{block.text}\n{done.stdout}\n{done.stderr}"
            output = done.stdout
        elif block.language == "json" and output is not None:
            assert shape(json.loads(block.text)) == shape(json.loads(output)), f"{place} shows other keys"
            output = None
        else:
            output = None


@pytest.mark.process
def test_the_routes_are_those_of_the_server(demo_server: Any):
    import httpx

    document = httpx.get(f"{demo_server.url.rstrip('/')}/openapi.json").raise_for_status().json()
    served = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert set(column("api.md", "route", 0)) == served


def test_flags_that_are_named_exist():
    program = str(Path(sys.executable).parent / "demur")
    known = subprocess.run([program, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    named = set()
    for path in [*DOCUMENTS, ROOT / "Dockerfile", *(ROOT / "deploy").glob("**/*.s*")]:
        for line in re.findall(r"(?:demur serve|^CMD )[^`\n]*", path.read_text(), re.MULTILINE):
            named |= set(re.findall(r"--[a-z-]+", line))
    assert {"--host", "--port", "--model", "--tasks", "--demo"} <= named
    assert [flag for flag in named if not re.search(rf"{flag}\b", known)] == []


@pytest.mark.parametrize("name", BLOCKS)
def test_every_command_is_run_or_excused(name: str):
    assert {block.language for block in BLOCKS[name]} <= {"sh", "console", "python", "json", "yaml", "text"}
    for block in BLOCKS[name]:
        if block.excused:
            assert block.excused == block.text.splitlines(), f"{name}:{block.line} mixes what is run and what is not"


def test_every_exception_is_needed():
    lines = [line for blocks in BLOCKS.values() for block in blocks for line in block.excused]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path) if path else document
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
        assert not anchor or anchor in {slug(heading) for heading in headings}, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_documents_name_exist(document: Path):
    for name in re.findall(r"\b(?:deploy|examples|tests)/[\w./-]*\w", document.read_text()):
        assert (ROOT / name).exists(), name


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def column(name: str, title: str, index: int) -> list[str]:
    """A column of the first table whose first title is `title`; a cell may hold several `names`."""
    text = (ROOT / "docs" / name).read_text()
    table = re.search(rf"^\| {title} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None, title
    cells = [row.strip("| ").split(" | ")[index] for row in table[1].splitlines()]
    return [name for cell in cells for name in (re.findall(r"`([^`]+)`", cell) or [cell.strip()])]


def test_the_verdicts_are_all_listed():
    assert column("verdicts.md", "verdict", 0) == [verdict.value for verdict in Verdict]


def test_the_reasons_are_all_listed():
    assert sorted(column("verdicts.md", "reason", 0)) == sorted(reason.value for reason in Reason)


def test_the_errors_are_all_listed():
    def below(kind: type[DemurError]) -> set[type[DemurError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    listed = zip(column("api.md", "status", 0), column("api.md", "status", 1), strict=True)
    # Subclasses that only tests define are not the server's.
    kinds = {kind for kind in below(DemurError) if kind.__module__.startswith("demur.")}
    assert set(listed) == {(str(kind.status), kind.type) for kind in kinds}


def test_the_answers_fields_are_all_listed():
    (example,) = [json.loads(block.text) for block in BLOCKS["README.md"] if block.language == "json"]
    text = (ROOT / "docs/api.md").read_text().partition("The answer to one input:")[2].partition("###")[0]
    listed = [name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert listed == list(example)
