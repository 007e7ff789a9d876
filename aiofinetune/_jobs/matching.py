"""Finding again what a lost reply was about, so that nothing is made twice. No I/O.

No service is known to honour an idempotency key. When the reply to a create is lost, all that is left is the
service's list; this module says which entries of it could be the one, and keeps equal requests of one session from
being taken for one another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Container, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Final, Generic, NamedTuple, TypeVar

import attrs

from aiofinetune.errors import (
    APIError,
    ConnectFailed,
    FineTuneError,
    FineTuneUnreadable,
    ProtocolViolation,
    ServerError,
    TransportError,
)
from aiofinetune.models import CreateUncertain, File, FineTune, FineTuneRequest

T = TypeVar("T")

CLOCK_SLACK: Final = 5.0
"""Seconds by which the clocks of one service's machines may differ: the one that dates replies, and the one that dates
jobs. The client's own clock plays no part."""


_AGREEMENT: Final = 1.0
"""Seconds by which this machine's two clocks may drift apart while a call is under way."""

MOST_ASTRAY: Final = 86400.0
"""Seconds by which a clock that was set since may have been wrong: an hour for the season, half a day for the zone."""


class Moment(NamedTuple):
    """A moment by both clocks of this machine.

    Args:
        unix: By the clock that can be set, in seconds since 1970.
        steady: By the one that only runs, in seconds since some other moment.
    """

    unix: float
    steady: float

    @classmethod
    def now(cls) -> Moment:
        """This moment."""
        return cls(time.time(), time.monotonic())

    @classmethod
    def at(cls, unix: float) -> Moment:
        """The moment when the clock that can be set showed `unix`, if it was not set since."""
        return cls(unix, time.monotonic() - (time.time() - unix))

    def seconds_ago(self) -> float | None:
        """How long ago it was; None if the clocks disagree (set since, or the machine slept), or it is yet to come."""
        by_unix, by_steady = time.time() - self.unix, time.monotonic() - self.steady
        return by_steady if abs(by_unix - by_steady) <= _AGREEMENT and by_steady >= -_AGREEMENT else None


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


class Accepted(Exception):
    """A create was accepted (a status of 2xx), so it made a job, and the reply does not give that job.

    It never leaves this package. Its cause says why the reply is of no use.

    Args:
        fine_tune_id: The id that the reply names, if it names one.
        is_whole: Whether the reply came whole; of one that broke off, the id is a hint.
        is_taken: Whether the id is known to be that of another create's job.
    """

    def __init__(self, fine_tune_id: str | None, *, is_whole: bool, is_taken: bool = False) -> None:
        super().__init__(fine_tune_id)
        self.fine_tune_id = fine_tune_id
        self.is_whole = is_whole
        self.is_taken = is_taken

    def __str__(self) -> str:
        return f"the create was accepted; {self.__cause__}"


@attrs.frozen
class Search:
    """A search for the job of a create.

    Args:
        request: What was asked for.
        sent: When it was first sent.
        lost_at: When its reply was given up.
        known: Ids of jobs that earlier sessions made.
        own: Ids of jobs that this session has given to somebody already.
        lost: All requests whose job is not known, `request` among them.
        astray: Seconds by which `sent` may be too late.
        accepted: That the service accepted it, if it did.
    """

    request: FineTuneRequest
    sent: Moment
    lost_at: Moment
    known: Container[str]
    own: Container[str]
    lost: Sequence[FineTuneRequest] = ()
    astray: float = 0.0
    accepted: Accepted | None = None

    @property
    def cause(self) -> BaseException | None:
        """What was wrong with the reply, where the create was accepted."""
        return None if self.accepted is None else self.accepted.__cause__

    def uncertain(
        self,
        candidates: tuple[FineTune, ...] = (),
        unreadable: tuple[str, ...] = (),
        fine_tune_id: str | None = None,
    ) -> CreateUncertain:
        """What to raise where the search cannot tell."""
        named = self.accepted.fine_tune_id if self.accepted is not None else None
        return CreateUncertain(
            self.request, self.sent.unix, candidates, self.accepted is not None, unreadable, fine_tune_id or named
        )


class Verdict(NamedTuple):
    """What the service's list says of a create whose reply was lost.

    Args:
        job: The job that it made.
        unclear: Jobs that it may have made, or something else may have.
    Neither: the list holds no trace of it.
    """

    job: FineTune | None = None
    unclear: tuple[FineTune, ...] = ()


def judge(
    jobs: Iterable[FineTune],
    request: FineTuneRequest,
    since: float | None,
    lost: Sequence[FineTuneRequest],
    own: Container[str],
    astray: float = 0.0,
) -> Verdict:
    """Say which job of a list a create made, if the list can tell.

    Args:
        jobs: The service's list.
        request: What was asked for.
        since: The service's time when it was first sent, in Unix seconds; None where that is unknown.
        lost: Every request of the session whose reply was lost and which is not found yet, `request` among them.
        own: Ids of jobs that the session has given to somebody already.
        astray: Seconds by which `since` may be too late.
    """
    others = [job for job in jobs if job.id not in own]
    near = sorted((job for job in others if _is_near(job, request, since)), key=lambda job: job.created_at or 0)
    fitting = [job for job in near if fits(job, request)]
    if fitting:
        equal = sum(other == request for other in lost)
        is_contested = any(other != request and fits(job, other) for other in lost for job in fitting)
        # A job that fits only because the list does not say what would tell it from others is no proof.
        plain = [job for job in fitting if job.training_files and job.created_at is not None]
        if plain and since is not None and not is_contested and len(fitting) <= equal:
            return Verdict(job=plain[0])
        return Verdict(unclear=tuple(fitting))
    # A service may have changed a parameter: a job that nothing else of this session explains may be the one.
    unclear = [job for job in near if not any(fits(job, other) for other in lost)]
    if since is not None:
        unclear += [job for job in others if _is_since(job, since - astray) and fits(job, request)]
    return Verdict(unclear=tuple(unclear))


def _is_near(job: FineTune, request: FineTuneRequest, since: float | None) -> bool:
    files = {file.id for file in job.training_files}
    return (since is None or _is_since(job, since - CLOCK_SLACK)) and (not files or request.training_file in files)


def _is_since(job: FineTune, since: float) -> bool:
    """Whether a job was made at `since` or later, or the service does not say when."""
    return job.created_at is None or job.created_at >= since


def is_ours(job: FineTune, request: FineTuneRequest, since: float | None) -> bool:
    """Whether a job whose id a create's broken reply named is what was asked for, as far as the service says."""
    return _is_near(job, request, since) and fits(job, request)


def fits(job: FineTune, request: FineTuneRequest) -> bool:
    """Whether a listed job is what `request` asks for, as far as the list says.

    What the request leaves to the service fits anything, and so does what the service does not say.
    """
    return (
        _files_fit(job, request)
        and (request.model is None or job.model in (None, request.model))
        and all(
            getattr(job.hyperparams, name, None) in (None, "auto", value) for name, value in request.given().items()
        )
        and _suffix_fits(job.fine_tuned_model, request.suffix)
    )


def _files_fit(job: FineTune, request: FineTuneRequest) -> bool:
    training, validation = [file.id for file in job.training_files], [file.id for file in job.validation_files]
    if not training and not validation:
        # The list does not say.
        return True
    return training in ([], [request.training_file]) and validation == (
        [request.validation_file] if request.validation_file else []
    )


def _suffix_fits(fine_tuned_model: str | None, suffix: str | None) -> bool:
    """Whether a model's name could hold a suffix; services spell it in their own way, so only what all keep counts."""
    if fine_tuned_model is None or suffix is None:
        return True
    return _letters(suffix) in _letters(fine_tuned_model)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isascii() and character.isalnum())


def find_file(
    files: Iterable[File], name: str, size: int | None, purpose: str, since: float | None, own: Container[str]
) -> File | None:
    """Give the file of a list that an upload made, if there is just one that it can be.

    Args:
        files: The service's list.
        name: The name that was sent.
        size: The bytes that were sent; None where they were not counted to the end.
        purpose: What for.
        since: The service's time when it was first sent, in Unix seconds; None where that is unknown.
        own: Ids of files that the session has given to somebody already.
    """
    if since is None:
        return None
    found = [
        file
        for file in files
        if file.id not in own
        and (file.filename, file.bytes, file.purpose) == (name, size, purpose)
        and file.created_at is not None
        and file.created_at >= since - CLOCK_SLACK
    ]
    return found[0] if len(found) == 1 else None


_KEPT: Final = 10_000
"""Ids that are kept in any case: some megabytes."""


class Own:
    """Ids of what a session made, for as long as they could be taken for what another of its calls made.

    What was made before the oldest call under way began is told from what that call made by its date; what is looked
    for from another session's record may be older.
    """

    def __init__(self) -> None:
        self._ids: dict[str, float] = {}
        self._disowned: set[str] = set()
        self._calls: dict[object, float] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def begin(self) -> object:
        """Begin a call; give what ends it."""
        call = object()
        self._calls[call] = time.monotonic()
        return call

    def end(self, call: object) -> None:
        """End a call."""
        del self._calls[call]

    def add(self, name: str) -> None:
        """Remember an id, and forget those that are too old to matter."""
        now = time.monotonic()
        self._ids[name] = now
        self._disowned.discard(name)
        # Both are in the order of their times. Whole seconds, and clocks that differ: hence twice the slack.
        oldest = next(iter(self._calls.values()), now) - 2 * CLOCK_SLACK
        while len(self._ids) > _KEPT and next(iter(self._ids.values())) < oldest:
            del self._ids[next(iter(self._ids))]

    def remove(self, name: str) -> None:
        """Forget an id that turned out not to be what the call made."""
        self._ids.pop(name, None)

    def disown(self, name: str) -> None:
        """Take note that whoever an id was given to could not keep it."""
        self._disowned.add(name)

    def kept(self) -> Container[str]:
        """The ids that whoever they were given to has kept."""
        return self._ids.keys() - self._disowned


class Group(Generic[T]):
    """Sends of one session that its service's list could not tell apart.

    Any number may be under way at once, each in the group's context once it is its `turn`. Where the reply to one is
    lost, it is looked for alone: after those under way have ended, and before a new one starts.
    """

    def __init__(self) -> None:
        self.lost: list[T] = []
        """What was sent, the reply was lost, and is not found yet."""
        self.is_contested = False
        """Whether, of several that were lost, it cannot be told which is which."""
        self._sending = 0
        self._searching = 0
        self._all_sent = asyncio.Event()
        self._none_searching = asyncio.Event()
        self._turn = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until nobody is looking for what was lost."""
        while self._searching:
            await self._none_searching.wait()

    def __enter__(self) -> None:
        self._sending += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sending -= 1
        self._all_sent.set()

    @contextmanager
    def losing(self, what: T) -> Iterator[None]:
        """Have lost the reply to what was sent."""
        self.lost.append(what)
        try:
            yield
        finally:
            self.lost.remove(what)

    @asynccontextmanager
    async def searching(self) -> AsyncIterator[None]:
        """Be the only one that is under way."""
        self._searching += 1
        self._none_searching.clear()
        try:
            async with self._turn:
                while self._sending:
                    self._all_sent.clear()
                    await self._all_sent.wait()
                yield
        finally:
            self._searching -= 1
            if not self._searching:
                self._none_searching.set()
