"""The Prometheus configuration, judged by Prometheus' own tools and run against the real server."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from demur.server.settings import Settings
from tests.process.server import free_port, wait_for

from .promql import ALERTS, DEPLOY, RECORDED, RULE_FILES, dashboard_expressions, metrics, rules

CONFIG = DEPLOY / "prometheus/prometheus.yml"
KEY = "a-key-for-prometheus"
#: Named by the rules, and on the page once the loop serves them.
COMING = re.compile(
    "demur_(audits|brier|calibration_error|certificate_(state|expires)|drift|expected|feedback|guarantee|live|re[lc]|"
    "state_age|store|trusted|unaudited)"
)


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)


def test_the_rules_are_valid():
    done = promtool("check", "rules", "--lint-fatal", *RULE_FILES)
    assert done.returncode == 0, done.stderr


def test_the_configuration_is_valid():
    done = promtool("check", "config", "--syntax-only", CONFIG)
    assert done.returncode == 0, done.stderr
    (pattern,) = yaml.safe_load(CONFIG.read_text())["rule_files"]
    assert sorted(CONFIG.parent.glob(pattern)) == RULE_FILES


def test_every_alert_fires_when_it_should():
    tests = Path(__file__).with_name("rules_test.yml")
    done = promtool("test", "rules", tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name in ALERTS if name not in tests.read_text()] == [], "alerts without a test"


def test_every_alert_says_how_grave_it_is_and_what_to_do():
    for name, alert in ALERTS.items():
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert set(alert["annotations"]) == {"summary", "description"}, name


def test_every_alert_is_documented_with_its_severity():
    text = (DEPLOY.parent / "docs/monitoring.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert listed == {name: alert["labels"]["severity"] for name, alert in ALERTS.items()}


@dataclass
class Prometheus:
    url: str

    def get(self, path: str, **params: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        return self.get("query", query=expression)["result"]

    def has(self, expression: str) -> bool:
        return bool(self.query(expression))


def configured(folder: Path, target: str) -> Path:
    """The shipped configuration for a server at `target`, with a shorter interval."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = list(map(str, RULE_FILES))
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "demur"]
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(folder / "key")
    job["static_configs"] = [{"targets": [target]}]
    (folder / "key").write_text(KEY)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


@pytest.fixture(scope="module")
def prometheus(live, tmp_path_factory) -> Iterator[tuple[Prometheus, httpx.Client]]:
    """A real Prometheus that scrapes a real server, which wants a key; and a client of that server."""
    folder = tmp_path_factory.mktemp("prometheus")
    server = live.serve(Settings(api_keys=KEY))
    config = configured(folder, server.url.removeprefix("http://"))
    assert promtool("check", "config", config).returncode == 0
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    found = Prometheus(f"http://127.0.0.1:{port}")
    try:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
            wait_for(lambda: _answers(f"{found.url}/-/ready"), 30, "Prometheus")
            yield found, client
    finally:
        process.terminate()
        process.wait(20)
        live.stop(server)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.engine
def test_every_metric_that_rules_and_dashboard_name_is_there(prometheus):
    _, client = prometheus
    page = list(text_string_to_metric_families(client.get("/metrics").text))
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    shown = {family.name + suffix for family in page for suffix in suffixes.get(family.type, [""])}
    asked = [rule["expr"] for rule in rules()] + list(dashboard_expressions())
    named = set().union(*map(metrics, asked))
    assert len(named) > 20
    assert {name for name in named - shown - RECORDED - {"up"} if not COMING.match(name)} == set()


@pytest.mark.engine
def test_prometheus_scrapes_the_server_and_evaluates_what_is_asked_of_it(prometheus):
    found, client = prometheus
    wait_for(lambda: found.has('up{job="demur"} == 1'), 20, "scrape with the key")
    client.post("/decide", json={"task": "voice_intent", "input": "wake me up at six"}).raise_for_status()
    decided = 'demur_decisions_total{job="demur", task="voice_intent"}'
    wait_for(lambda: found.has(decided), 20, "decision in Prometheus")
    assert found.has("vllm:generation_tokens_total"), "the engine's own metrics are on the same page"
    for expression in dashboard_expressions():
        found.query(expression)
    wait_for(lambda: all(rule["lastEvaluation"] > "1" for rule in _evaluated(found)), 20, "evaluation of every rule")
    assert {rule["name"]: rule.get("lastError", "") for rule in _evaluated(found) if rule["health"] != "ok"} == {}
    firing = {re.escape(alert["labels"]["alertname"]) for alert in found.get("alerts")["alerts"]}
    assert "DemurDown" not in firing


def _evaluated(found: Prometheus) -> list[Any]:
    return [rule for group in found.get("rules")["groups"] for rule in group["rules"]]
