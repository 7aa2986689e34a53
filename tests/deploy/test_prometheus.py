"""The Prometheus configuration, judged by Prometheus' own tools and run against a server with a store."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.loop.servers import start
from tests.process.server import free_port, wait_for
from tests.server.conftest import serving

from .promql import ALERTS, DEPLOY, RECORDED, RULE_FILES, dashboard_expressions, metrics, rules

CONFIG = DEPLOY / "prometheus/prometheus.yml"
KEY = "a-key-for-prometheus"


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


async def test_documents_and_page_name_the_same_metrics_and_labels(tmp_path):
    process = await start(tmp_path)
    for _ in range(60):
        await process.decide()
    (drawn,) = (await process.ask("GET", "/review?limit=1"))["items"]
    await process.ask("POST", "/feedback", {"id": drawn["id"], "label": "billing"})
    async with process.client() as client:
        page = (await client.get("/metrics")).text
    await process.close()
    families = [one for one in text_string_to_metric_families(page) if one.name.startswith("demur_")]
    names = {f"{one.name}_total" if one.type == "counter" else one.name: one for one in families}
    documents = "".join(file.read_text() for file in (DEPLOY.parent / "docs").glob("*.md"))
    said = dict.fromkeys(re.findall(r"`(demur_\w+)", documents), "") | dict(
        re.findall(r"`(demur_\w+)\{([\w,]+)\}", documents)
    )
    assert said.keys() - {"demur_wide_readouts"} == names.keys()  # that one is a plugin of vLLM
    for name in said.keys() & names.keys():
        for sample in names[name].samples[:1]:
            assert sample.labels.keys() - {"le"} == set(filter(None, said[name].split(","))), name


@dataclass
class Prometheus:
    url: str

    def get(self, path: str, **params: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        return self.get("query", query=expression)["result"]


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


@pytest.fixture
async def watched(tmp_path) -> AsyncIterator[tuple[Prometheus, httpx.AsyncClient]]:
    """A real Prometheus that scrapes a server with a store, which wants a key; and a client of that server."""
    process = await start(tmp_path, feedback_keys=KEY)
    process.watch.start()
    async with serving(process.app) as url:
        config = configured(tmp_path, url.removeprefix("http://"))
        assert promtool("check", "config", config).returncode == 0
        port = free_port()
        with (tmp_path / "log").open("wb") as log:
            program = await asyncio.create_subprocess_exec(
                "prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        found = Prometheus(f"http://127.0.0.1:{port}")
        try:
            async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as client:
                await until(lambda: _answers(f"{found.url}/-/ready"), "Prometheus")
                await until(lambda: found.query('up{job="demur"} == 1'), "scrape with the key")
                yield found, client
        finally:
            program.terminate()
            await program.wait()
    await process.close()


async def until(condition: Callable[[], Any], what: str) -> None:
    """Waits off the event loop, where the server has to answer meanwhile."""
    await asyncio.to_thread(wait_for, condition, 30, what)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


async def decide(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.post("/decide", json={"task": "route", "input": "it does not start"})
    return answer.raise_for_status().json()


async def test_prometheus_evaluates_what_is_asked_and_a_withdrawn_certificate_raises_its_alert(watched):
    found, client = watched
    ids = [(await decide(client))["id"] for _ in range(25)]
    assert (await decide(client))["verdict"] == "trust"
    page = list(text_string_to_metric_families((await client.get("/metrics")).text))
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    shown = {family.name + suffix for family in page for suffix in suffixes.get(family.type, [""])}
    asked = [rule["expr"] for rule in rules()] + list(dashboard_expressions())
    named = set().union(*map(metrics, asked))
    assert len(named) > 30
    assert named - shown - RECORDED - {"up"} == set(), "metrics that no page shows"

    valid = 'task_state:demur_certificate_state:max{task="route", state="valid"} == 1'
    await until(lambda: found.query(valid), "valid certificate in Prometheus")
    for expression in dashboard_expressions():
        await asyncio.to_thread(found.query, expression)
    await until(lambda: all(rule["health"] != "unknown" for rule in _evaluated(found)), "evaluation of every rule")
    assert {rule["name"]: rule.get("lastError", "") for rule in _evaluated(found) if rule["health"] != "ok"} == {}
    assert [alert for alert in _firing(found) if alert["severity"] == "critical"] == []

    body = {"items": [{"id": one, "label": "sales"} for one in ids]}
    (await client.post("/feedback", json=body)).raise_for_status()
    assert (await decide(client))["reason"] == "certificate_withdrawn"
    await until(lambda: any(one["alertname"] == "DemurCertificateWithdrawn" for one in _firing(found)), "alert")
    (alert,) = [one for one in _firing(found) if one["alertname"] == "DemurCertificateWithdrawn"]
    assert (alert["task"], alert["severity"]) == ("route", "critical")


def _evaluated(found: Prometheus) -> list[Any]:
    return [rule for group in found.get("rules")["groups"] for rule in group["rules"]]


def _firing(found: Prometheus) -> list[dict[str, str]]:
    return [alert["labels"] for alert in found.get("alerts")["alerts"] if alert["state"] == "firing"]
