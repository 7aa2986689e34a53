"""Bundles: a directory with what a task's verdicts rest on, pinned to exactly what it was fitted on.

    bundle.json        manifest: schema, id, task, created_at, pins, and every other file with its SHA-256
    task.yaml          the task as it was when the bundle was made
    calibrator.json    from logprobs to probabilities and p_correct
    certificate.json   the guarantee, or null
    provenance.json    what it was made from: data hashes, counts, versions, configurations tried
    report.json        the evaluation
    reference.json     scores and option counts of the fitting rows, for drift

The manifest is written last and the directory appears by one rename: a half-written bundle never loads. A byte that
changed is found by its file's hash. The id is the manifest's own hash, so it names the whole content.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demur.decision.canonical import canonical_bytes
from demur.decision.errors import BundleError

SCHEMA = 1
MANIFEST = "bundle.json"
REQUIRED = frozenset({"task.yaml", "calibrator.json", "certificate.json", "provenance.json"})

#: What a bundle is pinned to, in the order in which a mismatch is named. Values are hex SHA-256.
PINS = ("weights", "tokenizer", "chat_template", "question", "options", "readout", "mode", "labels", "prompt")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle as it was read, every byte checked. `files` holds the content by file name, without the `manifest`."""

    id: str
    task: str
    created_at: datetime
    pins: Mapping[str, str]
    files: Mapping[str, bytes]
    path: Path
    manifest: bytes = b""

    def document(self, name: str) -> Any:
        """A JSON file of the bundle; None where there is no such file. Raises BundleError for broken JSON."""
        if name not in self.files:
            return None
        try:
            return json.loads(self.files[name])
        except ValueError as error:
            raise BundleError(f"{self.path / name} is not JSON: {error}") from None

    def mismatches(self, running: Mapping[str, str]) -> tuple[str, ...]:
        """The pinned parts that are not what is running, in the order of `PINS`; a part that is missing counts."""
        return tuple(part for part in PINS if not (part in self.pins and self.pins[part] == running.get(part)))


def write_bundle(
    target: Path,
    *,
    task: str,
    pins: Mapping[str, str],
    files: Mapping[str, bytes],
    created_at: datetime | None = None,
    replace: bool = False,
) -> Bundle:
    """Writes a bundle, whole or not at all, and returns it as read back.

    Raises BundleError when a file or pin is missing, or `target` exists and `replace` is not given.
    """
    if missing := sorted(REQUIRED - files.keys()) or [pin for pin in PINS if pin not in pins]:
        raise BundleError(f"a bundle needs {', '.join(missing)}")
    if target.exists() and not replace:
        raise BundleError(f"{target} exists; name another directory, or say that it is to be replaced")
    created = (created_at or datetime.now(UTC)).isoformat(timespec="seconds")
    manifest = {
        "schema": SCHEMA,
        "task": task,
        "created_at": created,
        "pins": dict(pins),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, content in files.items():
            _write(staging / name, content)
        _write(staging / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n")
        staging.chmod(0o755)
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.rename(retired / target.name)
            try:
                staging.rename(target)
            except OSError:
                (retired / target.name).rename(target)
                raise
            shutil.rmtree(retired, ignore_errors=True)
        else:
            staging.rename(target)
        _sync_directory(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read_bundle(target)


def read_bundle(path: Path) -> Bundle:
    """Reads and checks a bundle. Raises BundleError naming the file that is missing, extra or changed."""
    try:
        raw = (path / MANIFEST).read_bytes()
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        raise BundleError(f"{path} is no bundle: it has no readable {MANIFEST}") from None
    return _checked(raw, names, lambda name: (path / name).read_bytes(), path)


def pack_bundle(bundle: Bundle) -> bytes:
    """All of a bundle as one ZIP archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted({MANIFEST: bundle.manifest, **bundle.files}.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def unpack_bundle(packed: bytes, path: Path) -> Bundle:
    """The bundle that was packed, checked like one that is read; `path` is named in faults. Raises BundleError."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        raw = contents[MANIFEST]
    except (KeyError, RuntimeError, zipfile.BadZipFile, zlib.error):  # RuntimeError: it is encrypted
        raise BundleError(f"{path} is no packed bundle") from None
    return _checked(raw, contents.keys(), contents.__getitem__, path)


def _checked(raw: bytes, names: Set[str], read: Callable[[str], bytes], path: Path) -> Bundle:
    try:
        manifest = json.loads(raw)
    except ValueError:
        raise BundleError(f"{path / MANIFEST} is not JSON") from None
    match manifest:
        case {
            "schema": int() as schema,
            "task": str() as task,
            "created_at": str() as created_at,
            "pins": dict() as pins,
            "files": dict() as hashes,
        }:
            pass
        case _:
            raise BundleError(f"{path / MANIFEST} is not a bundle's manifest")
    if schema != SCHEMA:
        raise BundleError(f"{path} has schema {schema}; this version reads {SCHEMA}")
    if missing := sorted(REQUIRED - hashes.keys()):
        raise BundleError(f"{path / MANIFEST} names no {', '.join(missing)}")
    files = {name: _content(path, name, digest, read) for name, digest in hashes.items()}
    if extra := sorted(names - files.keys() - {MANIFEST}):
        raise BundleError(f"{path / extra[0]} is not part of the bundle")
    try:
        created = datetime.fromisoformat(created_at)
    except ValueError:
        raise BundleError(f"{path / MANIFEST}: created_at is no time") from None
    try:
        bundle_id = hashlib.sha256(canonical_bytes(manifest)).hexdigest()
    except ValueError:
        raise BundleError(f"{path / MANIFEST} is not a bundle's manifest") from None
    return Bundle(bundle_id, task, created, pins, files, path, raw)


def _content(path: Path, name: str, digest: str, read: Callable[[str], bytes]) -> bytes:
    if Path(name).name != name or name.startswith("."):
        raise BundleError(f"{path / MANIFEST} names {name!r}, which is not a file of the bundle")
    try:
        content = read(name)
    except (OSError, KeyError):
        raise BundleError(f"{path / name} is missing") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise BundleError(f"{path / name} was changed: its hash is not the one in {MANIFEST}")
    return content


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
