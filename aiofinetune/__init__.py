"""An asyncio client for services that speak the fine-tunes API.

Start at `FineTuneSession`; `FineTuneRequest` holds a job's parameters; everything raised is a `FineTuneError`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from aiofinetune._version import __version__
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
from aiofinetune.retry import Retry
from aiofinetune.session import FineTuneSession
from aiofinetune.stream import EventStream
from aiofinetune.transport import Timeout

if TYPE_CHECKING:
    from aiofinetune.batch import Batch, Outcome, Progress
    from aiofinetune.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionUsage
    from aiofinetune.manifest import Entry, Problem, check_manifest, read_manifest
    from aiofinetune.results import ResultRow, last_figures

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

_MODULE_OF = {
    "Batch": "batch",
    "Completion": "completions",
    "CompletionChoice": "completions",
    "CompletionLogprobs": "completions",
    "CompletionUsage": "completions",
    "Entry": "manifest",
    "Outcome": "batch",
    "Problem": "manifest",
    "Progress": "batch",
    "ResultRow": "results",
    "check_manifest": "manifest",
    "last_figures": "results",
    "read_manifest": "manifest",
}


def __getattr__(name: str) -> object:
    """Import when it is asked for what few programs need: batches alone take as long as the rest of the client."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
