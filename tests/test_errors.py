from __future__ import annotations

import copy
import pickle
import re

import pytest

from aiofinetune import errors
from aiofinetune.manifest import Problem
from aiofinetune.models import File, FineTune, FineTuneEvent, FineTuneRequest

JOB = FineTune("ft-1", "failed", "ada", 1, (File("file-1"),))

ONE_OF_EACH = [
    errors.FineTuneError("something failed"),
    errors.ConfigurationError("api_key: there is none"),
    errors.RequestInvalid("n_epochs", "expected a whole number, got 'four'"),
    errors.DatasetError("train.jsonl", 3, "no JSON"),
    errors.DatasetError("train.jsonl", None, "is empty"),
    errors.ManifestInvalid("sweep.toml", (Problem(3, "n_epochs", "expected a whole number"),)),
    errors.JournalUnusable("sweep.journal: another process is running this batch"),
    errors.BatchStopped("the batch sends no more requests"),
    errors.NotSent("the create was not sent"),
    errors.CreateUncertain(FineTuneRequest(training_file="file-1"), 0.0, (JOB,)),
    errors.StreamHistoryChanged("event 3 differs from the one before the reconnect"),
    errors.LocalFileError("train.jsonl: No such file or directory"),
    errors.TransportError("no reply"),
    errors.ConnectFailed("refused"),
    errors.ConnectionLost("reset"),
    errors.ReplyTimeout("too late"),
    *(
        kind(status, "said so", "a_type", "a_param", "a_code", "req-1", 2.5)
        for kind, status in (
            (errors.APIError, 418),
            (errors.BadRequest, 400),
            (errors.AuthenticationFailed, 401),
            (errors.PermissionDenied, 403),
            (errors.NotFound, 404),
            (errors.Conflict, 409),
            (errors.RateLimited, 429),
            (errors.QuotaExceeded, 429),
            (errors.TooManyJobs, 429),
            (errors.ServerError, 500),
        )
    ),
    errors.CreateUncertain(FineTuneRequest(training_file="file-1"), 0.0, (JOB,), True, ("ft-2",), "ft-3"),
    errors.ProtocolViolation("$.id is missing"),
    errors.FineTuneUnreadable("$.status is missing", "ft-1"),
    errors.StreamInterrupted("ended early"),
    errors.FineTuneEnded(JOB),
    errors.FineTuneFailed(JOB, (FineTuneEvent("out of tokens"),)),
    errors.FineTuneCancelled(JOB),
    errors.WaitTimeout("not over after 5 s"),
]


def classes(base: type[errors.FineTuneError]) -> list[type[errors.FineTuneError]]:
    return [base] + [below for kind in base.__subclasses__() for below in classes(kind)]


def test_drawn_tree() -> None:
    """The tree at the top of the module is the tree of the classes, and `__all__` names each of them."""
    drawn: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│ ]*(?:[├└]── )?)([A-Z]\w+)", line):
            depth = len(match[1]) // 4
            del above[depth:]
            drawn[match[2]] = above[-1] if above else None
            above.append(match[2])
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in classes(errors.FineTuneError)}
    assert drawn == real | {"FineTuneError": None}
    assert sorted(drawn) == sorted(errors.__all__)


def test_every_class_has_an_example_here() -> None:
    """No class of error goes untested below."""
    assert {type(error) for error in ONE_OF_EACH} == set(classes(errors.FineTuneError))


def test_standard_bases() -> None:
    """Those who expect ValueError for a wrong argument, and TimeoutError when time ran out, get what they expect."""
    standard = {kind.__name__: kind.__mro__ for kind in classes(errors.FineTuneError)}
    assert {name for name, mro in standard.items() if ValueError in mro} == {
        "RequestInvalid",
        "DatasetError",
        "ManifestInvalid",
    }
    assert {name for name, mro in standard.items() if TimeoutError in mro} == {"ReplyTimeout", "WaitTimeout"}


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=repr)
def test_copies(error: errors.FineTuneError) -> None:
    """An error crosses to another process, and is copied, with its words and all its fields."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301  # made here
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.RequestInvalid("n_epochs", "expected more"), "n_epochs: expected more"),
        (errors.DatasetError("a.jsonl", 3, "no JSON"), "a.jsonl, line 3: no JSON"),
        (errors.DatasetError("a.jsonl", None, "is empty"), "a.jsonl: is empty"),
        (
            errors.ManifestInvalid("a.toml", (Problem(3, "model", "is wrong"), Problem(5, "label", "is used twice"))),
            "a.toml, line 3, model: is wrong\na.toml, line 5, label: is used twice",
        ),
        (
            errors.CreateUncertain(FineTuneRequest(training_file="file-1", suffix="x"), 0.0, (JOB,)),
            (
                "the reply to a create was lost, and it may have made a job. Look in list_fine_tunes() for one of"
                " 1970-01-01T00:00:00Z or later with the training file file-1, model (any) and suffix x; it may be ft-1"
            ),
        ),
        (
            errors.CreateUncertain(FineTuneRequest(training_file="file-1"), 1e20, (JOB,), True, ("ft-2",), "ft-3"),
            (
                "the service accepted a create, so it made a job, but which one is not certain. Look in"
                " list_fine_tunes() for one of 1970-01-01T00:00:01Z or later with the training file file-1, model (any)"
                " and suffix (none); it may be ft-3, ft-1, ft-2"
            ),
        ),
        (
            errors.FineTuneUnreadable("$.status is missing", "ft-1"),
            "the create made the job ft-1, which cannot be read: $.status is missing",
        ),
        (errors.NotFound(404, "no such job"), "404: no such job"),
        (
            errors.BadRequest(400, "wrong", "invalid_request_error", "model", "bad_model", "req-7", 3.0),
            "400: wrong (type invalid_request_error, param model, code bad_model, request id req-7)",
        ),
        (errors.FineTuneFailed(JOB), "fine-tune ft-1 failed"),
        (
            errors.FineTuneFailed(JOB, tuple(map(FineTuneEvent, "abcd"))),
            "fine-tune ft-1 failed: b; c; d",
        ),
    ],
)
def test_words(error: errors.FineTuneError, words: str) -> None:
    """An error's text says what is known, and nothing of what is not."""
    assert str(error) == words


def test_words_of_all() -> None:
    """No error has an empty text, or one that is a tuple of its arguments."""
    for error in ONE_OF_EACH:
        assert str(error).strip()
        assert not str(error).startswith("(")
