"""When to try again, as a pure function. All times are in seconds."""

from __future__ import annotations

import random
from typing import Final

import attrs

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


@attrs.frozen
class Retry:
    """How often, and how slowly, what failed is tried again.

    Args:
        attempts: Tries that may fail, the first included; 1 never tries again. Being told to slow down (429) is not
            counted, nor is being told that a file is still being processed.
        base: The longest wait before the second try; it doubles with each further one.
        cap: The longest wait of our own choosing. A service may ask for more (``Retry-After``).
        deadline: How long after a call's start a new try may begin. A service that asks to wait for longer gets its
            error raised.
        grace: How long a job whose create got no reply may take to show up in the service's list, before it counts as
            never created and the create is sent again.

    Raises:
        ConfigurationError: A figure makes no sense.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 8.0
    deadline: float = 300.0
    grace: float = 30.0

    def __attrs_post_init__(self) -> None:
        """Check that the figures make sense."""
        if self.attempts < 1:
            raise ConfigurationError(f"attempts: expected 1 or more, got {self.attempts!r}")
        for name in ("base", "cap", "deadline", "grace"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"{name}: expected seconds, 0 or more, got {getattr(self, name)!r}")


SPREAD: Final = 0.2
"""Over what share of the wait that a service asked for those who wait begin again."""


_PASSING: Final = (408, 425)
"""Statuses below 500 that a proxy or a server sends of the moment, not of the request: Request Timeout (RFC 9110,
section 15.5.9) and Too Early (RFC 8470, section 5.2). What they refuse may be sent again."""


def may_pass(failure: FineTuneError) -> bool:
    """Whether a failure says that the service, or the way to it, has trouble now, and nothing of the call itself."""
    match failure:
        case TransportError() | ServerError() | RateLimited():
            return True
        case APIError(status=status):
            return status in _PASSING
        case _:
            return False


def is_safe_to_repeat(failure: FineTuneError, *, idempotent: bool) -> bool:
    """Whether a call that ended in `failure` may be sent again, and may then do better.

    A call that is not idempotent may be only where it surely had no effect: it did not arrive, or the service
    refused it before looking (429, 425, or a 503 that names a time to come back).
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
    """Whether a call was refused only because a file, just uploaded, is not ready yet.

    The reference's service said so in words alone: "File … is still being processed".
    """
    return isinstance(failure, BadRequest | Conflict) and "being processed" in failure.message


def delay(policy: Retry, failure: FineTuneError, attempt: int, elapsed: float, *, idempotent: bool) -> float | None:
    """Seconds to wait before trying again, or None to give up.

    Full jitter: evenly spread between nothing and a bound that doubles, so that clients which failed together do not
    come back together (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). Where the service
    says when (``Retry-After``), the wait is that long at least.

    Args:
        policy: The bounds.
        failure: What the last try ended in.
        attempt: How many tries have failed, this one included.
        elapsed: Seconds since the first try began.
        idempotent: Whether the call does the same when sent twice.
    """
    counts = policy.attempts <= 1 or not (isinstance(failure, RateLimited) or is_not_ready(failure))
    if not is_safe_to_repeat(failure, idempotent=idempotent) or (counts and attempt >= policy.attempts):
        return None
    asked = getattr(failure, "retry_after", None) or 0.0
    # Far beyond the cap, and still a float: an attempt may be any number where throttling is not counted.
    bound = min(policy.cap, policy.base * 2.0 ** min(attempt - 1, 60))
    if asked and isinstance(failure, RateLimited):
        # The service knows when: a longer wait only wastes what it allows.
        bound = min(bound, SPREAD * asked)
    seconds: float = asked + random.uniform(0, bound)  # noqa: S311  # no secret
    return seconds if elapsed + seconds <= policy.deadline else None


def may_have_arrived(failure: FineTuneError) -> bool:
    """Whether a request that ended in `failure` may have had its effect all the same.

    It may unless it surely did not arrive, or the service said in so many words that it refused it. A 503 that names
    a time to come back is such a word; a 408 is none, for a proxy may send it. A 303 answers what was done
    (RFC 9110, section 15.4.4).
    """
    match failure:
        case ConnectFailed() | FineTuneUnreadable():
            return False
        case ServerError(status=503, retry_after=float()):
            return False
        case APIError(status=status):
            # An error under 2xx comes of a request that was accepted.
            return status < 300 or status >= 500 or status in (302, 303, 408)
        case _:
            return isinstance(failure, TransportError | ProtocolViolation)
