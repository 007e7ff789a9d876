"""Find a job's model in its checkpoints, where the service names it only there. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from aiofinetune._other_models import Checkpoint
from aiofinetune.models import FineTune


def with_model(job: FineTune, checkpoints: Sequence[Checkpoint]) -> FineTune:
    """Return a job with the model of its last checkpoint, if it has one."""
    if not checkpoints:
        return job
    last = max(checkpoints, key=lambda checkpoint: checkpoint.step_number or 0)
    return attrs.evolve(job, fine_tuned_model=last.fine_tuned_model_checkpoint)
