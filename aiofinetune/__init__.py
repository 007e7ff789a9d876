"""An asyncio client for services that have the fine-tunes API.

Start with `FineTuneSession`. `FineTuneRequest` holds the parameters of a job. Every error is a `FineTuneError`.

Each name is imported when it is first used, so that a program, a trainer process or ``--help`` loads only what it
needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from aiofinetune._version import __version__

if TYPE_CHECKING:
    from aiofinetune._completions import Completion, CompletionChoice, CompletionLogprobs, CompletionUsage
    from aiofinetune._http.transport import Timeout
    from aiofinetune._jobs.events import EventStream
    from aiofinetune._other_models import Checkpoint, PriceEstimate
    from aiofinetune.batch import (
        Batch,
        BatchStopped,
        Entry,
        ManifestInvalid,
        Outcome,
        Problem,
        Progress,
        check_manifest,
        read_manifest,
    )
    from aiofinetune.dialects import Dialect
    from aiofinetune.errors import (
        APIError,
        AuthenticationFailed,
        BadRequest,
        ConfigurationError,
        Conflict,
        ConnectFailed,
        ConnectionLost,
        DatasetError,
        EntryChanged,
        FineTuneError,
        FineTuneUnreadable,
        JournalUnusable,
        LocalFileError,
        NoResults,
        NotFound,
        PermissionDenied,
        ProtocolViolation,
        QuotaExceeded,
        RateLimited,
        ReplyTimeout,
        RequestInvalid,
        ServerError,
        StreamHistoryChanged,
        StreamInterrupted,
        TooManyJobs,
        TransportError,
        WaitTimeout,
    )
    from aiofinetune.models import (
        CreateUncertain,
        Deleted,
        Failure,
        File,
        FineTune,
        FineTuneCancelled,
        FineTuneEnded,
        FineTuneEvent,
        FineTuneFailed,
        FineTuneRequest,
        Hyperparams,
        Method,
        Model,
        Status,
    )
    from aiofinetune.results import ResultRow, last_figures
    from aiofinetune.retry import Retry
    from aiofinetune.session import FineTuneSession

__all__ = [
    "APIError",
    "AuthenticationFailed",
    "BadRequest",
    "Batch",
    "BatchStopped",
    "Checkpoint",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionUsage",
    "ConfigurationError",
    "Conflict",
    "ConnectFailed",
    "ConnectionLost",
    "CreateUncertain",
    "DatasetError",
    "Deleted",
    "Dialect",
    "Entry",
    "EntryChanged",
    "EventStream",
    "Failure",
    "File",
    "FineTune",
    "FineTuneCancelled",
    "FineTuneEnded",
    "FineTuneError",
    "FineTuneEvent",
    "FineTuneFailed",
    "FineTuneRequest",
    "FineTuneSession",
    "FineTuneUnreadable",
    "Hyperparams",
    "JournalUnusable",
    "LocalFileError",
    "ManifestInvalid",
    "Method",
    "Model",
    "NoResults",
    "NotFound",
    "Outcome",
    "PermissionDenied",
    "PriceEstimate",
    "Problem",
    "Progress",
    "ProtocolViolation",
    "QuotaExceeded",
    "RateLimited",
    "ReplyTimeout",
    "RequestInvalid",
    "ResultRow",
    "Retry",
    "ServerError",
    "Status",
    "StreamHistoryChanged",
    "StreamInterrupted",
    "Timeout",
    "TooManyJobs",
    "TransportError",
    "WaitTimeout",
    "__version__",
    "check_manifest",
    "last_figures",
    "read_manifest",
]

_MODULES: Final = {
    "_completions": [
        "Completion",
        "CompletionChoice",
        "CompletionLogprobs",
        "CompletionUsage",
    ],
    "_http.transport": [
        "Timeout",
    ],
    "_jobs.events": [
        "EventStream",
    ],
    "_other_models": [
        "Checkpoint",
        "PriceEstimate",
    ],
    "batch": [
        "Batch",
        "BatchStopped",
        "Entry",
        "ManifestInvalid",
        "Outcome",
        "Problem",
        "Progress",
        "check_manifest",
        "read_manifest",
    ],
    "errors": [
        "APIError",
        "AuthenticationFailed",
        "BadRequest",
        "ConfigurationError",
        "Conflict",
        "ConnectFailed",
        "ConnectionLost",
        "DatasetError",
        "EntryChanged",
        "FineTuneError",
        "FineTuneUnreadable",
        "JournalUnusable",
        "LocalFileError",
        "NoResults",
        "NotFound",
        "PermissionDenied",
        "ProtocolViolation",
        "QuotaExceeded",
        "RateLimited",
        "ReplyTimeout",
        "RequestInvalid",
        "ServerError",
        "StreamHistoryChanged",
        "StreamInterrupted",
        "TooManyJobs",
        "TransportError",
        "WaitTimeout",
    ],
    "dialects": [
        "Dialect",
    ],
    "models": [
        "CreateUncertain",
        "Deleted",
        "Failure",
        "File",
        "FineTune",
        "FineTuneCancelled",
        "FineTuneEnded",
        "FineTuneEvent",
        "FineTuneFailed",
        "FineTuneRequest",
        "Hyperparams",
        "Method",
        "Model",
        "Status",
    ],
    "results": [
        "ResultRow",
        "last_figures",
    ],
    "retry": [
        "Retry",
    ],
    "session": [
        "FineTuneSession",
    ],
}
_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Stored in the module, so that Python does not call this function for the name again.
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
