"""What the wire of bundle versions takes and gives."""

from pydantic import BaseModel, ConfigDict, Field


class RollbackIn(BaseModel):
    """Which version to serve again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=1, le=10**9, description="A number of GET /tasks/{name}/bundles.")


class GuaranteeOut(BaseModel):
    """A certificate of a version, and how it stands."""

    slice: str | None
    state: str
    issued_at: str
    expires_at: str | None
    withdrawn_at: str | None


class BundleVersionOut(BaseModel):
    """A bundle that the task was or is served with."""

    version: int
    bundle: str
    active: bool
    adopted_at: str
    adopted_by: str | None
    certificates: list[GuaranteeOut]


class BundleVersionsOut(BaseModel):
    """All versions, oldest first."""

    task: str
    versions: list[BundleVersionOut]


class RenewedOut(BaseModel):
    """What came of a renewal; null where it did not get so far. Without a version, what was served still is."""

    kind: str
    outcome: str = Field(description="adopted, nothing_certified, no_improvement or too_few_audits")
    audits: int = Field(description="Audits that stood for the traffic.")
    certifying: int
    attempt: int | None = Field(description="Number of the attempt on this question.")
    delta: float | None = Field(description="What this attempt may spend of delta.")
    threshold: float | None = Field(description="Certified anew; null where nothing was, or traffic has slices.")
    slices: dict[str, float | None] = Field(description="The same by slice. Where null, what a slice had stays.")
    improvement: float | None = Field(description="Gain of log-likelihood on newer audits, in nats a decision.")
    margin: float | None = Field(description="Half of its 95% interval.")
    bundle: str | None
    version: int | None
