"""Run many jobs: `Batch`, and the manifests that list its entries."""

from aiofinetune.batch._batch import Batch
from aiofinetune.batch._manifest import Entry, ManifestInvalid, Problem, check_manifest, read_manifest
from aiofinetune.batch._outcomes import BatchStopped, Outcome, OutcomeStatus, Progress

__all__ = [
    "Batch",
    "BatchStopped",
    "Entry",
    "ManifestInvalid",
    "Outcome",
    "OutcomeStatus",
    "Problem",
    "Progress",
    "check_manifest",
    "read_manifest",
]
