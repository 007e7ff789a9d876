"""What the exit status of a command says, as pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from aiofinetune.errors import (
    APIError,
    AuthenticationFailed,
    ConfigurationError,
    ConnectFailed,
    DatasetError,
    EntryChanged,
    FineTuneUnreadable,
    JournalUnusable,
    LocalFileError,
    NoResults,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    RequestInvalid,
    ServerError,
    StreamInterrupted,
    TooManyJobs,
    TransportError,
)

if TYPE_CHECKING:
    from aiofinetune.batch._outcomes import Outcome

# ruff: noqa: PLC0415  # the table of statuses is part of --help, which does not wait for the models


class Exit(IntEnum):
    """The exit statuses of all commands; `MEANINGS` has what each says."""

    DONE = 0
    SOME_FAILED = 1
    WRONG_USE = 2
    REFUSED = 3
    UNREACHABLE = 4
    DATA_WRONG = 5
    JOURNAL_UNUSABLE = 6
    UNCERTAIN = 7
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


MEANINGS: Final = {
    Exit.DONE: "done; also a server or a worker that was stopped",
    Exit.SOME_FAILED: "some entries failed, were cancelled or rejected, or a results file was not saved",
    Exit.WRONG_USE: "wrong use",
    Exit.REFUSED: "the service refused the command or stopped the batch (key, quota)",
    Exit.UNREACHABLE: "the service cannot be reached, or what answers is no such service",
    Exit.DATA_WRONG: "the data, the manifest or another local file is wrong",
    Exit.JOURNAL_UNUSABLE: "the journal is in use or unusable",
    Exit.UNCERTAIN: "a person must look: it is uncertain whether a job was made, or one has vanished",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.PIPE_CLOSED: "nobody reads what the command prints",
    Exit.TERMINATED: "terminated (SIGTERM)",
}
_ORDER: Final = (
    *(Exit.INTERRUPTED, Exit.TERMINATED, Exit.UNCERTAIN, Exit.JOURNAL_UNUSABLE, Exit.DATA_WRONG),
    *(Exit.PIPE_CLOSED, Exit.WRONG_USE, Exit.REFUSED, Exit.UNREACHABLE, Exit.SOME_FAILED, Exit.DONE),
)
"""Of several statuses, the first in this order is the status of the command."""


def exit_status(
    error: BaseException | None = None, outcomes: Iterable[Outcome] = (), so_far: Exit = Exit.DONE, signal: int = 0
) -> Exit:
    """Return the exit status of a command.

    Args:
        error: The error that ended it.
        outcomes: How entries of a batch ended.
        so_far: The status of what came before.
        signal: The number of the signal that ended it, SIGINT or SIGTERM; 0 if there was none.
    """
    found = {so_far, *map(_of_outcome, outcomes)}
    if error is not None:
        found.add(_of_error(error))
    if signal:
        found.add(Exit(128 + signal))
    return min(found, key=_ORDER.index)


def _of_outcome(outcome: Outcome) -> Exit:
    if outcome.status in ("uncertain", "vanished"):
        return Exit.UNCERTAIN
    # A job that succeeded has an error if its results file was not saved.
    return Exit.DONE if outcome.error is None else Exit.SOME_FAILED


def _of_error(error: BaseException) -> Exit:
    from aiofinetune.batch._manifest import ManifestInvalid
    from aiofinetune.batch._outcomes import BatchStopped
    from aiofinetune.models import CreateUncertain
    from aiofinetune.retry import may_pass

    match error:
        case CreateUncertain() | FineTuneUnreadable():
            return Exit.UNCERTAIN
        case DatasetError() | ManifestInvalid() | LocalFileError() | EntryChanged():
            # Who closes a pipe does nothing wrong.
            return Exit.PIPE_CLOSED if getattr(error, "is_closed_pipe", False) else Exit.DATA_WRONG
        case JournalUnusable():
            return Exit.JOURNAL_UNUSABLE
        case ConfigurationError() | RequestInvalid():
            return Exit.WRONG_USE
        case BatchStopped(__cause__=BaseException() as cause):
            return _of_error(cause)
        case APIError(is_foreign=False) if isinstance(error, RateLimited) or not may_pass(error):
            return Exit.REFUSED
        case APIError() | TransportError() | StreamInterrupted() | ProtocolViolation():
            return Exit.UNREACHABLE
        case _:
            return Exit.SOME_FAILED


def way_out(error: BaseException) -> str | None:
    """Return what a person can do about an error, if the error does not say it itself."""
    if isinstance(error, ConfigurationError):
        return next((advice for words, advice in _CONFIGURATION.items() if words in str(error)), None)
    if _of_error(error) is Exit.UNCERTAIN:
        return "Look before the job is created again, or it may be paid for twice: 'aiofinetune list'."
    if isinstance(error, APIError) and error.is_foreign:
        return NO_SUCH_SERVICE
    return next((advice for kinds, advice in _ADVICE if isinstance(error, kinds)), None)


def worker_way_out(error: BaseException) -> str | None:
    """Return what a person can do about an error of 'aiofinetune worker', which has options of its own."""
    match error:
        case AuthenticationFailed():
            return "Give the token that the server has (--worker-token-file): --token-file FILE."
        case ConnectFailed():
            return "Check --server, the network, SSL_CERT_FILE for https, and that 'aiofinetune serve' runs there."
        case ProtocolViolation():
            return "Check that --server is the URL of 'aiofinetune serve', and has the same version as this worker."
        case _:
            return None


NO_SUCH_SERVICE: Final = "Check --base-url, which ends in /v1 at most services, and --dialect ('aiofinetune services')."
_CONFIGURATION: Final = {
    "api_key: missing": "Give it with --api-key-file FILE or the variable OPENAI_API_KEY; --local needs none.",
}
_ADVICE: Final[Sequence[tuple[tuple[type[Exception], ...], str]]] = (
    ((AuthenticationFailed,), "Give a key that may do this: --api-key-file FILE, or the variable OPENAI_API_KEY."),
    # No key may do some things, such as delete a base model.
    ((PermissionDenied,), "If another key may do this, give it: --api-key-file FILE, or the variable OPENAI_API_KEY."),
    ((NoResults,), "What the service says of its training is in 'aiofinetune events JOB'."),
    (
        (NotFound,),
        "See what there is: 'aiofinetune list', 'aiofinetune files list', 'aiofinetune models'; or check --base-url.",
    ),
    ((QuotaExceeded,), "Wait until the quota is renewed, or have it raised, and run the command again."),
    (
        (TooManyJobs,),
        "Wait until a job ends, or cancel one; 'aiofinetune batch' with --max-active N waits by itself.",
    ),
    (
        (ConnectFailed,),
        "Check --base-url (or OPENAI_BASE_URL), the network and the proxy, and that the service runs.",
    ),
    (
        (TransportError, ServerError, RateLimited, StreamInterrupted),
        "Run the command again later; --retries N and --timeout SECONDS make it more patient.",
    ),
    ((ProtocolViolation,), NO_SUCH_SERVICE),
)
"""What to do about errors; the first that fits."""
