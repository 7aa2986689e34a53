"""The Kubernetes manifests: that they fit together, and fit the image and the server."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from demur.server.settings import PREFIX, Settings
from demur.server.wires.ops import PUBLIC
from tests.test_docker import last

from .promql import RULE_FILES

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
DRAIN_SECONDS = Settings().drain_s


def manifest(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


DEPLOYMENT = manifest("deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
SECRET = manifest("secret.yaml")


def test_all_is_applied_but_the_keys():
    applied = set(manifest("kustomization.yaml")["resources"])
    assert applied == {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "secret.yaml"}
    for name in applied:
        assert {"apiVersion", "kind", "metadata"} <= set(manifest(name)), name


def test_service_and_monitor_find_the_pods():
    labels = POD["metadata"]["labels"]
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        manifest("service.yaml")["spec"]["selector"],
        manifest("podmonitor.yaml")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    command = json.loads(last("cpu", "CMD"))
    assert str(ports["http"]) == command[command.index("--port") + 1]
    assert [port["targetPort"] for port in manifest("service.yaml")["spec"]["ports"]] == ["http"]
    (endpoint,) = manifest("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")


def test_probes_need_no_key_and_only_readiness_decides_about_traffic():
    probes = {kind: CONTAINER[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(probes.values()) <= PUBLIC


def test_the_services_own_variables_do_not_reach_the_server():
    """They begin with DEMUR_ as its settings do, and it refuses those that it does not know."""
    assert manifest("service.yaml")["metadata"]["name"].upper() + "_" == PREFIX
    assert POD["spec"]["enableServiceLinks"] is False


def test_the_server_drains_before_it_is_killed():
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["spec"]["terminationGracePeriodSeconds"] > DRAIN_SECONDS + pause


def test_the_pod_runs_as_the_images_user_without_rights():
    security = POD["spec"]["securityContext"]
    user, group = last("cpu", "USER").split(":")
    assert (security["runAsUser"], security["fsGroup"]) == (int(user), int(group))
    assert security["runAsNonRoot"] is True
    assert CONTAINER["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_mounts_and_keys_name_what_is_there():
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert set(volumes) == set(mounts)
    command = json.loads(last("cpu", "CMD"))
    assert command[command.index("--tasks") + 1] in mounts.values()
    environment = {variable["name"]: variable for variable in CONTAINER["env"]}
    assert {name.removeprefix(PREFIX).lower() for name in environment} <= set(Settings.model_fields)
    files = {f"{mounts['keys']}/{item['path']}": item["key"] for item in volumes["keys"]["secret"]["items"]}
    named = [variable["value"] for name, variable in environment.items() if name.endswith("_FILE")]
    assert set(named) == set(files), "every key file is read, and every file that is read is there"
    references = [variable["valueFrom"]["secretKeyRef"] for variable in environment.values() if "valueFrom" in variable]
    assert [one["key"] for one in references if one.get("optional")] == ["store-url"]
    references = [reference for reference in references if not reference.get("optional")]
    (endpoint,) = manifest("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    references.append(endpoint["authorization"]["credentials"])
    assert {reference["name"] for reference in references} == {SECRET["metadata"]["name"]}
    assert {reference["key"] for reference in references} | set(files.values()) <= set(SECRET["stringData"])


def test_no_key_is_shipped():
    for name, text in SECRET["stringData"].items():
        assert [line for line in text.splitlines() if line.partition("#")[0].strip()] == [], name


def test_one_process_writes_to_the_state():
    assert (DEPLOYMENT["spec"]["replicas"], DEPLOYMENT["spec"]["strategy"]["type"]) == (1, "Recreate")


def test_the_operator_gets_the_same_rules():
    printed = subprocess.run([FOLDER / "rules.sh"], check=True, capture_output=True, text=True).stdout
    documents = list(yaml.safe_load_all(printed))
    assert {document["kind"] for document in documents} == {"PrometheusRule"}
    shipped = [yaml.safe_load(file.read_text())["groups"] for file in RULE_FILES]
    assert [document["spec"]["groups"] for document in documents] == shipped
    names = [document["metadata"]["name"] for document in documents]
    assert len(set(names)) == len(names)
