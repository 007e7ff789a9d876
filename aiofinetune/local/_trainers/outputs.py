"""Check what a worker uploaded, before it is kept as a model or as results: a worker may lie, or its machine be broken.

Nothing is run or unpacked for that, and no base model is loaded. An adapter is therefore known to be one of its base,
whole and of finite numbers; whether it has the layers of the base shows when it is first used.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from aiofinetune.local._open_models import OpenModel
from aiofinetune.local._store.attempts import Attempt

if TYPE_CHECKING:
    from aiofinetune.local._engines.model import Floats, Model

_RESULTS: Final = b"step,elapsed_tokens,elapsed_examples,training_loss,"
"""How results files begin (`aiofinetune.local._engines.job.result_columns`)."""

_ARCHIVE_BYTES: Final = 1 << 14
"""What an archive may have in addition to its arrays."""

_TENSOR: Final = re.compile(r"base_model\.model\.[\w.]+\.lora_(?:embedding_)?[AB](?:\.weight)?")
_MAX_RANK: Final = 1024


class NotUsable(Exception):
    """An output is not what it should be; the message says why."""


def check_output(path: Path, attempt: Attempt) -> None:
    """Check one of the outputs of an attempt. This blocks.

    Raises:
        NotUsable: It is not what it should be.
        OSError: It cannot be read.
    """
    if path == attempt.results_path:
        _check_results(path)
    elif attempt.open_model:
        _check_adapter(path, attempt.open_model)
    else:
        _check_built_in(path, attempt.base)


def _check_results(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_RESULTS)) != _RESULTS:
            raise NotUsable("is no results file")


def _check_built_in(path: Path, name: str) -> None:
    from aiofinetune.local._engines import model  # noqa: PLC0415  # It imports NumPy, which takes long.
    from aiofinetune.local._engines.job import LARGEST_NUMBER  # noqa: PLC0415  # as above

    base = model.load_base(name)
    expected = _weights(base)
    try:
        _check_sizes(path, {key: weight.nbytes for key, weight in expected.items()})
        found = model.load(path)
    except OSError:
        raise
    except Exception as error:  # zipfile and NumPy have a dozen kinds for damaged files.
        raise NotUsable(f"is no model of {name}: {error!s:.200}") from error
    is_alike = all(weight.shape == expected[key].shape for key, weight in _weights(found).items())
    if (found.base, found.pretraining_rate) != (name, base.pretraining_rate) or not is_alike:
        raise NotUsable(f"is no model of {name}: it is one of another kind")
    if not model.largest_weight(found) <= LARGEST_NUMBER:
        raise NotUsable(f"is no model of {name}: it has values that are too large, or no numbers")


def _weights(model: Model) -> dict[str, Floats]:
    return attrs.asdict(model.weights, recurse=False)


def _check_sizes(path: Path, sizes: Mapping[str, int]) -> None:
    """Check that neither an archive nor any of its members is larger than the arrays that it should have.

    Raises:
        ValueError: One is.
        zipfile.BadZipFile: It is no archive.
    """
    if path.stat().st_size > sum(sizes.values()) + _ARCHIVE_BYTES:
        raise ValueError("it is too large")
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > sizes.get(member.filename.removesuffix(".npy"), 0) + _ARCHIVE_BYTES:
                raise ValueError(f"{member.filename!r:.100} is too large")


def _check_adapter(path: Path, base: OpenModel) -> None:
    import numpy as np  # noqa: PLC0415  # as above
    from safetensors import (  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]
        SafetensorError,
        safe_open,
    )

    try:
        with safe_open(str(path), "numpy") as file:
            rank = _rank((file.metadata() or {}).get("adapter_config"), base)
            names = list(file.keys())
            for name in names:
                tensor = file.get_tensor(name)
                if not _TENSOR.fullmatch(name) or tensor.dtype != np.float32 or rank not in tensor.shape:
                    raise NotUsable(f"is no adapter: its tensor {name!r:.100} is none of a LoRA of rank {rank}")
                if not np.isfinite(tensor).all():
                    raise NotUsable(f"is no adapter: its tensor {name!r:.100} has values that are no numbers")
    except (SafetensorError, ValueError, TypeError) as error:
        raise NotUsable(f"is no adapter: {error}") from error
    if not names:
        raise NotUsable("is no adapter: it has no tensors")


def _rank(config: str | None, base: OpenModel) -> int:
    """Check the configuration of an adapter (`aiofinetune.local._engines.lora.adapters`), and return its rank."""
    found: Mapping[str, Any] = json.loads(config or "{}")  # Any: JSON
    match found:
        case {"r": int(rank), "lora_alpha": int() | float() as alpha, "target_modules": [*targets]} if (
            0 < rank <= _MAX_RANK
            and math.isfinite(alpha)
            and targets
            and all(isinstance(target, str) and target for target in targets)
        ):
            pass
        case _:
            raise NotUsable("is no adapter: its configuration is not one of a LoRA")
    if found.get("base_model_digest") != base.digest:
        raise NotUsable(f"is no adapter of {base.name}: it was trained on another model")
    return rank
