"""Bundles as the server holds them: read from a directory, and held against what is running."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demur.decision.bundle import MANIFEST, read_bundle
from demur.decision.errors import BundleError
from demur.decision.prompt import CompiledPrompt
from demur.decision.task import DecisionSpec, ReadoutKind
from demur.server.calibrated import Calibrated, Running, pins

_log = logging.getLogger("demur.bundles")


def read_bundles(path: Path | None) -> Mapping[str, Calibrated]:
    """The bundles of a directory of them, or the one that `path` is, by task; none without.

    Raises BundleError naming the file of the first that cannot be used. Entries that begin with a dot are bundles that
    are being written, and other files are passed over.
    """
    if path is None:
        return {}
    if not path.is_dir():
        raise BundleError(f"{path} is not a directory; name a bundle, or a directory of bundles")
    if (path / MANIFEST).exists():
        places = [path]
    else:
        places = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found: dict[str, Calibrated] = {}
    for place in places:
        calibrated = Calibrated.of(read_bundle(place))
        task = calibrated.bundle.task
        if task in found:
            raise BundleError(f"{place} is for task {task}, and so is {found[task].bundle.path}; keep one of them")
        found[task] = calibrated
    return found


@dataclass(frozen=True, slots=True)
class ServedBundle:
    """A task's bundle beside what is running.

    `readout` is the one that is used, `room` as for `pins`; `mismatches` are the pinned parts that are not the same.
    """

    calibrated: Calibrated
    spec: DecisionSpec
    readout: ReadoutKind
    running: Running
    room: int
    mismatches: tuple[str, ...]

    @classmethod
    def of(
        cls, calibrated: Calibrated, prompt: CompiledPrompt, running: Running, room: int, slice_by: str | None = None
    ) -> "ServedBundle":
        """Compares the pins with the task's compiled prompt and the model, and what parts its traffic."""
        mismatches = calibrated.mismatches(pins(prompt.spec, prompt, running, room), slice_by)
        return cls(calibrated, prompt.spec, prompt.plan.kind, running, room, mismatches)

    def mismatches_of(self, prompt: CompiledPrompt) -> tuple[str, ...]:
        """The parts that differ for this prompt, which is the task's own or that of another mode."""
        if prompt.spec == self.spec:
            return self.mismatches
        return self.calibrated.bundle.mismatches(pins(prompt.spec, prompt, self.running, self.room)) or ("mode",)


def check_bundles(bundles: Mapping[str, Calibrated], served: Mapping[str, ServedBundle], *, strict: bool) -> None:
    """Logs what is wrong with the bundles that were read; `strict` raises BundleError instead."""
    faults = [
        f"{bundle.bundle.path} is for task {name}, which is not registered"
        for name, bundle in bundles.items()
        if name not in served
    ]
    faults += [
        f"{bundle.calibrated.bundle.path} was made for another {', '.join(bundle.mismatches)}; "
        f"task {name} answers defer: calibration_mismatch"
        for name, bundle in served.items()
        if bundle.mismatches
    ]
    if strict and faults:
        raise BundleError("; ".join(faults))
    for fault in faults:
        _log.warning(fault)
