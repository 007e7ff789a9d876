from __future__ import annotations

import copy
import pickle
import re

import pytest

import aiofinetune
from aiofinetune import errors
from aiofinetune.batch._manifest import Problem
from aiofinetune.models import File, FineTune, FineTuneEvent, FineTuneRequest

JOB = FineTune("ft-1", "failed", "ada", 1, (File("file-1"),))

ONE_OF_EACH = [
    aiofinetune.FineTuneError("something failed"),
    aiofinetune.ConfigurationError("api_key: missing"),
    aiofinetune.RequestInvalid("n_epochs", "expected a whole number, got 'four'"),
    aiofinetune.DatasetError("train.jsonl", 3, "no JSON"),
    aiofinetune.DatasetError("train.jsonl", None, "is empty"),
    aiofinetune.ManifestInvalid("sweep.toml", (Problem(3, "n_epochs", "expected a whole number"),)),
    aiofinetune.JournalUnusable("sweep.journal: another process is running this batch"),
    aiofinetune.EntryChanged("'spam' has changed since it was sent: the content of spam.jsonl"),
    aiofinetune.BatchStopped("the batch sends no more requests"),
    aiofinetune.CreateUncertain(FineTuneRequest(training_file="file-1"), 0.0, (JOB,)),
    aiofinetune.StreamHistoryChanged("event 3 differs from the one before the reconnect"),
    aiofinetune.LocalFileError("train.jsonl: No such file or directory"),
    aiofinetune.TransportError("no reply"),
    aiofinetune.ConnectFailed("refused"),
    aiofinetune.ConnectionLost("reset"),
    aiofinetune.ReplyTimeout("too late"),
    *(
        kind(status, "said so", "a_type", "a_param", "a_code", "req-1", 2.5)
        for kind, status in (
            (aiofinetune.APIError, 418),
            (aiofinetune.BadRequest, 400),
            (aiofinetune.AuthenticationFailed, 401),
            (aiofinetune.PermissionDenied, 403),
            (aiofinetune.NotFound, 404),
            (aiofinetune.Conflict, 409),
            (aiofinetune.RateLimited, 429),
            (aiofinetune.QuotaExceeded, 429),
            (aiofinetune.TooManyJobs, 429),
            (aiofinetune.ServerError, 500),
        )
    ),
    aiofinetune.NoResults("ft-1", "running"),
    aiofinetune.CreateUncertain(FineTuneRequest(training_file="file-1"), 0.0, (JOB,), True, ("ft-2",), "ft-3"),
    aiofinetune.ProtocolViolation("$.id is missing"),
    aiofinetune.FineTuneUnreadable("$.status is missing", "ft-1"),
    aiofinetune.StreamInterrupted("ended early"),
    aiofinetune.FineTuneEnded(JOB),
    aiofinetune.FineTuneFailed(JOB, (FineTuneEvent("out of tokens"),)),
    aiofinetune.FineTuneCancelled(JOB),
    aiofinetune.WaitTimeout("did not end within 5 s"),
]


def classes(base: type[aiofinetune.FineTuneError]) -> list[type[aiofinetune.FineTuneError]]:
    # Those of the command line are for itself alone.
    kinds = [kind for kind in base.__subclasses__() if re.match(r"aiofinetune\b(?!\.cli)", kind.__module__)]
    return [base] + [below for kind in kinds for below in classes(kind)]


def test_drawn_tree() -> None:
    """The tree at the top of the module is the tree of the classes, and all of them are public."""
    drawn: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│ ]*(?:[├└]── )?)([A-Z]\w+)", line):
            depth = len(match[1]) // 4
            del above[depth:]
            drawn[match[2]] = above[-1] if above else None
            above.append(match[2])
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in classes(aiofinetune.FineTuneError)}
    assert drawn == real | {"FineTuneError": None}
    assert set(drawn) <= set(aiofinetune.__all__)


def test_every_class_has_an_example_here() -> None:
    """No class of error goes untested below."""
    assert {type(error) for error in ONE_OF_EACH} == set(classes(aiofinetune.FineTuneError))


def test_standard_bases() -> None:
    """Those who expect ValueError for a wrong argument, and TimeoutError when time ran out, get what they expect."""
    standard = {kind.__name__: kind.__mro__ for kind in classes(aiofinetune.FineTuneError)}
    assert {name for name, mro in standard.items() if ValueError in mro} == {
        "RequestInvalid",
        "DatasetError",
        "ManifestInvalid",
    }
    assert {name for name, mro in standard.items() if TimeoutError in mro} == {"ReplyTimeout", "WaitTimeout"}


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=repr)
def test_copies(error: aiofinetune.FineTuneError) -> None:
    """An error crosses to another process, and is copied, with its words and all its fields."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301  # made here
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (aiofinetune.RequestInvalid("n_epochs", "expected more"), "n_epochs: expected more"),
        (aiofinetune.DatasetError("a.jsonl", 3, "no JSON"), "a.jsonl, line 3: no JSON"),
        (aiofinetune.DatasetError("a.jsonl", None, "is empty"), "a.jsonl: is empty"),
        (
            aiofinetune.ManifestInvalid(
                "a.toml", (Problem(3, "model", "is wrong"), Problem(5, "label", "is used twice"))
            ),
            "a.toml, line 3, model: is wrong\na.toml, line 5, label: is used twice",
        ),
        (
            aiofinetune.CreateUncertain(FineTuneRequest(training_file="file-1", suffix="x"), 0.0, (JOB,)),
            (
                "the reply to the create was lost; a job may have been made. In list_fine_tunes(), look for a job"
                " created at 1970-01-01T00:00:00Z or later with training file file-1, model (any) and suffix x; it may"
                " be ft-1"
            ),
        ),
        (
            aiofinetune.CreateUncertain(FineTuneRequest(training_file="file-1"), 1e20, (JOB,), True, ("ft-2",), "ft-3"),
            (
                "the service accepted the create and made a job, but it is not known which one. In list_fine_tunes(),"
                " look for a job created at 1970-01-01T00:00:01Z or later with training file file-1, model (any)"
                " and suffix (none); it may be ft-3, ft-1, ft-2"
            ),
        ),
        (
            aiofinetune.CreateUncertain(
                FineTuneRequest(training_file="file-1"), 0.0, (), False, tuple(f"ft-{number}" for number in range(12))
            ),
            (
                "the reply to the create was lost; a job may have been made. In list_fine_tunes(), look for a job"
                " created at 1970-01-01T00:00:00Z or later with training file file-1, model (any) and suffix (none); it"
                " may be ft-0, ft-1, ft-2, ft-3, ft-4, ft-5, ft-6, ft-7, ft-8, ft-9 or one of 2 more"
            ),
        ),
        (
            aiofinetune.FineTuneUnreadable("$.status is missing", "ft-1"),
            "the create made the job ft-1, but the job cannot be read: $.status is missing",
        ),
        (aiofinetune.NotFound(404, "no such job"), "404: no such job"),
        (
            aiofinetune.NoResults("ft-1", "running"),
            "fine-tune ft-1 has no results file; its status is running, and a job has one once it has succeeded",
        ),
        (
            aiofinetune.NoResults("ft-1", "succeeded"),
            "fine-tune ft-1 has no results file, although it succeeded: the service does not name one",
        ),
        (
            aiofinetune.BadRequest(400, "wrong", "invalid_request_error", "model", "bad_model", "req-7", 3.0),
            "400: wrong (type invalid_request_error, param model, code bad_model, request id req-7)",
        ),
        (aiofinetune.FineTuneFailed(JOB), "fine-tune ft-1 failed"),
        (
            aiofinetune.FineTuneFailed(JOB, tuple(map(FineTuneEvent, "abcd"))),
            "fine-tune ft-1 failed: b; c; d",
        ),
    ],
)
def test_words(error: aiofinetune.FineTuneError, words: str) -> None:
    """An error's text says what is known, and nothing of what is not."""
    assert str(error) == words


def test_words_of_all() -> None:
    """No error has an empty text, or one that is a tuple of its arguments."""
    for error in ONE_OF_EACH:
        assert str(error).strip()
        assert not str(error).startswith("(")
