"""Change what a job does: cancel, pause or resume it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiofinetune._http.caller import Caller
from aiofinetune.dialects._requests import Endpoint
from aiofinetune.errors import BadRequest, Conflict, ProtocolViolation
from aiofinetune.models import FineTune, Status


async def change(
    caller: Caller,
    endpoint: Endpoint[FineTune],
    fine_tune_id: str,
    retrieve: Callable[[str], Awaitable[FineTune]],
    is_changed: Callable[[FineTune], bool],
) -> FineTune:
    """Change a job and return it. If the service refuses and the job is changed already, return it as it is.

    Args:
        caller: Makes the call.
        endpoint: The endpoint that changes the job.
        fine_tune_id: The id of the job.
        retrieve: Retrieves a job.
        is_changed: Whether a job is as the call was to make it.
    """
    try:
        return await caller.call(endpoint, fine_tune_id)
    except (BadRequest, Conflict, ProtocolViolation):
        # An earlier attempt of this call may have changed the job, though its reply was lost or did not fit.
        job = await retrieve(fine_tune_id)
        if not is_changed(job):
            raise
        return job


def is_cancelled(job: FineTune) -> bool:
    """Return whether a job is cancelled, or about to be."""
    return job.status == Status.CANCELLED or job.service_status in ("cancelling", "cancel_requested")


def is_paused(job: FineTune) -> bool:
    """Return whether a job is paused, or about to be."""
    return job.service_status in ("paused", "pausing")


def is_resumed(job: FineTune) -> bool:
    """Return whether a job goes on."""
    return not job.is_terminal and not is_paused(job)
