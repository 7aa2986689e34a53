from pathlib import Path

import pytest

from demur.server.auth import Keyring
from demur.server.settings import Settings, SettingsError, load_settings


def test_flags_win_over_environment_over_file(tmp_path: Path):
    config = tmp_path / "demur.yaml"
    config.write_text("port: 1\nmax_batch: 2\nqueue_size: 300\n")
    settings = load_settings(
        {"port": 3, "host": None}, environ={"DEMUR_PORT": "2", "DEMUR_MAX_BATCH": "5"}, config=config
    )
    assert (settings.port, settings.max_batch, settings.queue_size) == (3, 5, 300)
    assert settings.host == "127.0.0.1"


def test_the_file_may_come_from_the_environment(tmp_path: Path):
    config = tmp_path / "demur.yaml"
    config.write_text("port: 1234")
    assert load_settings({}, environ={"DEMUR_CONFIG": str(config)}).port == 1234


@pytest.mark.parametrize(
    ("flags", "environ", "text", "words"),
    [
        ({"prot": 1}, {}, "", ["prot", "flags", "did you mean port"]),
        ({}, {"DEMUR_MAX_BACTH": "1"}, "", ["max_bacth", "environment", "did you mean max_batch"]),
        ({}, {}, "qeue_size: 3", ["qeue_size", "demur.yaml", "did you mean queue_size"]),
        ({}, {"DEMUR_PORT": "many"}, "", ["port (environment)", "integer"]),
        ({"deadline_s": 0}, {}, "", ["deadline_s (flags)", "greater than 0"]),
        ({"deadline_s": float("nan")}, {}, "", ["deadline_s (flags)"]),
        ({}, {}, "- 1", ["mapping"]),
        ({}, {}, "a: [", ["not YAML"]),
        ({"queue_size": 8}, {}, "", ["max_batch exceeds queue_size"]),
        ({"retention_days": 7}, {}, "", ["retention_days (7)", "before their labels are due", "audit_days (7)", "0"]),
        ({}, {"DEMUR_RETENTION_DAYS": "30"}, "audit_days: 31", ["retention_days (30)", "audit_days (31)"]),
        *(
            (
                {},
                {"DEMUR_WEBHOOK_URL": url, "DEMUR_WEBHOOK_SECRET": "s"},
                "",
                ["webhook_url (environment)", "port up to"],
            )
            for url in (
                "ftp://hook.test/",
                "hook.test",
                "http://",
                "http://localhost:99999/x",
                "http://localhost:0/x",
                "http://[::1/x",
                "http://a b/x",
                "http://a..b/x",
                "https://\u2603.example/x",
                f"https://{'a' * 64}.test/",
                f"https://{'a.' * 127}test/",
            )
        ),
    ],
)
def test_faults_name_the_key_and_its_source(tmp_path: Path, flags, environ, text, words):
    config = tmp_path / "demur.yaml"
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, environ=environ, config=config)
    assert all(word in str(caught.value) for word in words)


def test_variables_of_the_client_and_of_others_are_left_alone():
    assert load_settings({}, environ={"DEMUR_URL": "x", "DEMUR_API_KEY": "y", "HOME": "z"}) == Settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "demur.example"])  # noqa: S104
def test_no_keys_no_binding_beyond_loopback(host: str):
    with pytest.raises(SettingsError, match="refusing to listen"):
        load_settings({"host": host}, environ={})
    assert load_settings({"host": host, "allow_no_auth": True}, environ={}).host == host
    assert load_settings({"host": host}, environ={"DEMUR_API_KEYS": "k"}).requires_key


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str):
    assert not load_settings({"host": host}, environ={}).requires_key


def test_keys_are_never_shown(tmp_path: Path):
    settings = load_settings({}, environ={"DEMUR_API_KEYS": "sesame, open", "DEMUR_ADMIN_KEYS": "root"})
    assert len(settings.api_keys) == 2
    assert "sesame" not in repr(settings)
    assert "root" not in str(settings.model_dump())


def test_an_empty_key_file_lets_nobody_in(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    settings = Settings(api_keys_file=file)
    assert settings.requires_key
    with pytest.raises(Exception, match="not valid"):
        Keyring.from_settings(settings).identify(b"Bearer none yet")


@pytest.mark.parametrize("how", ["variable", "key file", "yaml"])
def test_an_empty_key_is_refused_since_it_would_let_everybody_in(tmp_path: Path, how):
    keys, config = tmp_path / "keys", tmp_path / "demur.yaml"
    keys.write_text("ann:   # to be filled in\n")
    config.write_text('admin_keys: [""]\n')
    match how:
        case "variable":
            settings = load_settings({}, environ={"DEMUR_FEEDBACK_KEYS": "eve:key, ann:"})
        case "key file":
            settings = Settings(feedback_keys_file=keys)
        case "yaml":
            settings = load_settings({}, environ={}, config=config)
    with pytest.raises(SettingsError, match=r"(feedback|admin)_keys: a key is empty"):
        Keyring.from_settings(settings)


@pytest.mark.parametrize("said", ["", " , ", ","])
def test_keys_that_hold_no_key_are_refused_since_everybody_would_get_in(said):
    with pytest.raises(SettingsError, match="api_keys: given, and no key is in it"):
        load_settings({}, environ={"DEMUR_API_KEYS": said})
    assert load_settings({}, environ={"DEMUR_API_KEYS": "k", "DEMUR_ADMIN_KEYS": said}).requires_key


@pytest.mark.parametrize("name", ["state_dir", "bundles", "tasks", "model", "host", "store_url", "api_keys_file"])
def test_what_is_given_and_empty_is_refused(name):
    """An empty path would be the working directory."""
    with pytest.raises(SettingsError, match=rf"{name} \(environment\): is empty"):
        load_settings({}, environ={f"DEMUR_{name.upper()}": ""})


def test_blanks_around_names_and_keys_do_not_count(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("ann: first\n")
    caller = Keyring.from_settings(Settings(feedback_keys_file=file)).identify(b"Bearer first")
    assert caller.name == "ann"


def test_bundles_lie_in_the_state_directory_where_no_other_is_named(tmp_path: Path):
    assert Settings().bundle_place is None
    assert Settings(state_dir=tmp_path).bundle_place == tmp_path / "bundles"
    assert Settings(state_dir=tmp_path, bundles=tmp_path / "mine").bundle_place == tmp_path / "mine"


def test_a_missing_key_file_is_an_error(tmp_path: Path):
    with pytest.raises(SettingsError, match="api_keys_file"):
        Keyring.from_settings(Settings(api_keys_file=tmp_path / "none"))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "HTTPS://hook.test:8443/a?b=c",
        "http://[::1]:80/",
        "https://user:word@a_b.test./",
        "https://bücher.test/",
    ],
)
def test_a_webhook_may_be_anything_that_can_be_asked(url):
    environ = {"DEMUR_WEBHOOK_URL": url, "DEMUR_WEBHOOK_SECRET": "s"}
    assert load_settings({}, environ=environ).webhook_url == url
