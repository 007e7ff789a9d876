"""What a test asks for: `Faults`. Any thread may use it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from aiofinetune import _json, structuring
from aiofinetune.errors import ConfigurationError
from aiofinetune.testing._endpoints import check_endpoint
from aiofinetune.testing._plans import Cut, Delay, Failure, Fault, JobFailure, LostReply, OddReply, Plans, Stall

MAX_STATUS: Final = 599


class Faults:
    """The faults of a server: each method asks for some, and `clear` forgets them.

    In every method, `endpoint` is an endpoint's name: ``"create"``, ``"list"``, ``"retrieve"``, ``"cancel"``,
    ``"events"``, ``"upload"``, ``"download"``, ``"completion"``, ``"chat"``, ... (an unknown name is refused with the
    list of all), or ``"any"``; it is the same in both APIs of jobs. `times` is the number of requests, or of jobs, that
    meet the fault; None for all until `clear`. A request on which a fault has no effect leaves it to the next one: so
    does an event stream that is refused, or that ends before as many events as the fault lets pass.

    Every method raises:
        ConfigurationError: An argument is not as expected.

    Args:
        plans: The faults of the server.
    """

    def __init__(self, plans: Plans) -> None:
        self._plans = plans

    def __repr__(self) -> str:
        return f"<Faults: {'; '.join(self.pending) or 'none'}>"

    @property
    def pending(self) -> Sequence[str]:
        """The faults that are still to be met, in words."""
        return self._plans.describe()

    @property
    def unmet(self) -> Sequence[str]:
        """Those of `pending` that were asked for a number of times: a test that leaves one has probably not met it."""
        return self._plans.unmet()

    # Requests

    def fail_next(
        self,
        endpoint: str,
        *,
        status: int = 500,
        message: str = "A fault on demand",
        code: str | None = None,
        retry_after: float | None = None,
        times: int | None = 1,
    ) -> None:
        """Refuse the next requests without carrying them out.

        Args:
            endpoint: Which requests.
            status: The status of the reply, from 400 to 599.
            message: The error's message.
            code: The error's code, such as ``"insufficient_quota"``.
            retry_after: The seconds in the ``Retry-After`` header; by default, there is none.
            times: How many requests.
        """
        _check("status", type(status) is int and 400 <= status <= MAX_STATUS, f"400 to {MAX_STATUS}", status)
        _check("message", isinstance(message, str), "text", message)
        _check("code", code is None or _is_text(code), "text, or None", code)
        _check("retry_after", retry_after is None or _is_number(retry_after), "seconds, 0 or more", retry_after)
        self._add(endpoint, Failure(status, message, code, retry_after), times)

    def lose_reply(self, endpoint: str, *, times: int | None = 1) -> None:
        """Carry out the next requests, and end their connections without a reply.

        It does not matter what the reply is: a refusal is lost too, and so is all of a download or an event stream.
        """
        self._add(endpoint, LostReply(), times)

    def odd_reply(
        self, endpoint: str, fields: Mapping[str, object], *, without: Sequence[str] = (), times: int | None = 1
    ) -> None:
        """Carry out the next requests, and change their replies.

        Only a JSON object has fields: event streams, lists without an object around them, and refusals stay as they
        are, and leave the fault to the next request.

        Args:
            endpoint: Which requests; not ``"download"``, ``"put_content"`` or ``"unknown"``, whose replies are no JSON
                objects.
            fields: The fields at the top of the reply to set, and their values.
            without: The fields to leave out.
            times: How many requests.
        """
        is_json = isinstance(fields, Mapping) and all(map(_is_text, fields)) and _is_json(dict(fields))
        _check("fields", is_json, "fields and their values, as JSON has them", fields)
        is_list = isinstance(without, Collection) and not isinstance(without, str) and all(map(_is_text, without))
        _check("without", is_list, "a list of fields", without)
        _check("fields", bool(fields or without), "fields to set, or fields to leave out in without", fields)
        check_endpoint(endpoint, has_fields=True)
        copy = structuring.loads(structuring.dumps(dict(fields)))  # The test may change what it has given.
        self._add(endpoint, OddReply(copy, tuple(without)), times)

    def cut_stream(self, endpoint: str = "events", *, after: int = 0, times: int | None = 1) -> None:
        """End the connections of the next event streams after `after` events.

        Args:
            endpoint: Which streams: ``"events"``, ``"completion"``, ``"chat"`` or ``"any"``; a request that asks for
                no stream leaves the fault to the next one.
            after: How many events arrive.
            times: How many streams.
        """
        _check("after", type(after) is int and after >= 0, "a number of events", after)
        check_endpoint(endpoint, streams=True)
        self._add(endpoint, Cut(after), times)

    def stall(self, endpoint: str, *, after: int = 0, times: int | None = 1) -> None:
        """Leave the next requests without a reply, and do not carry them out.

        Of an event stream, `after` events are sent first. The connections end with `clear`, or with the server.
        """
        _check("after", type(after) is int and after >= 0, "a number of events", after)
        self._add(endpoint, Stall(after), times)

    def slow(self, endpoint: str, *, seconds: float, times: int | None = 1) -> None:
        """Wait `seconds` before the next requests are carried out, or before each event of a stream."""
        _check("seconds", _is_number(seconds), "0 or more", seconds)
        self._add(endpoint, Delay(seconds), times)

    # Jobs

    def fail_job(self, message: str, *, param: str | None = None, times: int = 1) -> None:
        """Let the next jobs that run fail.

        Args:
            message: Why, for the jobs' events and their error.
            param: The parameter to blame, such as ``"training_file"``; only ``/fine_tuning/jobs`` shows it.
            times: How many jobs.
        """
        _check("times", type(times) is int and times >= 1, "1 or more", times)
        _check("message", _is_text(message), "text", message)
        _check("param", param is None or _is_text(param), "text, or None", param)
        self._plans.add_job_failures(JobFailure(message, param), times)

    def hold_jobs(self) -> None:
        """Let no job end until `release_jobs`: the next one starts to run and stays so, and the others stay pending.

        A job that is in training already goes on.
        """
        self._plans.held_jobs.close()

    def release_jobs(self) -> None:
        """Let all jobs go on."""
        self._plans.held_jobs.open()

    def clear(self) -> None:
        """Forget all faults, end the stalled requests, and release the jobs."""
        self._plans.clear()

    def _add(self, endpoint: str, fault: Fault, times: int | None) -> None:
        check_endpoint(endpoint)
        _check("times", times is None or (type(times) is int and times >= 1), "1 or more, or None", times)
        self._plans.add(endpoint, fault, times)


def _check(name: str, fits: bool, expected: str, got: object) -> None:  # noqa: FBT001  # What is checked, and for what.
    if not fits:
        raise ConfigurationError(f"{name}: expected {expected}, got {got!r}")


def _is_number(value: object) -> bool:
    # Infinity, NaN and an integer that is too large for a float are none.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _is_text(value: object) -> bool:
    return isinstance(value, str) and _is_json(value)


def _is_json(value: object) -> bool:
    """Return whether a value can be sent as JSON, with orjson or without: half of a surrogate pair cannot either."""
    try:
        structuring.dumps(value)
        _json.dumps(value)  # orjson writes infinity as null, and dates as text.
    except (TypeError, ValueError, RecursionError):
        return False
    return True
