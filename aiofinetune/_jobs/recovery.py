"""Create jobs exactly once: if a reply is lost or unreadable, find the job that the call made."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Container, Hashable, Iterator, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from aiofinetune import _observe, structuring
from aiofinetune._http.caller import Caller
from aiofinetune._http.transport import Heard
from aiofinetune._jobs import matching
from aiofinetune._jobs.claims import Claims, Groups
from aiofinetune._jobs.clocks import Moment, at_service
from aiofinetune.dialects._dialect import with_key
from aiofinetune.dialects._replies import unreadable
from aiofinetune.dialects._requests import Reply
from aiofinetune.errors import FineTuneError, FineTuneUnreadable, NotFound, ProtocolViolation, RequestInvalid
from aiofinetune.models import CreateUncertain, FineTune, FineTuneRequest, Rows

if TYPE_CHECKING:
    from aiofinetune._jobs.looking import Seen

_log = logging.getLogger("aiofinetune")

MAX_ASTRAY: Final = 86400.0
"""The number of seconds by which this machine's clock may have been wrong when a create was recorded: a day. A wrong
time zone accounts for half a day, and daylight saving time for an hour."""

MAX_SKEW: Final = 30.0
"""The number of seconds by which the clock that dates a service's jobs may be behind the one that dates its replies,
which may be a proxy's. A job that fits, and was made so shortly before a create was sent, may be that create's."""


class NotSent(Exception):
    """A create was not sent because it was no longer wanted, so it made no job. A batch never lets this escape."""


class Accepted(Exception):
    """A create was accepted (2xx), so it made a job, but the reply does not describe that job.

    This never leaves this module. Its cause says what is wrong with the reply.

    Args:
        fine_tune_id: The id that the reply names; None if it names none.
        is_whole: Whether the reply is complete. The id in an incomplete reply is only a hint.
        is_taken: Whether the id is known to belong to the job of another create.
    """

    def __init__(self, fine_tune_id: str | None, *, is_whole: bool, is_taken: bool = False) -> None:
        super().__init__(fine_tune_id)
        self.fine_tune_id = fine_tune_id
        self.is_whole = is_whole
        self.is_taken = is_taken

    def __str__(self) -> str:
        return f"the create was accepted, but its reply does not describe the job: {self.__cause__}"


class Search:
    """A search for the job of a create.

    Args:
        request: The request of the create.
        sent: When it was first sent.
        lost_at: When its reply was lost.
        known: The ids of jobs that belong to other requests, made by earlier sessions.
        claimed: The ids of jobs that belong to calls of this session.
        lost: All requests whose job is not known, including `request`.
        astray: The number of seconds by which `sent` may be too late by the service's clock. A job that was made in
            this time, and fits, makes the result uncertain.
        accepted: What is known from the reply, if the service accepted the create.
        key: The key that it carried; None if it carried none.
        owner: The name of the caller's record of it; None if there is none.
    """

    def __init__(
        self,
        request: FineTuneRequest,
        sent: Moment,
        lost_at: Moment,
        known: Container[str],
        claimed: Container[str],
        lost: Sequence[FineTuneRequest] = (),
        astray: float = 0.0,
        accepted: Accepted | None = None,
        key: str | None = None,
        owner: Hashable = None,
    ) -> None:
        self.request = request
        self.sent = sent
        self.lost_at = lost_at
        self.known = known
        self.claimed = claimed
        self.lost = lost
        self.astray = astray
        self.accepted = accepted
        self.key = key
        self.owner = owner

    @property
    def cause(self) -> BaseException | None:
        """What is wrong with the reply, if the create was accepted."""
        return None if self.accepted is None else self.accepted.__cause__

    def back_to(self, reply: Reply) -> float | None:
        """Return the service's time before which no job can be this create's; None if that is not known."""
        return _before(reply, self.sent, self.astray)

    def uncertain(
        self,
        candidates: tuple[FineTune, ...] = (),
        unreadable: tuple[str, ...] = (),
        fine_tune_id: str | None = None,
    ) -> CreateUncertain:
        """Return the error to raise if the search is inconclusive."""
        named = self.accepted.fine_tune_id if self.accepted is not None else None
        is_accepted = self.accepted is not None
        return CreateUncertain(
            self.request, self.sent.unix, candidates, is_accepted, unreadable, fine_tune_id or named, self.key
        )


Note = Callable[[str | None, bool], Awaitable[None]]
"""Called with the id that the reply names, if any, and whether the reply is complete, when a create is accepted by a
reply that does not describe the job. It is called before anything else is done, so that the id is never lost."""


async def _unheeded(_fine_tune_id: str | None, _is_whole: bool) -> None:  # noqa: FBT001  # a `Note`
    """Record nothing about an accepted create, for a caller that keeps no record."""


class Recovery:
    """Creates the jobs of one session, each exactly once.

    Args:
        caller: Makes the calls.
        claims: The ids of the session's jobs and files.
    """

    def __init__(self, caller: Caller, claims: Claims) -> None:
        self.caller = caller
        self.claims = claims
        self.has_echoed = False
        """Whether a list has shown the key of a job that was made through this base URL, so that nothing between this
        program and the service drops metadata. A batch keeps this in its journal, and sets it from there."""
        self.groups: Groups[FineTuneRequest] = Groups()

    def check_loop(self) -> None:
        """Raise `ConfigurationError` unless the session belongs to the running event loop, and bind it at first use."""
        self.caller.transport.check_place()

    def new_key(self, request: FineTuneRequest) -> str | None:
        """Return a random key for one attempt to create a job; None if the create cannot carry one."""
        return os.urandom(16).hex() if self.caller.dialect.takes_key(request) else None

    async def create(
        self,
        request: FineTuneRequest,
        *,
        known: Container[str] = (),
        wanted: Callable[[], bool] = lambda: True,
        note: Note = _unheeded,
        key: str | None = None,
        owner: Hashable = None,
    ) -> FineTune:
        """Create a job once; see `FineTuneSession.create_fine_tune`.

        Args:
            request: The parameters of the job.
            known: The ids of jobs that belong to other requests, besides those that this session made.
            wanted: Called before each attempt. If it returns False, the create is not sent; it then has made no job.
            note: See `Note`.
            key: The key of the attempt, from `new_key`, if the caller records it; by default a new one.
            owner: The name of the caller's record of the create, by which `find` finds its job; None if there is none.

        Raises:
            NotSent: The create was no longer `wanted`.
        """
        if not isinstance(request, FineTuneRequest):
            raise RequestInvalid("request", f"expected a FineTuneRequest, got {type(request).__name__}")
        key = self.new_key(request) if key is None else key
        create = _Create(self, request, known, wanted, note, key, owner)
        with self.claims.call():
            return await self.caller.retrying(self.caller.endpoints.create_fine_tune, create.send, create.find)

    async def find(
        self,
        request: FineTuneRequest,
        sent_at: float,
        *,
        lost_at: float | None = None,
        lost: Sequence[FineTuneRequest] = (),
        known: Container[str] = (),
        accepted: bool = False,
        fine_tune_id: str | None = None,
        key: str | None = None,
        owner: Hashable = None,
    ) -> FineTune | None:
        """Find the job of a create that an earlier session sent; return None if the create certainly made no job.

        Args:
            request: The request of the create.
            sent_at: When it was first sent, in Unix seconds by this machine's clock. The service's clock may differ.
                This machine's clock may have been set since then, so a matching job from the day before makes the
                result uncertain.
            lost_at: When its reply was lost; by default `sent_at`. The job may appear until ``Retry.grace`` later.
            lost: All requests whose job is not known and which might be taken for one another; may leave out `request`.
            known: The ids of jobs that belong to other requests, besides those that this session made.
            accepted: Whether the service accepted the create. It then made a job, so None is never returned.
            fine_tune_id: The id that an incomplete reply named.
            key: The key that the create carried.
            owner: The name of the caller's record of the create. If this session sent it too, its job is found even so.

        Raises:
            CreateUncertain: It is not known whether there is a job, or which one.
        """
        self.check_loop()
        metadata_key = self.caller.dialect.key_of_metadata(request, key)
        request = with_key(request, key)
        search = Search(
            request,
            Moment.at(sent_at),
            # If the clock was set back since then, the time may be in the future, which would prolong the search.
            Moment.at(min(sent_at if lost_at is None else lost_at, time.time())),
            known,
            self.claims.of_others(owner),
            lost if request in lost else (*lost, request),
            MAX_ASTRAY,
            Accepted(fine_tune_id, is_whole=False) if accepted else None,
            metadata_key,
            owner,
        )
        if fine_tune_id is not None and (job := await self.retrieve_named(search, fine_tune_id)) is not None:
            return job
        return await self.search(search)

    async def look(self, since: float | None, is_wanted: Callable[[str], bool]) -> Seen:
        """Look at the list of jobs, only as closely as a batch needs.

        Args:
            since: When the oldest job that matters was sent, in Unix seconds by this machine's clock; None for all.
                Where lists come in pages, newest first, older pages are not read.
            is_wanted: Takes the id of a job that has ended, and returns whether to read the job.
        """
        from aiofinetune._jobs.looking import look  # noqa: PLC0415  # only a batch looks

        moment = None if since is None else Moment.at(since)
        claims = () if self.has_echoed else self.claims
        seen = await look(self.caller, is_wanted, claims, lambda reply: moment and _before(reply, moment))
        self.has_echoed = self.has_echoed or seen.has_echoed
        return seen

    async def _rows(
        self,
        back_to: Callable[[Reply], float | None],
        known: Container[str] = (),
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Rows, Reply]:
        """List the jobs, page by page, and return them with the reply that holds the first page.

        Args:
            back_to: Returns the service's time of the oldest job that matters, from the first reply; None for all jobs.
            known: The ids of jobs that were made through this base URL, besides those of this session.
            headers: The headers to send.
        """
        jobs: dict[str, FineTune] = {}
        unreadable: list[str] = []
        has_ids, is_whole = True, False
        first: Reply | None = None
        pages = self.caller.pages(self.caller.endpoints.list_rows, headers=headers)
        async with aclosing(pages):
            async for page, reply in pages:
                first = first or reply
                before = back_to(first)
                jobs.update((job.id, job) for job in page.jobs)
                unreadable += page.unreadable
                has_ids = has_ids and page.has_ids
                is_whole = not page.has_more
                if before is not None and page.has_more and matching.has_reached(tuple(jobs.values()), before):
                    is_whole = True
                    break
        assert first is not None  # noqa: S101  # there is always a first page
        self.has_echoed = self.has_echoed or any(
            matching.shows_key(job) and (job.id in self.claims or job.id in known) for job in jobs.values()
        )
        return Rows(tuple(jobs.values()), tuple(dict.fromkeys(unreadable)), is_whole and has_ids), first

    async def search(self, search: Search) -> FineTune | None:
        """Search the service's list for the job of a create until ``Retry.grace`` is over.

        Returns:
            The job, or None if the create certainly made none.

        Raises:
            CreateUncertain: It is not known whether there is a job, or which one.
        """
        rows, verdict = Rows(is_whole=False), matching.Verdict()
        # On a borrowed session a create cannot ask for a new connection, so the search asks to close this one: if the
        # create is sent again, it must not use a connection that may break in the same way.
        headers = {} if self.caller.transport.owns_http else {"Connection": "close"}
        for pause in self._until_grace_is_over(search):
            try:
                rows, reply = await self._rows(search.back_to, search.known, headers)
            except FineTuneError as error:
                raise search.uncertain() from search.cause or error
            since = at_service(reply, search.sent)
            others = [job for job in rows.jobs if job.id not in search.known]
            verdict = matching.judge(
                others,
                search.request,
                since,
                search.lost,
                search.claimed,
                search.astray,
                search.key,
                has_echoed=self.has_echoed,
            )
            if verdict.job is not None:
                self.claims.add(verdict.job.id, search.owner)
                return verdict.job
            await asyncio.sleep(pause)
        unreadable = [name for name in rows.unreadable if name not in search.known and name not in search.claimed]
        if verdict.unclear or unreadable or not rows.is_whole or search.accepted is not None:
            raise search.uncertain(verdict.unclear, tuple(unreadable)) from search.cause
        return None

    async def retrieve_accepted(self, search: Search, failure: Accepted, note: Note) -> FineTune | None:
        """Return the job that the reply to an accepted create names; None if it names none, or the job is not found.

        Raises:
            CreateUncertain: The job belongs to another create.
            FineTuneUnreadable: The reply was complete, but the job cannot be read.
        """
        named = failure.fine_tune_id
        if named is not None and not failure.is_taken and (named in self.claims or named in search.known):
            failure = Accepted(named, is_whole=failure.is_whole, is_taken=True)
        if failure.is_taken:
            await note(None, False)
            raise search.uncertain(fine_tune_id=named) from failure.__cause__
        await note(named, failure.is_whole)
        if named is None:
            return None
        # Claimed before it is retrieved, so that no other call takes it in the meantime.
        self.claims.add(named, search.owner)
        job = await self.retrieve_named(search, named, is_whole=failure.is_whole)
        if job is None:
            self.claims.withdraw(named)
            if failure.is_whole:
                # The service does not know the id, so from now on it is only a hint.
                await note(named, False)
        return job

    async def retrieve_named(self, search: Search, named: str, *, is_whole: bool = False) -> FineTune | None:
        """Return the job that the reply to a create named; None if the service does not know it or it does not match.

        Raises:
            FineTuneUnreadable: The reply was complete, but the job cannot be read.
        """
        for pause in self._until_grace_is_over(search):
            try:
                job, reply = await self.caller.exchange(self.caller.endpoints.retrieve_fine_tune, named)
            except NotFound:
                # A new job may take a while to be visible to every machine of the service.
                await asyncio.sleep(pause)
            except FineTuneError as failure:
                if not is_whole:
                    words = _observe.in_short(failure)
                    _log.warning("retrieving %s, which the reply to a create named, failed: %s", named, words)
                    return None
                raise FineTuneUnreadable(str(failure), named) from failure
            else:
                if job.id != named:
                    words = f"$.id: expected {named}, which was asked for, got {job.id}"
                    if not is_whole:
                        _log.warning("retrieving %s, which the reply to a create named, failed: %s", named, words)
                        return None
                    raise FineTuneUnreadable(words, named)
                # A broken reply is no proof that the id is this create's, so the job must match the request.
                if not is_whole and not matching.is_ours(
                    job, search.request, at_service(reply, search.sent), search.key
                ):
                    return None
                self.claims.add(named, search.owner)
                return job
        return None

    def _until_grace_is_over(self, search: Search) -> Iterator[float]:
        """Yield the pause after each look for a job. The last look is made after ``Retry.grace`` is over."""
        pause = self.caller.policy.base
        while (left := self.caller.policy.grace - (time.monotonic() - search.lost_at.steady)) > 0:
            yield min(pause, left)
            pause = min(2 * pause, self.caller.policy.cap)
        yield 0.0


class _Create:
    """One create in progress: sends it, and finds its job if the reply is lost."""

    def __init__(
        self,
        recovery: Recovery,
        request: FineTuneRequest,
        known: Container[str],
        wanted: Callable[[], bool],
        note: Note,
        key: str | None,
        owner: Hashable,
    ) -> None:
        self._recovery = recovery
        self._caller = recovery.caller
        # The job is searched for by what is sent.
        self._request = with_key(request, key)
        self._known = known
        self._wanted = wanted
        self._note = note
        self._owner = owner
        self._key = self._caller.dialect.key_of_metadata(request, key)
        # No service is known to honour this key. It costs nothing to send, and nothing depends on it.
        headers = {"Idempotency-Key": key or os.urandom(16).hex()}
        body = structuring.write_request(self._caller.dialect.body_of(request, key))
        self._call = self._caller.build(self._caller.endpoints.create_fine_tune, body=body, headers=headers)
        self._group = recovery.groups.named(request.training_file)
        self._sent = time.time(), time.monotonic()
        self._is_lost = False

    async def send(self) -> FineTune:
        """Send the create once; return the job that it made.

        Raises:
            NotSent: The create is no longer wanted.
            CreateUncertain: The create was accepted, but it is not known which job it made.
        """
        if self._group.is_searching:
            await self._group.wait_for_searches()
        if not self._wanted():
            raise NotSent("the create was not sent, because it is no longer wanted")
        heard = Heard()
        try:
            with self._group:
                job = await self._exchange(heard)
                self._claim(job.id)
                return job
        except asyncio.CancelledError as cancellation:
            _add_note(cancellation, self._request, heard)
            raise
        except Accepted as acceptance:
            search = self._search(acceptance)
            try:
                made = await self._recovery.retrieve_accepted(search, acceptance, self._note)
                made = made or await self._search_list(search)
            except asyncio.CancelledError as cancellation:
                _add_note(cancellation, self._request, acceptance)
                raise
            assert made is not None  # noqa: S101  # an accepted create made a job, so the search raises instead
            return made

    async def find(self) -> FineTune | None:
        """Return the job after the reply was lost; None if the create certainly made none."""
        self._is_lost = True
        try:
            return await self._search_list(self._search())
        except asyncio.CancelledError as cancellation:
            _add_note(cancellation, self._request, None)
            raise

    async def _exchange(self, heard: Heard) -> FineTune:
        """Send the create; return the job that the reply describes.

        Raises:
            Accepted: The service accepted the create, but its reply does not describe a job.
        """
        try:
            # A connection that broke during a create may break again, so the next attempt uses a new one.
            reply = await self._caller.fetch(self._call, heard=heard, fresh=self._is_lost)
        except FineTuneError as failure:
            if not heard.is_accepted:
                raise
            reply = self._caller.without_key(Reply(heard.status or 200, heard.headers, b"".join(heard.pieces)))
            named = structuring.readable_id(reply.body)
            raise Accepted(named, is_whole=False) from unreadable(reply, failure)
        if reply.status >= 300:
            raise self._caller.error_of(self._caller.endpoints.create_fine_tune, reply)
        try:
            job = await self._caller.decode(self._caller.endpoints.create_fine_tune, reply)
        except FineTuneError as misfit:
            named, is_whole = structuring.readable_id(reply.body), structuring.is_json(reply.body)
            raise Accepted(named, is_whole=is_whole) from (misfit if named else unreadable(reply, misfit))
        if matching.is_anothers(job, self._request, self._key):
            # Something in between has mixed up replies, so the job of this create is another one.
            words = f"the reply shows {job.id}, which has the key of another create in its metadata"
            raise Accepted(None, is_whole=False) from ProtocolViolation(words)
        return job

    def _claim(self, fine_tune_id: str) -> None:
        """Claim the job for this call.

        Raises:
            Accepted: The job belongs to another create. This one was accepted, but it is not known which job it made.
        """
        if fine_tune_id in self._recovery.claims or fine_tune_id in self._known:
            words = f"the reply names {fine_tune_id}, which another create made"
            raise Accepted(fine_tune_id, is_whole=True, is_taken=True) from ProtocolViolation(words)
        self._recovery.claims.add(fine_tune_id, self._owner)

    def _search(self, acceptance: Accepted | None = None) -> Search:
        claims = self._recovery.claims
        sent, now = Moment(*self._sent), Moment.now()
        return Search(
            self._request,
            sent,
            now,
            self._known,
            claims,
            astray=MAX_SKEW,
            accepted=acceptance,
            key=self._key,
            owner=self._owner,
        )

    async def _search_list(self, search: Search) -> FineTune | None:
        with self._group.losing(self._request):
            async with self._group.searching():
                search.lost = self._group.lost
                return await self._recovery.search(search)


def _before(reply: Reply, sent: Moment, astray: float = 0.0) -> float | None:
    """Return the service's time before which what was sent cannot have made anything; None if that is not known."""
    since = at_service(reply, sent)
    return None if since is None else since - max(astray, matching.CLOCK_SLACK)


def _add_note(cancellation: asyncio.CancelledError, request: FineTuneRequest, known: Heard | Accepted | None) -> None:
    """Add a note to a cancellation, saying what is known about the job of the create in progress."""
    match known:
        case Accepted(fine_tune_id=named):
            is_accepted = True
        case Heard(is_accepted=True, pieces=pieces):
            is_accepted, named = True, structuring.readable_id(b"".join(pieces))
        case _:
            is_accepted, named = False, None
    outcome = (
        f"{'the service accepted it and made a job' if is_accepted else 'it may have made a job'}; in"
        f" list_fine_tunes(), look for a new job with training file {request.training_file}"
    )
    if named is not None:
        outcome = f"the service accepted it and made a job, {named}"
    cancellation.add_note(f"cancelled while a create was in progress: {outcome}")
