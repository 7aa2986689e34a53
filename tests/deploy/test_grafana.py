"""The dashboard and how Grafana finds it."""

from pathlib import PurePosixPath

import yaml

from .promql import DASHBOARD, DEPLOY, dashboard_expressions, metrics, panels
from .test_compose import COMPOSE

PROVISIONING = DEPLOY / "grafana/provisioning"

#: What the dashboard must show of each task.
SHOWN = {
    "verdict mix": "task_verdict:demur_decisions:share5m",
    "reliability": "demur_reliability",
    "trusted risk": "task_bound:demur_trusted_risk:max",
    "alpha": "demur_trusted_risk_limit",
    "drift": "task_signal:demur_drift:over_limit",
    "latency": "task:demur_decision_seconds:p99_5m",
}


def test_what_is_to_be_watched_is_shown_by_task():
    expressions = list(dashboard_expressions())
    for what, metric in SHOWN.items():
        assert any(metric in metrics(expression) for expression in expressions), what
    for panel in panels():
        for target in panel["targets"]:
            if any(name.startswith("demur_certificate") for name in metrics(target["expr"])):
                assert 'task=~"$task"' in target["expr"], panel["title"]
        # A panel about one task says which.
        assert ("$task" in panel["title"]) <= all(
            'task=~"$task"' in t["expr"] or "engine" in t["expr"] for t in panel["targets"]
        )


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_query_goes_to_the_chosen_source_and_variables_are_defined():
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert defined == {"datasource", "job", "task"}
    for panel in panels():
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_grafana_finds_dashboard_and_prometheus_where_compose_puts_them():
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    inside = {target: source for source, target in mounts.items()}
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/demur.yml").read_text())["providers"]
    assert inside[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    assert inside["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    home = PurePosixPath(COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert inside[str(home.parent)] == "./deploy/grafana/dashboards"
    assert (DEPLOY / "grafana/dashboards" / home.name).exists()
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in COMPOSE["services"]
