"""The pure core of a batch: it decides everything, and touches no clock, socket, file, task or journal.

`BatchCore.handle` takes what happened, and `BatchCore.go_on` returns what to do next. Read `states` first: its tables
say what may follow what.
"""

from aiofinetune.batch._core.actions import AttemptId
from aiofinetune.batch._core.core import BatchCore, Counts
from aiofinetune.batch._core.events import AttemptRecord, KnownEntry
from aiofinetune.batch._core.failures import create_failed, upload_failed
from aiofinetune.batch._core.run import Settings
from aiofinetune.batch._core.states import (
    ANSWERS,
    ATTEMPT_TABLE,
    BATCH_TABLE,
    AttemptState,
    BatchState,
    UnexpectedEvent,
)

__all__ = [
    "ANSWERS",
    "ATTEMPT_TABLE",
    "BATCH_TABLE",
    "AttemptId",
    "AttemptRecord",
    "AttemptState",
    "BatchCore",
    "BatchState",
    "Counts",
    "KnownEntry",
    "Settings",
    "UnexpectedEvent",
    "create_failed",
    "upload_failed",
]
