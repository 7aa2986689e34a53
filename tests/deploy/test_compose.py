"""What docker-compose.yml puts beside the server. The server's own services are in tests/test_docker.py."""

import re
from pathlib import Path

import yaml

from demur.server.settings import FOREIGN, PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVERS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
OTHERS = {name: service for name, service in COMPOSE["services"].items() if name not in SERVERS}
PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())


def test_nothing_that_has_no_key_is_published_beyond_the_loopback():
    for name, service in OTHERS.items():
        assert [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")] == [], name


def test_images_of_others_are_pinned_and_what_they_keep_outlives_them():
    for name, service in OTHERS.items():
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"]), name
        assert [volume for volume in service["volumes"] if volume.split(":")[0] in COMPOSE["volumes"]], name


def test_every_mounted_file_of_the_repository_exists():
    for service in OTHERS.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), source


def test_no_password_is_shipped():
    text = (ROOT / "docker-compose.yml").read_text()
    for line in re.findall(r".*(?:PASSWORD|KEYS?|_URL):.*", text):
        assert re.search(r":\s+\$\{|:\$\{POSTGRES_PASSWORD:\?", line), line


def test_prometheus_scrapes_every_server_with_the_key_that_they_take():
    (job,) = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "demur"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    for name, service in SERVERS.items():
        aliases = service.get("networks", {}).get("default", {}).get("aliases", [])
        assert host in {name, *aliases}
        assert [published.rsplit(":", 1)[1] for published in service["ports"]] == [port]
        assert "${DEMUR_METRICS_KEY" in service["environment"]["DEMUR_API_KEYS"]
    (secret,) = COMPOSE["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"][secret] == {"environment": "DEMUR_METRICS_KEY"}


def test_every_setting_that_is_set_exists():
    known = {PREFIX + name.upper() for name in Settings.model_fields} | FOREIGN
    for name, service in SERVERS.items():
        assert set(service["environment"]) <= known, name


def test_decisions_are_kept_in_the_database_beside_the_server():
    database = COMPOSE["services"]["postgres"]
    assert "ports" not in database
    for service in SERVERS.values():
        url = service["environment"]["DEMUR_STORE_URL"]
        user, password = database["environment"]["POSTGRES_USER"], database["environment"]["POSTGRES_PASSWORD"]
        assert url == f"postgresql+psycopg://{user}:{password}@postgres/{user}"
        assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}
