"""`demur store` on SQLite and PostgreSQL: what is there, what it says, and what is gone for good."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from demur.server.cli_store import audits, store
from demur.server.store import decisions, labels, schema
from demur.server.store.database import store_url
from demur.server.store.labels import LabelGiven
from demur.server.store.migrate import latest
from demur.server.store.store import Store

from .making import NOW, record


@pytest.fixture
def run(database, monkeypatch):
    monkeypatch.setenv("DEMUR_STORE_URL", database)

    def command(*arguments):
        done = CliRunner().invoke(store, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    return command


def test_two_stores_at_once_are_refused(database, monkeypatch, tmp_path):
    """A server with both uses the URL: a purge in the other one would leave everything where it is."""
    monkeypatch.setenv("DEMUR_STORE_URL", database)
    done = CliRunner().invoke(store, ["stats", "--state-dir", str(tmp_path)])
    assert (done.exit_code, "name two stores" in done.output) == (2, True)


@pytest.fixture
def filled(database):
    """Four decisions of two subjects, two of them drawn, one of those labelled."""
    one = Store.open(store_url(database, None))
    subjects = {name: one.hash("subject", name) for name in ("customer-17", "customer-18")}
    drawn = [
        record("dec_1", drawn=True, subject=subjects["customer-17"], input="secret", key="caller"),
        record("dec_2", drawn=True, subject=subjects["customer-18"], input="other", at=datetime.now(UTC)),
    ]
    rest = [record("dec_3", subject=subjects["customer-17"]), record("dec_4", at=datetime.now(UTC))]

    def fill(connection):
        for each in drawn:
            decisions.put_drawn(connection, each, due=NOW + timedelta(days=7), double=False, least_rate=0.5)
        decisions.put(connection, rest)
        labels.give(
            connection, one.options, [LabelGiven("dec_1", "blue"), LabelGiven("dec_3", "red")], key="ann", now=NOW
        )

    one.write_now(fill)
    yield one
    one.close()


def ids(one):
    return set(one.read_now(lambda connection: connection.scalars(schema.decisions.select().with_only_columns(
        schema.decisions.c.id)).all()))  # fmt: skip


def test_an_empty_database_is_migrated(run):
    assert latest() in run("migrate")
    assert json.loads(run("stats"))["decisions"] == 0


def test_what_is_there_is_counted_and_exported(run, filled):
    stats = json.loads(run("stats"))
    assert (stats["decisions"], stats["audits"], stats["labels"]) == (4, 2, 2)
    assert stats["audits_by_task"]["colours"]["labelled"] == 1
    first, second = map(json.loads, run("export").splitlines())
    assert (first["id"], first["input"], first["label"], first["decision"]) == ("dec_1", "secret", "blue", "red")
    assert (second["id"], second["label"]) == ("dec_2", None)
    assert run("export", "--task", "shapes") == ""


def test_a_subject_is_let_go_of_and_evidence_stays_without_it(run, filled):
    assert run("purge", "--subject", "customer-17").startswith("2 ")
    assert run("purge", "--subject", "customer-17").startswith("0 ")
    assert ids(filled) == {"dec_1", "dec_2", "dec_4"}
    first, second = map(json.loads, run("export").splitlines())
    assert (first["input"], first["label"], first["scores"]) == (None, "blue", [])
    assert second["input"] == "other"


def test_decisions_are_let_go_of_by_id_and_by_age(run, filled):
    assert run("purge", "--id", "dec_4", "--id", "dec_9").startswith("1 ")
    assert ids(filled) == {"dec_1", "dec_2", "dec_3"}
    assert run("purge", "--days", "1").startswith("2 ")
    assert ids(filled) == {"dec_1", "dec_2"}
    assert [json.loads(line)["input"] for line in run("export").splitlines()] == [None, "other"]


@pytest.mark.parametrize("arguments", [(), ("--id", "dec_1", "--days", "1")])
def test_what_to_let_go_of_must_be_said_in_one_way(run, filled, arguments):
    assert CliRunner().invoke(store, ["purge", *arguments]).exit_code == 2


@pytest.mark.parametrize("command", ["stats", "export", "purge --days 1"])
def test_a_store_that_is_not_there_is_not_made(tmp_path, command):
    missing = tmp_path / "typo"
    done = CliRunner().invoke(store, [*command.split(), "--state-dir", str(missing)])
    assert (done.exit_code, "there is no store at" in done.output, missing.exists()) == (1, True, False)
    (tmp_path / "empty").mkdir()
    assert CliRunner().invoke(store, [*command.split(), "--state-dir", str(tmp_path / "empty")]).exit_code == 1
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("days", ["nan", "inf", "1e9", "-1"])
def test_ages_that_cannot_be_are_refused(run, days):
    done = CliRunner().invoke(store, ["purge", "--days", days])
    assert done.exit_code == 2
    assert "--days" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--per-day", value) for value in ("nan", "inf", "0", "1e-300")),
        *(("--rate", value) for value in ("nan", "0", "1e-300", "1.1")),
        *(("--alpha", value) for value in ("nan", "1e-12", "1")),
        *(("--delta", value) for value in ("nan", "1e-320", "1")),
        *(("--within-days", value) for value in ("nan", "inf", "0", "-1")),
    ],
)
def test_plans_that_cannot_be_are_refused(arguments):
    done = CliRunner().invoke(audits, ["plan", "--per-day", "2000", *arguments])
    assert done.exit_code == 2
    assert arguments[0] in done.output


@pytest.mark.parametrize(
    "arguments", [(), ("--per-day", "1", "--rate", "1e-6"), ("--delta", "1e-9", "--alpha", "0.999")]
)
def test_a_plan_is_numbers(arguments):
    done = CliRunner().invoke(audits, ["plan", "--per-day", "2000", *arguments])
    assert done.exit_code == 0
    assert done.output.startswith("labels a day")
    assert not {"inf", "nan"} & set(done.output.split())
