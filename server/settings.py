"""The server's settings: one typed object, read from flags, `DEMUR_*` variables and a YAML file, in that order."""

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from demur.decision.question import MAX_OPTIONS, MIN_OPTIONS

PREFIX = "DEMUR_"
#: Tokens of one input, unless told otherwise.
MAX_INPUT_TOKENS = 32_768
#: Variables of the Python client, which may be set where a server runs too.
FOREIGN = frozenset({"DEMUR_URL", "DEMUR_API_KEY", "DEMUR_CONFIG"})

# A host's name, in characters at most, and each part of it; httpx takes others too, and fails when it is asked.
_HOST, _HOST_PART = 253, re.compile(r"[A-Za-z0-9_-]{1,63}")


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the key, where it was read and the remedy."""


def _split(value: Any) -> Any:
    return tuple(part for part in map(str.strip, value.split(",")) if part) if isinstance(value, str) else value


#: The settings that hold keys.
KEYS = ("api_keys", "admin_keys", "feedback_keys")

Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Keys = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]


class Settings(BaseModel):
    """All settings with their defaults. Sizes in bytes, tokens or items; times in seconds."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least severe lines logged.")

    model: str | None = Field(None, description="Directory of the model, or its hub id.")
    adapter: Path | None = Field(None, description="Directory of a LoRA adapter of the model, as PEFT writes it.")
    model_name: str | None = Field(None, description="Name that the model answers to; its directory's by default.")
    tasks: Path | None = Field(None, description="Directory of task files, or one such file.")
    bundles: Path | None = Field(None, description="Directory of bundles, or one bundle; else `bundles` in state_dir.")
    shadow_bundles: Path | None = Field(
        None, description="Bundles that judge beside those in force; their verdicts are only counted."
    )
    strict_bundles: bool = Field(False, description="Refuse to start with a bundle that does not fit what is running.")
    state_dir: Path | None = Field(None, description="Directory for the store and for policies set while it runs.")
    store_url: SecretStr | None = Field(
        None, description="PostgreSQL or SQLite to keep decisions in; in state_dir where that is given."
    )
    store_timeout_s: float = Field(2.0, gt=0, le=60, description="Longest wait for the store.")
    log_buffer: int = Field(20_000, ge=1, description="Decisions that wait for a slow store; more are lost.")
    log_adhoc: bool = Field(False, description="Store decisions on inline questions too.")
    retention_days: float = Field(0, ge=0, description="Days that decisions are kept, over audit_days; 0 keeps them.")
    audit_days: float = Field(7, gt=0, le=3650, description="Days in which the label of an audit is due.")
    max_unaudited: int = Field(
        1_000, ge=0, description="Decisions without a store for audits, after which nothing is trusted (or 10 minutes)."
    )
    max_missing_labels: float = Field(
        0.1, gt=0, lt=1, description="Share of due audits without a label that starves a certificate."
    )
    renewal_days: float = Field(
        0, ge=0, description="Days after which certificates are certified anew from audits; 0 for never."
    )
    webhook_url: str | None = Field(None, description="Where changes of a certificate's state are posted.")
    webhook_secret: SecretStr | None = Field(None, description="Key that signs what is posted; the URL needs one.")
    max_feedback: int = Field(1_000, ge=1, le=10_000, description="Labels of one /feedback request.")
    dtype: str | None = Field(None, description="Number format of the weights; float32 on a CPU.")
    max_model_len: int | None = Field(None, ge=64, description="Tokens of context; at most 8192 on a CPU.")
    max_num_seqs: int | None = Field(None, ge=1, description="Reads in one engine step; 64 on a CPU.")
    max_num_batched_tokens: int | None = Field(None, ge=1, description="Tokens in one engine step; 2048 on a CPU.")
    block_size: int | None = Field(None, ge=1, description="Tokens of a cached block; 32 on a CPU.")
    kv_cache_gib: float | None = Field(None, gt=0, description="For cached prefixes; 2 on a CPU (whole GiB there).")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1, description="Share of GPU memory to use.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share the model.")
    compile: bool = Field(False, description="Compile the model on a CPU too; wants a C++ compiler.")
    threads: str | None = Field(None, description="CPU cores of the engine, such as 0-3; all by default.")

    api_keys: Keys = Field((), description="Keys that may ask for decisions, comma-separated.")
    api_keys_file: Path | None = Field(None, description="File with one such key a line; `#` begins a comment.")
    admin_keys: Keys = Field((), description="Keys that may use admin routes too, comma-separated.")
    admin_keys_file: Path | None = Field(None, description="File with one admin key a line.")
    feedback_keys: Keys = Field((), description="Keys that may give labels too, comma-separated, KEY or NAME:KEY.")
    feedback_keys_file: Path | None = Field(None, description="File with one such key a line.")
    allow_no_auth: bool = Field(False, description="Listen beyond loopback although no key is set.")
    public_docs: bool = Field(False, description="Show /docs and /openapi.json without a key.")
    cache_salt_per_key: bool = Field(False, description="Give every key a prefix cache of its own.")

    model_aliases: Names = Field((), description="Further model names to answer to, comma-separated.")

    max_body_bytes: int = Field(2 * 2**20, ge=1024, description="Body of a request, also once decompressed.")
    max_input_tokens: int = Field(
        MAX_INPUT_TOKENS, ge=1, description="Tokens of one input; the model's context limits too."
    )
    max_options: int = Field(MAX_OPTIONS, ge=MIN_OPTIONS, le=MAX_OPTIONS, description="Options of a question.")
    max_batch: int = Field(256, ge=1, description="Inputs of one /decide request.")
    max_questions: int = Field(64, ge=1, description="Questions of one /v1/systemone request.")
    max_nesting: int = Field(64, ge=8, le=190, description="Depth of nested JSON.")
    max_thought_tokens: int = Field(2048, ge=1, description="Budget that an inline question may give its thought.")
    queue_size: int = Field(512, ge=1, description="Decisions waiting or running; more are refused with 429.")
    retry_after_s: int = Field(1, ge=1, description="Retry-After of 429 and 503.")
    deadline_s: float = Field(60.0, gt=0, description="Time for a request; X-Demur-Deadline-Ms shortens it.")
    drain_s: float = Field(30.0, ge=0, description="Time for work in flight to finish at SIGTERM.")
    hang_timeout_s: float = Field(60.0, gt=0, description="No engine output for so long with work pending: it hangs.")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for name in ("max_batch", "max_questions"):
            if getattr(self, name) > self.queue_size:
                raise ValueError(f"{name} exceeds queue_size, so such a request would never be admitted")
        return self

    @field_validator("webhook_url")
    @classmethod
    def _webhook_can_be_asked(cls, url: str | None) -> str | None:
        if url is not None and not _is_http(url):
            raise ValueError("must be http:// or https:// with the name or address of a host, and a port up to 65535")
        return url

    @model_validator(mode="after")
    def _audits_last_until_they_are_due(self) -> Self:
        if 0 < self.retention_days <= self.audit_days:
            raise ValueError(
                f"retention_days ({self.retention_days:g}) would delete audits before their labels are due; keep "
                f"decisions longer than audit_days ({self.audit_days:g}), shorten that, or set 0 to keep them all"
            )
        return self

    @model_validator(mode="after")
    def _webhook_is_signed(self) -> Self:
        if self.webhook_url is not None and not (self.webhook_secret and self.webhook_secret.get_secret_value()):
            raise ValueError("webhook_url needs webhook_secret (DEMUR_WEBHOOK_SECRET), which signs what is posted")
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _is_said(cls, value: Any, info: ValidationInfo) -> Any:
        # An empty path is the working directory, and an empty host every interface.
        if isinstance(value, str) and not value.strip() and info.field_name not in (*KEYS, "model_aliases"):
            raise ValueError("is empty; give it a value, or leave it out")
        return value

    @model_validator(mode="after")
    def _keys_are_given(self) -> Self:
        given = [name for name in KEYS if name in self.model_fields_set]
        if given and not self.requires_key:
            raise ValueError(
                f"{' and '.join(given)}: given, and no key is in it, so everybody would get in; give a key, or leave "
                "it out if nobody needs one"
            )
        return self

    @model_validator(mode="after")
    def _bind_is_safe(self) -> Self:
        if not (_is_loopback(self.host) or self.allow_no_auth or self.requires_key):
            raise ValueError(
                f"refusing to listen on {self.host} without keys: set api_keys (DEMUR_API_KEYS) or api_keys_file, "
                "or allow_no_auth if whoever reaches the port may use it"
            )
        return self

    @property
    def bundle_place(self) -> Path | None:
        """Where bundles lie: as `bundles` says, else in the state directory, where there is one."""
        return self.bundles or (None if self.state_dir is None else self.state_dir / "bundles")

    @property
    def requires_key(self) -> bool:
        """Whether callers need a key. A key file counts even when it is empty: then nobody gets in."""
        return any(getattr(self, name) or getattr(self, f"{name}_file") for name in KEYS)


def load_settings(flags: Mapping[str, Any], *, environ: Mapping[str, str], config: Path | None = None) -> Settings:
    """Settings from flags (None means not given), then `DEMUR_*` variables, then the YAML file.

    The file is `config` or the one that `DEMUR_CONFIG` names. Raises `SettingsError`, also for unknown keys.
    """
    path = config or (Path(environ["DEMUR_CONFIG"]) if environ.get("DEMUR_CONFIG") else None)
    sources = {
        str(path): _read_file(path) if path else {},
        "environment": {
            key.removeprefix(PREFIX).lower(): value
            for key, value in environ.items()
            if key.startswith(PREFIX) and key not in FOREIGN
        },
        "flags": {key: value for key, value in flags.items() if value is not None},
    }
    origin: dict[str, str] = {}
    merged: dict[str, Any] = {}
    for source, values in sources.items():
        _refuse_unknown(values, source)
        merged |= values
        origin |= dict.fromkeys(values, source)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(error, origin))) from None


def _explain(error: ValidationError, origin: Mapping[str, str]) -> Iterable[str]:
    for fault in error.errors(include_input=False, include_url=False):
        name = str(fault["loc"][0]) if fault["loc"] else ""
        where = f"{name} ({origin.get(name, 'default')}): " if name else ""
        yield where + fault["msg"].removeprefix("Value error, ")


def _refuse_unknown(values: Mapping[str, Any], source: str) -> None:
    known = list(Settings.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"unknown setting {key} ({source}){hint}")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(f"{path} must hold a mapping of setting names to values")
    return values


def _is_http(url: str) -> bool:
    import httpx  # late, since most commands that read settings ask nobody

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    host = parsed.raw_host.decode()
    named = ":" in host or (len(host) <= _HOST and all(map(_HOST_PART.fullmatch, host.removesuffix(".").split("."))))
    return parsed.scheme in ("http", "https") and named and (parsed.port is None or 0 < parsed.port < 2**16)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
