"""The objects of the services whose API is not the reference's: checkpoints, figures, prices and uploads in parts.

They are apart from `aiofinetune.models`, because a session with a service that has none of them does not import them.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from aiofinetune._value import Value
from aiofinetune.models import File


@attrs.frozen(eq=False, repr=False)
class Checkpoint(Value):
    """A model that a job saved on its way (OpenAI: the checkpoint object)."""

    id: str
    created_at: int | None = None
    fine_tuned_model_checkpoint: str | None = None
    """The name of the saved model."""
    step_number: int | None = None
    metrics: Mapping[str, float] | None = attrs.field(default=None, hash=False)
    result_files: tuple[File, ...] = ()
    """The files of the saved model, where the service offers them."""
    object: str = "fine_tuning.job.checkpoint"


@attrs.frozen(eq=False, repr=False)
class Metrics(Value):
    """The figures of a job, where the service has no results file of it (Together: the metrics of a fine-tune)."""

    rows: tuple[Mapping[str, float], ...] = ()
    """The figures that were recorded together, by name, in the order of their recording."""


@attrs.frozen(eq=False, repr=False)
class PriceEstimate(Value):
    """What a job would cost (Together: the price estimate of a fine-tune)."""

    price: float | None = None
    """In US dollars; None if the service cannot tell."""
    is_allowed: bool | None = None
    """Whether the account may run the job."""
    limit: float | None = None
    """What the account may spend, in US dollars."""
    training_tokens: float | None = None
    validation_tokens: float | None = None
    reason: str | None = None
    """Why the service cannot tell the price, in its own words."""


@attrs.frozen(eq=False, repr=False)
class PartTarget(Value):
    """Where to put one part of an upload."""

    number: int
    url: str = attrs.field(repr=False)
    """A presigned URL, which anybody who knows it may put the part at."""
    headers: Mapping[str, str] | None = attrs.field(default=None, hash=False, repr=False)


@attrs.frozen(eq=False, repr=False)
class Upload(Value):
    """An upload in parts (OpenAI: the upload object; Together: a multipart upload)."""

    id: str
    status: str
    file: File | None = None
    """The file, once the upload is complete."""
    file_id: str | None = None
    """The id that the file will have, where the service says it beforehand."""
    targets: tuple[PartTarget, ...] = ()
    """Where to put the parts, if not at the service itself."""


@attrs.frozen(eq=False, repr=False)
class UploadPart(Value):
    """One part of an upload (OpenAI: the upload part object)."""

    id: str
