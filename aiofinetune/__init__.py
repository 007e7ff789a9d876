"""An asyncio client for services that speak the fine-tunes API.

Start at `FineTuneSession`; `FineTuneRequest` holds a job's parameters; everything raised is a `FineTuneError`.

Each name is imported when it is first used, so that a program, a trainer or ``--help`` loads only what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from aiofinetune._version import __version__

if TYPE_CHECKING:
    from aiofinetune.batch import (
        Batch,
        Outcome,
        Progress,
    )
    from aiofinetune.completions import (
        Completion,
        CompletionChoice,
        CompletionLogprobs,
        CompletionUsage,
    )
    from aiofinetune.errors import (
        APIError,
        AuthenticationFailed,
        BadRequest,
        BatchStopped,
        ConfigurationError,
        Conflict,
        ConnectFailed,
        ConnectionLost,
        CreateUncertain,
        DatasetError,
        FineTuneCancelled,
        FineTuneEnded,
        FineTuneError,
        FineTuneFailed,
        FineTuneUnreadable,
        JournalUnusable,
        LocalFileError,
        ManifestInvalid,
        NotFound,
        NotSent,
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
    from aiofinetune.manifest import (
        Entry,
        Problem,
        check_manifest,
        read_manifest,
    )
    from aiofinetune.models import (
        Deleted,
        File,
        FineTune,
        FineTuneEvent,
        FineTuneRequest,
        Hyperparams,
        Model,
        Status,
    )
    from aiofinetune.results import (
        ResultRow,
        last_figures,
    )
    from aiofinetune.retry import (
        Retry,
    )
    from aiofinetune.session import (
        FineTuneSession,
    )
    from aiofinetune.stream import (
        EventStream,
    )
    from aiofinetune.transport import (
        Timeout,
    )

__all__ = [
    "APIError",
    "AuthenticationFailed",
    "BadRequest",
    "Batch",
    "BatchStopped",
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
    "Entry",
    "EventStream",
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
    "Model",
    "NotFound",
    "NotSent",
    "Outcome",
    "PermissionDenied",
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
    "batch": ["Batch", "Outcome", "Progress"],
    "completions": ["Completion", "CompletionChoice", "CompletionLogprobs", "CompletionUsage"],
    "errors": [
        "APIError",
        "AuthenticationFailed",
        "BadRequest",
        "BatchStopped",
        "ConfigurationError",
        "Conflict",
        "ConnectFailed",
        "ConnectionLost",
        "CreateUncertain",
        "DatasetError",
        "FineTuneCancelled",
        "FineTuneEnded",
        "FineTuneError",
        "FineTuneFailed",
        "FineTuneUnreadable",
        "JournalUnusable",
        "LocalFileError",
        "ManifestInvalid",
        "NotFound",
        "NotSent",
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
    "manifest": ["Entry", "Problem", "check_manifest", "read_manifest"],
    "models": ["Deleted", "File", "FineTune", "FineTuneEvent", "FineTuneRequest", "Hyperparams", "Model", "Status"],
    "results": ["ResultRow", "last_figures"],
    "retry": ["Retry"],
    "session": ["FineTuneSession"],
    "stream": ["EventStream"],
    "transport": ["Timeout"],
}
_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
