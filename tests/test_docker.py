"""The deployment files, read as an engine of containers or services would: no such engine is needed."""

import configparser
import fnmatch
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DRAIN_SECONDS = 30


@dataclass
class Stage:
    """A build stage: the image or stage it starts from, and its instructions as (keyword, rest)."""

    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def read_stages(text: str) -> dict[str, Stage]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stages: dict[str, Stage] = {}
    current = Stage("")
    for line in filter(None, map(str.strip, joined.splitlines())):
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = stages[name] = Stage(parent)
        else:
            current.steps.append((keyword, rest.strip()))
    return stages


STAGES = read_stages((ROOT / "Dockerfile").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
IMAGES = ["cpu", "gpu"]
SERVERS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def chain(name: str) -> Iterator[Stage]:
    """A stage and those it starts from, last first."""
    while name in STAGES:
        yield STAGES[name]
        name = STAGES[name].parent


def last(name: str, keyword: str) -> str:
    """What an instruction says in the finished image."""
    return next(rest for stage in chain(name) for key, rest in reversed(stage.steps) if key == keyword)


def copies() -> list[str]:
    """The sources of every COPY from the build context."""
    rests = [rest for stage in STAGES.values() for key, rest in stage.steps if key == "COPY" and "--from" not in rest]
    return [source for rest in rests for source in rest.split()[:-1]]


@pytest.mark.parametrize("image", IMAGES)
def test_the_server_runs_as_an_ordinary_user(image):
    user = last(image, "USER").partition(":")[0]
    assert user.isdigit(), "a name is not enough for clusters that forbid root"
    assert int(user) > 0
    created = " ".join(rest for stage in chain(image) for key, rest in stage.steps if key == "RUN")
    assert f"--uid {user} " in created
    assert STAGES[image].steps[-1][0] == "USER", "nothing is left to root after the user was set"


@pytest.mark.parametrize("image", IMAGES)
def test_signals_reach_the_server(image):
    assert json.loads(last(image, "ENTRYPOINT")) == ["demur", "serve"]
    assert "--host" in json.loads(last(image, "CMD"))
    assert last(image, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_holds_what_was_installed_for_it(image):
    (copied,) = [rest for key, rest in STAGES[image].steps if key == "COPY"]
    assert copied == f"--from=install-{image} /opt/demur /opt/demur"
    installs = [rest for key, rest in STAGES[f"install-{image}"].steps if key == "RUN"]
    assert [f"deploy/install.sh {image} /opt/demur" in rest for rest in installs] == [True]


def test_what_is_copied_exists_and_reaches_the_builder():
    patterns = (ROOT / ".dockerignore").read_text().split("\n")
    kept = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    dropped = [pattern for pattern in patterns if pattern and pattern[0] not in "#!*"]
    assert patterns.index("*") < patterns.index("!" + kept[0])
    for source in copies():
        assert (ROOT / source).exists(), source
        assert any(source == pattern or source.startswith(pattern + "/") for pattern in kept), source
        assert not any(fnmatch.fnmatch(source, pattern) for pattern in dropped), source


def test_every_package_is_copied():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    assert folders <= set(copies())
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= set(copies())


def test_no_registry_host_is_written_down():
    assert [stage.parent for stage in STAGES.values() if "/" in stage.parent] == []
    for name in ("Dockerfile", "docker-compose.yml", "deploy/install.sh"):
        assert not re.search(r"https?://(?!127\.0\.0\.1)", (ROOT / name).read_text()), name
    images = [service["image"] for service in COMPOSE["services"].values()]
    assert [image for image in images if re.match(r"[^/]*[.:][^/]*/", image)] == []


@pytest.fixture(params=[200, 503])
def probed(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """A server whose probe answers with one status, and its address."""

    class Probe(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/readyz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Probe) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield request.param, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_health_check_passes_exactly_when_the_server_is_ready(probed):
    status, url = probed
    command = json.loads(last("cpu", "HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python"
    done = subprocess.run([sys.executable, *command[1:]], env={"DEMUR_URL": url}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0 if status == 200 else 1, "")


def test_compose_and_image_check_health_alike():
    command = json.loads(last("cpu", "HEALTHCHECK").partition("CMD ")[2])
    for service in SERVERS.values():
        assert service["healthcheck"]["test"] == ["CMD", *command]


def test_every_service_is_built_from_a_stage_and_drains_before_it_is_killed():
    assert {service["build"]["target"] for service in SERVERS.values()} == set(IMAGES)
    for service in SERVERS.values():
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS
        assert service["init"] is True


def test_compose_wants_keys_and_stays_on_the_loopback_unless_told():
    for service in SERVERS.values():
        assert service["environment"]["DEMUR_API_KEYS"].startswith("${DEMUR_API_KEYS:?")
        assert [port.startswith("${DEMUR_BIND:-127.0.0.1}:") for port in service["ports"]] == [True]


def test_the_gpu_is_asked_for_by_its_profile_only():
    gpu = {name for name, service in COMPOSE["services"].items() if "deploy" in service}
    assert gpu == {name for name, service in COMPOSE["services"].items() if service.get("profiles") == ["gpu"]}
    assert gpu == {"demur-gpu"}


def test_the_folders_that_compose_mounts_are_those_that_the_image_reads():
    command = json.loads(last("cpu", "CMD"))
    mounts = [volume.rsplit("}", 1)[-1].split(":")[1] for volume in COMPOSE["services"]["demur"]["volumes"][:2]]
    assert command[command.index("--tasks") + 1] in mounts
    assert str(Path(command[command.index("--model") + 1]).parent) in mounts


def unit() -> dict[str, str]:
    """The service section of the unit; of a key that stands there more than once, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(ROOT / "deploy/systemd/demur.service")
    return dict(parser["Service"])


def test_systemd_signals_the_server_alone_and_waits_for_it():
    service = unit()
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > DRAIN_SECONDS
    assert service["Restart"] == "on-failure"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["User"] not in {"root", "0"}


def test_service_and_image_start_the_same_command():
    program, *arguments = shlex.split(unit()["ExecStart"])
    assert [Path(program).name, arguments[0]] == json.loads(last("cpu", "ENTRYPOINT"))
    flags = [argument for argument in arguments if argument.startswith("--")]
    assert flags == [argument for argument in json.loads(last("cpu", "CMD")) if argument.startswith("--")]


@pytest.mark.parametrize("script", sorted((ROOT / "deploy").rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse_and_may_be_run(script):
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["sh", "-n", script]).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["cpu"], ["tpu", "folder"]])
def test_the_installer_refuses_what_it_does_not_know(tmp_path, arguments):
    done = subprocess.run([ROOT / "deploy/install.sh", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert list(tmp_path.iterdir()) == []
