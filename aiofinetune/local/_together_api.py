"""What Together's API reads and shows: the third face of the store's jobs and files, as pure functions.

Sources: Together's API description 2.0.0, and its client, together 3.1.1, which goes before it where the two differ.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlencode

import attrs

from aiofinetune import structuring
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._store.jobs import Extras, JobRow
from aiofinetune.local._store.models import Checkpoint
from aiofinetune.models import File, FineTuneEvent, FineTuneRequest, Model, Status
from aiofinetune.results import Results

_PLAIN: Final = ("model", "training_file")
_MAX_N_EPOCHS: Final = 50
_MAX_BATCH_SIZE: Final = 256
_MAX_SUFFIX: Final = 40
_MAX_SEED: Final = 2**31 - 1
_MAX_COUNT: Final = 1000
_MAX_LEARNING_RATE: Final = 1.0

_LORA_RANK: Final = 8
_LORA: Final = {
    "type": "Lora",
    "lora_r": _LORA_RANK,
    "lora_alpha": 2 * _LORA_RANK,
    "lora_dropout": 0,
    "lora_trainable_modules": "all-linear",
}
"""What the async client sends by default. The models are so small that all their weights are trained anyway."""
_TRAINS_ITS_OWN_WAY: Final[Mapping[str, tuple[object, ...]]] = {
    "packing": (True,),
    "warmup_ratio": (0,),
    "max_grad_norm": (1,),
    "weight_decay": (0,),
    "gradient_accumulation_steps": (0, 1),
    "early_stopping_enabled": (False,),
    "training_type": ({"type": "Full"}, _LORA),
    "lr_scheduler": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_args": {"min_lr_ratio": 0, "num_cycles": 0.5}},
        {"lr_scheduler_type": "linear", "lr_scheduler_args": {"min_lr_ratio": 0}},
        {"lr_scheduler_type": "linear"},
    ),
}
"""The parameters that the trainer does not have, and the values that are taken for them: those that the client sends
by default, and those that say what the trainer does anyway."""
_COUNTS: Final = ("n_evals", "n_checkpoints")
"""The trainer evaluates at the end of every epoch and keeps the last epochs, whatever these say."""

_STATUSES: Final = {Status.PENDING: "queued", Status.SUCCEEDED: "completed", Status.FAILED: "error"}
_TYPES: Final = (
    ("Fine-tune started", "job_start"),
    ("Completed epoch", "epoch_complete"),
    ("Uploaded model", "model_upload_complete"),
    ("Uploaded result file", "training_complete"),
    ("Fine-tune succeeded", "job_complete"),
    ("Fine-tune cancelled", "job_stopped"),
    ("Fine-tune interrupted", "job_restarted"),
    ("Fine-tune resumed", "job_restarted"),
    ("Fine-tune failed", "job_stopped"),
)
"""The type of each event, by what its message begins with; any other is "job_pending"."""
_FIGURES: Final = {
    "training_loss": "train/loss",
    "training_token_accuracy": "train/token_accuracy",
    "validation_loss": "eval/loss",
    "validation_token_accuracy": "eval/token_accuracy",
}
_CHECKSUM: Final = re.compile("[0-9a-f]{64}", re.ASCII)


# Jobs


def read_job_request(value: Mapping[str, object]) -> tuple[FineTuneRequest, Extras]:
    """Read a client's JSON object.

    Returns:
        The parameters that the reference has too, and the others.

    Raises:
        RequestInvalid: A parameter is unknown or invalid, or asks for what this server cannot do.
    """
    given = {name: item for name, item in value.items() if item is not None}
    for name in _PLAIN:
        if name not in given:
            raise RequestInvalid(name, "is required")
    plain: dict[str, object] = {name: given.pop(name) for name in _PLAIN}
    # The client sends an empty text for no file.
    if validation_file := given.pop("validation_file", None):
        plain["validation_file"] = validation_file
    asked = dict(given)
    suffix, seed = _read_suffix(given.pop("suffix", None)), given.pop("random_seed", None)
    if seed is not None and not _is_whole(seed, 0, _MAX_SEED):
        raise RequestInvalid("random_seed", f"expected a whole number from 0 to {_MAX_SEED}")
    plain |= _read_numbers(given)
    plain["prompt_loss_weight"] = _read_weight(given.pop("training_method", None), given.pop("train_on_inputs", None))
    for name, item in given.items():
        _check_fixed(name, item)
    request = structuring.read_request(plain, FineTuneRequest)
    return request, Extras(suffix, seed, asked=asked)  # type: ignore[arg-type]  # checked above


def _read_suffix(suffix: object) -> str | None:
    if suffix is None or suffix == "":
        return None
    if not isinstance(suffix, str) or len(suffix) > _MAX_SUFFIX:
        raise RequestInvalid("suffix", f"expected at most {_MAX_SUFFIX} characters")
    return suffix


def _read_numbers(given: dict[str, object]) -> dict[str, object]:
    """Take the numbers out of what is given, and return those that the trainer has."""
    n_epochs, batch_size = given.pop("n_epochs", 1), given.pop("batch_size", "max")
    rate = given.pop("learning_rate", None)
    if not _is_whole(n_epochs, 1, _MAX_N_EPOCHS):
        raise RequestInvalid("n_epochs", f"expected a whole number from 1 to {_MAX_N_EPOCHS}")
    if batch_size != "max" and not _is_whole(batch_size, 1, _MAX_BATCH_SIZE):
        raise RequestInvalid("batch_size", f"expected 'max' or a whole number from 1 to {_MAX_BATCH_SIZE}")
    if rate is not None and (type(rate) not in (int, float) or not 0 < rate <= _MAX_LEARNING_RATE):  # type: ignore[operator]  # it is a number by then
        raise RequestInvalid("learning_rate", f"expected a number above 0, to {_MAX_LEARNING_RATE:g}")
    for name in _COUNTS:
        if not _is_whole(given.pop(name, 0), 0, _MAX_COUNT):
            raise RequestInvalid(name, f"expected a whole number from 0 to {_MAX_COUNT}")
    given.pop("max_seq_length", None)
    # The largest batch that fits is no good choice for a small file; "max" leaves it to the server.
    numbers = {"n_epochs": n_epochs, "learning_rate": rate, "batch_size": None if batch_size == "max" else batch_size}
    return {name: number for name, number in numbers.items() if number is not None}


def _read_weight(method: object, older: object) -> float:
    """Return the weight of the prompts' tokens: 1 if the model trains on inputs, else 0."""
    if method is None:
        method = {"method": "sft"}
    if not isinstance(method, Mapping):
        raise RequestInvalid("training_method", "expected an object")
    if method.get("method") != "sft":
        raise RequestInvalid(
            "training_method.method", "this server trains only 'sft'; it cannot do preference training"
        )
    for name in method.keys() - {"method", "train_on_inputs"}:
        raise RequestInvalid(f"training_method.{name}", "is not a parameter of 'sft'")
    wanted = method.get("train_on_inputs", "auto" if older is None else older)
    if wanted not in ("auto", True, False):
        raise RequestInvalid("training_method.train_on_inputs", "expected true, false or 'auto'")
    return 1.0 if wanted is True else 0.0


def _check_fixed(name: str, item: object) -> None:
    """Refuse a parameter that the trainer does not have, unless its value says what the trainer does anyway."""
    if name not in _TRAINS_ITS_OWN_WAY:
        raise RequestInvalid(name, "is not a parameter of this server; leave it out")
    if item not in _TRAINS_ITS_OWN_WAY[name]:
        raise RequestInvalid(name, f"this server trains in its own way; leave {name} out")


def _is_whole(value: object, least: int, most: int) -> bool:
    # True is an int in Python, but not in JSON.
    return type(value) is int and least <= value <= most


def show_job(row: JobRow, events: Sequence[FineTuneEvent] = ()) -> dict[str, object]:
    """Return a job as a JSON object; only a job that is asked for alone has its events."""
    job, asked = row.job, row.asked or {}
    is_over = job.is_terminal
    left = None if row.estimated_finish is None or is_over else max(0, row.estimated_finish - (job.updated_at or 0))
    return {
        "training_type": {"type": "Full"},
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
        "n_evals": 0,
        "n_checkpoints": 1,
        **asked,
        "id": job.id,
        "status": _STATUSES.get(job.status, job.status),
        "created_at": show_time(job.created_at),
        "updated_at": show_time(job.updated_at),
        "user_id": "user-local",
        "owner_address": "",
        "model": job.model,
        "model_output_name": job.fine_tuned_model,
        "adapter_output_name": None,
        "training_file": job.training_files[0].id,
        "validation_file": job.validation_files[0].id if job.validation_files else "",
        "n_epochs": job.hyperparams.n_epochs,
        "batch_size": job.hyperparams.batch_size,
        "learning_rate": job.hyperparams.learning_rate,
        "suffix": row.suffix or "",
        "random_seed": row.seed,
        "token_count": row.trained_tokens or 0,
        "total_price": 0,
        "epochs_completed": sum(event.message.startswith("Completed epoch") for event in events),
        "progress": {"estimate_available": left is not None, "seconds_remaining": left or 0},
        "events": [show_event(event) for event in events],
    }


def show_event(event: FineTuneEvent) -> dict[str, object]:
    """Return an event of a job as a JSON object. It has no id."""
    kind = next((kind for start, kind in _TYPES if event.message.startswith(start)), "job_pending")
    return {
        "object": "fine-tune-event",
        "created_at": show_time(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": "job_error" if event.level == "error" else kind,
        **dict.fromkeys(("param_count", "token_count", "total_steps", "step", "training_offset"), 0),
        **dict.fromkeys(("wandb_url", "checkpoint_path", "model_path", "hash"), ""),
    }


def show_time(seconds: int | None) -> str | None:
    """Return a Unix time in ISO 8601 with milliseconds."""
    if seconds is None:
        return None
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}.000Z"


def show_checkpoint(checkpoint: Checkpoint, *, is_last: bool) -> dict[str, object]:
    """Return a checkpoint of a job as a JSON object."""
    return {
        "step": checkpoint.step,
        "created_at": show_time(checkpoint.created_at),
        "path": checkpoint.model,
        "checkpoint_type": f"{'Final' if is_last else 'Intermediate'} (step {checkpoint.step})",
        "checkpoint": "model",
        "object_id": checkpoint.id,
        "object_name": checkpoint.model,
    }


def show_metrics(results: Results, query: Mapping[str, str]) -> list[dict[str, float]]:
    """Return the figures of a job, from one step to another, and of the training's as many as are asked for.

    Raises:
        RequestInvalid: A bound is not a whole number.
    """
    first, last = _read_count(query, "global_step_from", 0), _read_count(query, "global_step_to", 2**63)
    rows = [row for row in results if first <= row.step <= last]
    resolution = max(1, _read_count(query, "resolution", len(rows)))
    kept = {rows[index * len(rows) // resolution].step for index in range(min(resolution, len(rows)))}
    shown = []
    for row in rows:
        figures = {_FIGURES[name]: it for name, it in row.figures().items() if name in _FIGURES and math.isfinite(it)}
        if row.step not in kept:
            # Only the figures of the training are sampled.
            figures = {name: value for name, value in figures.items() if name.startswith("eval/")}
        if figures:
            shown.append({**figures, "train/global_step": row.step})
    return shown


def _read_count(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RequestInvalid(name, "expected a whole number")
    return int(text)


def show_limits(model: str) -> dict[str, object]:
    """Return what a job of a model may ask for."""
    batch = {"max_batch_size": _MAX_BATCH_SIZE, "max_batch_size_dpo": _MAX_BATCH_SIZE, "min_batch_size": 1}
    return {
        "model_name": model,
        "max_num_epochs": _MAX_N_EPOCHS,
        "max_num_evals": _MAX_COUNT,
        "max_num_checkpoints": _MAX_COUNT,
        "max_learning_rate": _MAX_LEARNING_RATE,
        "min_learning_rate": 0.0,
        "min_max_seq_length": 1,
        "max_seq_length_sft": 2048,
        "max_seq_length_dpo": 2048,
        "default_gradient_accumulation_steps": 1,
        "supports_vision": False,
        "supports_tools": False,
        "supports_reasoning": False,
        "supports_full_training": True,
        "merge_output_lora": False,
        "full_training": batch,
        "lora_training": {**batch, "max_rank": _LORA_RANK, "default_rank": _LORA_RANK, "target_modules": []},
    }


def show_model(name: str, created: int | None) -> dict[str, object]:
    """Return a model as a JSON object."""
    return {
        "id": name,
        "object": "model",
        "created": created or 0,
        "type": "language",
        "display_name": name,
        "organization": "local",
        "context_length": 2048,
        "pricing": dict.fromkeys(("hourly", "input", "output", "base", "finetune"), 0),
    }


def show_supported_model(model: Model) -> dict[str, object]:
    """Return a base model as the catalogue of a later version of the API has it."""
    made_at = show_time(model.created)
    return {
        "id": model.id,
        "name": model.id,
        "baseModel": "",
        "baseModelId": "",
        "publisher": "local",
        "displayName": model.id,
        "displayType": "language",
        "capabilities": [],
        "deploymentProfiles": [],
        "inputModalities": ["MODALITY_TEXT"],
        "outputModalities": ["MODALITY_TEXT"],
        "products": ["PRODUCT_SERVERLESS"],
        "status": "SUPPORTED_MODEL_STATUS_SUPPORTED",
        "createdAt": made_at,
        "updatedAt": made_at,
    }


# Files


@attrs.frozen
class FileToCome:
    """What a client says about a file whose bytes are to come, as the URL for these holds it.

    Args:
        file_id: The id that the file will have.
        file_name: Its name.
        purpose: Its purpose.
        file_type: Its type.
        checksum: The SHA-256 of its content.
        expires_at: The Unix time until which the bytes are taken.
    """

    file_id: str
    file_name: str
    purpose: str
    file_type: str
    checksum: str
    expires_at: int

    def signature(self, key: str) -> str:
        """Return what proves that this server made the URL, also after a restart."""
        said = structuring.dumps(list(attrs.astuple(self)))
        return hmac.digest(hashlib.sha256(key.encode()).digest(), said, "sha256").hex()

    def query(self, key: str) -> str:
        """Return the query of the URL for the bytes."""
        said = {name: value for name, value in attrs.asdict(self).items() if name != "file_id"}
        return urlencode({**said, "signature": self.signature(key)})

    def check(self) -> None:
        """Check what a client says.

        Raises:
            RequestInvalid: A field is not valid.
        """
        if self.purpose != "fine-tune":
            raise RequestInvalid("purpose", f"expected 'fine-tune', got {self.purpose!r}")
        if self.file_type not in ("jsonl", "csv", "parquet"):
            raise RequestInvalid("file_type", f"expected jsonl, csv or parquet, got {self.file_type!r}")
        if not self.file_name:
            raise RequestInvalid("file_name", "is required")
        if not _CHECKSUM.fullmatch(self.checksum):
            raise RequestInvalid("checksum", "expected the SHA-256 of the content as 64 lower-case hexadecimal digits")


def read_signed(file_id: str, query: Mapping[str, str], key: str, now: int) -> FileToCome | None:
    """Read the URL for the bytes of a file; None if this server did not make it, or its time is over."""
    said = {name: query.get(name, "") for name in ("file_name", "purpose", "file_type", "checksum")}
    expires_at = query.get("expires_at", "")
    if not (expires_at.isascii() and expires_at.isdigit() and len(expires_at) < 19):
        return None
    coming = FileToCome(file_id, **said, expires_at=int(expires_at))
    is_ours = hmac.compare_digest(coming.signature(key).encode(), query.get("signature", "").encode(errors="replace"))
    return coming if is_ours and now <= coming.expires_at else None


def show_file(file: File, status: str | None, report: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return a file as a JSON object.

    Args:
        file: The file.
        status: How far its reading is; None if it was not read yet.
        report: What was found in it.
    """
    suffix = (file.filename or "").rpartition(".")[2].lower()
    return {
        "id": file.id,
        "object": "file",
        "created_at": file.created_at,
        "filename": file.filename,
        "bytes": file.bytes,
        "purpose": file.purpose,
        "FileType": suffix if suffix in ("csv", "parquet") else "jsonl",
        "Processed": status == "COMPLETED",
        "processing_status": status,
        "validation_report": report,
    }


def show_report(file_id: str, lines: int | None, error: str | None) -> dict[str, object]:
    """Return what was found in a file: the number of its lines, or why it cannot be used."""
    if error is not None:
        return {"file_id": file_id, "valid": False, "error_type": "INVALID_FORMAT", "error": error}
    return {"file_id": file_id, "valid": True, "nlines": lines}
