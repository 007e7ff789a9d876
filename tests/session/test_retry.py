from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune import errors
from aiofinetune.models import FineTune, FineTuneFailed
from aiofinetune.retry import Retry, delay, is_safe_to_repeat

POLICY = Retry()
REFUSED = errors.ConnectFailed("refused")
JOB = FineTune("ft-1", "failed", "ada", 1, ())


@pytest.mark.parametrize(
    ("failure", "if_idempotent", "otherwise"),
    [
        (REFUSED, True, True),
        (errors.RateLimited(429, "slow down"), True, True),
        (errors.RateLimited(429, "slow down", retry_after=1.0), True, True),
        (errors.QuotaExceeded(429, "no more today", retry_after=1.0), False, False),
        (errors.TooManyJobs(429, "no more at once"), False, False),
        (errors.BadRequest(400, "File 'file-1' is still being processed"), True, True),
        (errors.Conflict(409, "file-1 is still being processed"), True, True),
        (errors.ServerError(503, "busy", retry_after=1.0), True, True),
        (errors.ServerError(503, "busy", retry_after=0.0), True, True),
        (errors.ServerError(503, "busy"), True, False),
        (errors.ServerError(500, "broken", retry_after=1.0), True, False),
        (errors.ServerError(500, "broken"), True, False),
        (errors.ServerError(502, "bad gateway"), True, False),
        (errors.ServerError(504, "gateway timeout"), True, False),
        (errors.ConnectionLost("reset"), True, False),
        (errors.ReplyTimeout("late"), True, False),
        (errors.TransportError("broken"), True, False),
        (errors.APIError(408, "late"), True, False),
        (errors.APIError(425, "early"), True, True),
        (errors.BadRequest(400, "wrong"), False, False),
        (errors.AuthenticationFailed(401, "who"), False, False),
        (errors.PermissionDenied(403, "no"), False, False),
        (errors.NotFound(404, "none"), False, False),
        (errors.Conflict(409, "not now"), False, False),
        (errors.APIError(418, "teapot", retry_after=1.0), False, False),
        (errors.ProtocolViolation("no JSON"), False, False),
        (errors.RequestInvalid("model", "wrong"), False, False),
        (errors.ConfigurationError("no key"), False, False),
        (errors.LocalFileError("gone"), False, False),
        (errors.StreamInterrupted("ended"), False, False),
        (FineTuneFailed(JOB), False, False),
        (errors.WaitTimeout("late"), False, False),
        (errors.FineTuneError("closed"), False, False),
    ],
    ids=repr,
)
def test_what_is_safe(failure: errors.FineTuneError, if_idempotent: bool, otherwise: bool) -> None:
    """A call is repeated where that may help, and one that creates something only where it surely had no effect."""
    assert is_safe_to_repeat(failure, idempotent=True) is if_idempotent
    assert is_safe_to_repeat(failure, idempotent=False) is otherwise
    assert (delay(POLICY, failure, 1, 0.0, idempotent=True) is not None) is if_idempotent
    assert (delay(POLICY, failure, 1, 0.0, idempotent=False) is not None) is otherwise


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts(attempts: int) -> None:
    """The first try counts among the attempts, and after the last there is none."""
    policy = Retry(attempts=attempts)
    for attempt in range(1, attempts):
        assert delay(policy, REFUSED, attempt, 0.0, idempotent=True) is not None
    assert delay(policy, REFUSED, attempts, 0.0, idempotent=True) is None
    assert delay(policy, REFUSED, attempts + 1, 0.0, idempotent=True) is None


@given(st.integers(1, 10_000), st.floats(0, 100), st.floats(0, 1000))
def test_bounds(attempt: int, base: float, cap: float) -> None:
    """The wait is never negative, and never longer than the doubled base or the cap, in however many tries."""
    policy = Retry(attempts=10_001, base=base, cap=cap, deadline=1e9)
    seconds = delay(policy, REFUSED, attempt, 0.0, idempotent=True)
    assert seconds is not None
    assert 0 <= seconds <= cap
    assert attempt > 60 or seconds <= base * 2 ** (attempt - 1)


@pytest.mark.parametrize(("attempt", "bound"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0), (60, 8.0)])
def test_jitter(attempt: int, bound: float) -> None:
    """Waits spread over everything between nothing and a bound that doubles up to the cap."""
    random.seed(7)
    policy = Retry(attempts=100)
    waits = [delay(policy, REFUSED, attempt, 0.0, idempotent=True) or 0.0 for _ in range(1000)]
    assert 0 <= min(waits) < bound * 0.05
    assert bound * 0.95 < max(waits) <= bound
    assert sum(waits) / 1000 == pytest.approx(bound / 2, rel=0.1)


@given(st.floats(0, 60))
def test_asked_wait(asked: float) -> None:
    """Where the service says how long to wait, the wait is that long at least, and our own jitter longer at most."""
    seconds = delay(POLICY, errors.RateLimited(429, "slow down", retry_after=asked), 1, 0.0, idempotent=False)
    assert seconds is not None
    assert asked <= seconds <= asked + POLICY.base


@given(st.floats(0, 1e300), st.floats(0, 1e300))
def test_deadline(asked: float, elapsed: float) -> None:
    """No try begins after the deadline, however long the service asks to wait."""
    policy = Retry(base=0.0)
    throttled = errors.RateLimited(429, "slow down", retry_after=asked)
    seconds = delay(policy, throttled, 1, elapsed, idempotent=True)
    assert (seconds is not None) == (asked + elapsed <= policy.deadline)


def test_throttling_is_not_counted() -> None:
    """Being told to slow down, or that a file is not ready, goes on until the deadline, unless there is one try."""
    for told in (errors.RateLimited(429, "slow down"), errors.BadRequest(400, "file-1 is still being processed")):
        assert delay(POLICY, told, 1000, 0.0, idempotent=False) is not None
        assert delay(Retry(attempts=1), told, 1, 0.0, idempotent=False) is None


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        *(("attempts", 0), ("base", -1.0), ("cap", -0.1), ("deadline", float("nan")), ("grace", -1)),
        *(("attempts", 2.5), ("attempts", True), ("attempts", "3"), ("base", "1"), ("grace", None)),
    ],
)
def test_figures_that_make_no_sense(figure: str, value: object) -> None:
    """A policy that cannot be kept is refused when it is made, by the figure's name."""
    with pytest.raises(errors.ConfigurationError, match=f"^{figure}: "):
        Retry(**{figure: value})  # type: ignore[arg-type]  # one figure at a time
