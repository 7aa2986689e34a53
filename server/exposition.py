"""The metrics page: Prometheus' text format, made fast enough for hundreds of tasks with dozens of lines each.

Most of the work is in what a line begins with, its name and labels, which is the same from scrape to scrape.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.utils import floatToGoString

_number: Callable[[float], str] = floatToGoString
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclass(slots=True)
class _Series:
    """One histogram: `counts` by bucket, and what its lines begin with, buckets first, then count and sum."""

    counts: list[int]
    heads: list[str]
    total: float = 0.0


class Histogram:
    """A histogram by labels, owned by one thread. `buckets` are upper bounds, ascending; infinity is added."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), *, buckets: Sequence[float]) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._bounds = (*map(float, buckets), math.inf)
        self._series: dict[tuple[str, ...], _Series] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Counts a value."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self._new(labels)
        series.counts[bisect_left(self._bounds, value)] += 1
        series.total += value

    def lines(self) -> Iterator[str]:
        """Its part of the page."""
        yield from _title(self._name, self._text, "histogram")
        for series in self._series.values():
            below = 0
            for head, count in zip(series.heads, series.counts, strict=False):
                below += count
                yield f"{head}{below}\n"
            yield f"{series.heads[-2]}{below}\n"
            yield f"{series.heads[-1]}{_number(series.total)}\n"

    def _new(self, labels: tuple[str, ...]) -> _Series:
        named = dict(zip(self._labels, labels, strict=True))
        heads = [_head(f"{self._name}_bucket", {**named, "le": _number(bound)}) for bound in self._bounds]
        heads += [_head(f"{self._name}_{part}", named) for part in ("count", "sum")]
        return _Series([0] * len(self._bounds), heads)


class Gauges:
    """A gauge by labels, owned by one thread, whose lines are made when values change and not when they are read."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._blocks: dict[str, str] = {}

    def show(self, owner: str, values: Mapping[tuple[str, ...], float]) -> None:
        """Shows these values, by labels, in place of those that the same owner had."""
        heads = ((_head(self._name, dict(zip(self._labels, one, strict=True))), value) for one, value in values.items())
        self._blocks[owner] = "".join(f"{head}{_number(value)}\n" for head, value in heads)

    def lines(self) -> Iterator[str]:
        """Its part of the page."""
        yield from _title(self._name, self._text, "gauge")
        yield from self._blocks.values()


class Exposition:
    """The counters and gauges of a registry as text."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._heads: dict[tuple[str, ...], str] = {}

    def lines(self) -> Iterator[str]:
        """Its part of the page. When a series began is left out: Prometheus does not read that here."""
        known, used = self._heads, {}
        for family in self._registry.collect():
            counter = family.type == "counter"
            yield from _title(f"{family.name}_total" if counter else family.name, family.documentation, family.type)
            for sample in family.samples:
                if counter and sample.name.endswith("_created"):
                    continue
                key = (sample.name, *sample.labels.values())
                head = used[key] = known.get(key) or _head(sample.name, sample.labels)
                yield f"{head}{_number(sample.value)}\n"
        self._heads = used


def _title(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {text}\n", f"# TYPE {name} {kind}\n"


def _head(name: str, labels: dict[str, str]) -> str:
    if not labels:
        return f"{name} "
    pairs = ",".join(f'{key}="{value.translate(_ESCAPES)}"' for key, value in sorted(labels.items()))
    return f"{name}{{{pairs}}} "
