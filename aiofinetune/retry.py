"""When to retry a call, as pure functions. All times are in seconds."""

from __future__ import annotations

import random
from typing import Final

import attrs

from aiofinetune._value import Value
from aiofinetune.errors import (
    APIError,
    BadRequest,
    ConfigurationError,
    Conflict,
    ConnectFailed,
    FineTuneError,
    FineTuneUnreadable,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    ServerError,
    TooManyJobs,
    TransportError,
)


def is_number(value: object) -> bool:
    """Return whether a setting is a number, of Python's or another kind such as numpy's; True and False are none."""
    return hasattr(value, "__float__") and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    """Return whether a setting is a whole number by its type."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


@attrs.frozen(eq=False, repr=False)
class Retry(Value):
    """How often and how slowly a failed call is retried.

    Args:
        attempts: The number of attempts, including the first; 1 disables retries. An attempt that is throttled (429),
            or that is refused because a file is still being processed, does not count.
        base: The longest wait before the second attempt; it doubles with each further attempt.
        cap: The upper limit of that wait. A service may ask for a longer one (``Retry-After``).
        deadline: How long after the start of a call a new attempt may begin. If the service asks for a wait that ends
            later, its error is raised.
        grace: How long a job may take to appear in the service's list after the reply to its create was lost. After
            that time the job counts as never created, and the create is sent again.

    Raises:
        ConfigurationError: A value is out of range.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 8.0
    deadline: float = 300.0
    grace: float = 30.0

    def __attrs_post_init__(self) -> None:
        """Check the ranges."""
        if not is_integer(self.attempts) or self.attempts < 1:
            raise ConfigurationError(f"attempts: expected an integer of at least 1, got {self.attempts!r}")
        for name in ("base", "cap", "deadline", "grace"):
            seconds = getattr(self, name)
            # Written as "not >=" so that NaN is refused too.
            if not is_number(seconds) or not seconds >= 0:
                raise ConfigurationError(f"{name}: expected at least 0 seconds, got {seconds!r}")


SPREAD: Final = 0.2
"""After a wait that the service asked for, waiting calls resume over this fraction of the wait, not all at once."""


_PASSING: Final = (408, 425)
"""Statuses below 500 that describe a temporary condition, not a wrong request: Request Timeout (RFC 9110, section
15.5.9) and Too Early (RFC 8470, section 5.2)."""


def may_pass(failure: FineTuneError) -> bool:
    """Return whether a failure is a temporary problem of the service or the network, not a problem of the call."""
    match failure:
        case APIError(is_foreign=True):
            # Not the service: its base URL is wrong.
            return False
        case TransportError() | ServerError() | RateLimited():
            return True
        case APIError(status=status):
            return status in _PASSING
        case _:
            return False


def is_safe_to_repeat(failure: FineTuneError, *, idempotent: bool) -> bool:
    """Return whether a call that ended in `failure` may be sent again and might then succeed.

    A call that is not idempotent may be sent again only if it certainly had no effect: it did not arrive, or the
    service refused it before processing it (429, 425, or a 503 with ``Retry-After``).
    """
    match failure:
        case QuotaExceeded() | TooManyJobs():
            return False
        case ConnectFailed() | RateLimited():
            return True
        case ServerError(status=503, retry_after=float()):
            return True
        case APIError(status=425):
            return True
        case _:
            return is_not_ready(failure) or (idempotent and may_pass(failure))


def is_not_ready(failure: FineTuneError) -> bool:
    """Return whether a call was refused only because a file that was just uploaded is not ready yet.

    The reference's service has no error code for this, only the message "File … is still being processed".
    """
    return isinstance(failure, BadRequest | Conflict) and "being processed" in failure.message


def delay(policy: Retry, failure: FineTuneError, attempt: int, elapsed: float, *, idempotent: bool) -> float | None:
    """Return the number of seconds to wait before the next attempt, or None to give up.

    Uses full jitter: the wait is uniformly distributed between 0 and a bound that doubles, so that clients that fail
    together do not all retry together (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). If
    the service names a time (``Retry-After``), the wait is at least that long.

    Args:
        policy: The bounds.
        failure: The failure of the last attempt.
        attempt: The number of failed attempts, including the last.
        elapsed: The number of seconds since the first attempt began.
        idempotent: Whether sending the call twice has the same effect as sending it once.
    """
    # Throttling and a file in processing do not use up attempts, unless the policy allows no retry at all.
    counts = policy.attempts <= 1 or not (isinstance(failure, RateLimited) or is_not_ready(failure))
    if not is_safe_to_repeat(failure, idempotent=idempotent) or (counts and attempt >= policy.attempts):
        return None
    asked = getattr(failure, "retry_after", None) or 0.0
    # Throttled attempts are unlimited, and 2.0 ** 1024 raises OverflowError.
    bound = min(policy.cap, policy.base * 2.0 ** min(attempt - 1, 60))
    if asked and isinstance(failure, RateLimited):
        # The service has named the time, so a little jitter is enough: a longer wait would waste the rate it allows.
        bound = min(bound, SPREAD * asked)
    seconds: float = asked + random.uniform(0, bound)  # noqa: S311  # not a secret
    return seconds if elapsed + seconds <= policy.deadline else None


def may_have_arrived(failure: FineTuneError) -> bool:
    """Return whether a request that ended in `failure` may still have had its effect.

    It may, unless it certainly did not arrive or the service explicitly refused it. A 503 with ``Retry-After`` is an
    explicit refusal. A 408 is not, because a proxy may send it. A 303 answers a request that was carried out (RFC 9110,
    section 15.4.4). What is no such service makes no job.
    """
    match failure:
        case APIError(is_foreign=True):
            return False
        case ConnectFailed() | FineTuneUnreadable():
            # After FineTuneUnreadable the effect is certain, and the job's id is known: there is nothing to search for.
            return False
        case ServerError(status=503, retry_after=float()):
            return False
        case APIError(status=status):
            # An error below 300 stands in the reply to a request that was accepted.
            return status < 300 or status >= 500 or status in (302, 303, 408)
        case _:
            return isinstance(failure, TransportError | ProtocolViolation)
