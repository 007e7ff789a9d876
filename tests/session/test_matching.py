"""Which job of a list a create made: the part of recovery that is pure."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune import (
    APIError,
    BadRequest,
    ConnectFailed,
    ConnectionLost,
    File,
    FineTune,
    FineTuneError,
    FineTuneRequest,
    Hyperparams,
    ProtocolViolation,
    RateLimited,
    ReplyTimeout,
    RequestInvalid,
    ServerError,
)
from aiofinetune._jobs import matching as reconcile
from aiofinetune.errors import QuotaExceeded
from aiofinetune.models import CreateUncertain
from aiofinetune.retry import may_have_arrived

pytestmark = pytest.mark.fastforward

FILE = File("file-1")
REQUEST = FineTuneRequest(training_file="file-1", model="ada")


def job_of(number: int, request: FineTuneRequest = REQUEST, created_at: int = 1000) -> FineTune:
    """A job as the list would show it if `request` had made it."""
    return FineTune(
        id=f"ft-{number}",
        status="pending",
        model=request.model or "curie",
        created_at=created_at,
        training_files=(File(request.training_file),),
        hyperparams=Hyperparams(n_epochs=request.n_epochs or 4),
    )


REQUESTS = st.builds(
    FineTuneRequest,
    training_file=st.sampled_from(["file-1", "file-2"]),
    model=st.sampled_from([None, "ada", "curie"]),
    n_epochs=st.sampled_from([None, 1, 4]),
    suffix=st.sampled_from([None, "a", "b"]),
)


@given(requests=st.lists(st.tuples(REQUESTS, st.booleans()), min_size=1, max_size=6), order=st.randoms())
def test_judge_never_gives_a_job_to_another(requests: list[tuple[FineTuneRequest, bool]], order: object) -> None:
    """Whichever lost creates were made, no job goes to two, nor to one that did not ask for it."""
    jobs = [job_of(number, request) for number, (request, is_made) in enumerate(requests) if is_made]
    lost = [request for request, _ in requests]
    own: set[str] = set()
    order.shuffle(lost)  # type: ignore[attr-defined]  # a random.Random, as hypothesis types it not
    for request in list(lost):
        verdict = reconcile.judge(jobs, request, 1000.0, lost, own)
        lost.remove(request)
        if verdict.job is not None:
            assert verdict.job.id not in own
            own.add(verdict.job.id)
            askers = [
                asker
                for asker, is_made in requests
                if is_made and job_of(0, asker) == attrs.evolve(verdict.job, id="ft-0")
            ]
            assert request in askers or any(reconcile.fits(verdict.job, request) for _ in askers)


@given(request=REQUESTS, count=st.integers(1, 5), made=st.integers(0, 5))
def test_judge_shares_out_equal_jobs(request: FineTuneRequest, count: int, made: int) -> None:
    """Of equal lost creates, as many get a job as were made; the rest are told that there is none."""
    made = min(made, count)
    jobs = [job_of(number, request) for number in range(made)]
    lost, own, given_out = [request] * count, set[str](), 0
    for _ in range(count):
        verdict = reconcile.judge(jobs, request, 1000.0, lost, own)
        lost.remove(request)
        assert not verdict.unclear
        if verdict.job is not None:
            own.add(verdict.job.id)
            given_out += 1
    assert given_out == made


JUDGED = [
    pytest.param([], 1000.0, None, [], id="no job"),
    pytest.param([job_of(1)], 1000.0, 1, [], id="one"),
    pytest.param([job_of(1), job_of(2)], 1000.0, None, [1, 2], id="two that fit one create"),
    pytest.param([job_of(1, created_at=900)], 1000.0, None, [], id="an old one"),
    pytest.param([job_of(1, created_at=996)], 1000.0, 1, [], id="one within the slack"),
    pytest.param([job_of(1, created_at=994)], 1000.0, None, [], id="one beyond the slack"),
    pytest.param([job_of(1)], None, None, [1], id="no time known"),
    pytest.param([job_of(1, created_at=0)], None, None, [1], id="an old one, no time known"),
    pytest.param([job_of(1, attrs.evolve(REQUEST, model="curie"))], 1000.0, None, [1], id="another model"),
    pytest.param([job_of(1, attrs.evolve(REQUEST, training_file="file-2"))], 1000.0, None, [], id="another file"),
    pytest.param([attrs.evolve(job_of(1), validation_files=(FILE,))], 1000.0, None, [1], id="another validation file"),
    pytest.param([attrs.evolve(job_of(1), training_files=())], 1000.0, None, [1], id="no file told"),
]


@pytest.mark.parametrize(("jobs", "since", "job", "unclear"), JUDGED)
def test_judge(jobs: list[FineTune], since: float | None, job: int | None, unclear: list[int]) -> None:
    """What the list says of one lost create."""
    verdict = reconcile.judge(jobs, REQUEST, since, [REQUEST], set())
    assert (verdict.job and verdict.job.id) == (f"ft-{job}" if job else None)
    assert [candidate.id for candidate in verdict.unclear] == [f"ft-{number}" for number in unclear]


@pytest.mark.parametrize(("age", "is_unclear"), [(99, True), (101, False)])
def test_judge_by_a_time_that_may_be_too_late(age: int, is_unclear: bool) -> None:  # a table's column
    """A job that fits, and is older than the create seems to be, is a candidate as far as that may be mistaken."""
    job = job_of(1, created_at=1000 - age)
    verdict = reconcile.judge([job], REQUEST, 1000.0, [REQUEST], set(), astray=100.0)
    assert verdict == reconcile.Verdict(unclear=(job,) if is_unclear else ())


def test_judge_leaves_others_alone() -> None:
    """A job that another lost create of the session explains is no candidate."""
    other = attrs.evolve(REQUEST, n_epochs=2)
    request = attrs.evolve(REQUEST, n_epochs=3)
    verdict = reconcile.judge([job_of(1, other)], request, 1000.0, [request, other], set())
    assert verdict == reconcile.Verdict()


def test_judge_passes_over_own() -> None:
    """A job that somebody was given already is no candidate."""
    assert reconcile.judge([job_of(1)], REQUEST, 1000.0, [REQUEST], {"ft-1"}) == reconcile.Verdict()


SUFFIXES = [
    ("spam", "ada:ft-org:spam-2022-02-15-04-21-04", True),
    ("Spam Filter!", "ada:ft-org:spam-filter-2022-02-15-04-21-04", True),
    ("spam", "ada:ft-org-2022-02-15-04-21-04", False),
    ("spam", None, True),
    (None, "ada:ft-org:spam-2022-02-15-04-21-04", True),
    ("\u00e9\u00e8", "ada:ft-org-2022-02-15-04-21-04", True),
]


@pytest.mark.parametrize(("suffix", "name", "does_fit"), SUFFIXES)
def test_fits_by_suffix(suffix: str | None, name: str | None, does_fit: bool) -> None:  # a table's column
    """A suffix is looked for in the model's name, where there is one, by the letters that every service keeps."""
    job = attrs.evolve(job_of(1), fine_tuned_model=name)
    assert reconcile.fits(job, attrs.evolve(REQUEST, suffix=suffix)) == does_fit


@given(request=REQUESTS)
def test_what_a_request_made_fits_it(request: FineTuneRequest) -> None:
    """The job that a request made always fits it."""
    assert reconcile.fits(job_of(1, request), request)


ARRIVED = [
    (ConnectFailed("x"), False),
    (ConnectionLost("x"), True),
    (ReplyTimeout("x"), True),
    (ProtocolViolation("x"), True),
    (ServerError(500, "x"), True),
    (ServerError(503, "x"), True),
    (ServerError(503, "x", retry_after=1.0), False),
    (ServerError(500, "x", retry_after=1.0), True),
    (ServerError(501, "x"), True),
    (ServerError(501, "x", is_foreign=True), False),
    (APIError(408, "x"), True),
    (APIError(303, "x"), True),
    (APIError(302, "x"), True),
    (APIError(307, "x"), False),
    (BadRequest(400, "x"), False),
    (RateLimited(429, "x"), False),
    (QuotaExceeded(429, "x"), False),
    (RequestInvalid("x", "y"), False),
]


@pytest.mark.parametrize(("failure", "may_have"), ARRIVED, ids=repr)
def test_may_have_arrived(failure: FineTuneError, may_have: bool) -> None:  # a table's column
    """Only what surely did not arrive, or was refused in so many words, had no effect."""
    assert may_have_arrived(failure) == may_have


def file_of(number: int, **changes: Any) -> File:
    return attrs.evolve(File(f"file-{number}", "a.jsonl", "fine-tune", 3, 1000), **changes)


FOUND = [
    pytest.param([], None, id="none"),
    pytest.param([file_of(1)], "file-1", id="one"),
    pytest.param([file_of(1), file_of(2)], None, id="two"),
    pytest.param([file_of(1, bytes=4)], None, id="another size"),
    pytest.param([file_of(1, filename="b.jsonl")], None, id="another name"),
    pytest.param([file_of(1, purpose="other")], None, id="another purpose"),
    pytest.param([file_of(1, created_at=994)], None, id="too old"),
    pytest.param([file_of(9), file_of(1)], "file-1", id="one given already"),
]


@pytest.mark.parametrize(("files", "found"), FOUND)
def test_find_file(files: list[File], found: str | None) -> None:
    """A lost upload is the one new file of its name, size and purpose."""
    file = reconcile.find_file(files, "a.jsonl", 3, "fine-tune", 1000.0, {"file-9"})
    assert (file and file.id) == found


def test_find_file_without_a_time() -> None:
    """Without the service's time no file is surely new."""
    assert reconcile.find_file([file_of(1)], "a.jsonl", 3, "fine-tune", None, set()) is None


def test_uncertain_says_what_to_look_for() -> None:
    """The error for a person names the time, the file, the model, the suffix and the candidates."""
    error = CreateUncertain(attrs.evolve(REQUEST, suffix="spam"), 0.0, (job_of(7),))
    assert all(word in str(error) for word in ("1970-01-01T00:00:00Z", "file-1", "ada", "spam", "ft-7"))
