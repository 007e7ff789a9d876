"""Nebius Token Factory: OpenAI's API with an absolute learning rate, and without metadata."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import attrs

from aiofinetune.dialects._dialect import Object, Recognises, Uploads
from aiofinetune.dialects._jobs import JOBS, LACKS, JobsEndpoints

_HYPERPARAMETERS: Final = ("n_epochs", "batch_size", "learning_rate")


def _encode(parameters: Object) -> dict[str, object]:
    """Arrange a job's parameters: the hyperparameters are in an object of their own."""
    body = {name: value for name, value in parameters.items() if name not in _HYPERPARAMETERS}
    own = {name: parameters[name] for name in _HYPERPARAMETERS if name in parameters}
    return {**body, "hyperparameters": own} if own else body


class _Endpoints(JobsEndpoints):
    __slots__ = ()

    # It is not known whether jobs can be paused there.
    pause_fine_tune = None
    resume_fine_tune = None


NEBIUS: Final = attrs.evolve(
    JOBS,
    name="nebius",
    about="Nebius Token Factory",
    base_url="https://api.tokenfactory.nebius.com/v1",
    hosts=("api.tokenfactory.nebius.com",),
    endpoints=_Endpoints(),
    lacks=MappingProxyType(
        {
            **{name: nearest for name, nearest in LACKS.items() if name != "learning_rate"},
            "learning_rate_multiplier": "the nearest is learning_rate, the rate itself",
            "metadata": "the nearest is suffix, a text in the tuned model's name",
            "method": "every job is supervised",
        }
    ),
    methods=MappingProxyType({}),
    takes_auto=False,
    encode=_encode,
    page_size=None,
    newest_first=False,
    uploads=Uploads.FORM,
    max_form=5 << 30,
    recognises=Recognises.PARAMETERS,
    filters_metadata=False,
    model_in_checkpoints=True,
    missing=MappingProxyType(
        {
            "pause, resume": "not known whether the service has them",
            "completions of the model": "chat models answer at /chat/completions",
        }
    ),
)
