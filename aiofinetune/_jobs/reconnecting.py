"""When to read an event stream again after a failure, and what to say of it."""

from __future__ import annotations

import logging

from aiofinetune import _observe, retry
from aiofinetune.errors import FineTuneError, StreamInterrupted
from aiofinetune.retry import Retry

_log = logging.getLogger("aiofinetune")


def pause_after(
    fine_tune_id: str, policy: Retry, failure: FineTuneError, failures: int, elapsed: float, *, was_open: bool
) -> float:
    """Return the number of seconds to wait before a stream is read again, and log it.

    Args:
        fine_tune_id: The id of the job, for the log.
        policy: The bounds.
        failure: The last failure.
        failures: The number of failures since the stream last made progress, including the last.
        elapsed: The number of seconds since the first of them.
        was_open: Whether the stream was ever open.

    Raises:
        StreamInterrupted: There were too many failures, or they lasted too long.
        FineTuneError: The failure itself, if the stream was never open or reading again cannot help.
    """
    if not retry.may_pass(failure):
        raise failure
    seconds = retry.delay(policy, failure, failures, elapsed, idempotent=True)
    if seconds is not None:
        words = _observe.in_short(failure)
        _log.info(
            "event stream of %s, failure %d: %s; reconnecting in %.1f s", fine_tune_id, failures, words, seconds,
            extra={"job_id": fine_tune_id, "failures": failures, "error": words, "seconds": seconds},
        )  # fmt: skip
        if _observe.observer is not None:
            _observe.observer.reconnecting(failure, seconds)
        return seconds
    if was_open:
        raise StreamInterrupted(f"{failure}; the job may still be running") from failure
    raise failure


def note_resumed(fine_tune_id: str, failures: int) -> None:
    """Log that a stream goes on after failures."""
    if failures:
        extra = {"job_id": fine_tune_id, "failures": failures}
        _log.info("event stream of %s, resumed after failure %d", fine_tune_id, failures, extra=extra)
