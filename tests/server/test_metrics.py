from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client import Histogram as Theirs
from prometheus_client.parser import text_string_to_metric_families

from demur.server.exposition import Exposition, Histogram
from demur.server.metrics import Metrics

from .conftest import INLINE


def _samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_decisions_are_counted_by_task_and_verdict(plain):
    client, _ = plain
    await client.post("/decide", json=INLINE)
    await client.post("/decide", json={**INLINE, "question": "Another?", "mode": "reasoned"})
    await client.post("/decide", json={"task": "route-ticket", "inputs": ["a", "b", "c"]})
    await client.post(
        "/v1/systemone",
        json={"model": "jev-latest", "state": "x", "questions": {"q": {"type": "noul", "instructions": "?"}}},
    )
    reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    samples = _samples(reply.text)
    counted = {key: value for key, value in samples.items() if key[0] == "demur_decisions_total"}
    assert counted == {
        ("demur_decisions_total", "reason=uncalibrated", "task=adhoc", "verdict=review"): 3,
        ("demur_decisions_total", "reason=uncalibrated", "task=route-ticket", "verdict=review"): 3,
    }
    assert samples["demur_decision_seconds_count", "mode=direct", "task=adhoc"] == 2
    assert samples["demur_decision_seconds_count", "mode=reasoned", "task=adhoc"] == 1
    assert samples["demur_engine_seconds_count",] == 6
    assert samples["demur_label_mass_count", "task=route-ticket"] == 3
    assert samples["demur_in_flight",] == 0


def test_the_engines_metrics_are_on_the_same_page():
    engine = CollectorRegistry()
    Counter("vllm_something", "An engine's own.", registry=engine).inc(5)
    page = _samples(Metrics([engine]).page().decode())
    assert page["vllm_something_total",] == 5
    assert page["demur_in_flight",] == 0


def test_the_page_says_what_the_library_would_say():
    registry, ours = CollectorRegistry(), Histogram("demur_h", "Some.", ("task", "mode"), buckets=(0.1, 1))
    theirs = Theirs("demur_h", "Some.", ("task", "mode"), buckets=(0.1, 1), registry=registry)
    gauge, counter = (
        kind(f"demur_{kind.__name__}", "Some.", ("b", "a"), registry=registry) for kind in (Gauge, Counter)
    )
    for task, value in (('odd "name"\\\n', 0.1), ("plain", 0.5), ("plain", float("inf")), ("plain", 1e-9)):
        ours.observe(value, task, "direct")
        theirs.labels(task, "direct").observe(value)
        gauge.labels(task, "x").set(-value)
        counter.labels(task, "x").inc()
    exposition = Exposition(registry)
    registry.unregister(theirs)
    for _ in range(2):
        shown = text_string_to_metric_families("".join([*ours.lines(), *exposition.lines()]))
        registry.register(theirs)
        wanted = text_string_to_metric_families(generate_latest(registry).decode())
        registry.unregister(theirs)
        assert _all(shown) == _all(wanted)
        gauge.remove("plain", "x")


def _all(families):
    found = {}
    for family in families:
        if kept := [one for one in family.samples if not one.name.endswith("_created")]:
            found[family.name, family.type] = [(one.name, sorted(one.labels.items()), one.value) for one in kept]
    return found
